"""Division of integers that rounds up."""


def ceil_div(value: int, divisor: int) -> int:
    """Returns value / divisor rounded up, exactly for integers of any size."""
    return -(-value // divisor)


def round_up(value: int, multiple: int) -> int:
    """Returns the smallest multiple of `multiple` that is at least `value`."""
    return ceil_div(value, multiple) * multiple

"""Numbers with the digits that mean something."""

import math


def plain(value: float) -> str:
    """Returns a number with four digits, and with all those before its point."""
    if not math.isfinite(value) or value == 0:
        return f"{value:g}"
    exponent = _exponent(value, 3)
    return f"{value:,.{max(0, 3 - exponent)}f}" if exponent >= -4 else f"{value:.3e}"


def with_error(value: float, error: float) -> str:
    """Returns "value +- error" to two digits of the error; the value alone if that is zero."""
    if error == 0 or not math.isfinite(value):
        return plain(value)
    if not math.isfinite(error):
        return f"{plain(value)} +- {error:g}"
    decimals = max(0, 1 - _exponent(error, 1))
    return f"{value:,.{decimals}f} +- {error:,.{decimals}f}"


def _exponent(value, digits):
    # of the number as it will be shown: 0.0996 is 0.10
    return int(f"{value:.{digits}e}".split("e")[1])

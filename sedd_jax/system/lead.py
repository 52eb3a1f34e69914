"""One process speaks for all: the others compute the same, and keep silent."""

import jax


def is_primary() -> bool:
    """Returns whether this process is the one that prints, and writes the run's rows."""
    return jax.process_index() == 0


def print_on_primary(text: str) -> None:
    """Prints a line at once, on the lead only."""
    if is_primary():
        print(text, flush=True)

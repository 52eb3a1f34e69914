"""One process speaks for all: the others compute the same, and keep silent."""

import jax


def is_lead() -> bool:
    """Returns whether this process is the one that prints, and writes the run's rows."""
    return jax.process_index() == 0


def say(text: str) -> None:
    """Prints a line at once, on the lead only."""
    if is_lead():
        print(text, flush=True)

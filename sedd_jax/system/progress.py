"""Progress and remaining time, on stderr."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from sedd_jax.system.processes import is_primary

_LOG_SECONDS = 30.0  # between two lines where there is no terminal


@contextlib.contextmanager
def progress(name: str, unit: str = "batch") -> Iterator[Callable[[int, int], None]]:
    """Shows a progress bar, or prints a line every 30 seconds where stderr is not a terminal.

    Args:
      name: what is in progress.
      unit: what is counted.

    Yields:
      A function to call with the number of units (done, total). Only process 0 shows anything.
    """
    from tqdm import tqdm

    if not sys.stderr.isatty():
        yield _in_lines(name, unit, tqdm.format_meter)
        return
    with tqdm(desc=name, unit=unit, mininterval=0.5, disable=not is_primary()) as bar:

        def advance(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield advance


def _in_lines(name, unit, meter):
    began = printed = time.monotonic()

    def advance(done, total):
        nonlocal printed
        now = time.monotonic()
        if is_primary() and (done == total or now - printed >= _LOG_SECONDS):
            printed = now
            print(meter(done, total, now - began, prefix=name, unit=unit), file=sys.stderr)

    return advance

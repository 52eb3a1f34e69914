"""Progress and time left, on stderr."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from sedd_jax.system.processes import is_primary

_LOG_SECONDS = 30.0  # between two lines where there is no terminal


@contextlib.contextmanager
def progress(name: str, unit: str = "batch") -> Iterator[Callable[[int, int], None]]:
    """Gives what is to be called with units (done, total): it moves a bar.

    Where there is no terminal a line is printed now and then; only the lead shows anything.
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
    began = told = time.monotonic()

    def advance(done, total):
        nonlocal told
        now = time.monotonic()
        if is_primary() and (done == total or now - told >= _LOG_SECONDS):
            told = now
            print(meter(done, total, now - began, prefix=name, unit=unit), file=sys.stderr)

    return advance

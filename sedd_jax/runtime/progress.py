"""Progress and time left, on stderr."""

import contextlib
import sys
from collections.abc import Callable, Iterator

from sedd_jax.runtime.lead import is_lead

_LOG_SECONDS = 30.0  # between two lines where there is no terminal


@contextlib.contextmanager
def progress(name: str, unit: str = "batch") -> Iterator[Callable[[int, int], None]]:
    """Gives what is to be called with units (done, total): it moves a bar.

    Where there is no terminal a line is printed now and then; only the lead shows anything.
    """
    from tqdm import tqdm

    seconds = 0.5 if sys.stderr.isatty() else _LOG_SECONDS
    with tqdm(desc=name, unit=unit, mininterval=seconds, disable=not is_lead()) as bar:

        def advance(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield advance

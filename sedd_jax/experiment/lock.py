"""One process at a time writes in a run folder."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from sedd_jax.experiment.run import LOCK_FILE, check_folder
from sedd_jax.system.lock import exclusive


@contextlib.contextmanager
def locked(run: Path) -> Iterator[None]:
    """Keeps every other process out of the run folder, which is made if it does not exist.

    See `exclusive`; a folder that is still empty in the end is removed.

    Raises:
      BadInput: another process has the folder, or it is something else than a run folder.
    """
    check_folder(run)
    with exclusive(run / LOCK_FILE, "choose another --workdir"):
        yield

"""A file that one process at a time holds, to have a folder to itself."""

import contextlib
import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from sedd_jax.errors import BadInput

# What file systems without locks answer: FUSE and network mounts, as they are set up.
_UNSUPPORTED = (errno.ENOTSUP, errno.ENOLCK, errno.ENOSYS)


@contextlib.contextmanager
def exclusive(path: Path, otherwise: str, subject: Path | None = None) -> Iterator[None]:
    """Keeps every other process out of the folder of `path`, which is made if it does not exist.

    Or, where a `subject` is named, out of that, which is all that this lock is for.

    The lock belongs to the process: the kernel frees it however the process ends. Folders made here
    that are still empty in the end are removed. Where the file system knows no locks, a printed
    line says so, and nobody is kept out. Raises BadInput when another process has the folder;
    `otherwise` is what its user may do instead of waiting.
    """
    made = [folder for folder in path.parents if not folder.exists()]
    with contextlib.ExitStack() as stack:
        stack.callback(_remove_empty, made)
        file = stack.enter_context(_open_locked(path, otherwise, subject or path.parent))
        stack.callback(_remove_own, path, file)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


def _open_locked(path: Path, otherwise: str, subject: Path) -> TextIO:
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            file = path.open("a+", encoding="utf-8")
        except FileNotFoundError:
            continue  # the one before removed the folder
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with file:
                file.seek(0)
                holder = file.read() or "another process"
            raise BadInput(
                f"{subject} is in use by {holder}; wait until that has ended, stop it, or "
                f"{otherwise}."
            ) from None
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                file.close()
                raise
            print(
                f"{subject} cannot be locked ({error.strerror}): make sure that no other run "
                "writes there.",
                flush=True,
            )
            return file
        if _lies_at(path, file):
            return file
        file.close()  # the one that had the lock removed the file after we had opened it


def _lies_at(path: Path, file: TextIO) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _remove_own(path: Path, file: TextIO) -> None:
    """Removes the lock that is still held, unless it is gone: then another's may lie there."""
    if _lies_at(path, file):
        path.unlink()


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()

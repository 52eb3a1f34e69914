"""A lock file that keeps a folder or a file to one process."""

import contextlib
import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import filelock

from sedd_jax.errors import BadInput, warn

# what file systems without locks answer: FUSE and network mounts, depending on their options
_UNSUPPORTED = (errno.ENOTSUP, errno.ENOLCK, errno.ENOSYS)
# a holder removes its lock file last; a lock that fails on a removed file is tried again
_RETRY_SECONDS = 0.2


@contextlib.contextmanager
def exclusive(path: Path, advice: str, subject: Path | None = None) -> Iterator[None]:
    """Holds a lock, so that no other process runs the body at the same time.

    The kernel frees the lock however the process ends. The lock file is removed at the end, and so
    are folders created here that are still empty. On a file system without locks a printed line
    says so and the body runs unlocked.

    Args:
      path: the lock file; missing folders above it are created.
      advice: what the user may do instead of waiting, for the message.
      subject: what the lock protects, for the message; by default the folder of `path`.

    Raises:
      BadInput: another process holds the lock; the message names the process and its host.
    """
    subject = subject or path.parent
    created = [folder for folder in path.parents if not folder.exists()]
    with contextlib.ExitStack() as stack:
        stack.callback(_remove_empty, created)
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(
            path, timeout=_RETRY_SECONDS, fallback_to_soft=False, on_acquired=_write_holder
        )
        try:
            stack.enter_context(lock)
        except (filelock.Timeout, FileNotFoundError) as error:
            raise BadInput(
                f"{subject} is in use by {_holder(path)}; wait until it has ended, stop it, or "
                f"{advice}."
            ) from error
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
            warn(
                f"{subject} cannot be locked ({error.strerror}): make sure that no other run "
                "writes there"
            )
        stack.callback(_remove, path, path.stat())
        yield


def _write_holder(descriptor: int) -> None:
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())


def _holder(path: Path) -> str:
    with contextlib.suppress(FileNotFoundError):
        return path.read_text(encoding="utf-8") or "another process"
    return "another process"


def _remove(path: Path, held: os.stat_result) -> None:
    """Removes the lock file while it is held, unless another process has replaced it."""
    with contextlib.suppress(FileNotFoundError):
        if os.path.samestat(path.stat(), held):
            path.unlink()


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()

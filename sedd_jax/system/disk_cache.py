"""A cache on a disk of this machine: bounded, and shared by its processes."""

import contextlib
import fcntl
import functools
import io
import math
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from sedd_jax.errors import BadInput, warn

_MEASURED = 256 * 2**20  # bytes to write before the folder is measured again
_FULL_SECONDS = 10.0  # before a full cache is measured again


class DiskCache:
    """A folder of files that can be fetched again, of bounded size.

    The least recently used files that no process has open are deleted to make room. What does not
    fit is not kept.
    """

    def __init__(self, folder: Path, limit: int | None = None):
        """Makes the folder.

        Args:
          folder: where; on a disk of this machine.
          limit: bytes on disk; None for half of what is free or used by the cache now.

        Raises:
          BadInput: the folder cannot be made or written, or its file system knows no locks.
        """
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _unusable(folder, error) from error
        self.open(".probe", 0).close()  # found faulty now, not in the first step
        if limit is None:
            used = sum(size for _, size, _ in self._files())
            limit = (used + shutil.disk_usage(folder).free) // 2
        self._limit, self._left, self._full_until = limit, 0, -math.inf
        self._lock, self._told = threading.Lock(), False

    def open(self, name: str, size: int) -> io.FileIO:
        """Opens a file to read and write, or makes it; nobody deletes it while it is open.

        Args:
          name: of the file.
          size: its bytes; a new one is a hole.

        Raises:
          BadInput: it cannot be written, or its file system knows no locks.
        """
        path = self.folder / name
        try:
            while True:
                file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+b", 0)
                fcntl.flock(file, fcntl.LOCK_SH)
                with contextlib.suppress(FileNotFoundError):  # deleted just now
                    if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                        break
                file.close()
            os.utime(file.fileno())  # used now
            if os.fstat(file.fileno()).st_size != size:
                os.ftruncate(file.fileno(), size)
        except OSError as error:
            raise _unusable(self.folder, error) from error
        return file

    def take(self, size: int) -> bool:
        """Returns whether there is room for as many bytes more, which then count as used."""
        with self._lock:
            if self._left < size and time.monotonic() >= self._full_until:
                self._make_room(size)
            if self._left < size:
                return False
            self._left -= size
            return True

    def close(self, reason: str) -> None:
        """Keeps no more data for a while, and says why once."""
        with self._lock:
            self._left, self._full_until = 0, time.monotonic() + _FULL_SECONDS
            if not self._told:
                self._told = True
                warn(
                    f"The cache of data {self.folder} {reason}: what is not in it is fetched from "
                    "the bucket every time; make room, or set SEDD_JAX_CACHE and SEDD_JAX_CACHE_GIB"
                )

    def _make_room(self, wanted):
        files = sorted(self._files())
        used = sum(size for _, size, _ in files)
        for _, size, path in files:
            if used + wanted <= self._limit:
                break
            if _evict(path):
                used -= size
        self._left = min(self._limit - used, max(_MEASURED, wanted))  # others write as well
        if self._left >= wanted:
            return
        self._full_until = time.monotonic() + _FULL_SECONDS
        if not self._told:
            self._told = True
            warn(
                f"The cache of data {self.folder} is full ({self._limit / 2**30:.3g} GiB): what is "
                "not in it is fetched from the bucket every time; SEDD_JAX_CACHE_GIB allows more"
            )

    def _files(self) -> Iterator[tuple[float, int, str]]:
        """Yields when each file was opened last, its bytes on disk, and its path."""
        for entry in os.scandir(self.folder):
            try:
                found = entry.stat()
            except FileNotFoundError:
                continue
            yield found.st_mtime, found.st_blocks * 512, entry.path


def _unusable(folder: Path, error: OSError) -> BadInput:
    return BadInput(
        f"The cache of data {folder} cannot be used ({error.strerror}); set SEDD_JAX_CACHE to a "
        "folder on a disk of this machine."
    )


def _evict(path: str) -> bool:
    """Deletes a file of the cache unless a process has it open."""
    try:
        with open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(path)
    except BlockingIOError:
        return False
    except FileNotFoundError:
        pass
    return True


@functools.cache
def default_cache() -> DiskCache:
    """Returns the cache of this machine, as the environment says.

    Raises:
      BadInput: SEDD_JAX_CACHE_GIB is no number, or the folder cannot be made.
    """
    given = os.environ.get("SEDD_JAX_CACHE_GIB")
    try:
        limit = None if given is None else int(float(given) * 2**30)
    except (ValueError, OverflowError):
        limit = -1
    if limit is not None and limit < 0:
        raise BadInput(f"SEDD_JAX_CACHE_GIB is {given!r}; give a number of GiB, or 0 for no cache.")
    return DiskCache(cache_folder() / "shards", limit)


def cache_folder() -> Path:
    """Returns the folder of all that is kept of buckets.

    Raises:
      BadInput: this user has no home.
    """
    if own := os.environ.get("SEDD_JAX_CACHE"):
        return Path(own).absolute()
    try:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError as error:
        raise BadInput("There is no home for the cache of data; set SEDD_JAX_CACHE.") from error
    return home.absolute() / "sedd_jax"

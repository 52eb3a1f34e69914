"""Folders in buckets as local folders: small files are fetched, and those written are uploaded.

A program names a folder by `local`, to read, or `opened`, to write as well, and works on a Path;
for a local folder both are that folder and nothing else happens. Checkpoints and token ids are
large: they stay in the bucket, and who reads them asks `address_of` where.
"""

import atexit
import contextlib
import fnmatch
import functools
import glob
import os
import shutil
import tempfile
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

from sedd_jax.errors import BadInput, Halted, warn
from sedd_jax.system import bucket, lease
from sedd_jax.system.bucket import Address, Entry, is_address, parse

PUSH_SECONDS = 30.0  # between two looks for changed files
# what is not fetched: it is large, of one moment, or of the store itself
_LARGE = ("checkpoints/*", "damaged/*", "profile/*", "*.bin", "*/")
_OF_A_MOMENT = ("lock", "*.lock", ".probe-*", "*/.probe-*", "*.tmp", ".*.staging/*")
_LAST = ("data/manifest.json", "manifest.json", "config.json")  # they say that the rest is there
_MOST_FILES = 5000  # of a folder that is fetched


class _Mirror:
    """A local folder with the small files of a folder in a bucket."""

    def __init__(self, address: Address, only: tuple[str, ...] = ("*",)):
        """Makes the local folder, empty.

        Args:
          address: of the folder in the bucket.
          only: patterns of the names that are fetched and uploaded; of large files their names.
        """
        self.address, self._only = address, only
        self.temporary, self.stays = tempfile.mkdtemp(prefix="sedd_jax-"), False
        self.folder = Path(self.temporary).resolve() / address.name
        self.folder.mkdir()
        self.entries: dict[str, Entry] | None = None  # of the bucket, when it was last listed
        self._known: dict[str, tuple[int, int]] = {}  # files as they are in the bucket
        self._pushing = threading.Lock()
        _ADDRESSES[str(self.folder)] = str(address)

    def pull(self) -> None:
        """Lists the folder in the bucket and fetches the small files."""
        before, self.entries = self.entries or {}, self._found()
        wanted = {name: each for name, each in self.entries.items() if self._is_wanted(name)}
        if len(wanted) > _MOST_FILES:
            raise BadInput(
                f"{self.address} holds {len(wanted):,} files, which no folder of this program "
                "does; name another one."
            )
        if "data/manifest.json" not in wanted:  # the rest of data that were not uploaded to the end
            wanted = {name: each for name, each in wanted.items() if not name.startswith("data/")}
        calls = [
            functools.partial(self._fetch, name, entry)
            for name, entry in wanted.items()
            if entry != before.get(name) or name not in self._known
        ]
        bucket.in_parallel(calls)

    def _found(self):
        """What there is in the bucket; of single files without a list of those beside them."""
        if any(glob.has_magic(pattern) for pattern in self._only):
            return bucket.entries(self.address)
        found = {}
        for name in self._only:
            with contextlib.suppress(FileNotFoundError):
                found[name] = bucket.entry(self.address / name)
        return found

    def _fetch(self, name, entry):
        path = self.folder / name
        if self.folder not in path.resolve().parents:
            raise BadInput(f"{self.address / name} has no name that a file can have.")
        bucket.download(self.address / name, path, entry)
        self._known[name] = _state(path)

    def _is_wanted(self, name):
        excluded = (*_LARGE, *_OF_A_MOMENT)
        return name in self._only or (_matches(name, self._only) and not _matches(name, excluded))

    def push(self) -> None:
        """Uploads the files that changed since the last time."""
        with self._pushing:
            waves = [[], *([] for _ in _LAST)]
            for path in sorted(self.folder.rglob("*")):
                name = path.relative_to(self.folder).as_posix()
                if not path.is_file() or _matches(name, _OF_A_MOMENT):
                    continue
                if _matches(name, self._only) and self._known.get(name) != _state(path):
                    waves[_LAST.index(name) + 1 if name in _LAST else 0].append(name)
            for names in waves:
                bucket.in_parallel([functools.partial(self._upload, name) for name in names])

    def _upload(self, name):
        path, copy = self.folder / name, Path(self.temporary, uuid.uuid4().hex)
        try:
            state = _state(path)
            shutil.copyfile(path, copy)  # which does not grow while it is read
            lease.check()  # a suspended process may wake up here
            bucket.upload(copy, self.address / name)
            self._known[name] = state
        except FileNotFoundError:
            if path.exists():  # else it was removed meanwhile
                raise
        finally:
            copy.unlink(missing_ok=True)

    def close(self) -> None:
        """Removes the local folder, unless an upload failed."""
        _OPEN.pop(self.folder, None)
        if not self.stays:
            shutil.rmtree(self.temporary, ignore_errors=True)


_ADDRESSES: dict[str, str] = {}  # of all local folders there were
_OPEN: dict[Path, _Mirror] = {}  # by their local folders
_READ: dict[tuple[Address, tuple[str, ...]], _Mirror] = {}


def local(
    name: str | os.PathLike[str], flag: str = "The folder", only: tuple[str, ...] = ("*",)
) -> Path:
    """Returns a folder to read: a local one as it is, or one in a bucket, fetched once.

    Args:
      name: a path or an address.
      flag: the flag or setting that names it, for messages.
      only: patterns of the names that are fetched.

    Raises:
      BadInput: the address is not one, holds nothing, or cannot be read.
      Halted: the bucket does not answer.
    """
    if not is_address(name):
        return Path(name)
    address = parse(name, flag)
    if (address, only) not in _READ:
        found = _opened(address, only)
        found.pull()
        if not found.entries:
            raise BadInput(f"There is nothing in {address}: is the name right?")
        _READ[address, only] = found
    return _READ[address, only].folder


def local_file(name: str | os.PathLike[str], flag: str = "The file") -> Path:
    """Returns a file to read: a local one as it is, or an object of a bucket, fetched once.

    Raises:
      BadInput: there is no such object, or no access to it.
      Halted: the bucket does not answer.
    """
    if not is_address(name):
        return Path(name)
    address = parse(name, flag)
    folder, _, file = address.key.rpartition("/")
    above = address._replace(key=folder)
    for mirror in _OPEN.values():
        if mirror.address == above and (mirror.folder / file).is_file():
            return mirror.folder / file
    path = _opened(above, only=(file,)).folder / file
    try:
        bucket.download(address, path, bucket.entry(address))
    except FileNotFoundError as error:
        raise BadInput(f"{flag} {address} does not exist.") from error
    return path


@contextlib.contextmanager
def opened(
    name: str | os.PathLike[str], flag: str, only: tuple[str, ...] = ("*",)
) -> Iterator[Path]:
    """Holds a folder to write: a local one as it is, or an empty one that mirrors one in a bucket.

    Nothing is fetched or uploaded before `synced`.

    Args:
      name: a path or an address.
      flag: the flag that names it, for messages.
      only: patterns of the names in a bucket that are fetched and uploaded.

    Raises:
      BadInput: the address is not one.
    """
    if not is_address(name):
        yield Path(name)
        return
    mirror = _opened(parse(name, flag), only)
    try:
        yield mirror.folder
    finally:
        mirror.close()


def _opened(address, only=("*",)):
    mirror = _Mirror(address, only)
    _OPEN[mirror.folder] = mirror
    atexit.register(mirror.close)
    return mirror


@contextlib.contextmanager
def synced(folder: Path, flag: str = "") -> Iterator[None]:
    """Fetches the files of a mirror, and uploads what changes: in the background and at the end.

    For a folder that is no mirror, nothing happens.

    Args:
      folder: the local folder.
      flag: the flag that names it: a small object is written first, so that a bucket which cannot
        be written is known before anything expensive.

    Raises:
      BadInput: the bucket cannot be read or written.
      Halted: it does not answer.
    """
    mirror = _OPEN.get(folder)
    if mirror is None:
        yield
        return
    pull(folder, flag)
    done = threading.Event()
    thread = threading.Thread(target=_push_until, args=(done, mirror), daemon=True)
    thread.start()
    failed = True
    try:
        yield
        failed = False
    finally:
        try:
            with keeping(folder):
                done.set()
                thread.join()
                mirror.push()
        except (BadInput, Halted) as error:
            if not failed:
                raise
            warn(f"The last files of {mirror.address} are not uploaded: {error}")


@contextlib.contextmanager
def keeping(path: Path) -> Iterator[None]:
    """Lets the local folder of a mirror stay if the body, which uploads from it, fails."""
    try:
        yield
    except (BadInput, Halted, OSError, KeyboardInterrupt) as error:
        mirror = _mirror_of(path)
        mirror.stays = True
        kind = BadInput if isinstance(error, BadInput) else Halted
        said = str(error).rstrip(".") or "Interrupted"
        raise kind(f"{said}. What is not uploaded is in {mirror.temporary}.") from error


def _push_until(done, mirror):
    """Uploads changed files now and then; a failure is told once, and tried again."""
    told = False
    while not done.wait(PUSH_SECONDS):
        try:
            mirror.push()
            told = False
        except (BadInput, Halted, OSError) as error:
            if not told:
                warn(f"Files of {mirror.address} are not uploaded yet: {error}")
            told = True


def pull(folder: Path, flag: str = "") -> None:
    """Fetches the files of a mirror, as `synced` does; nothing for a local folder."""
    if mirror := _OPEN.get(folder):
        if flag:
            bucket.check_access(mirror.address, flag)
        mirror.pull()


def push(path: Path) -> None:
    """Uploads what changed in the mirror that a path is in; nothing for others."""
    if mirror := _mirror_of(path):
        mirror.push()


def address_of(path: Path) -> Address | None:
    """Returns what a path in a mirror is in the bucket; None for a local path."""
    if (mirror := _mirror_of(path)) is None:
        return None
    inside = path.relative_to(mirror.folder).as_posix()
    return mirror.address if inside == "." else mirror.address / inside


def entries_of(path: Path) -> dict[str, Entry]:
    """Returns the objects below a path in a mirror, by their names from there, as last listed."""
    mirror = _mirror_of(path)
    if mirror.entries is None:
        mirror.entries = bucket.entries(mirror.address)
    inside = path.relative_to(mirror.folder).as_posix()
    start = "" if inside == "." else f"{inside}/"
    return {
        name.removeprefix(start): entry
        for name, entry in mirror.entries.items()
        if name.startswith(start)
    }


def shown(path: Path) -> str:
    """Returns a path as the user knows it: in a bucket by its address."""
    return str(address_of(path) or path)


@contextlib.contextmanager
def errors_by_address() -> Iterator[None]:
    """Lets errors of the body name the addresses of mirrors in the place of their folders."""
    try:
        yield
    except (BadInput, Halted, OSError) as error:
        error.args = tuple(map(_by_address, error.args))
        if getattr(error, "filename", None):
            error.filename = _by_address(error.filename)
        raise


def _by_address(value):
    if isinstance(value, str | Path):
        for folder, address in _ADDRESSES.items():
            value = str(value).replace(folder, address)
    return value


def _mirror_of(path: Path) -> _Mirror | None:
    if not _OPEN:
        return None
    return next((_OPEN[each] for each in (path, *path.parents) if each in _OPEN), None)


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return name in patterns or any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _state(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_mtime_ns, found.st_size

"""Objects in buckets of Google Cloud Storage (gs://BUCKET/KEY) and Amazon S3 (s3://BUCKET/KEY).

The clients are those of fsspec, gcsfs and s3fs. An operation that fails for a passing reason, such
as a 503, a 429 or a reset connection, is tried again for `patience()` seconds.
"""

import contextlib
import functools
import math
import os
import random
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

from sedd_jax.errors import BadInput, Halted, warn
from sedd_jax.system.bucket_errors import brief, lasting, status_of
from sedd_jax.system.files import atomic_move
from sedd_jax.system.object_stores import ABSENT, STORES, Entry, ObjectStore

T = TypeVar("T")

_PART = 64 * 2**20  # bytes of a request of `download`
_THREADS = 16  # of operations on many objects
_URL = re.compile(r"([A-Za-z][\w+.-]*):/(/?)(.*)", re.DOTALL)


class Conflict(Exception):
    """A conditional operation met another version of the object than the one it named."""


class Address(NamedTuple):
    """The place of an object or a folder in a bucket; `key` has no slash at its ends."""

    scheme: str
    bucket: str
    key: str

    def __str__(self) -> str:
        return f"{self.scheme}://{self.bucket}" + (f"/{self.key}" if self.key else "")

    def __truediv__(self, name: str) -> "Address":
        return self._replace(key=f"{self.key}/{name}".strip("/"))

    @property
    def name(self) -> str:
        """The last part of the key, or the bucket."""
        return self.key.rpartition("/")[2] or self.bucket


def seconds_from(variable: str, default: float) -> float:
    """Returns what a variable of the environment says.

    Raises:
      BadInput: it is no positive number.
    """
    text = os.environ.get(variable)
    try:
        seconds = default if text is None else float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise BadInput(f"{variable} is {text!r} in the environment; give a number of seconds.")
    return seconds


def patience() -> float:
    """Returns the seconds for which an operation is tried again."""
    return seconds_from("SEDD_JAX_BUCKET_PATIENCE", 120.0)


def is_address(name: str | os.PathLike[str]) -> bool:
    """Returns whether a name begins with a scheme, as gs:// does, instead of being a local path."""
    return _URL.match(os.fspath(name)) is not None


def parse(name: str | os.PathLike[str], flag: str = "The address") -> Address:
    """Returns the address that a user wrote.

    Args:
      name: gs://BUCKET/KEY or s3://BUCKET/KEY; a Path has lost one of the slashes, which is fine.
      flag: the flag or setting that names it, for the message.

    Raises:
      BadInput: it is of another scheme, or has no bucket.
    """
    match = _URL.match(os.fspath(name))
    scheme, slash, rest = match.groups() if match else ("", "", "")
    bucket, _, key = rest.partition("/")
    if scheme not in STORES or not bucket or not (slash or isinstance(name, os.PathLike)):
        raise BadInput(
            f"{flag} is {name}, which is neither a local path nor the address of a bucket: that "
            "begins with gs://BUCKET/ or s3://BUCKET/."
        )
    return Address(scheme, bucket, key.strip("/"))


def entries(folder: Address) -> dict[str, Entry]:
    """Returns all objects under a folder, by their names from there; empty if there are none.

    Raises:
      BadInput: there is no such bucket, or no access to it.
      Halted: it does not answer.
    """
    prefix = f"{folder.key}/" if folder.key else ""
    store = _store(folder)

    def all_pages():
        found = store.list(folder.bucket, prefix)
        return {key.removeprefix(prefix): entry for key, entry in found if key != prefix}

    with _in_a_bucket(folder):
        return _patiently(folder, all_pages)


def entry(address: Address) -> Entry:
    """Returns what there is of an object; raises as `read`."""
    store = _store(address)
    return _patiently(address, lambda: store.entry(address.bucket, address.key))


def read(
    address: Address, start: int = 0, stop: int | None = None, version: str | None = None
) -> tuple[bytes, str]:
    """Returns the bytes [start, stop) of an object, or fewer at its end, and its version.

    Args:
      address: of the object.
      start: the first byte.
      stop: the byte after the last one; None for all.
      version: that it must have; None for any.

    Raises:
      FileNotFoundError: there is no such object.
      Conflict: it has another version.
      BadInput: there is no access to it.
      Halted: the bucket does not answer.
    """
    if stop is not None and stop <= start:
        return b"", version or ABSENT
    store = _store(address)
    content, found = _patiently(
        address, lambda: store.read(address.bucket, address.key, start, stop, version)
    )
    return content, found


def write(address: Address, content: bytes, if_version: str | None = None) -> str:
    """Writes an object in one step and returns its version.

    Args:
      address: of the object.
      content: all of it.
      if_version: the version to replace, `ABSENT` if it must be new; None replaces any. A lost
        answer to a write that was made looks like a `Conflict` with itself.

    Raises:
      Conflict: the object has another version.
      BadInput: there is no access to it.
      Halted: the bucket does not answer.
    """
    store = _store(address)
    with _in_a_bucket(address, if_version):
        return _patiently(
            address, lambda: store.write(address.bucket, address.key, content, if_version)
        )


def delete(address: Address, if_version: str | None = None) -> None:
    """Deletes an object, if it exists; raises as `write`."""
    store = _store(address)
    with contextlib.suppress(FileNotFoundError):
        _patiently(address, lambda: store.delete(address.bucket, address.key, if_version))


def move(folder: Address, target: Address, first: str) -> None:
    """Moves a folder, object by object.

    Args:
      folder: what to move.
      target: its new place, where there is nothing.
      first: the object that goes first, and comes last: its place has all of the others.

    Raises:
      BadInput: there is no access to it.
      Halted: the bucket does not answer.
    """
    names = list(entries(folder))
    files = _store(folder).files

    def copy(name):
        source, copied = ((place / name) for place in (folder, target))
        paths = [f"{place.bucket}/{place.key}" for place in (source, copied)]
        _patiently(source, lambda: files.cp_file(*paths))

    content = None
    if first in names:
        names.remove(first)
        content, _ = read(folder / first)
        delete(folder / first)
    in_parallel([functools.partial(copy, name) for name in names])
    if content is not None:
        write(target / first, content)
    in_parallel([functools.partial(delete, folder / name) for name in names])


def upload(path: Path, address: Address) -> None:
    """Copies a file to an object, which appears when it is whole; raises as `write`."""
    store = _store(address)
    with _in_a_bucket(address):
        _patiently(address, lambda: store.upload(path, address.bucket, address.key))


def download(address: Address, path: Path, found: Entry) -> None:
    """Copies an object to a file, which appears when it is whole.

    Args:
      address: of the object.
      path: the file; missing folders above it are made.
      found: of the object, from `entry` or `entries`.

    Raises:
      Halted: the object changes meanwhile; otherwise as `read`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{random.getrandbits(32):x}")
    try:
        with temporary.open("xb") as file:
            for start in range(0, found.size, _PART):
                stop = min(start + _PART, found.size)
                file.write(read(address, start, stop, found.version)[0])
        atomic_move(temporary, path)
    except (Conflict, FileNotFoundError) as error:
        raise Halted(f"{address} changed while it was read; start again.") from error
    finally:
        temporary.unlink(missing_ok=True)


def in_parallel(calls: list[Callable[[], T]]) -> list[T]:
    """Returns the results of independent operations, made by several threads."""
    if len(calls) < 2:
        return [call() for call in calls]
    with ThreadPoolExecutor(min(_THREADS, len(calls)), "bucket") as threads:
        return list(threads.map(lambda call: call(), calls))


def check_access(folder: Address, flag: str) -> None:
    """Writes and deletes a small object, so that a run does not find out at its first save.

    Args:
      folder: where.
      flag: that names it, for the message.

    Raises:
      BadInput: there is no access; the message says to what.
      Halted: the bucket does not answer.
    """
    probe = folder / f".probe-{random.getrandbits(64):x}"
    try:
        write(probe, b"")
        delete(probe)
    except BadInput as error:
        raise BadInput(f"{flag}: {error}") from error


@contextlib.contextmanager
def listed(folder: Address) -> Iterator[None]:
    """Answers questions about the existence of objects under a folder from one listing.

    For libraries that ask on the same file systems, one object after another, while nobody else
    writes. The listing is forgotten at the end.
    """
    files = _store(folder).files
    files.dircache.use_listings_cache = True
    try:
        with contextlib.suppress(FileNotFoundError):
            _patiently(folder, lambda: files.find(f"{folder.bucket}/{folder.key}", withdirs=True))
        yield
    finally:
        files.dircache.use_listings_cache = False
        files.dircache.clear()


def _patiently(address: Address, call: Callable[[], T]) -> T:
    """Returns call(), tried again while it fails for a passing reason."""
    began, limit, delay, warned = time.monotonic(), patience(), 0.5, False
    while True:
        try:
            return call()
        except Exception as error:
            status = status_of(error)
            if status == 404 or isinstance(error, FileNotFoundError):
                raise FileNotFoundError(2, "There is no such object", str(address)) from error
            if status in (409, 412):
                raise Conflict(str(address)) from error
            if fault := lasting(error, status, address.scheme):
                raise BadInput(f"{address} {fault}") from error
            waited = time.monotonic() - began
            if waited + delay > limit:
                raise Halted(
                    f"{address} has not answered for {waited:.0f} s ({brief(error)}). Fix the "
                    "cause and run the same command again."
                ) from error
            if not warned and waited > 2:
                warn(f"{address} does not answer ({brief(error)}); it is asked for {limit:.0f} s")
                warned = True
        time.sleep(delay * random.uniform(0.7, 1))
        delay = min(2 * delay, 10)


@contextlib.contextmanager
def _in_a_bucket(address, if_version=None):
    """Says of a 404 what it means where no object needs to exist."""
    try:
        yield
    except FileNotFoundError as error:
        if if_version:  # so S3 answers about an object that should be replaced
            raise Conflict(str(address)) from error
        where = f"{address.scheme}://{address.bucket}"
        raise BadInput(f"There is no bucket {where}, or no right to see it.") from error


def _store(address: Address) -> ObjectStore:
    return _patiently(address, lambda: _opened(address.scheme))  # credentials are looked for


@functools.cache
def _opened(scheme):
    return STORES[scheme]()

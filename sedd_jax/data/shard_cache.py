"""Shards of a bucket in a local cache: files with holes, which are filled when they are read.

A file of the cache is named by the SHA-256 of its shard, so that runs and buckets share it. It
holds the bytes of the shard and a checksum of every unit of them. A unit counts as here if its
checksum is that of its bytes. So nothing needs a lock: processes may write the same unit at the
same time, and what a kill or a power failure left half written is fetched again.
"""

import collections
import errno
import functools
import hashlib
import mmap
import os
import threading
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from sedd_jax.errors import BadInput
from sedd_jax.system import bucket
from sedd_jax.system.bucket import Address, Conflict
from sedd_jax.system.disk_cache import DiskCache

UNIT = 128  # bytes; a block of 2 KiB that begins anywhere then costs 5 % more than its size
_PIECE = 8 * 2**20  # bytes of a request, at most
_PAGE = 4096  # of a file system: what a unit occupies on disk
# a sum of products with fixed random odd numbers, modulo 2^64: fast in numpy (Lemire and Kaser
# 2014, arXiv 1202.4961); it protects from accidents, the SHA-256 of the shard from all else
_WEIGHTS = np.random.Generator(np.random.PCG64(0)).integers(0, 2**64, UNIT // 8, np.uint64) | 1


class Shard(NamedTuple):
    """A shard in a bucket.

    Attributes:
      address: of the object.
      size: bytes.
      version: of the object when the data were opened.
      sha256: that it must have; "" where an old manifest says none.
      is_known: whether the bucket says that the object is the shard, by its MD5. Otherwise the
        whole shard is fetched and its SHA-256 compared before it is used.
    """

    address: Address
    size: int
    version: str
    sha256: str
    is_known: bool


class Span(NamedTuple):
    """The bytes [start, stop) of a shard."""

    file: "CacheFile"
    start: int
    stop: int


class CacheFile:
    """A shard in the cache, mapped: its bytes, the checksums, and whether its SHA-256 is confirmed.

    Other processes do not delete it while it is open.

    Attributes:
      shard: what it holds.
      data: its bytes, uint8 [size]; those that are not here are anything.
    """

    def __init__(self, shard: Shard, cache: DiskCache):
        """Opens the file, or makes it, empty.

        Args:
          shard: what it holds.
          cache: where.

        Raises:
          BadInput: the cache cannot be written, or its file system knows no locks.
        """
        self.shard, self._cache = shard, cache
        self._units = -(-shard.size // UNIT)
        self._sums_at = self._units * UNIT
        self._confirmed_at = self._sums_at + 4 * self._units
        # an object without a hash is another one with every version
        name = (
            shard.sha256 or hashlib.sha256(f"{shard.address} {shard.version}".encode()).hexdigest()
        )
        self._file = cache.open(name, self._confirmed_at + 4)
        self._mapping = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
        everything = np.frombuffer(self._mapping, np.uint8)
        self.data = everything[: shard.size]
        self._padded = everything[: self._sums_at]
        self._sums = everything[self._sums_at : self._confirmed_at].view(np.uint32)
        self._confirmed = everything[self._confirmed_at :].view(np.uint32)
        self._seen = np.zeros(self._units, bool)  # units that this process has found right
        self._is_whole = False  # all of them
        self._may_be_read = shard.is_known or not shard.sha256
        self._lock = threading.Lock()

    @property
    def is_whole(self) -> bool:
        """Whether all of the shard is here."""
        return self._is_whole

    def has(self, start: int, stop: int) -> bool:
        """Returns whether bytes are here and right."""
        if self._is_whole:
            return True
        if not self._may_be_read and not self._confirmed[0]:
            return False
        first, last = start // UNIT, -(-stop // UNIT)
        if self._seen[first:last].all():
            return True
        self._check(first, last)
        # one that is whole and not confirmed, since its writer was killed, is left to `settle`
        return bool(self._seen[first:last].all()) and (self._is_whole or not self._seen.all())

    def missing(self, spans: Iterable[Span]) -> list[tuple[int, int]]:
        """Returns the units to fetch, as ranges [first, last) that do not touch."""
        if not self._may_be_read and not self._confirmed[0]:
            self._check(0, self._units)
            spans = [Span(self, 0, self.shard.size)]
        ranges = []
        for first, last in sorted((s.start // UNIT, -(-s.stop // UNIT)) for s in spans):
            absent = first + np.flatnonzero(~self._seen[first:last])
            if not len(absent):
                continue
            borders = np.flatnonzero(np.diff(absent) > 1)
            firsts, lasts = absent[[0, *(borders + 1)]], absent[[*borders, -1]] + 1
            for a, b in zip(firsts.tolist(), lasts.tolist(), strict=True):
                if ranges and a <= ranges[-1][1]:
                    ranges[-1] = ranges[-1][0], max(b, ranges[-1][1])
                else:
                    ranges.append((a, b))
        return ranges

    def fetch(self, first: int, last: int) -> bytes | None:
        """Fetches units and keeps them; returns them if there is no room.

        Args:
          first: the first unit.
          last: the unit after the last one.

        Raises:
          BadInput: the object has changed.
          Halted: the bucket does not answer.
        """
        content = _read(self.shard, first * UNIT, min(last * UNIT, self.shard.size))
        return None if self._keep(first, content) else content

    def settle(self, fetched: list[tuple[int, bytes]]) -> None:
        """Compares the SHA-256 if the shard has just become whole, or must not be read before.

        Args:
          fetched: first unit and bytes of what could not be kept.

        Raises:
          BadInput: the object is not the shard of the manifest.
        """
        if self._may_be_read and np.count_nonzero(self._sums) < self._units:
            return
        with self._lock:
            self._check(0, self._units)
            is_kept = bool(self._seen.all())
            if self._may_be_read and not is_kept:
                return
            if self.shard.sha256 and not self._confirmed[0]:
                content = self.data if is_kept else self.read(0, self.shard.size, fetched)
                if hashlib.sha256(content).hexdigest() != self.shard.sha256:
                    self._drop()
                    raise _Wrong
                if is_kept:
                    _write(self._file.fileno(), np.ones(1, np.uint32), self._confirmed_at)
            self._may_be_read, self._is_whole = True, is_kept

    def read(self, start: int, stop: int, fetched: Sequence[tuple[int, bytes]] = ()) -> np.ndarray:
        """Returns bytes [start, stop) as uint8.

        Args:
          start: the first byte.
          stop: the byte after the last one.
          fetched: first unit and bytes of what could not be kept.
        """
        if not fetched:
            return self.data[start:stop]
        content = self.data[start:stop].copy()
        for first, other in fetched:
            begin, end = max(start, first * UNIT), min(stop, first * UNIT + len(other))
            if begin < end:
                part = np.frombuffer(other, np.uint8)[begin - first * UNIT : end - first * UNIT]
                content[begin - start : end - start] = part
        return content

    def _check(self, first, last):
        """Looks which units are here, by their checksums."""
        if os.fstat(self._file.fileno()).st_size < self._confirmed_at:  # to read it would kill
            raise BadInput(f"A file of {self._cache.folder} was cut short by others; start again.")
        unseen = first + np.flatnonzero(~self._seen[first:last] & (self._sums[first:last] != 0))
        if len(unseen):
            first, last = int(unseen[0]), int(unseen[-1]) + 1
            right = _sums(self._padded[first * UNIT : last * UNIT]) == self._sums[first:last]
            self._seen[first:last] |= right
            self._is_whole = bool(self._confirmed[0]) and bool(self._seen.all())

    def _keep(self, first, content):
        padded = np.zeros(-(-len(content) // UNIT) * UNIT, np.uint8)
        padded[: len(content)] = np.frombuffer(content, np.uint8)
        sums, last = _sums(padded), first + len(padded) // UNIT
        start, stop = first * UNIT, last * UNIT
        if not self._cache.take((-(-stop // _PAGE) - start // _PAGE + 1) * _PAGE):
            return False
        try:
            _write(self._file.fileno(), padded, start)
            _write(self._file.fileno(), sums, self._sums_at + 4 * first)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
                raise
            self._cache.close(f"cannot be written ({error.strerror})")
            return False
        self._seen[first:last] = True
        return True

    def _drop(self):
        _write(self._file.fileno(), np.zeros(self._units + 1, np.uint32), self._sums_at)
        self._seen[:] = False


class _Wrong(Exception):
    """The bytes of a shard are not those of the manifest."""


def read_spans(spans: Sequence[Span]) -> list[np.ndarray]:
    """Returns the bytes of each span as uint8; what is not here is fetched, in parallel.

    Raises:
      BadInput: an object has changed, or is not the shard of the manifest.
      Halted: the bucket does not answer.
    """
    absent = collections.defaultdict(list)
    for span in spans:
        if not span.file.has(span.start, span.stop):
            absent[span.file].append(span)
    if not absent:
        return [file.data[start:stop] for file, start, stop in spans]
    fetched = _fetch(absent)
    return [span.file.read(span.start, span.stop, fetched.get(span.file, ())) for span in spans]


def _fetch(absent: dict[CacheFile, list[Span]]) -> dict[CacheFile, list[tuple[int, bytes]]]:
    """Fetches what is missing of files; returns the first units and bytes that cannot be kept."""
    for attempt in range(2):
        step = _PIECE // UNIT
        calls = [
            (file, at, min(at + step, last))
            for file, own in absent.items()
            for first, last in file.missing(own)
            for at in range(first, last, step)
        ]
        contents = bucket.in_parallel([functools.partial(f.fetch, a, b) for f, a, b in calls])
        fetched = collections.defaultdict(list)
        for (file, first, _), content in zip(calls, contents, strict=True):
            if content is not None:
                fetched[file].append((first, content))
        try:
            for file in absent:
                file.settle(fetched[file])
            return fetched
        except _Wrong as error:
            if attempt:
                raise BadInput(
                    f"{file.shard.address} is damaged (it is of the right size, but its SHA-256 is "
                    "not that of the manifest); prepare the data again in another folder."
                ) from error
    raise AssertionError


def sha256_of(shard: Shard) -> str:
    """Reads an object and returns its SHA-256; keeps nothing. Raises as `CacheFile.fetch`."""
    digest = hashlib.sha256()
    for start in range(0, shard.size, _PIECE):
        digest.update(_read(shard, start, min(start + _PIECE, shard.size)))
    return digest.hexdigest()


def _read(shard: Shard, start: int, stop: int) -> bytes:
    try:
        content, _ = bucket.read(shard.address, start, stop, shard.version)
    except (Conflict, FileNotFoundError) as error:
        raise _changed(shard) from error
    if len(content) != stop - start:
        raise _changed(shard)
    return content


def _changed(shard: Shard) -> BadInput:
    return BadInput(f"{shard.address} has changed since it was opened; start again.")


def _sums(units: np.ndarray) -> np.ndarray:
    """Returns the checksums of units, uint32, never 0."""
    sums = units.view(np.uint64).reshape(-1, UNIT // 8) @ _WEIGHTS
    return (sums >> np.uint64(32)).astype(np.uint32) | np.uint32(1)


def _write(file: int, content: np.ndarray, offset: int) -> None:
    """Writes all bytes, or raises OSError."""
    view = memoryview(content).cast("B")
    while view:
        written = os.pwrite(file, view, offset)
        view, offset = view[written:], offset + written

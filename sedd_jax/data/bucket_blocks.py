"""Blocks of token ids in files of a bucket, read through the cache of this machine."""

import bisect
import functools
import threading
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from sedd_jax.data.shard_cache import CacheFile, Shard, Span, read_spans
from sedd_jax.data.token_blocks import TokenBlocks, ToldRows, room
from sedd_jax.errors import BadInput, Halted, first_line, warn
from sedd_jax.system.disk_cache import default_cache

_AHEAD = 8  # files that are read ahead at the same time


class BucketBlocks(TokenBlocks):
    """Blocks of files in a bucket: those of `TokenBlocks`, to the bit.

    The bytes of a block are fetched when it is first read, and kept in the cache.
    """

    def __init__(
        self, shards: Sequence[Shard], length: int, dtype: str, told: ToldRows | None = None
    ):
        """Fetches nothing yet.

        Args:
          shards: the files, in order.
          length: tokens of a block.
          dtype: of the ids in the files, "uint16" or "uint32".
          told: what the network is told of every block.

        Raises:
          BadInput: the files hold less than one block, or the cache cannot be used.
        """
        self._shards = tuple(shards)
        default_cache()  # found faulty now, not in the first step
        super().__init__([str(shard.address) for shard in shards], length, dtype, told)

    def _sizes(self):
        return [shard.size for shard in self._shards]

    def _maps(self):
        def opened(number: int) -> CacheFile:
            return CacheFile(self._shards[number], default_cache())

        return functools.lru_cache(room(len(self._shards)))(opened)

    def read(self, starts: np.ndarray) -> np.ndarray:
        """Returns the `length` tokens from each start on, see `TokenBlocks.read`."""
        end, spans = self._blocks * self.length, []
        for start in starts.tolist():
            before_end = min(self.length, end - start)
            spans += self._spans(start, before_end)
            spans += self._spans(0, self.length - before_end)
        return self._tokens(spans).reshape(len(starts), self.length)

    def _copy(self, row, start):
        row[:] = self._tokens(list(self._spans(start, len(row))))

    def _tokens(self, spans):
        pieces = read_spans(spans)
        joined = np.concatenate(pieces) if pieces else np.empty(0, np.uint8)
        return joined.view(self._dtype).astype(np.int32)

    def _spans(self, start: int, count: int) -> Iterator[Span]:
        """Yields where `count` tokens from `start` on are."""
        width = self._dtype.itemsize
        while count:
            file = bisect.bisect_right(self._starts, start) - 1
            skipped = start - self._starts[file]
            taken = min(count, self._shards[file].size // width - skipped)
            yield Span(self._map(file), skipped * width, (skipped + taken) * width)
            start, count = start + taken, count - taken

    @functools.cached_property
    def _starts(self):
        return self._borders[:-1].tolist()  # a search in a list takes a tenth of that in an array

    def read_ahead(self) -> Callable[[], None]:
        """Begins to fetch all files, in order, in the background; returns what ends that."""
        ended = threading.Event()
        threading.Thread(target=self._fetch_all, args=(ended,), daemon=True).start()
        return ended.set

    def _fetch_all(self, ended):
        try:
            for first in range(0, len(self._shards), _AHEAD):
                numbers = range(first, min(first + _AHEAD, len(self._shards)))
                files = [self._map(number) for number in numbers]
                if ended.is_set():
                    return
                read_spans([Span(file, 0, file.shard.size) for file in files])
                if not all(file.has(0, file.shard.size) for file in files):
                    return  # the cache is full
        except (BadInput, Halted) as error:  # the reader of a batch meets it too, and ends the run
            if not ended.is_set():
                warn(f"Data are not read ahead any more: {first_line(error)}")

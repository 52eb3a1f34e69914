"""Random access to fixed blocks of a stream of token ids, which lies in flat files in a row."""

import functools
import os
import pathlib
from collections.abc import Sequence

import numpy as np

from sedd_jax.errors import BadInput


class TokenBlocks:
    """The whole blocks of `length` tokens in flat files of `dtype` ("uint16" or "uint32") ids.

    The files are one stream: blocks run on over their borders, and what is left below one block at
    the end is dropped. `blocks[i]` is int32 [length] for i in [0, len(blocks)), else IndexError. A
    file is mapped when it is first read, in each process anew; it must not change while it is in
    use. Raises OSError without a file and BadInput when all hold less than one block.
    """

    def __init__(self, paths: Sequence[str | pathlib.Path], length: int, dtype: str):
        self.length = length
        self._paths = tuple(map(str, paths))
        self._dtype = np.dtype(dtype)
        sizes = [os.path.getsize(path) // self._dtype.itemsize for path in self._paths]
        # File i holds the tokens from borders[i] to borders[i + 1] of the stream.
        self._borders = np.cumsum([0, *sizes])
        tokens = int(self._borders[-1])
        self._blocks = tokens // length
        if not self._blocks:
            where = self._paths[0] if self._paths else "A split without files"
            raise BadInput(
                f"{where} holds {tokens} tokens, less than one block of {length}; choose a shorter "
                "length, or prepare more text."
            )

    def __len__(self) -> int:
        return self._blocks

    def __getitem__(self, index: int) -> np.ndarray:
        if not 0 <= index < self._blocks:
            raise IndexError(f"There is no block {index} in {self!r}: it has {self._blocks}.")
        return self.read(np.array([index * self.length]))[0]

    def read(self, starts: np.ndarray) -> np.ndarray:
        """The `length` tokens from each of `starts` in the stream on, int32 [len(starts), length].

        A start lies in [0, len(self) * length); a row that runs over the end of the last block goes
        on at the beginning.
        """
        rows = np.empty((len(starts), self.length), np.int32)
        end = self._blocks * self.length
        for row, start in zip(rows, starts.tolist(), strict=True):
            before_end = min(self.length, end - start)
            self._copy(row[:before_end], start)
            self._copy(row[before_end:], 0)
        return rows

    def _copy(self, row: np.ndarray, start: int) -> None:
        """Fills `row` with the stream from `start` on."""
        filled = 0
        while filled < len(row):
            file = int(np.searchsorted(self._borders, start + filled, side="right")) - 1
            skipped = start + filled - int(self._borders[file])
            tokens = _mapped(self._paths[file], self._dtype)[skipped:][: len(row) - filled]
            row[filled : filled + len(tokens)] = tokens
            filled += len(tokens)

    def __repr__(self) -> str:
        return f"TokenBlocks({list(self._paths)!r}, {self.length}, {self._dtype.name!r})"


# A mapping holds its file open, and a process may have 1024 files by default.
@functools.lru_cache(maxsize=512)
def _mapped(path: str, dtype: np.dtype) -> np.ndarray:
    # A plain array: slicing a memmap makes a memmap, which costs more than the copy.
    return np.asarray(np.memmap(path, dtype, "r"))

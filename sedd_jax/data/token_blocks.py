"""Random access to fixed blocks of a flat, memory-mapped file of token ids."""

import os
import pathlib
from typing import Any

import numpy as np

from sedd_jax.errors import BadInput


class TokenBlocks:
    """The whole blocks of `length` tokens in a flat file of `dtype` ("uint16" or "uint32") ids.

    `blocks[i]` is int32 [length] for i in [0, len(blocks)), else IndexError. The file is mapped
    when it is first read, in each process anew. Raises OSError without the file and
    BadInput when it holds less than one block.
    """

    def __init__(self, path: str | pathlib.Path, length: int, dtype: str):
        self.path = str(path)
        self.length = length
        self.dtype = np.dtype(dtype)
        tokens = os.path.getsize(self.path) // self.dtype.itemsize
        self._blocks = tokens // length
        self._stream: np.ndarray | None = None
        if not self._blocks:
            raise BadInput(
                f"{self.path} holds {tokens} tokens, less than one block of {length}; prepare the "
                "data again."
            )

    def __len__(self) -> int:
        return self._blocks

    def __getitem__(self, index: int) -> np.ndarray:
        if not 0 <= index < self._blocks:
            raise IndexError(f"There is no block {index} in {self.path}: it has {self._blocks}.")
        start = int(index) * self.length
        return self.stream[start : start + self.length].astype(np.int32)

    def read(self, starts: np.ndarray) -> np.ndarray:
        """The `length` tokens from each of `starts` in the stream on, int32 [len(starts), length].

        A start lies in [0, len(stream)); a row that runs over the end goes on at the beginning.
        """
        # A plain array: slicing a memmap makes a memmap, which costs more than the copy.
        stream = np.asarray(self.stream)
        rows = np.empty((len(starts), self.length), np.int32)
        for row, start in zip(rows, starts.tolist(), strict=True):
            before_end = stream[start : start + self.length]
            row[: len(before_end)] = before_end
            row[len(before_end) :] = stream[: self.length - len(before_end)]
        return rows

    @property
    def stream(self) -> np.ndarray:
        """The tokens of all blocks in a row, memory-mapped, `dtype` [len(self) * length]."""
        if self._stream is None:
            tokens = self._blocks * self.length
            self._stream = np.memmap(self.path, self.dtype, "r", shape=(tokens,))
        return self._stream

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_stream": None}

    def __repr__(self) -> str:
        return f"TokenBlocks({self.path!r}, {self.length}, {self.dtype.name!r})"

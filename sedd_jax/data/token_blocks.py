"""Random access to fixed blocks of a stream of token ids, which lies in flat files in a row."""

import functools
import os
import pathlib
import resource
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sedd_jax.errors import BadInput

# So many files of a set are held open whatever the limit, and more as long as so many sets, or
# other parts of the program, could do the same.
_FEW, _SETS = 128, 8


class TokenBlocks:
    """The whole blocks of `length` tokens in flat files of `dtype` ("uint16" or "uint32") ids.

    The files are one stream: blocks run on over their borders, and what is left below one block at
    the end is dropped. `blocks[i]` is int32 [length] for i in [0, len(blocks)), else IndexError. A
    file is mapped when it is first read, in each process anew; it must not change while it is in
    use, and one that has before it is mapped is BadInput. Raises OSError without a file and
    BadInput when all hold less than one block.
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
        self._map = self._maps()
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
        return self.take(np.array([index]))[0]

    @property
    def stream(self) -> np.ndarray:
        """All tokens, those after the last whole block too, int32 [tokens], in memory."""
        tokens = np.empty(self._borders[-1], np.int32)
        self._copy(tokens, 0)
        return tokens

    def take(self, numbers: np.ndarray) -> np.ndarray:
        """The blocks of these numbers, int32 [len(numbers), length]."""
        return self.read(numbers * self.length)

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
            tokens = self._map(file)[skipped:][: len(row) - filled]
            row[filled : filled + len(tokens)] = tokens
            filled += len(tokens)

    def _maps(self) -> Callable[[int], np.ndarray]:
        """From the number of a file to its tokens, kept."""
        mapped = functools.partial(_mapped, self._paths, self._borders, self._dtype)
        return functools.lru_cache(_room(len(self._paths)))(mapped)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_map"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._map = self._maps()

    def __repr__(self) -> str:
        return f"TokenBlocks({list(self._paths)!r}, {self.length}, {self._dtype.name!r})"


def _mapped(paths: Sequence[str], borders: np.ndarray, dtype: np.dtype, number: int) -> np.ndarray:
    path, tokens = paths[number], int(borders[number + 1] - borders[number])
    if os.path.getsize(path) // dtype.itemsize != tokens:
        raise BadInput(f"{path} has changed since it was opened; start again.")
    # A plain array: slicing a memmap makes a memmap, which costs more than the copy.
    return np.asarray(np.memmap(path, dtype, "r"))


def _room(files: int) -> int:
    """How many of `files` may be mapped at once; the limit of the process is raised for many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _SETS * files
    if files <= _FEW or soft == resource.RLIM_INFINITY or wanted <= soft:
        return files
    # A mapping holds its file open, and by default a process may often have 1024. Beyond the hard
    # limit files are opened again and again.
    soft = wanted if hard == resource.RLIM_INFINITY else max(soft, min(wanted, hard))
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return min(files, max(soft // _SETS, _FEW))


class Mixture:
    """Sets of blocks of one length, to be drawn on in proportion to weights.

    Attributes:
      sets: the parts.
      weights: of the parts, as given.
      shares: the weights, so that they sum to 1.
    """

    def __init__(self, sets: Sequence[TokenBlocks], weights: Sequence[float]):
        self.sets = tuple(sets)
        self.weights = tuple(weights)
        self.shares = tuple(weight / sum(weights) for weight in weights)
        self.length = self.sets[0].length
        most = min(len(part) / share for part, share in zip(self.sets, self.shares, strict=True))
        # Rounded, lest a product a hair below a whole number loses a block.
        counts = [max(1, int(round(most * share, 6))) for share in self.shares]
        self._borders = np.cumsum([0, *counts])

    def __len__(self) -> int:
        """The blocks to be had in proportion to the weights before a set runs out."""
        return int(self._borders[-1])

    def take(self, numbers: np.ndarray) -> np.ndarray:
        """Blocks of those, int32 [len(numbers), length].

        They are counted set by set, and evenly spaced over each.
        """
        rows = np.empty((len(numbers), self.length), np.int32)
        for part, first, stop in zip(self.sets, self._borders[:-1], self._borders[1:], strict=True):
            own = (first <= numbers) & (numbers < stop)
            rows[own] = part.take((numbers[own] - first) * len(part) // (stop - first))
        return rows

"""Random access to fixed blocks of a stream of token ids, kept in consecutive flat files."""

import functools
import mmap
import os
import pathlib
import resource
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sedd_jax.data.conditions import Conditions, Tree
from sedd_jax.errors import BadInput

# _FEW files of a set are kept open at any limit, and more while _SETS sets, or other parts of the
# program, could do the same.
_FEW, _SETS = 128, 8


class TokenBlocks:
    """The whole blocks of a stream of ids in flat files.

    The files are one stream: a block may span two of them, and a rest below one block is dropped.
    `blocks[i]` is int32 [length] for i in [0, len(blocks)), otherwise IndexError. A file is mapped
    when it is first read, in each process, and must not change while it is in use; if its size has
    changed since it was opened, reading raises BadInput.

    Attributes:
      length: tokens of a block.
      told: what the network is told of every block; None for nothing.
    """

    def __init__(
        self,
        paths: Sequence[str | pathlib.Path],
        length: int,
        dtype: str,
        told: "ToldRows | None" = None,
    ):
        """Looks up the sizes of the files.

        Args:
          paths: the files, in order.
          length: tokens of a block.
          dtype: of the ids in the files, "uint16" or "uint32".
          told: what the network is told of every block.

        Raises:
          BadInput: the files hold less than one block.
          OSError: a file is missing.
        """
        self.length, self.told = length, told
        self._paths = tuple(map(str, paths))
        self._dtype = np.dtype(dtype)
        sizes = [size // self._dtype.itemsize for size in self._sizes()]
        # file i holds the tokens [borders[i], borders[i + 1]) of the stream
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

    def _sizes(self) -> list[int]:
        """Returns the bytes of every file."""
        return [os.path.getsize(path) for path in self._paths]

    def __len__(self) -> int:
        return self._blocks

    def __getitem__(self, index: int) -> np.ndarray:
        if not 0 <= index < self._blocks:
            raise IndexError(f"There is no block {index} in {self!r}: it has {self._blocks}.")
        return self.take(np.array([index]))[0]

    @property
    def stream(self) -> np.ndarray:
        """All tokens, including those after the last whole block, int32 [tokens], in memory."""
        tokens = np.empty(self._borders[-1], np.int32)
        self._copy(tokens, 0)
        return tokens

    def take(self, numbers: np.ndarray) -> np.ndarray:
        """Returns the blocks of these numbers, int32 [len(numbers), length]."""
        return self.read(numbers * self.length)

    def condition(self, numbers: np.ndarray) -> Tree | None:
        """Returns what the network is told of the blocks of these numbers; None for nothing."""
        return self.told and self.told.conditions.tree(self.told_rows(numbers))

    def told_rows(self, numbers: np.ndarray) -> np.ndarray:
        """Returns what blocks tell, as their files have it, float64 [len(numbers), width]."""
        return self.told.take(numbers)

    def read(self, starts: np.ndarray) -> np.ndarray:
        """Returns the `length` tokens from each start on, int32 [len(starts), length].

        A start is in [0, len(self) * length); a row that reaches the end of the last block
        continues at the beginning of the stream.
        """
        rows = np.empty((len(starts), self.length), np.int32)
        end = self._blocks * self.length
        for row, start in zip(rows, starts.tolist(), strict=True):
            before_end = min(self.length, end - start)
            self._copy(row[:before_end], start)
            self._copy(row[before_end:], 0)
        return rows

    def read_ahead(self) -> Callable[[], None]:
        """Begins to fetch all files, where they are in a bucket; returns what ends that."""
        return lambda: None

    def _copy(self, row: np.ndarray, start: int) -> None:
        """Fills `row` with the tokens of the stream from `start` on."""
        filled = 0
        while filled < len(row):
            file = int(np.searchsorted(self._borders, start + filled, side="right")) - 1
            skipped = start + filled - int(self._borders[file])
            tokens, mapping = self._map(file)
            if mapping.size() != len(mapping):  # what is behind the end reads as 0, or kills
                raise _changed(self._paths[file])
            tokens = tokens[skipped:][: len(row) - filled]
            row[filled : filled + len(tokens)] = tokens
            filled += len(tokens)

    def _maps(self) -> Callable[[int], tuple[np.ndarray, mmap.mmap]]:
        """Returns a cached function from the number of a file to its tokens, and their mapping."""
        mapped = functools.partial(_mapped, self._paths, self._borders, self._dtype)
        return functools.lru_cache(room(len(self._paths)))(mapped)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_map"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._map = self._maps()

    def __repr__(self) -> str:
        return f"TokenBlocks({list(self._paths)!r}, {self.length}, {self._dtype.name!r})"


def _mapped(
    paths: Sequence[str], borders: np.ndarray, dtype: np.dtype, number: int
) -> tuple[np.ndarray, mmap.mmap]:
    path, tokens = paths[number], int(borders[number + 1] - borders[number])
    if not os.path.exists(path) or os.path.getsize(path) // dtype.itemsize != tokens:
        raise _changed(path)
    with open(path, "rb") as file:
        mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    # a plain array, since slicing a memmap makes a memmap, which costs more than the copy
    return np.frombuffer(mapping, dtype, tokens), mapping


def _changed(path: str) -> BadInput:
    return BadInput(f"{path} has changed since it was opened; start again.")


def room(files: int) -> int:
    """Returns how many of `files` may be mapped at once; raises the process's limit for many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _SETS * files
    if files <= _FEW or soft == resource.RLIM_INFINITY or wanted <= soft:
        return files
    # A mapping keeps its file open, and the default limit is often 1024. Beyond the hard limit,
    # files are opened again and again.
    soft = wanted if hard == resource.RLIM_INFINITY else max(soft, min(wanted, hard))
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return min(files, max(soft // _SETS, _FEW))


class ToldRows:
    """What the network is told of blocks: rows of float64 in flat files, as many as blocks.

    They are held in memory when they are first read; they are small beside the tokens.
    """

    def __init__(self, paths: Sequence[pathlib.Path], own: Conditions, conditions: Conditions):
        """Reads nothing yet.

        Args:
          paths: the files, in order.
          own: the conditions that their rows hold.
          conditions: those that the network is told: some of their columns, with their classes.
        """
        self.conditions = conditions
        self._paths, self._own = tuple(paths), own

    @functools.cached_property
    def _rows(self):
        read = [np.fromfile(path, np.float64).reshape(-1, self._own.width) for path in self._paths]
        return self._own.renumbered(np.concatenate(read), self.conditions)

    def take(self, numbers: np.ndarray) -> np.ndarray:
        """Returns the rows of blocks of these numbers, float64 [len(numbers), width]."""
        return self._rows[numbers]


class Mixture:
    """Sets of blocks of one length, drawn in proportion to weights.

    Attributes:
      sets: the sets.
      weights: their weights, as given.
      shares: the weights, normalised to sum to 1.
    """

    def __init__(self, sets: Sequence[TokenBlocks], weights: Sequence[float]):
        self.sets = tuple(sets)
        self.weights = tuple(weights)
        self.shares = tuple(weight / sum(weights) for weight in weights)
        self.length = self.sets[0].length
        most = min(len(part) / share for part, share in zip(self.sets, self.shares, strict=True))
        # rounded first, since a product just below a whole number would lose a block
        counts = [max(1, int(round(most * share, 6))) for share in self.shares]
        self._borders = np.cumsum([0, *counts])

    def __len__(self) -> int:
        """Returns how many blocks there are in proportion to the weights before a set runs out."""
        return int(self._borders[-1])

    def take(self, numbers: np.ndarray) -> np.ndarray:
        """Returns the blocks of these numbers, int32 [len(numbers), length].

        The numbers run through one set after another, evenly spaced over each.
        """
        rows = np.empty((len(numbers), self.length), np.int32)
        for part, own, places in self._places(numbers):
            rows[own] = part.take(places)
        return rows

    def condition(self, numbers: np.ndarray) -> Tree | None:
        """Returns what the network is told of blocks, see `TokenBlocks.condition`."""
        told = self.sets[0].told
        return told and told.conditions.tree(self.told_rows(numbers))

    def told_rows(self, numbers: np.ndarray) -> np.ndarray:
        """Returns what blocks tell, as their files have it, float64 [len(numbers), width]."""
        rows = np.empty((len(numbers), self.sets[0].told.conditions.width))
        for part, own, places in self._places(numbers):
            rows[own] = part.told_rows(places)
        return rows

    def read_ahead(self) -> Callable[[], None]:
        """Begins to fetch all sets, see `TokenBlocks.read_ahead`."""
        ends = [part.read_ahead() for part in self.sets]

        def end():
            for each in ends:
                each()

        return end

    def _places(self, numbers):
        """Yields each set, which of the numbers are its own, and their places in it."""
        for part, first, stop in zip(self.sets, self._borders[:-1], self._borders[1:], strict=True):
            own = (first <= numbers) & (numbers < stop)
            yield part, own, (numbers[own] - first) * len(part) // (stop - first)

"""Batches of token blocks: a training stream addressed by step, and a fixed held-out set.

The batch of a training step is a pure function of (seed, step, batch_size, crop): resuming needs
the step alone, on any number of hosts; each host reads its own rows of every batch. In a mixture,
the weights assign every position in the stream of all rows to one set, and each set has its own
endless order.
"""

import functools
import sys
import weakref
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from sedd_jax.data.conditions import Tree
from sedd_jax.data.token_blocks import Mixture, TokenBlocks
from sedd_jax.errors import BadInput, check_positive


class Batch(NamedTuple):
    """Rows of a batch, where the network is told something of them.

    Attributes:
      tokens: int32 [rows, length].
      condition: a tree of arrays [rows, ...], see `conditions`.
    """

    tokens: np.ndarray
    condition: Tree


def arguments_of(batch: np.ndarray | Batch) -> tuple[np.ndarray] | Batch:
    """Returns a batch as arguments: its tokens and, if the network is told any, its conditions."""
    return batch if isinstance(batch, Batch) else (batch,)


class TrainBatches:
    """An endless iterator of batches, int32 [rows, length] or `Batch`, which threads read ahead.

    A context manager; `close` stops the threads, and after it `next` raises ValueError.
    """

    def __init__(self, batches: Iterator[np.ndarray | Batch], close: Callable[[], None]):
        self._batches = batches
        # also runs when the interpreter exits, where an open Grain iterator prints errors
        self._close = weakref.finalize(self, close)

    def __iter__(self) -> "TrainBatches":
        return self

    def __next__(self) -> np.ndarray | Batch:
        if not self._close.alive:
            raise ValueError("These training batches are closed; call train_batches again.")
        return next(self._batches)

    def close(self) -> None:
        """Stops the reading threads; a second call does nothing."""
        self._close()

    def __enter__(self) -> "TrainBatches":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


CROPS = ("blocks", "random")


@functools.lru_cache(maxsize=8)
def _grid_offset(crop: str, seed: int, epoch: int, length: int) -> int:
    """Returns the shift of the grid of blocks in an epoch, in tokens in [0, length)."""
    if crop == "blocks":
        return 0
    # SeedSequence, unlike the generators, promises the same numbers in every version of numpy.
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0] % length)


def train_batches(
    blocks: TokenBlocks | Mixture,
    *,
    batch_size: int,
    seed: int,
    rows: np.ndarray | None = None,
    start_step: int = 0,
    crop: str = "blocks",
    num_threads: int = 2,
    buffer: int = 4,
    last_step: int | None = None,
) -> TrainBatches:
    """Returns the endless training batches from `start_step` on.

    Every epoch visits every block once, in its own order; a batch may span two epochs, so no block
    is left out. With crop="random" the grid of blocks is shifted in each epoch by an offset drawn
    from (seed, epoch), and wraps around the end of the stream: every token still occurs once an
    epoch, but the borders of the blocks move. Starting at a later step reads nothing before it.

    Args:
      blocks: the training split.
      batch_size: rows of the whole batch, on all processes.
      seed: of the order, in [0, 2**32).
      rows: indices of the rows of the whole batch that this process reads, increasing; None for
        all. A row holds the same tokens for any division of the batch.
      start_step: the first step, from 0.
      crop: "blocks" or "random".
      num_threads: threads that read.
      buffer: batches read ahead.
      last_step: the last step that will be taken, if it is known. Data in a bucket are then fetched
        as a whole, in large pieces, where this process reads at least half of all rows, and of the
        blocks until then; otherwise block by block.

    Returns:
      An iterator of int32 [len(rows), length], or of `Batch` where the network is told something.

    Raises:
      BadInput: an argument is out of range, or `crop` is unknown.
    """
    if crop not in CROPS:
        raise BadInput(f"Unknown crop {crop!r}; choose one of {', '.join(CROPS)}.")
    check_positive(batch_size=batch_size, num_threads=num_threads, buffer=buffer)
    _check_step(start_step)
    rows = _checked_rows(rows, batch_size)
    stream = _Stream(blocks, seed)
    length = blocks.length

    conditions = stream.orders[0].blocks.told and stream.orders[0].blocks.told.conditions

    def read(step: int) -> np.ndarray | Batch:
        sets, positions = stream.places(step * batch_size + rows)
        batch = np.empty((len(rows), length), np.int32)
        told = conditions and np.empty((len(rows), conditions.width))
        for index, order in enumerate(stream.orders):
            own = sets == index
            numbers, epochs = order.at(positions[own])
            offsets = [_grid_offset(crop, seed, epoch, length) for epoch in epochs.tolist()]
            batch[own] = order.blocks.read(numbers * length + np.array(offsets, np.int64))
            if conditions:
                told[own] = order.blocks.told.take(numbers)
        return Batch(batch, conditions.tree(told)) if conditions else batch

    import grain

    to_read = 0 if last_step is None else (last_step - start_step) * len(rows)
    reads_most = 2 * len(rows) >= batch_size and 2 * to_read >= len(blocks)
    end_reading_ahead = blocks.read_ahead() if reads_most else None
    batches = iter(
        grain.MapDataset.range(start_step, sys.maxsize)
        .map(read)
        .to_iter_dataset(
            # Grain's default, 500 elements, would keep 500 whole batches in memory
            grain.ReadOptions(
                num_threads=num_threads, prefetch_buffer_size=max(buffer, num_threads)
            )
        )
    )

    def close():
        if end_reading_ahead:
            end_reading_ahead()
        batches.close()

    return TrainBatches(batches, close)


def batch_blocks(
    blocks: TokenBlocks | Mixture, *, batch_size: int, seed: int, step: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns which blocks are in the batch of a step, to name them in an error message.

    Without a mixture, row r has the position p = step * batch_size + r in its set and belongs to
    epoch e = p // len(blocks). Block b holds `length` tokens from token b * length of the training
    split on; with crop="random", from token b * length + the offset of the grid in epoch e.

    Args:
      blocks: the training split.
      batch_size: rows of the whole batch.
      seed: of the order, as in `train_batches`.
      step: the step, from 0.

    Returns:
      The indices of the sets (0 without a mixture) and the numbers of the blocks in them, each
      int64 [batch_size].

    Raises:
      BadInput: an argument is out of range.
    """
    check_positive(batch_size=batch_size)
    _check_step(step)
    stream = _Stream(blocks, seed)
    sets, positions = stream.places(step * batch_size + np.arange(batch_size))
    numbers = np.empty(batch_size, np.int64)
    for index, order in enumerate(stream.orders):
        numbers[sets == index], _ = order.at(positions[sets == index])
    return sets, numbers


def heldout_batches(
    blocks: TokenBlocks | Mixture,
    *,
    batch_size: int,
    rows: np.ndarray | None = None,
    max_blocks: int | None = None,
) -> Iterator[np.ndarray | Batch]:
    """Returns held-out blocks in a fixed order, in batches of one shape.

    The blocks are evenly spaced over the split, in a mixture in proportion to the weights. Their
    number is rounded down to a multiple of `batch_size`; fewer than `batch_size` blocks make a
    single, smaller batch.

    Args:
      blocks: the held-out split.
      batch_size: rows of a whole batch, on all processes.
      rows: the rows of a batch that this process reads, increasing; None for all.
      max_blocks: the largest number of blocks; None for all.

    Returns:
      An iterator of int32 [len(rows), length], or of `Batch` where the network is told something.

    Raises:
      BadInput: `batch_size` or `max_blocks` is below 1, or a batch does not have those `rows`.
    """
    max_blocks = len(blocks) if max_blocks is None else max_blocks
    check_positive(batch_size=batch_size, max_blocks=max_blocks)
    count = min(len(blocks), max_blocks)
    batch_size = min(batch_size, count)
    rows = _checked_rows(rows, batch_size)
    count -= count % batch_size
    numbers = np.arange(count) * len(blocks) // count

    def read(own: np.ndarray) -> np.ndarray | Batch:
        told = blocks.condition(own)
        return blocks.take(own) if told is None else Batch(blocks.take(own), told)

    return (read(batch[rows]) for batch in numbers.reshape(-1, batch_size))


class _EndlessOrder:
    """The blocks of a set in an endless order, addressed by position and shuffled each epoch."""

    def __init__(self, blocks: TokenBlocks, seed: int):
        import grain

        self.blocks = blocks
        # Grain draws the order of an epoch from (seed, epoch) and finds any position in constant
        # time
        self._order = grain.MapDataset.range(len(blocks)).seed(seed).shuffle().repeat(None)

    def at(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the numbers and epochs of the blocks at `positions`, each int64 [positions]."""
        numbers = np.array([self._order[position] for position in positions.tolist()], np.int64)
        return numbers, positions // len(self.blocks)


class _Stream:
    """The endless stream of training rows: the set of each position, and the position in it."""

    def __init__(self, blocks: TokenBlocks | Mixture, seed: int):
        if not 0 <= seed < 2**32:
            raise BadInput(f"The data seed is {seed}, it must be in [0, 2**32).")
        import grain

        sets, weights = (
            (blocks.sets, blocks.weights) if isinstance(blocks, Mixture) else ((blocks,), (1.0,))
        )
        self.orders = [_EndlessOrder(part, seed) for part in sets]
        # maps a position to its set and the position in the order of that set
        self._places = grain.MapDataset.mix(
            [
                grain.MapDataset.range(sys.maxsize).map(functools.partial(_pair, index))
                for index in range(len(sets))
            ],
            weights,
        )

    def places(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the sets of `positions`, and the positions in the orders of these, each int64."""
        if len(self.orders) == 1:
            return np.zeros_like(positions), positions
        return np.array([self._places[position] for position in positions.tolist()]).T


def _pair(index: int, position: int) -> tuple[int, int]:
    return index, position


def _checked_rows(rows: np.ndarray | None, batch_size: int) -> np.ndarray:
    if rows is None:
        return np.arange(batch_size)
    rows = np.asarray(rows, np.int64)
    inside = rows.size and rows.min() >= 0 and rows.max() < batch_size
    if not inside or (np.diff(rows) <= 0).any():
        raise BadInput(
            f"rows is {rows.tolist()}, it must be increasing numbers in [0, {batch_size})."
        )
    return rows


def _check_step(step: int) -> None:
    if step < 0:
        raise BadInput(f"A training step must be at least 0, got {step}.")

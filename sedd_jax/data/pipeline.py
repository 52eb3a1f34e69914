"""Batches of token blocks: a training stream addressed by step, and a fixed held-out set.

The batch of a training step is a pure function of (seed, step, batch_size, crop): nothing but the
step is needed to resume, on any number of hosts.
"""

import functools
import weakref
from collections.abc import Callable, Iterator
from types import TracebackType

import numpy as np

from sedd_jax.data.token_blocks import TokenBlocks
from sedd_jax.errors import BadInput


class TrainBatches:
    """An endless iterator of int32 [batch_size, length] whose threads read ahead; close it.

    A context manager; what was read ahead and not taken is dropped at `close`. After that, `next`
    raises ValueError.
    """

    def __init__(self, batches: Iterator[np.ndarray], close: Callable[[], None]):
        self._batches = batches
        # Also runs at the exit of the interpreter, where an open Grain iterator complains.
        self._close = weakref.finalize(self, close)

    def __iter__(self) -> "TrainBatches":
        return self

    def __next__(self) -> np.ndarray:
        if not self._close.alive:
            raise ValueError("These training batches are closed; call train_batches again.")
        return next(self._batches)

    def close(self) -> None:
        """Stops the reading threads; a second call does nothing."""
        self._close()

    def __enter__(self) -> "TrainBatches":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _fixed_grid(seed: int, epoch: int, length: int) -> int:
    return 0


@functools.lru_cache(maxsize=8)
def _random_grid(seed: int, epoch: int, length: int) -> int:
    # SeedSequence, unlike the generators, promises the same numbers in every version of numpy.
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0] % length)


# By how many tokens the grid of blocks is shifted in an epoch, in [0, length).
_GRID_OFFSETS: dict[str, Callable[[int, int, int], int]] = {
    "blocks": _fixed_grid,
    "random": _random_grid,
}
CROPS = tuple(_GRID_OFFSETS)


def train_batches(
    blocks: TokenBlocks,
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    crop: str = "blocks",
    num_threads: int = 2,
    buffer: int = 4,
) -> TrainBatches:
    """The training batches from step `start_step` on, each int32 [batch_size, length], without end.

    Every epoch visits every block once, in an order of its own; batches run across the border of
    two epochs, so nothing is left out. With crop="random" the grid of blocks is shifted in each
    epoch by an offset drawn from (seed, epoch), wrapping around the end of the stream: every token
    still comes once an epoch, but the borders of the blocks move. Starting late is a jump, not a
    read.

    `seed` lies in [0, 2**32) and `buffer` counts the batches read ahead by `num_threads` threads.
    Raises BadInput for an argument out of range or an unknown `crop`.
    """
    if not 0 <= seed < 2**32:
        raise BadInput(f"The data seed is {seed}, it must lie in [0, 2**32).")
    if crop not in _GRID_OFFSETS:
        raise BadInput(f"Unknown crop {crop!r}; choose one of {', '.join(CROPS)}.")
    for name, value, least in (
        ("batch_size", batch_size, 1),
        ("start_step", start_step, 0),
        ("num_threads", num_threads, 1),
        ("buffer", buffer, 1),
    ):
        if value < least:
            raise BadInput(f"{name} is {value}, it must be at least {least}.")
    import grain

    per_epoch, length = len(blocks), blocks.length
    grid_offset = _GRID_OFFSETS[crop]

    def read(position: int, block: int) -> np.ndarray:
        start = block * length + grid_offset(seed, position // per_epoch, length)
        stream = blocks.stream
        tokens = stream[start : start + length]
        if len(tokens) < length:
            tokens = np.concatenate([tokens, stream[: length - len(tokens)]])
        return tokens.astype(np.int32)

    # Grain draws the order of an epoch afresh from (seed, epoch) and finds any position in constant
    # time; `read` gets the position in the endless order of blocks, hence the epoch.
    dataset = (
        grain.MapDataset.range(per_epoch)
        .seed(seed)
        .shuffle()
        .repeat(None)
        .map_with_index(read)
        .batch(batch_size)
    )
    batches = iter(
        dataset[start_step:].to_iter_dataset(
            # Grain's default of 500 elements would be 500 whole batches in memory.
            grain.ReadOptions(
                num_threads=num_threads, prefetch_buffer_size=max(buffer, num_threads)
            )
        )
    )
    return TrainBatches(batches, batches.close)


def heldout_batches(
    blocks: TokenBlocks, *, batch_size: int, max_blocks: int | None = None
) -> Iterator[np.ndarray]:
    """Held-out blocks in a fixed order, as batches of exactly int32 [batch_size, length].

    At most `max_blocks` blocks (None: all) are taken, evenly spaced over the split; their number is
    rounded down to a multiple of `batch_size`, so that every batch has one shape. Only when fewer
    than `batch_size` are to be had is there a single, smaller batch. Raises BadInput for a
    `batch_size` or `max_blocks` below 1.
    """
    for name, value in (("batch_size", batch_size), ("max_blocks", max_blocks)):
        if value is not None and value < 1:
            raise BadInput(f"{name} is {value}, it must be at least 1.")
    count = len(blocks) if max_blocks is None else min(len(blocks), max_blocks)
    count -= count % batch_size if count > batch_size else 0
    chosen = np.arange(count) * len(blocks) // count
    return (
        np.stack([blocks[i] for i in chosen[start : start + batch_size]])
        for start in range(0, count, batch_size)
    )

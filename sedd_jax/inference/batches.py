"""Rows computed a batch at a time, each a function of the key and its own number alone."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Integer, Key, UInt32

from sedd_jax.errors import BadInput
from sedd_jax.system.rounding import round_up


class RowKeys(NamedTuple):
    """The random keys of rows, one for each purpose.

    Attributes:
      limit: for the draw from the limiting distribution that sampling starts from.
      times: for the times that a sampler draws before the first step.
      steps: step i folds in i.
      windows: window n > 0 of a long row folds in n, and splits the result by purpose again.
    """

    limit: Key[Array, "B"]
    times: Key[Array, "B"]
    steps: Key[Array, "B"]
    windows: Key[Array, "B"]

    @classmethod
    def split(cls, keys: Key[Array, "B"]) -> "RowKeys":
        """Returns the keys of every purpose, given one key for each row."""
        return cls(*jax.vmap(lambda key: jax.random.split(key, len(cls._fields)), out_axes=1)(keys))


@jax.jit
def row_keys(key: Key[Array, ""], rows: Integer[Array | np.ndarray, "B"]) -> Key[Array, "B"]:
    """Returns one key per row: a sample depends on the seed and its row number alone."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, rows)


@jax.jit
def window_keys(keys: Key[Array, "B"], window: Integer[Array | np.ndarray, ""]) -> Key[Array, "B"]:
    """Returns the keys of rows in a window after their first, which has the row's own key."""
    return jax.vmap(jax.random.fold_in, (0, None))(RowKeys.split(keys).windows, window)


def row_numbers(rows: Any, count: int) -> UInt32[np.ndarray, "N"]:
    """Returns the numbers of the rows, 0 to count - 1 if None are given.

    Raises:
      BadInput: they are not `count` whole numbers in [0, 2^32).
    """
    numbers = np.arange(count) if rows is None else np.asarray(rows)
    whole = numbers.shape == (count,) and numbers.dtype.kind in "iu"
    if not whole or numbers.min() < 0 or numbers.max() >= 2**32:
        raise BadInput(f"rows must be {count} whole numbers in [0, 2^32), one for each row.")
    return numbers.astype(np.uint32)


def batch_rows(count: int, batch_size: int, shards: int) -> list[np.ndarray]:
    """Returns the rows of batches of one size, so of one program.

    The last batch is filled up with the last row.

    Args:
      count: rows in all, N.
      batch_size: rows at a time, rounded up to a multiple of `shards`.
      shards: parts that the devices split a batch into.
    """
    size = round_up(batch_size, shards)
    starts = range(0, count, size)
    return [np.minimum(np.arange(start, start + size), count - 1) for start in starts]


def one_ahead(
    batches: Iterable[np.ndarray], compute: Callable[[np.ndarray], Any]
) -> Iterator[tuple[np.ndarray, Any]]:
    """Yields (rows, results on the host) of every batch once the next one has been dispatched.

    Args:
      batches: rows of each batch, see `batch_rows`.
      compute: maps the rows of a batch to arrays on devices.
    """
    before = None
    for rows in batches:
        computed = compute(rows)
        if before is not None:
            yield before[0], jax.device_get(before[1])
        before = rows, computed
    if before is not None:
        yield before[0], jax.device_get(before[1])

"""Rows computed a batch at a time, each a function of the seed and its own number alone."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Bool, Int, Integer, Key, UInt32

from sedd_jax.errors import BadInput, check_positive
from sedd_jax.experiment.config import Config
from sedd_jax.inference.load import TrainedModel
from sedd_jax.inference.prompt import Prompt
from sedd_jax.model.score_model import Params
from sedd_jax.system.rounding import round_up


@jax.jit
def row_keys(key: Key[Array, ""], rows: Integer[Array | np.ndarray, "B"]) -> Key[Array, "B"]:
    """Returns one key per row: a sample depends on the seed and its row number alone."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, rows)


@jax.jit
def _keys_of_window(keys, number):
    return jax.vmap(jax.random.fold_in, (0, None))(keys, number)


def in_batches(
    generator: Callable[[Params, Key[Array, "B"], Prompt], tuple[Int[Array, "B L"], Any]],
    checkpoint: TrainedModel,
    key: Key[Array, ""],
    prompt: Prompt,
    rows: Integer[np.ndarray, "N"],
    batch_size: int,
    finite: Callable[[Any], Bool[np.ndarray, "B"]],
    progress: Callable[[int, int], None] | None = None,
    window: int = 0,
) -> list[Any]:
    """Returns what the generator gives for the rows of the prompt, a batch at a time.

    Args:
      generator: gives tokens and what else was found of the rows.
      checkpoint: the model.
      key: random key.
      prompt: tokens to hold, [N, L].
      rows: their numbers, see `row_numbers`.
      batch_size: rows at a time, filled up where the prompt has fewer.
      finite: says by what was found of a row whether all its numbers were.
      progress: called as progress(done, total) after every batch.
      window: number of the part of longer rows, each drawn with keys of its own.

    Raises:
      FloatingPointError: those of a row were not; no later batch is drawn.
    """
    held = jax.tree.map(np.asarray, prompt)
    count = len(held.tokens)
    batches = list(row_batches(count, batch_size, checkpoint.parts))
    parts = []
    for done, batch in enumerate(batches, 1):
        taken = np.minimum(batch, count - 1)
        of_batch = jax.tree.map(lambda x, taken=taken: checkpoint.spread(x[taken]), held)
        keys = row_keys(key, checkpoint.spread(rows[taken]))
        if window:  # below are the numbers of steps, for which the keys of a row serve too
            keys = _keys_of_window(keys, np.uint32(2**31 + window))
        parts.append(jax.device_get(generator(checkpoint.params, keys, of_batch)))
        wrong = rows[taken[~finite(parts[-1][1]) & (batch == taken)]]
        if len(wrong):
            raise not_finite(wrong)
        if progress is not None:
            progress(done, len(batches))
    return parts


def not_finite(rows: Integer[np.ndarray, "N"]) -> FloatingPointError:
    """Returns the error that rows of these numbers cannot be drawn."""
    return FloatingPointError(
        f"The network gave numbers that are not finite in rows {rows}: its weights are of no use, "
        "try another checkpoint."
    )


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


def row_batches(num_rows: int, batch_size: int, parts: int) -> Iterator[np.ndarray]:
    """Yields the numbers of the rows of batches, all of one size, which `parts` divides.

    One shape, one program: the last batch goes on past `num_rows`, with rows to be cut off.
    """
    size = round_up(batch_size, parts)
    for first in range(0, num_rows, size):
        yield np.arange(first, first + size, dtype=np.int32)


def check_rows(config: Config, num_samples: int, length: int, batch_size: int) -> None:
    """Raises BadInput for samples that no model can draw, or not the one of these settings."""
    check_positive(num_samples=num_samples, length=length, batch_size=batch_size)
    if config.family == "autoregressive" and length > config.model.length:
        raise BadInput(
            f"length must be at most {config.model.length}, the positions that the model has "
            f"learned, got {length}."
        )

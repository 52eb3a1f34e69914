"""Rows computed a batch at a time, each a function of the seed and its own number alone."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Bool, Int, Integer, Key

from sedd_jax.errors import BadInput, check_positive
from sedd_jax.inference.load import Checkpoint
from sedd_jax.inference.prompt import Prompt
from sedd_jax.model.score_model import Params
from sedd_jax.runtime.config import Config


@jax.jit
def row_keys(key: Key[Array, ""], rows: Integer[Array | np.ndarray, "B"]) -> Key[Array, "B"]:
    """Returns one key per row: a sample depends on the seed and its row number alone."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, rows)


def in_batches(
    generator: Callable[[Params, Key[Array, "B"], Prompt], tuple[Int[Array, "B L"], Any]],
    checkpoint: Checkpoint,
    key: Key[Array, ""],
    prompt: Prompt,
    batch_size: int,
    finite: Callable[[Any], Bool[np.ndarray, "B"]],
    progress: Callable[[int, int], None] | None = None,
    rows: Integer[np.ndarray, "N"] | None = None,
) -> list[Any]:
    """Returns what the generator gives for the rows of the prompt, a batch at a time.

    Args:
      generator: gives tokens and what else was found of the rows.
      checkpoint: the model.
      key: random key.
      prompt: tokens to hold, [N, L].
      batch_size: rows at a time.
      finite: says by what was found of a row whether all its numbers were.
      progress: called as progress(done, total) after every batch.
      rows: numbers of the rows; 0 to N - 1 by default.

    Raises:
      FloatingPointError: those of a row were not; no later batch is drawn.
    """
    held = jax.tree.map(np.asarray, prompt)
    count = len(held.tokens)
    numbers = np.arange(count, dtype=np.uint32) if rows is None else np.asarray(rows, np.uint32)
    batches = list(row_batches(count, batch_size, checkpoint.parts))
    parts = []
    for done, batch in enumerate(batches, 1):
        taken = np.minimum(batch, count - 1)
        of_batch = jax.tree.map(lambda x, taken=taken: checkpoint.spread(x[taken]), held)
        keys = row_keys(key, checkpoint.spread(numbers[taken]))
        parts.append(jax.device_get(generator(checkpoint.params, keys, of_batch)))
        wrong = numbers[taken[~finite(parts[-1][1]) & (batch == taken)]]
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


def row_batches(num_rows: int, batch_size: int, parts: int) -> Iterator[np.ndarray]:
    """Yields the numbers of the rows of batches, all of one size, which `parts` divides.

    One shape, one program: the last batch goes on past `num_rows`, with rows to be cut off.
    """
    size = -(-min(batch_size, num_rows) // parts) * parts
    for first in range(0, num_rows, size):
        yield np.arange(first, first + size, dtype=np.int32)


def check_rows(config: Config, num_samples: int, length: int, batch_size: int) -> None:
    """Raises BadInput for samples that no model can draw, or not the one of these settings."""
    check_positive(num_samples=num_samples, length=length, batch_size=batch_size)
    learned = config.family == "autoregressive" or config.model.learned_positions
    if learned and length > config.model.length:
        raise BadInput(
            f"length must be at most {config.model.length}, the positions that the model has "
            f"learned, got {length}."
        )

"""Rows of different lengths in one array: positions from the length of a row on are padding.

Lengths are at least 1. None stands for rows that are full.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Shaped


def real_positions(lengths: Int[Array, "B"], length: int) -> Bool[Array, "B L"]:
    """Returns which of `length` positions are text."""
    return jnp.arange(length)[None] < lengths[:, None]


def zero_padding(x: Shaped[Array, "B L"], lengths: Int[Array, "B"] | None) -> Shaped[Array, "B L"]:
    """Returns x with 0, or False, in the padding."""
    if lengths is None:
        return x
    return jnp.where(real_positions(lengths, x.shape[1]), x, jnp.zeros((), x.dtype))


def turned(
    rows: Shaped[Array, "B L"] | None, start: Int[Array, "B"] | None, back: bool = False
) -> Shaped[Array, "B L"] | None:
    """Returns rows that begin at `start`, with what stands before it at their ends.

    Args:
      rows: any; None stays None.
      start: position of every row; None: 0.
      back: undo it.
    """
    if rows is None or start is None:
        return rows
    return jax.vmap(jnp.roll)(rows, start if back else -start)

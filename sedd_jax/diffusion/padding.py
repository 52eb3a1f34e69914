"""Rows of different lengths in one array: positions from the length of a row on are padding.

Lengths are at least 1. None stands for rows that are full.
"""

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

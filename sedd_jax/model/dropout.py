"""Dropout whose keep masks take two bits of memory for two branches."""

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Key

from sedd_jax.model.transformer import KEPT


def dropout_masks(
    key: Key[Array, ""] | None, rate: float, shape: tuple[int, ...]
) -> tuple[Bool[Array, "..."], Bool[Array, "..."]] | tuple[None, None]:
    """Returns the keep masks of a block's two branches; Nones without a key or a rate.

    Each takes 16 of the 32 bits that are drawn for an entry. The backward pass keeps the masks, two
    bits in a byte: drawing again takes a TPU longer than reading.

    Args:
      key: None for no dropout.
      rate: the probability of dropping, in [0, 1).
      shape: of the activations.
    """
    if key is None or rate == 0:
        return None, None
    words, dropped = jax.random.bits(key, shape, jnp.uint32), _dropped(rate)
    keep = ((words & 0xFFFF) >= dropped) | (((words >> 16) >= dropped).astype(jnp.uint8) << 1)
    keep = checkpoint_name(jax.lax.optimization_barrier(keep), KEPT)  # or XLA draws for each use
    return keep & 1 != 0, keep & 2 != 0


def _dropped(rate):
    """How many of 2^16 values drop an entry: the rate, rounded to a multiple of 2^-16."""
    return round(rate * 2**16)


def dropout(
    x: Float[Array, "..."], rate: float, keep: Bool[Array, "..."] | None
) -> Float[Array, "..."]:
    """Returns x in float32 with entries dropped and the rest scaled up.

    Args:
      x: the branch's output.
      rate: the probability of dropping.
      keep: the keep mask; without one x is returned unchanged.
    """
    if keep is None:
        return x
    # selected before scaling, in the type of x: the product that gives x is then stored in this
    # type, not in float32
    return jnp.where(keep, x, 0) * jnp.float32(1 / (1 - _dropped(rate) / 2**16))

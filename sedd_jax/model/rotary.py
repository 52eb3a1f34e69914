"""Attention of rotated queries and keys, from the product that makes them.

Shapes: B batch, L length, H heads, K head dimension, R = K / 2, D = H K.
"""

import functools
from collections.abc import Callable

import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from sedd_jax.model.attention import Attention, attention_for, xla_attention
from sedd_jax.model.placement import Placement

ROTARY_BASE = 10_000

Tables = tuple[Float[Array, "1 L 1 R"], Float[Array, "1 L 1 R"]]
# (queries, keys and values [3, B, L, D], tables, lengths=None) -> what they attend to
RotaryAttention = Callable[..., Float[Array, "B L D"]]


def rotary_tables(
    length: int, head_dim: int
) -> tuple[Float[Array, "1 L 1 R"], Float[Array, "1 L 1 R"]]:
    """Returns cos and sin of position times inverse frequency, for `rotate`."""
    inverse = ROTARY_BASE ** (-jnp.arange(0, head_dim, 2) / head_dim)
    angles = (jnp.arange(length)[:, None] * inverse[None, :])[None, :, None, :]
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x, cos, sin):
    """Rotates the pairs (i, i + K/2) of the last axis by their position's angle."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate(
        [first * cos - second * sin, second * cos + first * sin], axis=-1
    ).astype(x.dtype)


def rotary_attention(
    attention: Attention,
    qkv: Float[Array, "3 B L D"],
    rotary: Tables,
    lengths: Int[Array, "B"] | None = None,
) -> Float[Array, "B L D"]:
    """Returns what `attention` makes of rotated queries and keys."""
    _, batch, length, features = qkv.shape
    width = 2 * rotary[0].shape[-1]
    query, key, value = qkv.reshape(3, batch, length, features // width, width)
    out = attention(rotate(query, *rotary), rotate(key, *rotary), value, lengths=lengths)
    return out.reshape(batch, length, features)


xla_rotary_attention = functools.partial(rotary_attention, xla_attention)


def rotary_attention_for(implementation: str, placement: Placement) -> RotaryAttention:
    """Returns attend(qkv, rotary, lengths=None), bidirectional.

    Args:
      implementation: which program computes attention, see `attention_for`; "auto" on a TPU is
        `fused_attention`, which rotates too, where that takes the shapes.
      placement: where queries, keys and values lie.

    Raises:
      KeyError: no such implementation.
    """
    apart = functools.partial(rotary_attention, attention_for(implementation, placement))
    if implementation != "auto" or placement.platform != "tpu":
        return apart
    from sedd_jax.model.fused_attention import fits  # takes a second, and only a TPU needs it

    fused = fused_rotary_attention(placement)

    def attend(qkv, rotary, lengths=None):
        parts = 1 if placement.tensor is None else placement.mesh.shape[placement.tensor]
        suits = fits(qkv.shape[2], qkv.shape[3] // parts, 2 * rotary[0].shape[-1])
        return (fused if suits else apart)(qkv, rotary, lengths)

    return attend


def fused_rotary_attention(placement: Placement) -> RotaryAttention:
    """Returns attention by `fused_attention`, on every device's rows and heads."""
    from sedd_jax.model.fused_attention import fused_attention

    def on_device(qkv, cos, sin, lengths=None):
        tables = cos[0, :, 0], sin[0, :, 0]
        return fused_attention(qkv, *tables, lengths, interpret=placement.platform != "tpu")

    def attend(qkv, rotary, lengths=None):
        rows = placement.batch_axes(qkv.shape[1])
        operands = (qkv, *rotary)
        specs = (
            PartitionSpec(None, rows, None, placement.tensor),
            PartitionSpec(),
            PartitionSpec(),
        )
        if lengths is not None:
            operands, specs = (*operands, lengths), (*specs, PartitionSpec(rows))
        out = PartitionSpec(rows, None, placement.tensor)
        return placement.per_device(on_device, specs, out)(*operands)

    return attend

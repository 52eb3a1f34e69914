"""Softmax attention, bidirectional or causal, and rotary: the functions that compute it.

Shapes: B batch, L length, H heads, K head dimension, R = K / 2, D = H K.

References:
  Vaswani et al., Attention Is All You Need, 2017 (arXiv 1706.03762).
  Su et al., RoFormer: Enhanced Transformer with Rotary Position Embedding, 2021 (arXiv 2104.09864).
  Dao et al., FlashAttention, 2022 (arXiv 2205.14135): "cudnn", "splash" (JAX's Pallas kernel for
    TPUs) and `fused_attention` never store the L^2 weights.
"""

import functools
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from sedd_jax.diffusion.padding import real_positions
from sedd_jax.model.sharding import Placement
from sedd_jax.model.transformer import KEPT

SPLASH_BLOCKS = (1024, 512, 256, 128)  # 1024: 269 MB on TPU v5e, 512: 315 (B 16, L 1024, H 12)
CUDNN_DTYPES = (jnp.bfloat16, jnp.float16)
ROTARY_BASE = 10_000

RotaryTables = tuple[Float[Array, "1 L 1 R"], Float[Array, "1 L 1 R"]]  # cos and sin


@runtime_checkable
class Attention(Protocol):
    """softmax(query key^T / sqrt(K)) value for every head."""

    def __call__(
        self,
        query: Float[Array, "B L H K"],
        key: Float[Array, "B L H K"],
        value: Float[Array, "B L H K"],
        lengths: Int[Array, "B"] | None = None,
    ) -> Float[Array, "B L H K"]:
        """Returns the attention in the type of the inputs; the softmax is float32.

        Args:
          query: of every position and head.
          key: likewise.
          value: likewise.
          lengths: of the rows, at least 1: later keys are masked. None for full rows.
        """


@runtime_checkable
class RotaryAttention(Protocol):
    """Bidirectional `Attention` of rotated queries and keys."""

    def __call__(
        self,
        qkv: Float[Array, "3 B L D"],
        rotary: RotaryTables,
        lengths: Int[Array, "B"] | None = None,
    ) -> Float[Array, "B L D"]:
        """Returns the attention in the type of the inputs.

        Args:
          qkv: queries, keys and values, before the rotation.
          rotary: see `rotary_tables`.
          lengths: see `Attention`.
        """


def attention_for(implementation: str, placement: Placement, *, causal: bool = False) -> Attention:
    """Returns one of the implementations of attention.

    Args:
      implementation: what computes it.
        "xla": plain JAX on any platform; the L^2 weights are in memory.
        "cudnn": NVIDIA's flash attention; 16-bit inputs only.
        "splash": JAX's flash attention for TPUs; L a multiple of 128. On other platforms the kernel
          is interpreted, which is correct, slow, and meant for tests.
        "auto": chosen when traced: splash on a TPU where L is a multiple of 128; cudnn on a GPU
          where the type is 16-bit and K a multiple of 8 up to 128; xla everywhere else.
      placement: of query, key and value.
      causal: whether a position attends only to itself and those before it.

    Raises:
      KeyError: no such implementation.
    """
    return IMPLEMENTATIONS[implementation](placement, causal)


def _xla_attention(
    query: Float[Array, "B L H K"],
    key: Float[Array, "B L H K"],
    value: Float[Array, "B L H K"],
    lengths: Int[Array, "B"] | None = None,
    *,
    causal: bool = False,
) -> Float[Array, "B L H K"]:
    """`Attention` in plain JAX.

    Normalised after the product with the values, on K numbers a row instead of L. Batch and heads
    are merged into one axis, which is faster on a CPU; the compiler cannot split the merged axis
    over a mesh that splits both, hence `_per_device`.
    """
    batch, length, heads, width = query.shape
    query, key, value = (
        jnp.moveaxis(x, 2, 1).reshape(batch * heads, length, width) for x in (query, key, value)
    )
    logits = jnp.einsum("nqk,nsk->nqs", query, key, preferred_element_type=jnp.float32)
    logits = logits * width**-0.5
    if causal:
        logits = jnp.where(jnp.tri(length, dtype=bool)[None], logits, -jnp.inf)
    if lengths is not None:
        real = jnp.repeat(real_positions(lengths, length), heads, axis=0)
        logits = jnp.where(real[:, None], logits, -jnp.inf)
    weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(-1, keepdims=True)))
    out = jnp.einsum(
        "nqs,nsk->nqk", weights.astype(value.dtype), value, preferred_element_type=jnp.float32
    )
    out = (out / weights.sum(-1, keepdims=True)).astype(value.dtype)
    return jnp.moveaxis(out.reshape(batch, heads, length, width), 1, 2)


def _cudnn_attention(
    query: Float[Array, "B L H K"],
    key: Float[Array, "B L H K"],
    value: Float[Array, "B L H K"],
    lengths: Int[Array, "B"] | None = None,
    *,
    causal: bool = False,
) -> Float[Array, "B L H K"]:
    """`Attention` by cuDNN.

    Needs no placement: JAX registers how the call is partitioned over batch and heads
    (`custom_partitioning` in jax/_src/cudnn/fused_attention_stablehlo.py), forward and backward.

    Raises:
      ValueError: the inputs are float32.
    """
    if query.dtype not in CUDNN_DTYPES:
        raise ValueError(
            f"cuDNN attention takes 16-bit numbers, got {query.dtype.name}: "
            "set model.dtype=bfloat16 or model.attention=xla."
        )
    return jax.nn.dot_product_attention(
        query,
        key,
        value,
        is_causal=causal,
        key_value_seq_lengths=lengths,
        implementation="cudnn",
    )


def _splash_attention(placement: Placement, causal: bool = False) -> Attention:
    """Returns `Attention` by the Pallas kernel for TPUs, for every device's rows and heads.

    The query is scaled before the product and rounded to its type.
    """

    def on_device(query, key, value, lengths=None):
        # [B, L, H, K] -> [B, H, L, K]; the kernel has no scale and no batch
        scaled = (query.astype(jnp.float32) * query.shape[-1] ** -0.5).astype(query.dtype)
        query, key, value = (jnp.swapaxes(x, 1, 2) for x in (scaled, key, value))
        heads, length = query.shape[1:3]
        kernel = _splash_kernel(heads, length, causal, interpret=placement.platform != "tpu")
        segments = None if lengths is None else _splash_segments(lengths, length)
        return jnp.swapaxes(jax.vmap(kernel)(query, key, value, segments), 1, 2)

    return _per_device(placement, on_device)


def _per_device(placement, on_device):
    """Attention of every device's own rows and heads, for what the compiler does not partition."""

    def attention(query, key, value, lengths=None):
        rows = placement.batch_axes(query.shape[0])
        spec = PartitionSpec(rows, None, placement.tensor)
        operands, specs = (query, key, value), (spec, spec, spec)
        if lengths is not None:
            operands, specs = (*operands, lengths), (*specs, PartitionSpec(rows))
        return placement.per_device(on_device, specs, spec)(*operands)

    return attention


def _splash_segments(lengths, length):
    """The kernel's segments: all queries are in the segment of the keys that are no padding."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel

    real = real_positions(lengths, length).astype(jnp.int32)
    return splash_attention_kernel.SegmentIds(jnp.ones_like(real), real)


def _splash_kernel(heads, length, causal, interpret):
    # imported here: takes 2 s, and only a TPU needs it
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_kernel,
        splash_attention_mask,
    )

    if length % SPLASH_BLOCKS[-1]:
        raise ValueError(
            f"Splash attention takes lengths that are multiples of {SPLASH_BLOCKS[-1]}, got "
            f"{length}: change model.length or set model.attention=xla."
        )
    block = next(size for size in SPLASH_BLOCKS if length % size == 0)
    # The fused backward kernel writes a gradient of the queries per block of keys, to be summed:
    # less work and memory than a second kernel where there is one block, more memory otherwise.
    fused = block == length
    blocks = splash_attention_kernel.BlockSizes(
        block_q=block,
        block_kv=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_q_dq=None if fused else block,
        block_kv_dq=None if fused else block,
        use_fused_bwd_kernel=fused,
    )
    shape = splash_attention_mask.CausalMask if causal else splash_attention_mask.FullMask
    mask = shape((length, length))
    return splash_attention_kernel.make_splash_mha(
        splash_attention_mask.MultiHeadMask([mask] * heads),
        block_sizes=blocks,
        head_shards=1,  # the heads are this device's own
        q_seq_shards=1,
        residual_checkpoint_name=KEPT,
        interpret=interpret,
    )


def _automatic_attention(placement: Placement, causal: bool = False) -> Attention:
    """Returns `Attention` by the fastest implementation that takes the inputs."""
    splash, xla, cudnn = (
        IMPLEMENTATIONS[name](placement, causal) for name in ("splash", "xla", "cudnn")
    )

    def on_tpu(query, key, value, lengths=None):
        fits = query.shape[1] % SPLASH_BLOCKS[-1] == 0
        return (splash if fits else xla)(query, key, value, lengths)

    def on_gpu(query, key, value, lengths=None):
        width = query.shape[-1]
        fits = query.dtype in CUDNN_DTYPES and width % 8 == 0 and width <= 128
        return (cudnn if fits else xla)(query, key, value, lengths)

    return {"gpu": on_gpu, "tpu": on_tpu}.get(placement.platform, xla)


IMPLEMENTATIONS: dict[str, Callable[[Placement, bool], Attention]] = {
    "xla": lambda placement, causal: _per_device(
        placement, functools.partial(_xla_attention, causal=causal)
    ),
    "cudnn": lambda placement, causal: functools.partial(_cudnn_attention, causal=causal),
    "splash": _splash_attention,
    "auto": _automatic_attention,
}


def rotary_tables(length: int, head_dim: int) -> RotaryTables:
    """Returns cos and sin of position times frequency, for `rotate`."""
    inverse = ROTARY_BASE ** (-jnp.arange(0, head_dim, 2) / head_dim)
    angles = (jnp.arange(length)[:, None] * inverse[None, :])[None, :, None, :]
    return jnp.cos(angles), jnp.sin(angles)


def rotate(
    x: Float[Array, "B L H K"], cos: Float[Array, "1 L 1 R"], sin: Float[Array, "1 L 1 R"]
) -> Float[Array, "B L H K"]:
    """Rotates the pairs (i, i + K/2) of the last axis by their position's angle, in float32.

    Args:
      x: queries or keys.
      cos: see `rotary_tables`.
      sin: likewise.
    """
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate(
        [first * cos - second * sin, second * cos + first * sin], axis=-1
    ).astype(x.dtype)


def _rotary_attention(
    attention: Attention,
    qkv: Float[Array, "3 B L D"],
    rotary: RotaryTables,
    lengths: Int[Array, "B"] | None = None,
) -> Float[Array, "B L D"]:
    """Returns `attention` of rotated queries and keys."""
    _, batch, length, features = qkv.shape
    width = 2 * rotary[0].shape[-1]
    query, key, value = qkv.reshape(3, batch, length, features // width, width)
    out = attention(rotate(query, *rotary), rotate(key, *rotary), value, lengths=lengths)
    return out.reshape(batch, length, features)


xla_rotary_attention = functools.partial(_rotary_attention, _xla_attention)


def rotary_attention_for(implementation: str, placement: Placement) -> RotaryAttention:
    """Returns one of the implementations of rotary attention.

    Args:
      implementation: what computes attention, see `attention_for`; "auto" on a TPU is
        `fused_attention`, which rotates too, where it takes the shapes.
      placement: of queries, keys and values.

    Raises:
      KeyError: no such implementation.
    """
    unfused = functools.partial(_rotary_attention, attention_for(implementation, placement))
    if implementation != "auto" or placement.platform != "tpu":
        return unfused
    # imported here: takes a second, and only a TPU needs it
    from sedd_jax.model.fused_attention import fits, fused_rotary_attention

    fused = fused_rotary_attention(placement)

    def attend(qkv, rotary, lengths=None):
        parts = 1 if placement.tensor is None else placement.mesh.shape[placement.tensor]
        takes = fits(qkv.shape[2], qkv.shape[3] // parts, 2 * rotary[0].shape[-1])
        return (fused if takes else unfused)(qkv, rotary, lengths)

    return attend

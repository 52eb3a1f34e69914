"""Softmax attention, bidirectional or causal: one function, and the kernels that compute it.

Shapes: B batch, L length, H heads, K head dimension.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from sedd_jax.diffusion.padding import real_positions
from sedd_jax.model.placement import Placement

# (query, key, value, lengths=None) -> what they attend to, all [B, L, H, K]
Attention = Callable[..., Float[Array, "B L H K"]]

SPLASH_BLOCKS = (1024, 512, 256, 128)  # 1024: 269 MB on TPU v5e, 512: 315 (B 16, L 1024, H 12)
CUDNN_DTYPES = (jnp.bfloat16, jnp.float16)
KEPT = "kept"  # what a backward pass should not make again, see `REMAT`


def attention_for(implementation: str, placement: Placement, *, causal: bool = False) -> Attention:
    """Returns attention(query, key, value, lengths=None).

    That is softmax(query key^T / sqrt(K)) value for every head. The softmax is float32 whatever the
    inputs; the result has the type of the inputs. `lengths` [B] are those of the rows, at least 1:
    keys from there on are seen by none. None for full rows.

    Args:
      implementation: which program computes it.
        "xla": plain JAX on any platform; the L^2 weights are in memory.
        "cudnn": NVIDIA's flash attention; 16-bit inputs only.
        "splash": the flash attention of JAX for TPUs; L a multiple of 128. On other platforms the
          kernel is interpreted, which is right, slow, and there for tests.
        "auto": chosen when traced: splash on a TPU where L is a multiple of 128; cudnn on a GPU
          where the type is 16-bit and K a multiple of 8 up to 128; xla everywhere else.
      placement: where query, key and value lie.
      causal: a position sees itself and those before it, not all.

    Raises:
      KeyError: no such implementation.
    """
    return IMPLEMENTATIONS[implementation](placement, causal)


def xla_attention(
    query: Float[Array, "B L H K"],
    key: Float[Array, "B L H K"],
    value: Float[Array, "B L H K"],
    lengths: Int[Array, "B"] | None = None,
    *,
    causal: bool = False,
) -> Float[Array, "B L H K"]:
    """Attention in plain JAX.

    Normalised after the product with the values, on K numbers a row instead of L. Batch and heads
    become one axis, which is faster on a CPU and what a mesh over both cannot follow, hence
    `_on_devices`.
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
        seen = jnp.repeat(real_positions(lengths, length), heads, axis=0)
        logits = jnp.where(seen[:, None], logits, -jnp.inf)
    weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(-1, keepdims=True)))
    out = jnp.einsum(
        "nqs,nsk->nqk", weights.astype(value.dtype), value, preferred_element_type=jnp.float32
    )
    out = (out / weights.sum(-1, keepdims=True)).astype(value.dtype)
    return jnp.moveaxis(out.reshape(batch, heads, length, width), 1, 2)


def cudnn_attention(
    query: Float[Array, "B L H K"],
    key: Float[Array, "B L H K"],
    value: Float[Array, "B L H K"],
    lengths: Int[Array, "B"] | None = None,
    *,
    causal: bool = False,
) -> Float[Array, "B L H K"]:
    """Attention by cuDNN, which refuses float32.

    Needs no placement: JAX registers how the call splits over batch and heads
    (`custom_partitioning` in jax/_src/cudnn/fused_attention_stablehlo.py), forward and backward.
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


def splash_attention(placement: Placement, causal: bool = False) -> Attention:
    """Returns attention by the Pallas kernel for TPUs, on every device's rows and heads.

    The query is scaled before the product, and rounded to its type.
    """

    def on_device(query, key, value, lengths=None):
        # [B, L, H, K] -> [B, H, L, K]; the kernel has no scale and no batch
        scaled = (query.astype(jnp.float32) * query.shape[-1] ** -0.5).astype(query.dtype)
        query, key, value = (jnp.swapaxes(x, 1, 2) for x in (scaled, key, value))
        heads, length = query.shape[1:3]
        kernel = _splash_kernel(heads, length, causal, interpret=placement.platform != "tpu")
        segments = None if lengths is None else _splash_segments(lengths, length)
        return jnp.swapaxes(jax.vmap(kernel)(query, key, value, segments), 1, 2)

    return _on_devices(placement, on_device)


def _on_devices(placement, on_device):
    """Attention of every device's own rows and heads, for what the compiler would not split."""

    def attention(query, key, value, lengths=None):
        rows = placement.batch_axes(query.shape[0])
        spec = PartitionSpec(rows, None, placement.tensor)
        operands, specs = (query, key, value), (spec, spec, spec)
        if lengths is not None:
            operands, specs = (*operands, lengths), (*specs, PartitionSpec(rows))
        return placement.per_device(on_device, specs, spec)(*operands)

    return attention


def _splash_segments(lengths, length):
    """The segments of the kernel: all queries are in that of the keys that are text."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel

    text = real_positions(lengths, length).astype(jnp.int32)
    return splash_attention_kernel.SegmentIds(jnp.ones_like(text), text)


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
    # The fused backward pass writes one gradient of the queries per block of keys, to be summed:
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


def automatic_attention(placement: Placement, causal: bool = False) -> Attention:
    """Returns attention by the best of the programs that take the inputs, see `attention_for`."""
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
    "xla": lambda placement, causal: _on_devices(
        placement, functools.partial(xla_attention, causal=causal)
    ),
    "cudnn": lambda placement, causal: functools.partial(cudnn_attention, causal=causal),
    "splash": splash_attention,
    "auto": automatic_attention,
}

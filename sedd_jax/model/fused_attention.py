"""Rotation and attention of all heads in one Pallas kernel for TPUs, forward and backward.

Queries, keys and values are read as the projection writes them, [3, B, L, D] with D = H K, and
their gradients are written likewise: nothing is transposed or padded in between. A tile of 128
lanes holds 128 / K heads. The matrix unit multiplies whole tiles, in which the other heads are
masked: that costs no more than leaving them out, since it would pad a narrower operand.

Shapes: B batch, L length, H heads, K head dimension, R = K / 2, D = H K.

References:
  Dao et al., FlashAttention, 2022 (arXiv 2205.14135): the backward pass from the log of the sums.
  Su et al., RoFormer, 2021 (arXiv 2104.09864): the rotation.
"""

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from sedd_jax.model.attention import RotaryAttention
from sedd_jax.model.sharding import Placement
from sedd_jax.model.transformer import KEPT

LANES = 128
MAX_LENGTH = 2048  # a tile's keys are in VMEM, and the loop over queries is unrolled
FORWARD_BLOCKS = (512, 256, 128)  # queries at a time, the largest that divides the length
BACKWARD_BLOCKS = (256, 128)


def fits(length: int, features: int, head_dim: int) -> bool:
    """Returns whether the kernel takes the shapes.

    Args:
      length: L.
      features: D of one device.
      head_dim: K.
    """
    whole_tiles = length % LANES == 0 and features % LANES == 0
    return whole_tiles and length <= MAX_LENGTH and head_dim in (32, 64, 128)


def fused_attention(
    qkv: Float[Array, "3 B L D"],
    cos: Float[Array, "L R"],
    sin: Float[Array, "L R"],
    lengths: Int[Array, "B"] | None = None,
    *,
    interpret: bool = False,
) -> Float[Array, "B L D"]:
    """Returns softmax(query key^T / sqrt(K)) value of every head, queries and keys rotated.

    Queries and keys are rotated in float32 and rounded once; the softmax is float32.

    Args:
      qkv: queries, keys and values, before the rotation.
      cos: of the rotation's angles.
      sin: likewise.
      lengths: of the rows: later keys are masked. None for full rows.
      interpret: run without a TPU, which is slow and meant for tests.
    """
    tables = _of_tile(cos, cos), _of_tile(-sin, sin)
    return _attend(qkv, *tables, lengths, 2 * cos.shape[1], interpret)


def fused_rotary_attention(placement: Placement) -> RotaryAttention:
    """Returns `RotaryAttention` by `fused_attention`, for every device's rows and heads."""

    def on_device(qkv, cos, sin, lengths=None):
        tables = cos[0, :, 0], sin[0, :, 0]
        return fused_attention(qkv, *tables, lengths, interpret=placement.platform != "tpu")

    def attend(qkv, rotary, lengths=None):
        rows = placement.batch_axes(qkv.shape[1])
        operands, tables = (qkv, *rotary), (PartitionSpec(), PartitionSpec())
        specs = (PartitionSpec(None, rows, None, placement.tensor), *tables)
        if lengths is not None:
            operands, specs = (*operands, lengths), (*specs, PartitionSpec(rows))
        out = PartitionSpec(rows, None, placement.tensor)
        return placement.per_device(on_device, specs, out)(*operands)

    return attend


def _of_tile(first, second):
    """Tables of both halves of a head [L, R] as one for all heads of a tile [L, 128]."""
    head = jnp.concatenate([first, second], axis=1)
    return jnp.tile(head, (1, LANES // head.shape[1]))


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _attend(qkv, cos, sin, lengths, head_dim, interpret):
    return _attend_forward(qkv, cos, sin, lengths, head_dim, interpret)[0]


def _attend_forward(qkv, cos, sin, lengths, head_dim, interpret):
    _, batch, length, features = qkv.shape
    sums = (batch, features // LANES, LANES // head_dim, length)
    out, sums = _call(
        _forward_kernel,
        (cos, sin, qkv, qkv, qkv),
        lengths,
        (jax.ShapeDtypeStruct(qkv.shape[1:], qkv.dtype), jax.ShapeDtypeStruct(sums, jnp.float32)),
        ("out", "sums"),
        head_dim=head_dim,
        blocks=FORWARD_BLOCKS,
        interpret=interpret,
    )
    out, sums = _kept(out), _kept(sums)
    return out, (qkv, cos, sin, lengths, out, sums)


def _attend_backward(head_dim, interpret, residual, d_out):
    qkv, cos, sin, lengths, out, sums = residual
    d_qkv = _call(
        _backward_kernel,
        (cos, sin, qkv, qkv, qkv, out, d_out, sums),
        lengths,
        jax.ShapeDtypeStruct(qkv.shape, qkv.dtype),
        "d_qkv",
        head_dim=head_dim,
        blocks=BACKWARD_BLOCKS,
        interpret=interpret,
        scratch_shapes=[pltpu.VMEM((qkv.shape[2], LANES), jnp.float32)] * 2,
    )
    return d_qkv, None, None, None


_attend.defvjp(_attend_forward, _attend_backward)


def _kept(x):
    """A result that the backward pass keeps, as bits: JAX would round kept floats once more."""
    bits = jax.lax.bitcast_convert_type(x, jnp.uint16 if x.dtype.itemsize == 2 else jnp.uint32)
    return jax.lax.bitcast_convert_type(checkpoint_name(bits, KEPT), x.dtype)


def _call(kernel, operands, lengths, shapes, written, *, head_dim, blocks, interpret, **options):
    """Runs a kernel for every row of the batch and every tile of heads.

    Operands are cos and sin, then queries, keys and values, all three in [3, B, L, D]; `shapes` and
    `written` are shapes and names of the results, `blocks` numbers of queries at a time.
    """
    _, batch, length, features = operands[2].shape
    specs = {
        "table": pl.BlockSpec((length, LANES), lambda b, t: (0, 0)),
        "query": pl.BlockSpec((None, None, length, LANES), lambda b, t: (0, b, 0, t)),
        "key": pl.BlockSpec((None, None, length, LANES), lambda b, t: (1, b, 0, t)),
        "value": pl.BlockSpec((None, None, length, LANES), lambda b, t: (2, b, 0, t)),
        "out": pl.BlockSpec((None, length, LANES), lambda b, t: (b, 0, t)),
        "sums": pl.BlockSpec((None, None, LANES // head_dim, length), lambda b, t: (b, t, 0, 0)),
        "d_qkv": pl.BlockSpec((3, None, length, LANES), lambda b, t: (0, b, 0, t)),
    }
    # forward: logits and values; backward: logits again, and the gradients of four operands
    products, pairs = 5 if written == "d_qkv" else 2, batch * (features // head_dim) * length**2
    read = ("table", "table", "query", "key", "value", "out", "out", "sums")[: len(operands)]
    in_specs = [specs[name] for name in read]
    kernel = functools.partial(
        kernel,
        head_dim=head_dim,
        block=next(size for size in blocks if length % size == 0),
    )
    if lengths is None:
        kernel = functools.partial(kernel, None)
    else:
        operands = (lengths, *operands)
        in_specs = [pl.BlockSpec(memory_space=pltpu.SMEM), *in_specs]
    return pl.pallas_call(
        kernel,
        grid=(batch, features // LANES),
        in_specs=in_specs,
        out_specs=jax.tree.map(lambda name: specs[name], written),
        out_shape=shapes,
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel")),
        cost_estimate=pl.CostEstimate(
            # the matrix unit multiplies whole tiles, also where a head has fewer lanes
            flops=2 * products * pairs * LANES,
            transcendentals=pairs,
            bytes_accessed=sum(
                x.size * x.dtype.itemsize for x in jax.tree.leaves((operands, shapes))
            ),
        ),
        name=f"rotary_attention{'_backward' if written == 'd_qkv' else ''}",
        interpret=interpret,
        **options,
    )(*operands)


def _forward_kernel(lengths, cos, sin, query, key, value, out, sums, *, head_dim, block):
    """A block of queries at a time, over all keys.

    Refs: lengths [B] or None; cos, sin, query, key, value and out [L, 128], one tile of heads of
    one row; sums [128 / K, L], the logs of the softmax's sums.
    """
    dtype = query.dtype
    keys = _rotated(key[...], cos[...], sin[...], head_dim).astype(dtype)
    for start in range(0, len(query), block):
        rows = pl.ds(start, block)
        queries = _rotated(query[rows], cos[rows], sin[rows], head_dim) * head_dim**-0.5
        queries = queries.astype(dtype)
        attended = jnp.zeros(queries.shape, jnp.float32)
        for head in range(LANES // head_dim):
            mine = _lanes_of(head, head_dim)
            logits = _masked(_dot(jnp.where(mine, queries, 0), keys, 1, 1), lengths, axis=1)
            top = logits.max(1, keepdims=True)
            weights = jnp.exp(logits - top)
            total = weights.sum(1, keepdims=True)
            attended = jnp.where(
                mine, _dot(weights.astype(dtype), value[...], 1, 0) / total, attended
            )
            # a column is transposed to a row as part of a whole tile
            sums[head : head + 1, rows] = jnp.broadcast_to(top + jnp.log(total), attended.shape).T[
                :1
            ]
        out[rows] = attended.astype(dtype)


def _backward_kernel(lengths, *refs, head_dim, block):
    """A block of queries at a time, over all keys; keys along the first axis, queries along lanes.

    Refs: those of `_forward_kernel`, d_out [L, 128] before its sums, d_qkv [3, L, 128]; scratch
    d_keys and d_values [L, 128], float32.
    """
    cos, sin, query, key, value, out, d_out, sums, d_qkv, d_keys, d_values = refs
    dtype, scale = query.dtype, head_dim**-0.5
    keys = _rotated(key[...], cos[...], sin[...], head_dim).astype(dtype)
    d_keys[...] = d_values[...] = jnp.zeros(d_keys.shape, jnp.float32)
    for start in range(0, len(query), block):
        rows = pl.ds(start, block)
        queries = _rotated(query[rows], cos[rows], sin[rows], head_dim) * scale
        queries, d_rows = queries.astype(dtype), d_out[rows]
        along = (d_rows.astype(jnp.float32) * out[rows].astype(jnp.float32)).T
        d_queries = jnp.zeros(queries.shape, jnp.float32)
        d_key, d_value = jnp.zeros(keys.shape, jnp.float32), jnp.zeros(keys.shape, jnp.float32)
        for head in range(LANES // head_dim):
            mine = _lanes_of(head, head_dim)
            logits = _masked(_dot(keys, jnp.where(mine, queries, 0), 1, 1), lengths, axis=0)
            weights = jnp.exp(logits - sums[head : head + 1, rows])
            d_weights = _dot(value[...], jnp.where(mine, d_rows, 0), 1, 1)
            mean = along[head * head_dim : (head + 1) * head_dim].sum(0, keepdims=True)
            d_logits = (weights * (d_weights - mean)).astype(dtype)
            d_value = jnp.where(mine, _dot(weights.astype(dtype), d_rows, 1, 0), d_value)
            d_key = jnp.where(mine, _dot(d_logits, queries, 1, 0), d_key)
            d_queries = jnp.where(mine, _dot(d_logits, keys, 0, 0), d_queries)
        d_keys[...] += d_key
        d_values[...] += d_value
        d_qkv[0, rows] = _rotated(d_queries * scale, cos[rows], -sin[rows], head_dim).astype(dtype)
    d_qkv[1] = _rotated(d_keys[...], cos[...], -sin[...], head_dim).astype(dtype)
    d_qkv[2] = d_values[...].astype(dtype)


def _dot(left, right, left_axis, right_axis):
    axes = (((left_axis,), (right_axis,)), ((), ()))
    return jax.lax.dot_general(left, right, axes, preferred_element_type=jnp.float32)


def _lanes_of(head, head_dim):
    """Mask [1, 128] of the lanes of a head in its tile."""
    lane = jax.lax.broadcasted_iota(jnp.int32, (1, LANES), 1)
    return (lane >= head * head_dim) & (lane < (head + 1) * head_dim)


def _rotated(x, cos, sin, head_dim):
    """Rotates the pairs (i, i + K/2) of every head of a tile; `sin` has the signs of `_of_tile`."""
    x, half = x.astype(jnp.float32), head_dim // 2
    lane = jax.lax.broadcasted_iota(jnp.int32, (1, LANES), 1)
    first = jax.lax.rem(lane, head_dim) < half
    other = jnp.where(first, pltpu.roll(x, LANES - half, 1), pltpu.roll(x, half, 1))
    return x * cos + other * sin


def _masked(logits, lengths, axis):
    """The logits, -inf at the keys, along `axis`, that are padding."""
    if lengths is None:
        return logits
    position = jax.lax.broadcasted_iota(jnp.int32, logits.shape, axis)
    return jnp.where(position < lengths[pl.program_id(0)], logits, -jnp.inf)

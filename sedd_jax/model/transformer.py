"""The diffusion transformer of the paper (Appendix C.1), as Flax NNX layers.

Layers hold shapes and arithmetic only: parameters go in and out as plain dicts through
`score_model`, dropout keys come in as arguments, and nothing here knows of sharding.

Shapes: B batch, L length, D hidden, C condition, H heads, K head dimension, R = K / 2.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int, Key

from sedd_jax.model.attention import KEPT
from sedd_jax.model.config import TransformerConfig
from sedd_jax.model.placement import ANYWHERE, Placement
from sedd_jax.model.rotary import RotaryAttention, Tables, xla_rotary_attention

FREQUENCIES = 256  # width of the sinusoidal embedding of sigma


def _uniform_init(key, shape, *, fan_in):
    """Uniform on +-1/sqrt(fan_in): the start of the published code's linear and token layers."""
    bound = fan_in**-0.5
    return jax.random.uniform(key, shape, jnp.float32, -bound, bound)


@jax.custom_vjp
def _product(x, kernel):
    """Returns x [..., D] times kernel [D, ...]."""
    return jnp.tensordot(x, kernel, axes=1)


def _product_backward(residual, d_y):
    """All leading axes as one: XLA:CPU is three times slower on the [B, L, D] of an activation."""
    x, kernel = residual
    d_x = jnp.tensordot(
        d_y, kernel, axes=(tuple(range(x.ndim - 1, d_y.ndim)), tuple(range(1, kernel.ndim)))
    )
    d_kernel = jnp.tensordot(
        x.reshape(-1, x.shape[-1]), d_y.reshape(-1, *kernel.shape[1:]), axes=(0, 0)
    )
    return d_x, d_kernel


_product.defvjp(lambda x, kernel: (_product(x, kernel), (x, kernel)), _product_backward)


@jax.custom_vjp
def _plus_bias(y, bias):
    """Returns y [..., *D] + bias [*D] in the type of y; the bias's gradient is a float32 sum."""
    return y + bias.astype(y.dtype).reshape((1,) * (y.ndim - bias.ndim) + bias.shape)


def _plus_bias_backward(bias, d_y):
    leading = tuple(range(d_y.ndim - bias.ndim))
    return d_y, d_y.astype(jnp.float32).sum(leading).astype(bias.dtype)


_plus_bias.defvjp(lambda y, bias: (_plus_bias(y, bias), bias), _plus_bias_backward)


class Dense(nnx.Module):
    """A linear map over the last axes, one kernel axis for every axis in and out.

    Heads and the numbers of a head are one axis in the product: a TPU pads a last axis of 64 to
    128. The backward pass may keep the result.
    """

    def __init__(self, inputs, outputs, config, *, rngs, use_bias=True, zero=False):
        """Maps axes of sizes `inputs` to axes of sizes `outputs`, starting from 0 if `zero`."""
        self.inputs, self.outputs, self.dtype = inputs, outputs, config.dtype

        def start(shape):
            if zero:
                return nnx.Param(jnp.zeros(shape))
            return nnx.Param(_uniform_init(rngs.params(), shape, fan_in=math.prod(inputs)))

        self.kernel = start((*inputs, *outputs))
        self.bias = start(outputs) if use_bias else None

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        leading = x.shape[: x.ndim - len(self.inputs)]
        inner, outer = math.prod(self.inputs), self._merged_outputs
        kernel = self.kernel[...].astype(self.dtype)
        if kernel.shape != (inner, *outer):
            # the barrier keeps XLA from making the gradient in the shape of the parameter
            kernel = jax.lax.optimization_barrier(kernel.reshape(inner, *outer))
        y = _product(x.astype(self.dtype).reshape(*leading, inner), kernel)
        if self.bias is not None:
            y = _plus_bias(y, self.bias[...].reshape(outer))
        return checkpoint_name(y.reshape(*leading, *self.outputs), KEPT)

    @property
    def _merged_outputs(self):
        first, *heads = self.outputs
        return (first, math.prod(heads)) if heads else (first,)


@jax.custom_vjp
def _centred(x, mean):
    """Returns x less its mean over the last axis, given; the derivative is that of both by x."""
    return x - mean


_centred.defvjp(
    lambda x, mean: (x - mean, None), lambda _, d: (d - d.mean(-1, keepdims=True), None)
)


def gelu(x: Float[Array, "..."], *, unrolled: bool = False) -> Float[Array, "..."]:
    """Returns GELU by tanh, in float32 inside; the backward pass keeps x alone.

    Args:
      x: what goes in.
      unrolled: that blocks are no loop's body. Then the compiler must be kept from keeping more;
        within a loop it cannot, and what keeps it would hinder a TPU from fusing.
    """

    def exact(x):
        return nnx.gelu(x.astype(jnp.float32), approximate=True).astype(x.dtype)

    return jax.checkpoint(exact, prevent_cse=unrolled)(x)


class LayerNorm(nnx.Module):
    """A norm over the hidden axis, in float32. The backward pass keeps mean and variance."""

    def __init__(self, config, *, rngs, use_bias=False):
        del rngs  # nothing is random
        self.scale = nnx.Param(jnp.ones(config.model.hidden_size))
        self.bias = nnx.Param(jnp.zeros(config.model.hidden_size)) if use_bias else None

    def __call__(
        self,
        x: Float[Array, "... D"],
        shift: Float[Array, "... D"] | None = None,
        scale: Float[Array, "... D"] | None = None,
        mean: Float[Array, "... 1"] | None = None,
    ) -> Float[Array, "... D"]:
        """Returns the norm of x, times 1 + `scale`, plus `shift`; `mean`: if it is known."""
        mean = self.mean(x) if mean is None else mean
        # The deviations' sum is zero, and so is the variance's derivative by the mean.
        deviations = x - mean
        variance = checkpoint_name(jnp.square(deviations).mean(-1, keepdims=True), KEPT)
        # One factor for both scales, so that the backward pass sums over positions once.
        factor = self._along(self.scale, x) * (1 if scale is None else 1 + scale)
        y = _centred(x, mean) * jax.lax.rsqrt(variance + 1e-5) * factor
        if self.bias is not None:
            y = y + self._along(self.bias, x)
        return y if shift is None else y + shift

    def mean(self, x: Float[Array, "... D"]) -> Float[Array, "... 1"]:
        """Returns the mean of x over the hidden axis."""
        return checkpoint_name(jax.lax.stop_gradient(x).mean(-1, keepdims=True), KEPT)

    def _along(self, parameter, x):
        return parameter[...].reshape((1,) * (x.ndim - 1) + (-1,))


def sigma_features(sigma: Float[Array, "B"]) -> Float[Array, "B F"]:
    """Returns the sinusoidal features of the total noise: 128 cosines, then 128 sines."""
    half = FREQUENCIES // 2
    frequencies = 10_000.0 ** (-jnp.arange(half) / half)
    angles = sigma[:, None] * frequencies[None, :]
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def dropout_masks(
    key: Key[Array, ""] | None, rate: float, shape: tuple[int, ...]
) -> tuple[Bool[Array, "..."], Bool[Array, "..."]] | tuple[None, None]:
    """Returns which entries of a block's two branches stay; Nones without a key or a rate.

    Each takes 16 of the 32 bits that are drawn for an entry. The backward pass keeps the masks, two
    bits in a byte: to draw again takes a TPU longer than to read.
    """
    if key is None or rate == 0:
        return None, None
    words, dropped = jax.random.bits(key, shape, jnp.uint32), _dropped(rate)
    stay = ((words & 0xFFFF) >= dropped) | (((words >> 16) >= dropped).astype(jnp.uint8) << 1)
    stay = checkpoint_name(jax.lax.optimization_barrier(stay), KEPT)  # or XLA draws for each use
    return stay & 1 != 0, stay & 2 != 0


def _dropped(rate):
    """How many of 2^16 numbers drop an entry: the rate, to a multiple of 2^-16."""
    return round(rate * 2**16)


def dropout(
    x: Float[Array, "..."], rate: float, stay: Bool[Array, "..."] | None
) -> Float[Array, "..."]:
    """Returns x, float32, with entries dropped and the rest scaled up; x itself without a mask."""
    if stay is None:
        return x
    # chosen first, in the type of x: the product that makes x then ends in it, not in float32
    return jnp.where(stay, x, 0) * jnp.float32(1 / (1 - _dropped(rate) / 2**16))


class SigmaEmbedding(nnx.Module):
    """Maps the total noise to the conditioning vector: features, Linear, SiLU, Linear, SiLU."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        config = dataclasses.replace(
            config, dtype=jnp.dtype("float32")
        )  # tiny, and sigma spans decades
        self.inner = Dense((FREQUENCIES,), (config.model.cond_dim,), config, rngs=rngs)
        self.outer = Dense((config.model.cond_dim,), (config.model.cond_dim,), config, rngs=rngs)

    def __call__(self, sigma: Float[Array, "B"]) -> Float[Array, "B C"]:
        return nnx.silu(self.outer(nnx.silu(self.inner(sigma_features(sigma)))))


class Block(nnx.Module):
    """Pre-norm attention and MLP, each shifted, scaled and gated by the noise (adaLN-zero)."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        size, heads = config.model.hidden_size, config.model.num_heads
        per_head = (heads, size // heads)
        self.config = config
        self.attention_norm = LayerNorm(config, rngs=rngs)
        self.qkv = Dense((size,), (3, *per_head), config, rngs=rngs, use_bias=False)
        self.attention_out = Dense(per_head, (size,), config, rngs=rngs, use_bias=False)
        self.mlp_norm = LayerNorm(config, rngs=rngs)
        self.mlp_in = Dense((size,), (4 * size,), config, rngs=rngs)
        self.mlp_out = Dense((4 * size,), (size,), config, rngs=rngs)
        self.modulation = Dense((config.model.cond_dim,), (6, size), config, rngs=rngs, zero=True)

    def __call__(
        self,
        x: Float[Array, "B L D"],
        cond: Float[Array, "B C"],
        rotary: Tables,
        dropout_key: Key[Array, ""] | None,
        attention: RotaryAttention = xla_rotary_attention,
        lengths: Int[Array, "B"] | None = None,
        placement: Placement = ANYWHERE,
    ) -> Float[Array, "B L D"]:
        dtype, rate = self.config.dtype, self.config.model.dropout
        per_head = self.attention_out.inputs
        stay_a, stay_m = dropout_masks(dropout_key, rate, x.shape)
        # float32 up to here, and so are the sums over positions of its gradient
        modulation = jax.lax.optimization_barrier(self.modulation(cond).astype(jnp.float32))
        # [B, 1, D] each: one for all positions
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = jnp.moveaxis(modulation, 1, 0)[
            :, :, None
        ]

        mean = self.attention_norm.mean(x)  # before the barrier: made where x is made
        x = jax.lax.optimization_barrier(placement.in_rows(x))
        h = self.attention_norm(x, shift_a, scale_a, mean).astype(dtype)
        qkv = self.qkv(h).reshape(*h.shape[:2], 3, -1)
        qkv = checkpoint_name(jnp.moveaxis(qkv, 2, 0), KEPT)
        h = attention(qkv, rotary, lengths).reshape(*h.shape[:2], *per_head)
        x = x + gate_a * dropout(self.attention_out(h), rate, stay_a)

        h = self.mlp_norm(x, shift_m, scale_m).astype(dtype)
        h = self.mlp_out(gelu(self.mlp_in(h), unrolled=self.config.unroll))
        return x + gate_m * dropout(h, rate, stay_m)


class Embedding(nnx.Module):
    """The token table, padded to a multiple of 128 rows, and positions; float32 throughout."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        shape = (config.padded_states, config.model.hidden_size)
        self.table = nnx.Param(_uniform_init(rngs.params(), shape, fan_in=config.model.hidden_size))
        if config.max_length is None:
            self.positions = None
        else:
            shape = (config.max_length, config.model.hidden_size)
            start = _uniform_init(rngs.params(), shape, fan_in=config.model.hidden_size)
            self.positions = nnx.Param(start)

    def __call__(self, xt: Int[Array, "B L"]) -> Float[Array, "B L D"]:
        x = self.table[...][xt]
        if self.positions is not None and xt.shape[1] > self.positions.shape[0]:
            raise ValueError(
                f"The network has learned {self.positions.shape[0]} positions, got {xt.shape[1]}."
            )
        return x if self.positions is None else x + self.positions[...][None, : xt.shape[1]]


class Head(nnx.Module):
    """Final norm, shift and scale by the noise, and the zero-initialised vocabulary projection."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.norm = LayerNorm(config, rngs=rngs)
        self.modulation = Dense(
            (config.model.cond_dim,), (2, config.model.hidden_size), config, rngs=rngs, zero=True
        )
        self.kernel = nnx.Param(jnp.zeros((config.model.hidden_size, config.padded_states)))
        self.bias = nnx.Param(jnp.zeros(config.padded_states))

    def __call__(
        self, x: Float[Array, "B L D"], cond: Float[Array, "B C"]
    ) -> Float[Array, "B L V"]:
        """Returns the outputs of the V states, float32, without padding."""
        states, h = self.config.num_states, self.hidden(x, cond)
        out = jnp.dot(
            h.reshape(-1, h.shape[-1]),
            self.kernel[...].astype(h.dtype),
            preferred_element_type=jnp.float32,
        )
        return (out + self.bias[...][None])[:, :states].reshape(*x.shape[:-1], states)

    def hidden(self, x: Float[Array, "B L D"], cond: Float[Array, "B C"]) -> Float[Array, "B L D"]:
        """Returns what is projected to the vocabulary."""
        shift, scale = jnp.moveaxis(self.modulation(cond)[:, None], -2, 0)
        return self.norm(x, shift, scale).astype(self.config.dtype)

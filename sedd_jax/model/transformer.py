"""What both networks are made of: Flax NNX layers, and the stack of blocks.

Layers hold shapes and arithmetic only: parameters go in and out as plain dicts, dropout keys are
arguments, and no layer knows of a mesh. The stack does: it scans one block over parameters that
have a leading axis of blocks, and all-gathers them block by block.

Shapes: B batch, L length, D hidden.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int, Key

from sedd_jax.diffusion.guidance import embedded
from sedd_jax.model.config import TransformerConfig
from sedd_jax.model.sharding import Placement, all_gathered

Params = dict[str, Any]

KEPT = "kept"  # name of what the backward pass should not recompute, see `REMAT`
GATHERED = "gathered"  # name of weights all-gathered for use

# What the backward pass of a block recomputes instead of keeping: nothing but all-gathered weights;
# everything but what is named `KEPT`, which is products with weights, dropout masks and the TPU's
# attention, not that of XLA and cuDNN; everything but the input.
REMAT: dict[str, Callable[[Callable], Callable]] = {
    "none": functools.partial(
        jax.checkpoint,
        policy=jax.checkpoint_policies.save_anything_except_these_names(GATHERED),
    ),
    "products": functools.partial(
        jax.checkpoint, policy=jax.checkpoint_policies.save_only_these_names(KEPT)
    ),
    "blocks": jax.checkpoint,
}


def uniform_init(
    key: Key[Array, ""], shape: tuple[int, ...], *, fan_in: int
) -> Float[Array, "..."]:
    """Draws from +-1/sqrt(fan_in), as the published code initialises linear and token layers.

    Args:
      key: random key, used once.
      shape: of the result.
      fan_in: numbers that meet in one output.
    """
    bound = fan_in**-0.5
    return jax.random.uniform(key, shape, jnp.float32, -bound, bound)


@jax.custom_vjp
def _product(x, kernel):
    """Returns x [..., D] times kernel [D, ...]."""
    return jnp.tensordot(x, kernel, axes=1)


def _product_backward(residual, d_y):
    """Merges the leading axes: XLA:CPU is three times slower on [B, L, D] activations."""
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
    """A linear map over the last axes, with one kernel axis for every axis in and out.

    Heads and head dimension are one axis in the product: a TPU pads a last axis of 64 to 128. The
    backward pass may keep the result.
    """

    def __init__(
        self,
        inputs: tuple[int, ...],
        outputs: tuple[int, ...],
        config: TransformerConfig,
        *,
        rngs: nnx.Rngs,
        use_bias: bool = True,
        zero: bool = False,
    ):
        """Initialises the kernel [*inputs, *outputs] and the bias [*outputs].

        Args:
          inputs: sizes of the axes that are contracted.
          outputs: sizes of the axes that replace them.
          config: for the type of the product.
          rngs: of the initial values.
          use_bias: whether there is a bias.
          zero: whether parameters start at zero instead of uniform on +-1/sqrt(prod(inputs)).
        """
        self.inputs, self.outputs, self.dtype = inputs, outputs, config.dtype

        def initial(shape):
            if zero:
                return nnx.Param(jnp.zeros(shape))
            return nnx.Param(uniform_init(rngs.params(), shape, fan_in=math.prod(inputs)))

        self.kernel = initial((*inputs, *outputs))
        self.bias = initial(outputs) if use_bias else None

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """Maps x [..., *inputs] to [..., *outputs]."""
        leading = x.shape[: x.ndim - len(self.inputs)]
        first, *heads = self.outputs
        inner, outer = math.prod(self.inputs), (first, math.prod(heads)) if heads else (first,)
        kernel = self.kernel[...].astype(self.dtype)
        if kernel.shape != (inner, *outer):
            # the barrier keeps XLA from computing the gradient in the shape of the parameter
            kernel = jax.lax.optimization_barrier(kernel.reshape(inner, *outer))
        y = _product(x.astype(self.dtype).reshape(*leading, inner), kernel)
        if self.bias is not None:
            y = _plus_bias(y, self.bias[...].reshape(outer))
        return checkpoint_name(y.reshape(*leading, *self.outputs), KEPT)


@jax.custom_vjp
def _centred(x, mean):
    """Returns x - mean, where the given mean is x's own; differentiated through both by x."""
    return x - mean


_centred.defvjp(
    lambda x, mean: (x - mean, None), lambda _, d: (d - d.mean(-1, keepdims=True), None)
)


class LayerNorm(nnx.Module):
    """A norm over the hidden axis, in float32. The backward pass keeps mean and variance."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs, use_bias: bool = False):
        """Initialises the scale [D] to one and, with `use_bias`, the bias [D] to zero."""
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
        """Returns the norm of x, times 1 + `scale`, plus `shift`.

        Args:
          x: the activations.
          shift: None for none.
          scale: None for none.
          mean: that of x, if it is known.
        """
        mean = self.mean(x) if mean is None else mean
        # The deviations sum to zero, and so the derivative of the variance by the mean is zero.
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


def modulation_parts(modulation: Float[Array, "B *L P D"]) -> Float[Array, "P B _ D"]:
    """Returns the shifts, scales and gates of a modulation, each over positions.

    Args:
      modulation: the P parts of every row, or of every position.
    """
    parts = jnp.moveaxis(modulation, -2, 0)
    return parts[:, :, None] if modulation.ndim == 3 else parts


def gelu(x: Float[Array, "..."], *, unrolled: bool = False) -> Float[Array, "..."]:
    """Returns GELU by its tanh approximation, float32 inside; the backward pass keeps only x.

    Args:
      x: the input.
      unrolled: whether the blocks are unrolled. Then the compiler must be prevented from keeping
        more; within a loop it cannot, and the barrier would keep a TPU from fusing.
    """

    def float32_gelu(x):
        return nnx.gelu(x.astype(jnp.float32), approximate=True).astype(x.dtype)

    return jax.checkpoint(float32_gelu, prevent_cse=unrolled)(x)


class Embedding(nnx.Module):
    """The token table, padded to a multiple of 128 rows, and learned positions; float32."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        size = config.model.hidden_size

        def table(rows):
            return nnx.Param(uniform_init(rngs.params(), (rows, size), fan_in=size))

        self.table = table(config.padded_states)
        self.positions = None if config.max_length is None else table(config.max_length)

    def __call__(self, xt: Int[Array, "B L"] | Float[Array, "B L V"]) -> Float[Array, "B L D"]:
        """Returns the activations of tokens: ids, or one-hot rows, to differentiate in."""
        table, length = self.table[...], xt.shape[1]
        x = embedded(table if xt.ndim == 2 else table[: xt.shape[-1]], xt)
        if self.positions is None:
            return x
        check_length(length, self.positions.shape[0])
        return x + self.positions[...][None, :length]


def check_length(length: int, learned: int) -> None:
    """Raises ValueError where a sequence is longer than the learned positions."""
    if length > learned:
        raise ValueError(f"The network has learned {learned} positions, got {length}.")


@functools.cache
def structure(module: type[nnx.Module], config: TransformerConfig) -> nnx.GraphDef:
    """Returns the graph definition of a layer, for `nnx.merge` with its parameters."""
    return nnx.split(nnx.eval_shape(lambda: module(config, rngs=nnx.Rngs(0))))[0]


def initial_params(
    module: type[nnx.Module], config: TransformerConfig, key: Key[Array, ""]
) -> Params:
    """Returns the initial parameters of a layer.

    Args:
      module: the layer's class.
      config: of the network.
      key: of the initial values.
    """
    return nnx.to_pure_dict(nnx.state(module(config, rngs=nnx.Rngs(key)), nnx.Param))


def gathered_block(block_params: Params, config: TransformerConfig, placement: Placement) -> Params:
    """Returns a block's parameters as they are used: cast to the products' type, then all-gathered.

    Args:
      block_params: of one block, float32; those of norms are not cast.
      config: for the type.
      placement: of the activations.
    """

    def cast(path, leaf):
        return leaf if path[0].key.endswith("norm") else leaf.astype(config.dtype)

    low = jax.tree.map_with_path(cast, block_params)
    return checkpoint_name(all_gathered(low, placement, "blocks/"), GATHERED)


def apply_blocks(
    layer: Callable[..., Float[Array, "B L D"]],
    x: Float[Array, "B L D"],
    blocks: Params,
    key: Key[Array, ""] | None,
    config: TransformerConfig,
    placement: Placement,
) -> Float[Array, "B L D"]:
    """Returns the activations after all blocks.

    Args:
      layer: layer(params, x, key) -> x, one block, with parameters as they are used.
      x: the activations before the first block.
      blocks: parameters, with a leading axis of blocks.
      key: of dropout, None for none.
      config: of the network, with what the backward pass keeps.
      placement: of the activations.
    """

    def step(x, block):
        block_params, block_key = block
        x = layer(gathered_block(block_params, config, placement), x, block_key)
        return placement.shard_batch(x), None

    num_blocks, remat = config.model.num_blocks, config.model.remat
    keys = None if key is None else jax.random.split(key, num_blocks)
    # Without a loop XLA's common subexpression elimination undoes recomputation. For "products"
    # that is welcome: the elementwise operations after them are cheaper kept than recomputed
    # (small, H100: 42 ms a step, 46 without), while "blocks" is there to save all of a block.
    step = REMAT[remat](step, prevent_cse=config.unroll and remat == "blocks")
    unroll = num_blocks if config.unroll else 1
    return jax.lax.scan(step, placement.shard_batch(x), (blocks, keys), unroll=unroll)[0]

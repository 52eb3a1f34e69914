"""A dilated convolutional network between embedding and head, in place of the transformer's blocks.

    x  <-  x + gate * dropout(convolution(GELU(norm(x) * (1 + scale) + shift)))

num_blocks times, dilations in turn; shift, scale and gate depend on the noise (adaLN-zero). What a
position sees is local where a transformer's is global, and costs L instead of L^2: a network for
the motifs of DNA. With the default, 20 layers of width 9 and dilations 1, 1, 4, 16 and 64, it sees
1,376 positions to either side.

Shapes: B batch, L length, D hidden, C condition, K width.

References:
  Yu and Koltun, Multi-Scale Context Aggregation by Dilated Convolutions, 2016 (arXiv 1511.07122).
  He et al., Identity Mappings in Deep Residual Networks, 2016 (arXiv 1603.05027): norm and
    activation before the product, so that nothing stands on the path of x.
  Stark et al., Dirichlet Flow Matching with Applications to DNA Sequence Design, 2024 (arXiv
    2402.05841): width and dilations for DNA.
  Sarkar et al., Designing DNA With Tunable Regulatory Activity Using Score-Entropy Discrete
    Diffusion, 2024 (bioRxiv 2024.05.23.595630): score entropy with such a network.
  Peebles and Xie, Scalable Diffusion Models with Transformers, 2022 (arXiv 2212.09748): adaLN-zero.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int, Key

from sedd_jax.diffusion.padding import real_positions
from sedd_jax.model.config import TransformerConfig
from sedd_jax.model.dropout import dropout, dropout_masks
from sedd_jax.model.sharding import Placement
from sedd_jax.model.transformer import (
    KEPT,
    Dense,
    LayerNorm,
    apply_blocks,
    gelu,
    modulation_parts,
    structure,
    uniform_init,
)

AXES = ("NWC", "WIO", "NWC")


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def dilated_convolution(
    x: Float[Array, "B L D"], kernel: Float[Array, "K D E"], dilation: int
) -> Float[Array, "B L E"]:
    """Returns sum_k x[:, i + (k - K // 2) dilation] kernel[k] at every position i.

    The derivatives are those of JAX. On a CPU they are written in the one order of axes for which
    XLA has a fast convolution wherever it stands: it mends other orders outside of loops only, and
    is tens to hundreds of times slower within them.

    Args:
      x: beyond its ends there are zeros.
      kernel: of odd width.
      dilation: distance of the positions that the kernel meets.
    """
    reach = kernel.shape[0] // 2 * dilation
    return jax.lax.conv_general_dilated(
        x, kernel, (1,), [(reach, reach)], rhs_dilation=(dilation,), dimension_numbers=AXES
    )


def _forward(x, kernel, dilation):
    return dilated_convolution(x, kernel, dilation), (x, kernel)


def _backward(dilation, inputs, dy):
    def by_jax(x, kernel, dy):
        plain = functools.partial(dilated_convolution.fun, dilation=dilation)
        return jax.vjp(plain, x, kernel)[1](dy)

    def in_fast_order(x, kernel, dy):
        reach = kernel.shape[0] // 2 * dilation
        dx = dilated_convolution(dy, kernel[::-1].transpose(0, 2, 1), dilation)
        dkernel = jax.lax.conv_general_dilated(
            x.transpose(2, 1, 0),  # the rows are its channels, and its width is L
            dy.transpose(1, 0, 2),
            (dilation,),
            [(reach, reach)],
            dimension_numbers=AXES,
        )
        return dx, dkernel.transpose(1, 0, 2)

    return jax.lax.platform_dependent(*inputs, dy, cpu=in_fast_order, default=by_jax)


dilated_convolution.defvjp(_forward, _backward)


class Convolution(nnx.Module):
    """A convolution over positions that keeps the length: beyond the ends there are zeros."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        size, width = config.model.hidden_size, config.model.kernel_width
        self.dtype = config.dtype
        shape = (size, width, size)  # inputs first: see the layout of parameters
        self.kernel = nnx.Param(uniform_init(rngs.params(), shape, fan_in=size * width))
        self.bias = nnx.Param(jnp.zeros(size))

    def __call__(self, x: Float[Array, "B L D"], dilation: int) -> Float[Array, "B L D"]:
        """Returns sum_k x[i + (k - K // 2) dilation] kernel[:, k] + bias at every position i."""
        kernel = self.kernel[...].astype(self.dtype).transpose(1, 0, 2)
        y = dilated_convolution(x.astype(self.dtype), kernel, dilation)
        return checkpoint_name(y + self.bias[...].astype(y.dtype)[None, None], KEPT)


class Layer(nnx.Module):
    """A residual convolution, shifted, scaled and gated by the noise."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.norm = LayerNorm(config, rngs=rngs)
        self.convolution = Convolution(config, rngs=rngs)
        size, cond = config.model.hidden_size, config.model.cond_dim
        self.modulation = Dense((cond,), (3, size), config, rngs=rngs, zero=True)

    def __call__(
        self,
        x: Float[Array, "B L D"],
        cond: Float[Array, "B *L C"],
        dilation: int,
        dropout_key: Key[Array, ""] | None,
        lengths: Int[Array, "B"] | None = None,
    ) -> Float[Array, "B L D"]:
        """Returns the activations after the layer.

        Args:
          x: the activations, float32.
          cond: the conditioning vector of every row, or of every position.
          dilation: distance of the positions that the kernel meets.
          dropout_key: None for no dropout.
          lengths: of the rows, None for full rows; a kernel meets zeros in the padding, as it does
            beyond the ends of a row.
        """
        rate = self.config.model.dropout
        keep, _ = dropout_masks(dropout_key, rate, x.shape)
        shift, scale, gate = modulation_parts(self.modulation(cond).astype(jnp.float32))
        h = self.norm(x, shift, scale).astype(self.config.dtype)
        h = gelu(h, unrolled=self.config.unroll)
        if lengths is not None:
            h = jnp.where(real_positions(lengths, h.shape[1])[..., None], h, 0)
        return x + gate * dropout(self.convolution(h, dilation), rate, keep)


def convolution(
    config: TransformerConfig, placement: Placement
) -> Callable[[int], Callable[..., Array]]:
    """Returns, for any length, the layers one after another; see `trunk.Trunk`.

    A loop makes one round of the dilations at a time: the compiler wants to know them.
    """
    dilations, layer = config.model.dilation_cycle, structure(Layer, config)
    rounds = config.model.num_blocks // len(dilations)
    one_block_a_round = dataclasses.replace(
        config, model=dataclasses.replace(config.model, num_blocks=rounds)
    )

    def apply(blocks, x, cond, lengths, key):
        def one_round(params, x, round_key):
            keys = [None] * len(dilations)
            if round_key is not None:
                keys = jax.random.split(round_key, len(dilations))
            for i, dilation in enumerate(dilations):
                own = nnx.merge(layer, jax.tree.map(lambda leaf, i=i: leaf[i], params))
                x = own(x, cond, dilation, keys[i], lengths)
            return x

        by_round = jax.tree.map(
            lambda leaf: leaf.reshape(rounds, len(dilations), *leaf.shape[1:]), blocks
        )
        return apply_blocks(one_round, x, by_round, key, one_block_a_round, placement)

    return lambda length: apply

"""What stands between the embedding and the head of a score network, by name.

Shapes: B batch, L length, D hidden, C condition.

References:
  Peebles and Xie, Scalable Diffusion Models with Transformers, 2022 (arXiv 2212.09748): the blocks
    of the transformer, adaLN-zero.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int, Key

from sedd_jax.model.attention import (
    RotaryAttention,
    RotaryTables,
    rotary_attention_for,
    rotary_tables,
    xla_rotary_attention,
)
from sedd_jax.model.config import TransformerConfig
from sedd_jax.model.convolution import Layer, convolution
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
)

# (parameters of the blocks, x [B, L, D], cond [B, C] or [B, L, C], lengths [B], dropout key)
# -> [B, L, D]; no lengths for full rows, no key for no dropout
Layers = Callable[..., Float[Array, "B L D"]]


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
        cond: Float[Array, "B *L C"],
        rotary: RotaryTables,
        dropout_key: Key[Array, ""] | None,
        attention: RotaryAttention = xla_rotary_attention,
        lengths: Int[Array, "B"] | None = None,
        constrain: Callable[[Array], Array] = lambda x: x,
    ) -> Float[Array, "B L D"]:
        """Returns the activations after the block.

        Args:
          x: the activations, float32.
          cond: the conditioning vector of every row, or of every position.
          rotary: see `rotary_tables`.
          dropout_key: None for no dropout.
          attention: what computes attention.
          lengths: of the rows, None for full rows.
          constrain: returns the activations, constrained to a layout in memory.
        """
        dtype, rate = self.config.dtype, self.config.model.dropout
        keep_attention, keep_mlp = dropout_masks(dropout_key, rate, x.shape)
        # float32 from here on, and so are its gradient's sums over positions
        modulation = jax.lax.optimization_barrier(self.modulation(cond).astype(jnp.float32))
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = modulation_parts(modulation)

        mean = self.attention_norm.mean(x)  # before the barrier: computed where x is computed
        x = jax.lax.optimization_barrier(constrain(x))
        h = self.attention_norm(x, shift_a, scale_a, mean).astype(dtype)
        qkv = self.qkv(h).reshape(*h.shape[:2], 3, -1)
        qkv = checkpoint_name(jnp.moveaxis(qkv, 2, 0), KEPT)
        h = attention(qkv, rotary, lengths).reshape(*h.shape[:2], *self.attention_out.inputs)
        x = x + gate_a * dropout(self.attention_out(h), rate, keep_attention)

        h = self.mlp_norm(x, shift_m, scale_m).astype(dtype)
        h = self.mlp_out(gelu(self.mlp_in(h), unrolled=self.config.unroll))
        return x + gate_m * dropout(h, rate, keep_mlp)


def transformer(config: TransformerConfig, placement: Placement) -> Callable[[int], Layers]:
    """Returns, for a length, the blocks of the diffusion transformer one after another."""
    block_structure = structure(Block, config)
    attention = rotary_attention_for(config.model.attention, placement)

    def of_length(length):
        rotary = rotary_tables(length, config.model.hidden_size // config.model.num_heads)

        def apply(blocks, x, cond, lengths, key):
            def layer(block_params, x, block_key):
                block = nnx.merge(block_structure, block_params)
                return block(x, cond, rotary, block_key, attention, lengths, placement.row_major)

            return apply_blocks(layer, x, blocks, key, config, placement)

        return apply

    return of_length


class Trunk(NamedTuple):
    """What stands between embedding and head.

    Attributes:
      block: the layer that is stacked: its parameters have a leading axis of num_blocks.
      build: build(config, placement)(length) -> the stack as a function.
    """

    block: type[nnx.Module]
    build: Callable[[TransformerConfig, Placement], Callable[[int], Layers]]


TRUNKS = {
    "transformer": Trunk(Block, transformer),
    "convolution": Trunk(Layer, convolution),
}

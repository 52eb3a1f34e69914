"""The layers of the autoregressive baseline, GPT-2's (Radford et al. 2019), and its likelihood.

They differ from those of the diffusion network where GPT-2 does: norms with biases, biases in all
products, no modulation and no rotation. Learned positions and the token table are `Embedding`.

Shapes: B batch, L length, D hidden, H heads, K head dimension, N rows, V padded states.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from sedd_jax.model.attention import Attention
from sedd_jax.model.config import TransformerConfig
from sedd_jax.model.transformer import (
    Dense,
    LayerNorm,
    dropout,
    dropout_masks,
    gelu,
)
from sedd_jax.system.rounding import ceil_div

# positions whose outputs exist at a time; two such arrays do, 0.4 GB for 50,257 tokens
ROWS = 1024
Heads = Float[Array, "B L H K"]


class CausalBlock(nnx.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        size, heads = config.model.hidden_size, config.model.num_heads
        per_head = (heads, size // heads)
        self.config = config
        self.attention_norm = LayerNorm(config, rngs=rngs, use_bias=True)
        self.qkv = Dense((size,), (3, *per_head), config, rngs=rngs)
        self.attention_out = Dense(per_head, (size,), config, rngs=rngs)
        self.mlp_norm = LayerNorm(config, rngs=rngs, use_bias=True)
        self.mlp_in = Dense((size,), (4 * size,), config, rngs=rngs)
        self.mlp_out = Dense((4 * size,), (size,), config, rngs=rngs)

    def __call__(
        self, x: Float[Array, "B L D"], dropout_key: Key[Array, ""] | None, attention: Attention
    ) -> Float[Array, "B L D"]:
        return self.after(x, attention(*self.heads(x)), dropout_key)

    def heads(self, x: Float[Array, "B L D"]) -> tuple[Heads, Heads, Heads]:
        """Returns queries, keys and values."""
        h = self.attention_norm(x).astype(self.config.dtype)
        query, key, value = jnp.moveaxis(self.qkv(h), -3, 0)
        return query, key, value

    def after(
        self, x: Float[Array, "B L D"], attended: Heads, dropout_key: Key[Array, ""] | None
    ) -> Float[Array, "B L D"]:
        """Returns the block's answer, given what attention makes of its `heads`."""
        rate = self.config.model.dropout
        stay_a, stay_m = dropout_masks(dropout_key, rate, x.shape)
        x = x + dropout(self.attention_out(attended), rate, stay_a)
        h = self.mlp_in(self.mlp_norm(x).astype(self.config.dtype))
        return x + dropout(self.mlp_out(gelu(h, unrolled=self.config.unroll)), rate, stay_m)


class FinalNorm(nnx.Module):
    """The norm before the outputs."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        self.dtype = config.dtype
        self.norm = LayerNorm(config, rngs=rngs, use_bias=True)

    def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        return self.norm(x).astype(self.dtype)


def attend_to_cache(
    query: Float[Array, "B 1 H K"], keys: Heads, values: Heads, position: Int[Array, ""]
) -> Float[Array, "B 1 H K"]:
    """Returns the attention of one query over the positions up to its own."""
    logits = jnp.einsum("bqhk,bshk->bhqs", query, keys, preferred_element_type=jnp.float32)
    seen = jnp.arange(keys.shape[1]) <= position
    logits = jnp.where(seen[None, None, None], logits * query.shape[-1] ** -0.5, -jnp.inf)
    weights = jax.nn.softmax(logits, axis=-1).astype(values.dtype)
    return jnp.einsum("bhqs,bshk->bqhk", weights, values)


@jax.custom_vjp
def outputs(hidden: Float[Array, "N D"], table: Float[Array, "V D"]) -> Float[Array, "N V"]:
    """Returns hidden @ table^T in float32; all three products are made in the type of `hidden`."""
    return jnp.dot(hidden, table.astype(hidden.dtype).T, preferred_element_type=jnp.float32)


def _outputs_forward(hidden, table):
    return outputs(hidden, table), (hidden, table)


def _outputs_backward(residual, cotangent):
    hidden, table = residual
    low = cotangent.astype(hidden.dtype)
    d_hidden = jnp.dot(low, table.astype(low.dtype), preferred_element_type=jnp.float32)
    d_table = jnp.dot(low.T, hidden, preferred_element_type=jnp.float32)
    return d_hidden.astype(hidden.dtype), d_table


outputs.defvjp(_outputs_forward, _outputs_backward)


def token_nll(
    hidden: Float[Array, "B L D"],
    table: Float[Array, "V D"],
    tokens: Int[Array, "B L"],
    num_states: int,
    axis: str | None = None,
) -> Float[Array, "B L"]:
    """Returns -log softmax(hidden @ table^T) at the tokens, of `ROWS` positions at a time.

    The backward pass makes the outputs again.

    Args:
      hidden: what is projected to the vocabulary.
      table: the token table, float32, or this device's part of its rows.
      tokens: what is scored.
      num_states: rows of the whole table from there on are padding.
      axis: the mesh axis that splits the table, None for none.
    """
    first = 0 if axis is None else jax.lax.axis_index(axis) * len(table)
    real = first + jnp.arange(len(table)) < num_states

    def over_table(reduce, x):
        return x if axis is None else reduce(x, axis)

    @jax.checkpoint
    def of_rows(rows):
        hidden, tokens = rows
        out = jnp.where(real[None], outputs(hidden, table), -jnp.inf)
        top = over_table(jax.lax.pmax, jax.lax.stop_gradient(out.max(-1)))
        total = over_table(jax.lax.psum, jnp.exp(out - top[:, None]).sum(-1))
        at_token = jnp.arange(len(table))[None] == (tokens - first)[:, None]
        wanted = over_table(jax.lax.psum, jnp.where(at_token, out, 0).sum(-1))
        return jnp.log(total) + top - wanted

    count, size = tokens.size, min(ROWS, tokens.size)
    rows = hidden.reshape(count, -1), tokens.reshape(count)
    parts = jax.tree.map(lambda x: _in_parts(x, size), rows)
    return jax.lax.map(of_rows, parts).reshape(-1)[:count].reshape(tokens.shape)


def _in_parts(x, size):
    """Rows [N, ...] as [ceil(N / size), size, ...], filled up with zeros."""
    parts = ceil_div(len(x), size)
    filled = jnp.pad(x, [(0, parts * size - len(x))] + [(0, 0)] * (x.ndim - 1))
    return filled.reshape(parts, size, *x.shape[1:])

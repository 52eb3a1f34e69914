"""The autoregressive baseline, GPT-2's network: its layers, its likelihood and its sampling step.

The layers differ from those of the diffusion network where GPT-2 does: norms with biases, biases in
all products, no modulation and no rotation.

Shapes: B batch, L length, D hidden, H heads, K head dimension, N blocks, V tokens.

References:
  Radford et al., Language Models are Unsupervised Multitask Learners, 2019.
"""

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int, Key

from sedd_jax.diffusion.padding import zero_padding
from sedd_jax.model.attention import Attention, attention_for
from sedd_jax.model.config import TransformerConfig
from sedd_jax.model.dropout import dropout, dropout_masks
from sedd_jax.model.rows import map_blocks
from sedd_jax.model.sharding import ANYWHERE, Placement, all_gathered, param_layout
from sedd_jax.model.transformer import (
    Dense,
    Embedding,
    LayerNorm,
    Params,
    apply_blocks,
    check_length,
    gathered_block,
    gelu,
    initial_params,
    structure,
)

INIT_STD = 0.02  # of GPT-2
# positions whose logits exist at a time; two such arrays do, 0.4 GB for 50,257 tokens
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
        """Returns the activations after the block; `attention` is causal, else see `after`."""
        return self.after(x, attention(*self.heads(x)), dropout_key)

    def heads(self, x: Float[Array, "B L D"]) -> tuple[Heads, Heads, Heads]:
        """Returns queries, keys and values."""
        h = self.attention_norm(x).astype(self.config.dtype)
        query, key, value = jnp.moveaxis(self.qkv(h), -3, 0)
        return query, key, value

    def after(
        self, x: Float[Array, "B L D"], attended: Heads, dropout_key: Key[Array, ""] | None
    ) -> Float[Array, "B L D"]:
        """Returns the activations after the block, given the attention of its `heads`.

        Args:
          x: the activations before the block, float32.
          attended: the attention.
          dropout_key: None for no dropout.
        """
        rate = self.config.model.dropout
        keep_attention, keep_mlp = dropout_masks(dropout_key, rate, x.shape)
        x = x + dropout(self.attention_out(attended), rate, keep_attention)
        h = self.mlp_in(self.mlp_norm(x).astype(self.config.dtype))
        return x + dropout(self.mlp_out(gelu(h, unrolled=self.config.unroll)), rate, keep_mlp)


class FinalNorm(nnx.Module):
    """The norm before the logits."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        self.dtype = config.dtype
        self.norm = LayerNorm(config, rngs=rngs, use_bias=True)

    def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        return self.norm(x).astype(self.dtype)


class Cache(NamedTuple):
    """Keys and values of the positions so far, zeros after them."""

    keys: Float[Array, "N B L H K"]
    values: Float[Array, "N B L H K"]


@dataclasses.dataclass(frozen=True)
class CausalModel:
    """An autoregressive network; its methods are pure functions of the parameters.

    Dropout is applied only where a key is given, on the residual branches alone, as in the
    diffusion network (GPT-2 also drops embeddings and attention weights).

    Attributes:
      config: settings; `num_states` is the number of tokens, `max_length` of positions.
      placement: of the activations.
    """

    config: TransformerConfig
    placement: Placement = ANYWHERE

    @property
    def start(self) -> int:
        """The token that precedes the first one: V - 1, for GPT-2 <|endoftext|>."""
        return self.config.num_states - 1

    @property
    def max_length(self) -> int:
        """The number of learned positions."""
        return self.config.max_length

    def init(self, key: Key[Array, ""]) -> Params:
        """Returns parameters as GPT-2 initialises them; blocks have a leading axis.

        Normal with deviation 0.02, products that end a residual branch 0.02 / sqrt(2 num_blocks),
        biases 0.
        """
        num_blocks = self.config.model.num_blocks

        def uniform(key):
            params = {
                name: initial_params(module, self.config, key)
                for name, module in (("embedding", Embedding), ("head", FinalNorm))
            }
            keys = jax.random.split(key, num_blocks)
            block = functools.partial(initial_params, CausalBlock, self.config)
            return params | {"blocks": jax.vmap(block)(keys)}

        def initial(path, leaf, key):
            *_, layer, name = (entry.key for entry in path)
            if name in ("scale", "bias"):
                return jnp.full(leaf.shape, name == "scale", leaf.dtype)
            ends_branch = layer in ("attention_out", "mlp_out")
            std = INIT_STD / math.sqrt(2 * num_blocks) if ends_branch else INIT_STD
            return std * jax.random.normal(key, leaf.shape, leaf.dtype)

        leaves, tree = jax.tree.flatten(jax.eval_shape(uniform, key))
        keys = tree.unflatten(jax.random.split(key, len(leaves)))
        return jax.tree.map_with_path(initial, tree.unflatten(leaves), keys)

    def apply(
        self, params: Params, tokens: Int[Array, "B L"], key: Key[Array, ""] | None = None
    ) -> Float[Array, "B L V"]:
        """Returns the materialised logits, float32, of the token after every position.

        Args:
          params: as `init` returns them.
          tokens: of every position.
          key: of dropout, None for none.
        """
        return self._logits(*self._body(params, tokens, key))

    def token_nll(
        self,
        params: Params,
        before: Int[Array, "B L"],
        tokens: Int[Array, "B L"],
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "B L"]:
        """Returns -log p in nats of every token. Never materialises B L V numbers.

        Args:
          params: as `init` returns them.
          before: what precedes: the token at position i is scored given `before` up to i.
          tokens: what is scored.
          key: of dropout, None for none.
        """
        hidden, table = self._body(params, before, key)
        rows, split = PartitionSpec(self.placement.batch_axes(len(tokens)) or None), None
        if self.placement.mesh is not None:
            split = param_layout("embedding/table", table.shape, self.placement.mesh).spec[0]
        on_device = functools.partial(_token_nll, self.config.num_states, split)
        specs = (rows, PartitionSpec(split), rows)
        return self.placement.per_device(on_device, specs, rows)(hidden, table, tokens)

    def nll(
        self,
        params: Params,
        tokens: Int[Array, "B L"],
        key: Key[Array, ""] | None = None,
        lengths: Int[Array, "B"] | None = None,
        given: Bool[Array, "B L"] | None = None,
    ) -> Float[Array, "B"]:
        """Returns -log p in nats of every sequence; its first token is scored after `start`.

        Args:
          params: as `init` returns them.
          tokens: the sequences.
          key: of dropout, None for none.
          lengths: how many tokens of every row are scored, None for all.
          given: tokens that are not scored; None: none.
        """
        before = jnp.pad(tokens[:, :-1], ((0, 0), (1, 0)), constant_values=self.start)
        nll = zero_padding(self.token_nll(params, before, tokens, key), lengths)
        return (nll if given is None else jnp.where(given, 0, nll)).sum(-1)

    def features(
        self, params: Params, tokens: Int[Array, "B L"], last: Int[Array, "B"]
    ) -> Float[Array, "B D"]:
        """Returns the final hidden state of one position of every text, float32.

        Args:
          params: as `init` returns them.
          tokens: the texts.
          last: the position.
        """
        hidden, _ = self._body(params, tokens, None)
        return hidden[jnp.arange(len(tokens)), last].astype(jnp.float32)

    def empty_cache(self, batch: int, length: int) -> Cache:
        """Returns the cache for `decode`, of `length` positions."""
        check_length(length, self.config.max_length)
        sizes = self.config.model
        heads = sizes.num_heads, sizes.hidden_size // sizes.num_heads
        empty = jnp.zeros((sizes.num_blocks, batch, length, *heads), self.config.dtype)
        return Cache(empty, empty)

    def decode(
        self, params: Params, cache: Cache, token: Int[Array, "B"], position: Int[Array, ""]
    ) -> tuple[Float[Array, "B V"], Cache]:
        """Returns the logits of the next token, and the cache with this one.

        Args:
          params: as `init` returns them.
          cache: holds positions 0, ..., position - 1.
          token: at `position`.
          position: of the token.
        """
        outer = self._outer(params)
        embedding = outer["embedding"]
        x = (embedding["table"][token] + embedding["positions"][position][None])[:, None]

        def step(x, block):
            block_params, old = block
            block_params = gathered_block(block_params, self.config, self.placement)
            layer = self._merged(CausalBlock, block_params)
            query, *new = layer.heads(x)
            update = functools.partial(jax.lax.dynamic_update_slice_in_dim, axis=1)
            kept = Cache(*(update(past, now, position) for past, now in zip(old, new, strict=True)))
            x = layer.after(x, _attend_to_cache(query, *kept, position), None)
            return self.placement.shard_batch(x), kept

        x, cache = jax.lax.scan(step, self.placement.shard_batch(x), (params["blocks"], cache))
        hidden = self._merged(FinalNorm, outer["head"])(x)
        return self._logits(hidden, embedding["table"])[:, 0], cache

    def _merged(self, module, params):
        return nnx.merge(structure(module, self.config), params)

    def _outer(self, params):
        """The parameters outside the blocks, all-gathered."""
        outer = {name: params[name] for name in ("embedding", "head")}
        return all_gathered(outer, self.placement, "")

    def _body(self, params, tokens, key):
        """The final hidden states [B, L, D], and the table [V, D] that makes logits of them."""
        outer = self._outer(params)
        attention = attention_for(self.config.model.attention, self.placement, causal=True)
        graph = structure(CausalBlock, self.config)

        def layer(block_params, x, block_key):
            return nnx.merge(graph, block_params)(x, block_key, attention)

        x = self._merged(Embedding, outer["embedding"])(tokens)
        x = apply_blocks(layer, x, params["blocks"], key, self.config, self.placement)
        return self._merged(FinalNorm, outer["head"])(x), outer["embedding"]["table"]

    def _logits(self, hidden, table):
        states = self.config.num_states
        out = project(hidden.reshape(-1, hidden.shape[-1]), table)[:, :states]
        return out.reshape(*hidden.shape[:-1], states)


def _attend_to_cache(query, keys, values, position):
    """The attention of one query [B, 1, H, K] over the positions up to its own."""
    logits = jnp.einsum("bqhk,bshk->bhqs", query, keys, preferred_element_type=jnp.float32)
    past = jnp.arange(keys.shape[1]) <= position
    logits = jnp.where(past[None, None, None], logits * query.shape[-1] ** -0.5, -jnp.inf)
    weights = jax.nn.softmax(logits, axis=-1).astype(values.dtype)
    return jnp.einsum("bhqs,bshk->bqhk", weights, values)


@jax.custom_vjp
def project(hidden, table):
    """Returns hidden [N, D] @ table^T in float32; all three products have the type of `hidden`."""
    return jnp.dot(hidden, table.astype(hidden.dtype).T, preferred_element_type=jnp.float32)


def _project_backward(residual, cotangent):
    hidden, table = residual
    low = cotangent.astype(hidden.dtype)
    d_hidden = jnp.dot(low, table.astype(low.dtype), preferred_element_type=jnp.float32)
    d_table = jnp.dot(low.T, hidden, preferred_element_type=jnp.float32)
    return d_hidden.astype(hidden.dtype), d_table


project.defvjp(lambda hidden, table: (project(hidden, table), (hidden, table)), _project_backward)


def _token_nll(num_states, axis, hidden, table, tokens):
    """-log softmax(hidden @ table^T) [B, L] at the tokens, for `ROWS` positions at a time.

    The backward pass recomputes the logits. The table [V, D], float32, is this device's shard where
    the mesh has an `axis` that splits it; rows from `num_states` on of the whole are padding.
    """
    first = 0 if axis is None else jax.lax.axis_index(axis) * len(table)
    real = first + jnp.arange(len(table)) < num_states

    def over_shards(reduce, x):
        return x if axis is None else reduce(x, axis)

    def of_rows(rows):
        hidden, tokens = rows
        logits = jnp.where(real[None], project(hidden, table), -jnp.inf)
        top = over_shards(jax.lax.pmax, jax.lax.stop_gradient(logits.max(-1)))
        total = over_shards(jax.lax.psum, jnp.exp(logits - top[:, None]).sum(-1))
        at_token = jnp.arange(len(table))[None] == (tokens - first)[:, None]
        scored = over_shards(jax.lax.psum, jnp.where(at_token, logits, 0).sum(-1))
        return jnp.log(total) + top - scored

    rows = hidden.reshape(tokens.size, -1), tokens.reshape(-1)
    return map_blocks(of_rows, rows, ROWS).reshape(tokens.shape)

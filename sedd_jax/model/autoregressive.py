"""The autoregressive baseline, GPT-2's network: pure functions over a dict of parameters."""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int, Key

from sedd_jax.diffusion.padding import zero_padding
from sedd_jax.model.attention import attention_for
from sedd_jax.model.causal import CausalBlock, FinalNorm, attend_to_cache, outputs, token_nll
from sedd_jax.model.config import TransformerConfig
from sedd_jax.model.placement import ANYWHERE, Placement
from sedd_jax.model.sharding import gathered, layout
from sedd_jax.model.stack import Params, build, structure, through_blocks, used
from sedd_jax.model.transformer import Embedding

INIT_STD = 0.02  # of GPT-2


class Cache(NamedTuple):
    """Keys and values of the positions so far, zeros after them."""

    keys: Float[Array, "N B L H K"]
    values: Float[Array, "N B L H K"]


class CausalModel(NamedTuple):
    """An autoregressive network as pure functions. B batch, L length, V tokens.

    Attributes:
      start: the token that stands before the first one. It is V - 1: for GPT-2 that is
        <|endoftext|>; for models trained here it is as good as any, for position 0 always holds it.
      init: init(key) -> params, as GPT-2 starts: normal with deviation 0.02, products that end a
        residual branch 0.02 / sqrt(2 num_blocks), biases 0. Blocks carry a leading axis.
      apply: apply(params, tokens [B, L], key=None) -> logits [B, L, V] in float32 of what follows
        every token, written out. Dropout acts only where a key is given, on the residual branches
        alone, as in the diffusion network (GPT-2's acts on embeddings and attention too).
      token_nll: token_nll(params, before [B, L], tokens [B, L], key=None) -> [B, L], -log p in nats
        of every token after `before` up to its own place. Never writes out B L V numbers.
      nll: nll(params, tokens [B, L], key=None, lengths=None) -> [B], -log p of every sequence in
        nats: all tokens are scored, the first one after `start`; of a row that has a length
        `lengths` [B] the first so many.
      features: features(params, tokens [B, L], last [B]) -> [B, D], what the network makes of a
        text up to the position `last`, before it is projected to the vocabulary.
      empty_cache: empty_cache(batch, length) -> cache, for so many positions.
      decode: decode(params, cache, token [B], position []) -> (logits [B, V], cache) of what
        follows `token` at `position`, which those at 0, ..., position - 1 have come before.
    """

    start: int
    init: Callable[[Key[Array, ""]], Params]
    apply: Callable[..., Float[Array, "B L V"]]
    token_nll: Callable[..., Float[Array, "B L"]]
    nll: Callable[..., Float[Array, "B"]]
    features: Callable[..., Float[Array, "B D"]]
    empty_cache: Callable[[int, int], Cache]
    decode: Callable[..., tuple[Float[Array, "B V"], Cache]]
    max_length: int | None = None  # positions that it has learned; None for any number


def causal_model(config: TransformerConfig, placement: Placement = ANYWHERE) -> CausalModel:
    """Builds the network of GPT-2.

    Args:
      config: sizes; `num_states` is the number of tokens, `max_length` of positions.
      placement: how activations lie on the devices.
    """
    states, start = config.num_states, config.num_states - 1
    modules = {"embedding": Embedding, "blocks": CausalBlock, "head": FinalNorm}
    structures = {name: structure(module, config) for name, module in modules.items()}
    attention = attention_for(config.model.attention, placement, causal=True)

    def merged(name, params):
        return nnx.merge(structures[name], params)

    def shapes(key):
        params = {name: build(modules[name], config, key) for name in ("embedding", "head")}
        keys = jax.random.split(key, config.model.num_blocks)
        return params | {"blocks": jax.vmap(lambda k: build(CausalBlock, config, k))(keys)}

    def init(key):
        leaves, tree = jax.tree.flatten(jax.eval_shape(shapes, key))
        keys = jax.random.split(key, len(leaves))
        starts = functools.partial(_start, num_blocks=config.model.num_blocks)
        return jax.tree.map_with_path(starts, tree.unflatten(leaves), tree.unflatten(keys))

    def outer(params):
        """What is outside the blocks, gathered."""
        return gathered({name: params[name] for name in ("embedding", "head")}, placement, "")

    def body(params, tokens, key):
        """What is projected to the vocabulary [B, L, D], and the table [V, D]."""
        whole = outer(params)
        x = merged("embedding", whole["embedding"])(tokens)

        def layer(block_params, x, block_key):
            return merged("blocks", block_params)(x, block_key, attention)

        x = through_blocks(layer, x, params["blocks"], key, config, placement)
        return merged("head", whole["head"])(x), whole["embedding"]["table"]

    def logits(hidden, table):
        out = outputs(hidden.reshape(-1, hidden.shape[-1]), table)[:, :states]
        return out.reshape(*hidden.shape[:-1], states)

    def apply(
        params: Params, tokens: Int[Array, "B L"], key: Key[Array, ""] | None = None
    ) -> Float[Array, "B L V"]:
        return logits(*body(params, tokens, key))

    def following(
        params: Params,
        before: Int[Array, "B L"],
        tokens: Int[Array, "B L"],
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "B L"]:
        hidden, table = body(params, before, key)
        rows, split = PartitionSpec(placement.batch_axes(len(tokens)) or None), None
        if placement.mesh is not None:
            split = layout("embedding/table", table.shape, placement.mesh).spec[0]

        def on_device(hidden, table, tokens):
            return token_nll(hidden, table, tokens, states, split)

        specs = (rows, PartitionSpec(split), rows)
        return placement.per_device(on_device, specs, rows)(hidden, table, tokens)

    def nll(
        params: Params,
        tokens: Int[Array, "B L"],
        key: Key[Array, ""] | None = None,
        lengths: Int[Array, "B"] | None = None,
    ) -> Float[Array, "B"]:
        before = jnp.pad(tokens[:, :-1], ((0, 0), (1, 0)), constant_values=start)
        return zero_padding(following(params, before, tokens, key), lengths).sum(-1)

    def features(
        params: Params, tokens: Int[Array, "B L"], last: Int[Array, "B"]
    ) -> Float[Array, "B D"]:
        hidden, _ = body(params, tokens, None)
        return hidden[jnp.arange(len(tokens)), last].astype(jnp.float32)

    def empty_cache(batch: int, length: int) -> Cache:
        if length > config.max_length:
            raise ValueError(
                f"The network has learned {config.max_length} positions, got {length}."
            )
        heads = config.model.num_heads, config.model.hidden_size // config.model.num_heads
        empty = jnp.zeros((config.model.num_blocks, batch, length, *heads), config.dtype)
        return Cache(empty, empty)

    def decode(
        params: Params, cache: Cache, token: Int[Array, "B"], position: Int[Array, ""]
    ) -> tuple[Float[Array, "B V"], Cache]:
        whole = outer(params)
        embedding = whole["embedding"]
        x = (embedding["table"][token] + embedding["positions"][position][None])[:, None]

        def step(x, block):
            block_params, old = block
            layer = merged("blocks", used(block_params, config, placement))
            query, *new = layer.heads(x)
            kept = Cache(
                *(
                    jax.lax.dynamic_update_slice_in_dim(past, now, position, axis=1)
                    for past, now in zip(old, new, strict=True)
                )
            )
            x = layer.after(x, attend_to_cache(query, *kept, position), None)
            return placement.over_batch(x), kept

        x, cache = jax.lax.scan(step, placement.over_batch(x), (params["blocks"], cache))
        hidden = merged("head", whole["head"])(x)
        return logits(hidden, embedding["table"])[:, 0], cache

    return CausalModel(
        start, init, apply, following, nll, features, empty_cache, decode, config.max_length
    )


def _start(path, leaf, key, num_blocks):
    """The first value of a parameter, see `CausalModel.init`."""
    *_, layer, name = (entry.key for entry in path)
    if name in ("scale", "bias"):
        return jnp.full(leaf.shape, name == "scale", leaf.dtype)
    ends_branch = layer in ("attention_out", "mlp_out")
    std = INIT_STD / math.sqrt(2 * num_blocks) if ends_branch else INIT_STD
    return std * jax.random.normal(key, leaf.shape, leaf.dtype)

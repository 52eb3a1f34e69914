"""The seam between the maths and the network: pure `init` and `apply` over a dict of parameters."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from sedd_jax.diffusion.score import DenseScore, Score
from sedd_jax.model.config import TransformerConfig
from sedd_jax.model.placement import ANYWHERE, Placement
from sedd_jax.model.rotary import rotary_attention_for, rotary_tables
from sedd_jax.model.sharding import gathered, layout
from sedd_jax.model.stack import Params, build, structure, through_blocks
from sedd_jax.model.tiles import Table, tiling_for
from sedd_jax.model.transformer import (
    Block,
    Embedding,
    Head,
    SigmaEmbedding,
)
from sedd_jax.model.vocab_head import Rows, Stream, StreamedScore


class ScoreModel(NamedTuple):
    """A score network as pure functions.

    Attributes:
      init: init(key) -> params, a nested dict of float32 arrays. Block parameters carry a leading
        axis of num_blocks.
      apply: apply(params, xt [B, L], sigma [B], key=None, lengths=None) -> log_score [B, L, V] in
        float32, 0 at the current token. Dropout acts only where a key is given. Where `lengths` [B]
        are given, what follows them is padding, whatever its ids: no text sees it, and its own
        log-scores mean nothing.
      score: the same answer as a `Score`, which need not write out B L V numbers.
    """

    init: Callable[[Key[Array, ""]], Params]
    apply: Callable[..., Float[Array, "B L V"]]
    score: Callable[..., Score]
    max_length: int | None = None  # positions that it has learned; None for any number


def dense_model(init: Callable, apply: Callable) -> ScoreModel:
    """Returns the score model whose `Score` is what `apply` returns, written out."""

    def score(params, xt, sigma, key=None, lengths=None):
        padded = {} if lengths is None else {"lengths": lengths}  # unknown to many a dense model
        return DenseScore(xt, apply(params, xt, sigma, key=key, **padded))

    return ScoreModel(init, apply, score)


def score_model(config: TransformerConfig, placement: Placement = ANYWHERE) -> ScoreModel:
    """Builds the score network of the paper.

    Args:
      config: settings; `num_states` is that of the graph. With `scale_by_sigma` the output less
        log expm1(sigma) + log(V - 1) is the log-score, so that a zero output is the ratio of a
        uniform guess under the absorbing graph (Appendix C.1).
      placement: how activations lie on the devices.
    """
    modules = {"embedding": Embedding, "sigma": SigmaEmbedding, "head": Head}
    structures = {name: structure(module, config) for name, module in modules.items()}
    block_structure = structure(Block, config)
    attention = rotary_attention_for(config.model.attention, placement)

    def init(key):
        outer_key, blocks_key = jax.random.split(key)
        keys = jax.random.split(outer_key, len(modules))
        params = {
            name: build(module, config, k)
            for (name, module), k in zip(modules.items(), keys, strict=True)
        }
        block_keys = jax.random.split(blocks_key, config.model.num_blocks)
        params["blocks"] = jax.vmap(lambda k: build(Block, config, k))(block_keys)
        return params

    def body(params, xt, sigma, key, lengths):
        """The head, and what it takes: activations [B, L, D] and the conditioning vector."""
        outer = gathered({name: params[name] for name in modules}, placement, "")
        embedding, sigma_embedding, head = (
            nnx.merge(structures[name], outer[name]) for name in modules
        )
        rotary = rotary_tables(xt.shape[1], config.model.hidden_size // config.model.num_heads)
        cond = sigma_embedding(sigma)

        def layer(block_params, x, block_key):
            block = nnx.merge(block_structure, block_params)
            return block(x, cond, rotary, block_key, attention, lengths, placement)

        x = through_blocks(layer, embedding(xt), params["blocks"], key, config, placement)
        return head, x, cond

    def log_normaliser(sigma):
        if not config.model.scale_by_sigma:
            return jnp.zeros_like(sigma)
        return jnp.log(jnp.expm1(sigma)) + jnp.log(config.num_states - 1.0)

    def table_placement(table, rows):
        """Where the rows of the head and its table lie: split by axes that divide them."""
        if placement.mesh is None:
            return placement
        batch = placement.batch_axes(rows)
        fsdp, tensor = layout("head/kernel", table.kernel.shape, placement.mesh).spec
        return placement._replace(batch=batch, tensor=tensor, fsdp=fsdp if fsdp in batch else None)

    def apply(
        params: Params,
        xt: Int[Array, "B L"],
        sigma: Float[Array, "B"],
        key: Key[Array, ""] | None = None,
        lengths: Int[Array, "B"] | None = None,
    ) -> Float[Array, "B L V"]:
        head, x, cond = body(params, xt, sigma, key, lengths)
        log_score = head(x, cond) - log_normaliser(sigma)[:, None, None]
        at_xt = jax.nn.one_hot(xt, config.num_states, dtype=bool)
        return jnp.where(at_xt, 0, log_score)

    def score(
        params: Params,
        xt: Int[Array, "B L"],
        sigma: Float[Array, "B"],
        key: Key[Array, ""] | None = None,
        lengths: Int[Array, "B"] | None = None,
    ) -> Score:
        head, x, cond = body(params, xt, sigma, key, lengths)
        shift = jnp.broadcast_to(log_normaliser(sigma)[:, None], xt.shape)
        table = Table(head.kernel[...], head.bias[...])
        stream = Stream(
            config.num_states, tiling_for(placement.platform), table_placement(table, len(xt))
        )
        return StreamedScore(stream, table, Rows(head.hidden(x, cond), shift, xt))

    return ScoreModel(init, apply, score, config.max_length)


def count_params(params: Params) -> int:
    """Returns the number of parameters, padding included."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))

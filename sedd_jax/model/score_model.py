"""The seam between the maths and the network: pure `init` and `apply` over a dict of parameters."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from sedd_jax.model.transformer import (
    Block,
    Embedding,
    Head,
    SigmaEmbedding,
    TransformerConfig,
    rotary_tables,
)

Params = dict[str, Any]


class ScoreModel(NamedTuple):
    """A score network as two pure functions.

    Attributes:
      init: init(key) -> params, a nested dict of float32 arrays. Block parameters carry a leading
        axis of num_blocks.
      apply: apply(params, xt [B, L], sigma [B], key=None) -> log_score [B, L, V] in float32, 0 at
        the current token. Dropout acts only where a key is given.
    """

    init: Callable[[Key[Array, ""]], Params]
    apply: Callable[..., Float[Array, "B L V"]]


def score_model(config: TransformerConfig, *, scale_by_sigma: bool) -> ScoreModel:
    """Builds the score network of the paper.

    Args:
      config: sizes; `config.num_states` is that of the graph.
      scale_by_sigma: subtract log expm1(sigma) + log(V - 1) from the output, so that a zero output
        is the ratio of a uniform guess under the absorbing graph (Appendix C.1).
    """

    def build(module, key):
        return nnx.to_pure_dict(nnx.state(module(config, rngs=nnx.Rngs(key)), nnx.Param))

    def structure(module):
        return nnx.split(nnx.eval_shape(lambda: module(config, rngs=nnx.Rngs(0))))[0]

    modules = {"embedding": Embedding, "sigma": SigmaEmbedding, "head": Head}
    structures = {name: structure(module) for name, module in modules.items()}
    block_structure = structure(Block)

    def init(key):
        outer_key, blocks_key = jax.random.split(key)
        keys = jax.random.split(outer_key, len(modules))
        params = {
            name: build(module, k) for (name, module), k in zip(modules.items(), keys, strict=True)
        }
        block_keys = jax.random.split(blocks_key, config.num_blocks)
        params["blocks"] = jax.vmap(lambda k: build(Block, k))(block_keys)
        return params

    def apply(
        params: Params,
        xt: Int[Array, "B L"],
        sigma: Float[Array, "B"],
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "B L V"]:
        embedding, sigma_embedding, head = (
            nnx.merge(structures[name], params[name]) for name in modules
        )
        rotary = rotary_tables(xt.shape[1], config.hidden_size // config.num_heads)
        cond = sigma_embedding(sigma)

        def block_step(x, block):
            block_params, block_key = block
            return nnx.merge(block_structure, block_params)(x, cond, rotary, block_key), None

        keys = None if key is None else jax.random.split(key, config.num_blocks)
        x, _ = jax.lax.scan(block_step, embedding(xt), (params["blocks"], keys))
        log_score = head(x, cond)
        if scale_by_sigma:
            log_normaliser = jnp.log(jnp.expm1(sigma)) + jnp.log(config.num_states - 1.0)
            log_score = log_score - log_normaliser[:, None, None]
        at_xt = jax.nn.one_hot(xt, config.num_states, dtype=bool)
        return jnp.where(at_xt, 0, log_score)

    return ScoreModel(init, apply)


def count_params(params: Params) -> int:
    """Returns the number of parameters, padding included."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))

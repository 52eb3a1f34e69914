"""The stack of blocks: one program, scanned over parameters stacked along a leading axis."""

import functools
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Key

from sedd_jax.model.attention import KEPT
from sedd_jax.model.config import TransformerConfig
from sedd_jax.model.placement import Placement
from sedd_jax.model.sharding import gathered

Params = dict[str, Any]
GATHERED = "gathered"  # weights that lie in parts, brought together for use

# What the backward pass of a block makes again instead of keeping: nothing, but for weights that it
# gathers again; all but what layers name `KEPT`, which is products with weights, masks of dropout
# and the TPU's attention, not that of XLA and cuDNN; all but the input.
REMAT: dict[str, Callable[[Callable], Callable]] = {
    "none": functools.partial(
        jax.checkpoint,
        policy=jax.checkpoint_policies.save_anything_except_these_names(GATHERED),
    ),
    "products": functools.partial(
        jax.checkpoint,
        policy=jax.checkpoint_policies.save_only_these_names(KEPT),
    ),
    "blocks": jax.checkpoint,
}


def structure(module: type[nnx.Module], config: TransformerConfig) -> nnx.GraphDef:
    """Returns what a layer is besides its parameters, for `nnx.merge`."""
    return nnx.split(nnx.eval_shape(lambda: module(config, rngs=nnx.Rngs(0))))[0]


def build(module: type[nnx.Module], config: TransformerConfig, key: Key[Array, ""]) -> Params:
    """Returns the first parameters of a layer."""
    return nnx.to_pure_dict(nnx.state(module(config, rngs=nnx.Rngs(key)), nnx.Param))


def used(block_params: Params, config: TransformerConfig, placement: Placement) -> Params:
    """Returns a block's parameters as they are used: gathered in the type of the products."""

    def cast(path, leaf):
        return leaf if path[0].key.endswith("norm") else leaf.astype(config.dtype)

    low = jax.tree.map_with_path(cast, block_params)
    return checkpoint_name(gathered(low, placement, "blocks/"), GATHERED)


def through_blocks(
    layer: Callable[..., Float[Array, "B L D"]],
    x: Float[Array, "B L D"],
    blocks: Params,
    key: Key[Array, ""] | None,
    config: TransformerConfig,
    placement: Placement,
) -> Float[Array, "B L D"]:
    """Returns the activations after all blocks.

    Args:
      layer: layer(params, x, key) -> x, one block, with the parameters that it uses.
      x: the activations before the first.
      blocks: parameters, with a leading axis of blocks.
      key: of dropout, None for none.
      config: sizes, and what the backward pass keeps.
      placement: how activations lie on the devices.
    """

    def step(x, block):
        block_params, block_key = block
        x = layer(used(block_params, config, placement), x, block_key)
        return placement.over_batch(x), None

    keys = None if key is None else jax.random.split(key, config.model.num_blocks)
    # Without a loop XLA would find that what is made again was made before, and keep it: what the
    # products are followed by is cheaper kept than made (small, H100: 42 ms a step, 46 without),
    # while all of a block is what "blocks" is there to save.
    remat = REMAT[config.model.remat]
    step = remat(step, prevent_cse=config.unroll and config.model.remat == "blocks")
    turns = config.model.num_blocks if config.unroll else 1
    return jax.lax.scan(step, placement.over_batch(x), (blocks, keys), unroll=turns)[0]

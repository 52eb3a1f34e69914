"""A classifier of noised tokens: p(c | x_t), by the trunk of a score network.

Embedding, embedding of the noise, blocks and last norm are those of `score_model`. Then come the
mean over the positions and a linear layer over the classes, which starts at zero: all classes are
equally likely.

Shapes: N rows, L length, V states, K classes.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from sedd_jax.data.column_statistics import ColumnSize
from sedd_jax.diffusion.guidance import Evidence
from sedd_jax.model.config import TransformerConfig
from sedd_jax.model.context import Context
from sedd_jax.model.score_model import Head, SigmaEmbedding
from sedd_jax.model.sharding import ANYWHERE, Placement, all_gathered
from sedd_jax.model.transformer import Embedding, Params, initial_params, structure
from sedd_jax.model.trunk import TRUNKS


class ClassifierModel(NamedTuple):
    """A classifier as pure functions.

    Attributes:
      init: init(key) -> params.
      log_probs: log_probs(params, tokens, sigma, key=None) -> log p(c | x_t) [N, K], float32, of
        noised tokens [N, L], or of one-hot ones [N, L, V], and their total noise [N].
      column: that it tells the class of.
      max_length: number of learned positions, None for any number.
    """

    init: Callable[[Key[Array, ""]], Params]
    log_probs: Callable[..., Float[Array, "N K"]]
    column: ColumnSize
    max_length: int | None = None

    @property
    def conditions(self) -> tuple[ColumnSize, ...]:
        """What a batch of training tells beside the tokens."""
        return (self.column,)

    def evidence(self, params: Params, classes: Int[Array, "B"]) -> Evidence:
        """Returns log p(c | x_t) of a class of every row.

        It takes the B rows, or as many copies of each, one after another.
        """

        def evidence(tokens, sigma):
            told = jnp.repeat(classes, len(tokens) // len(classes))
            log_probs = self.log_probs(params, tokens, sigma)
            return jnp.take_along_axis(log_probs, told[:, None], axis=1)[:, 0]

        return evidence

    def without_class(self, context: Context) -> Context:
        """Returns a context without the class, which is told to the classifier alone."""
        others = dict(context.condition or {})
        others.pop(self.column.name, None)
        return context._replace(condition=others or None)


def classifier_model(
    config: TransformerConfig, column: ColumnSize, placement: Placement = ANYWHERE
) -> ClassifierModel:
    """Builds the classifier.

    Args:
      config: settings; `num_states` is that of the graph.
      column: of the classes.
      placement: of the activations.
    """
    of_classes = dataclasses.replace(config, num_states=column.classes)
    modules = {
        "embedding": (Embedding, config),
        "sigma": (SigmaEmbedding, config),
        "head": (Head, of_classes),
    }
    trunk = TRUNKS[config.model.trunk]
    trunk_of_length = trunk.build(config, placement)

    def init(key):
        *keys, blocks_key = jax.random.split(key, len(modules) + 1)
        named = zip(modules.items(), keys, strict=True)
        params = {name: initial_params(*module, k) for (name, module), k in named}
        block_keys = jax.random.split(blocks_key, config.model.num_blocks)
        params["blocks"] = jax.vmap(lambda k: initial_params(trunk.block, config, k))(block_keys)
        return params

    def log_probs(
        params: Params,
        tokens: Int[Array, "N L"] | Float[Array, "N L V"],
        sigma: Float[Array, "N"],
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "N K"]:
        outer = all_gathered({name: params[name] for name in modules}, placement, "")
        embedding, sigma_embedding, head = (
            nnx.merge(structure(*module), outer[name]) for name, module in modules.items()
        )
        cond = sigma_embedding(sigma if config.model.time_conditioning else jnp.zeros_like(sigma))
        layers = trunk_of_length(tokens.shape[1])
        x = layers(params["blocks"], embedding(tokens), cond, None, key)
        mean = head.hidden(x, cond).astype(jnp.float32).mean(1)
        logits = mean @ head.kernel[...] + head.bias[...][None]  # float32, as few as the classes
        return jax.nn.log_softmax(logits[:, : column.classes])

    return ClassifierModel(init, log_probs, column, config.max_length)

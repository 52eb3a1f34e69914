"""The networks that the benchmarks run, by name, and the vocabulary head alone."""

import dataclasses

import jax
import jax.numpy as jnp

from sedd_jax.data.conditions import Conditions
from sedd_jax.diffusion.score import DenseScore
from sedd_jax.diffusion.score_entropy import target
from sedd_jax.experiment.config import Config, ModelConfig, TrainConfig
from sedd_jax.inference.build import build_family
from sedd_jax.inference.score_based import ScoreBased
from sedd_jax.model.config import padded
from sedd_jax.model.head_inputs import HeadInputs
from sedd_jax.model.score_model import dense_model
from sedd_jax.model.sharding import ANYWHERE
from sedd_jax.model.tiles import StreamedHead, Unembedding, tiling_for
from sedd_jax.model.vocab_head import StreamedScore


@dataclasses.dataclass(frozen=True)
class Shape:
    """Sizes of a training step."""

    tokens: int
    hidden: int
    blocks: int
    heads: int
    length: int
    batch: int

    def product_operations(self) -> tuple[float, float]:
        """Returns the FLOPs of a step's matrix products, forward and backward: blocks, head."""
        positions = self.batch * self.length
        weights = 12 * self.hidden**2 * self.blocks
        attention = 2 * self.length * self.hidden * self.blocks
        return 6.0 * positions * (weights + attention), 3.0 * positions * self.hidden * self.tokens


SHAPES = {
    "head_heavy": Shape(tokens=50_257, hidden=256, blocks=4, heads=4, length=256, batch=8),
    "body_heavy": Shape(tokens=256, hidden=256, blocks=6, heads=4, length=256, batch=16),
    "owt_small": Shape(tokens=50_257, hidden=768, blocks=12, heads=12, length=1024, batch=1),
    "test": Shape(tokens=300, hidden=32, blocks=1, heads=2, length=16, batch=4),
}


HEADS = {
    "streamed": lambda model: model,
    "dense": lambda model: dense_model(model.init, model.apply),  # the oracle
}


def config_of(
    shape: Shape,
    remat: str,
    graph: str = "absorb",
    output: str = "ratio",
    objective: str = "score_entropy",
) -> Config:
    """Returns the settings of a training step.

    Args:
      shape: sizes.
      remat: what the backward pass recomputes, see `config.model.remat`.
      graph: "absorb" or "uniform".
      output: see `config.model.output`.
      objective: see `config.train.objective`.
    """
    model = ModelConfig(
        hidden_size=shape.hidden,
        num_blocks=shape.blocks,
        num_heads=shape.heads,
        length=shape.length,
        dropout=0.0,
        remat=remat,
        scale_by_sigma=graph == "absorb",  # so that a network of random weights has ratios near 1
        output=output,
    )
    train = TrainConfig(batch_size=shape.batch, objective=objective)
    return Config(graph=graph, model=model, train=train)


def family_of(
    shape: Shape,
    head: str,
    remat: str,
    graph: str = "absorb",
    output: str = "ratio",
    conditions: Conditions | None = None,
) -> ScoreBased:
    """Returns a diffusion model of this shape.

    Args:
      shape: sizes.
      head: "streamed", or "dense" for a network that materialises its log-scores.
      remat: what the backward pass recomputes, see `config.model.remat`.
      graph: "absorb" or "uniform".
      output: see `config.model.output`.
      conditions: what the network is told; None for nothing.
    """
    config = config_of(shape, remat, graph, output)
    if conditions is not None:
        names = ",".join(column.name for column in conditions.columns)
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, condition=names))
    family = build_family(config, shape.tokens, conditions=conditions)
    return family._replace(model=HEADS[head](family.model))


def compiled_head(shape: Shape, head: str) -> jax.stages.Compiled:
    """Returns the compiled loss and gradient from the hidden states on, float32.

    The arguments of the program are hidden [B, L, D], the unembedding, sigma [B], xt [B, L] and
    x0 [B, L].

    Args:
      shape: sizes.
      head: "streamed" or "dense".
    """
    graph = family_of(shape, head, "none").graph
    stream = StreamedHead(graph.num_states, tiling_for(ANYWHERE.platform), ANYWHERE)
    columns = padded(graph.num_states)

    def loss(hidden, table, sigma, xt, x0):
        shift = jnp.zeros(xt.shape)
        if head == "streamed":
            score = StreamedScore(stream, table, HeadInputs(hidden, shift, xt))
        else:
            rows = hidden.reshape(-1, shape.hidden) @ table.kernel + table.bias[None]
            score = DenseScore(xt, rows[:, : graph.num_states].reshape(*xt.shape, -1))
        return score.weighted_entropy(target(graph, sigma, xt, x0), jnp.ones(len(xt)))

    def array(*sizes, dtype=jnp.float32):
        return jax.ShapeDtypeStruct(sizes, dtype)

    tokens = array(shape.batch, shape.length, dtype=jnp.int32)
    table = Unembedding(array(shape.hidden, columns), array(columns))
    hidden = array(shape.batch, shape.length, shape.hidden)
    gradient = jax.jit(jax.value_and_grad(loss, (0, 1)))
    return gradient.lower(hidden, table, array(shape.batch), tokens, tokens).compile()

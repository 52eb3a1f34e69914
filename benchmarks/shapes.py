"""The networks that the benchmarks run."""

import dataclasses

from sedd_jax.model.score_model import dense_model
from sedd_jax.runtime.components import Components, build_components
from sedd_jax.runtime.config import Config, ModelConfig, TrainConfig


@dataclasses.dataclass(frozen=True)
class Shape:
    """Sizes of a step."""

    tokens: int
    hidden: int
    blocks: int
    heads: int
    length: int
    batch: int

    def product_operations(self) -> tuple[float, float]:
        """Returns operations in the matrix products of the blocks and of the head, backward too."""
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


def config_of(shape: Shape, remat: str) -> Config:
    """Returns the settings of a step."""
    model = ModelConfig(
        hidden_size=shape.hidden,
        num_blocks=shape.blocks,
        num_heads=shape.heads,
        length=shape.length,
        dropout=0.0,
        remat=remat,
    )
    return Config(model=model, train=TrainConfig(batch_size=shape.batch))


def components_of(shape: Shape, head: str, remat: str) -> Components:
    """Returns graph, noise and network; "dense" has the network write out its log-scores."""
    components = build_components(config_of(shape, remat), shape.tokens)
    model = components.model
    models = {"streamed": model, "dense": dense_model(model.init, model.apply)}
    return components._replace(model=models[head])

"""From settings to the pieces of a run: graph, noise and network; the network alone."""

from typing import NamedTuple

import jax.numpy as jnp

from sedd_jax.diffusion import graph as graphs
from sedd_jax.diffusion import noise as noises
from sedd_jax.diffusion.graph import Graph
from sedd_jax.diffusion.importance import Proposal, guess_proposal, plain_proposal
from sedd_jax.diffusion.noise import Noise
from sedd_jax.experiment.config import Config, ModelConfig, NoiseConfig, TrainConfig
from sedd_jax.model.autoregressive import CausalModel, causal_model
from sedd_jax.model.config import TransformerConfig
from sedd_jax.model.placement import ANYWHERE, Placement
from sedd_jax.model.score_model import ScoreModel, score_model


class Components(NamedTuple):
    """What training, evaluation and sampling share."""

    graph: Graph
    noise: Noise
    model: ScoreModel

    @property
    def num_tokens(self) -> int:
        """Tokens of the tokenizer."""
        return self.graph.num_tokens

    @property
    def num_states(self) -> int:
        """V, columns of the network's answer."""
        return self.graph.num_states


class Baseline(NamedTuple):
    """The same of the autoregressive baseline, which knows of no graph and no noise."""

    num_tokens: int
    model: CausalModel

    @property
    def num_states(self) -> int:
        """V, columns of the network's answer."""
        return self.num_tokens


def build_components(
    config: Config, vocab_size: int, placement: Placement = ANYWHERE
) -> Components | Baseline:
    """Builds the pieces of a run, by `config.family`, for a tokenizer of `vocab_size` tokens.

    Args:
      config: the settings.
      vocab_size: tokens of the tokenizer.
      placement: how activations lie on the devices.
    """
    if config.family == "autoregressive":
        return Baseline(vocab_size, causal_model(_sizes(config, vocab_size, placement), placement))
    graph = graphs.GRAPHS[config.graph](vocab_size)
    sizes = _sizes(config, graph.num_states, placement)
    return Components(graph, build_noise(config.noise), score_model(sizes, placement))


def _sizes(config, num_states, placement):
    model, causal = config.model, config.family == "autoregressive"
    return TransformerConfig(
        model,
        num_states=num_states,
        dtype=compute_dtype(model.dtype, placement.platform),
        max_length=model.length if causal or model.learned_positions else None,
        unroll=unrolled(model, placement),
    )


def unrolled(model: ModelConfig, placement: Placement) -> bool:
    """Returns whether blocks are a program one after another; "auto": where a GPU gains by it.

    It gains nothing if all is made again. Weights that lie in parts would be kept whole from the
    forward pass to the backward pass.
    """
    if model.unroll == "auto":
        whole = placement.fsdp is None or placement.mesh.shape[placement.fsdp] == 1
        return placement.platform == "gpu" and whole and model.remat != "blocks"
    return model.unroll == "yes"


def build_proposal(components: Components, config: TrainConfig) -> Proposal:
    """Builds the law that training draws its noise from."""
    if config.importance:
        return guess_proposal(components.graph, components.noise, config.t_min)
    return plain_proposal(config.t_min)


def build_noise(config: NoiseConfig) -> Noise:
    """Builds the noise schedule."""
    if config.schedule == "loglinear":
        return noises.loglinear(config.eps)
    return noises.geometric(config.sigma_min, config.sigma_max)


def compute_dtype(name: str, platform: str) -> jnp.dtype:
    """Returns the type of matrix products; "auto" is float32 on CPU and bfloat16 elsewhere."""
    if name == "auto":
        name = "float32" if platform == "cpu" else "bfloat16"
    return jnp.dtype(name)

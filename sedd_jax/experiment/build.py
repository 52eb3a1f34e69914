"""From settings to graph, noise schedule and network sizes."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from sedd_jax.diffusion import graph as graphs
from sedd_jax.diffusion import noise as noises
from sedd_jax.diffusion.graph import Graph
from sedd_jax.diffusion.noise import Noise
from sedd_jax.errors import BadInput
from sedd_jax.experiment.config import NoiseConfig
from sedd_jax.model.config import ModelConfig, TransformerConfig
from sedd_jax.model.sharding import Placement
from sedd_jax.system.registry import Registry

GRAPHS: Registry[Callable[[int], Graph]] = Registry(
    "config.graph",
    graphs.GRAPHS,
    methods=["num_states", *(name for name in vars(Graph) if not name.startswith("_"))],
    arguments=1,
)
NOISES: Registry[Callable[[NoiseConfig], Noise]] = Registry(
    "config.noise.schedule",
    {
        "loglinear": lambda config: noises.loglinear(config.eps),
        "geometric": lambda config: noises.geometric(config.sigma_min, config.sigma_max),
    },
    methods=Noise._fields,
    arguments=1,
)


def build_graph(name: str, vocab_size: int) -> Graph:
    """Builds the token graph: `name` is a key of GRAPHS, or the path of function(vocab_size).

    Raises:
      BadInput: there is none, it gives an object that lacks a method of `Graph`, or its limiting
        distribution is neither uniform over all states nor entirely on the mask.
    """
    graph = GRAPHS.build(name, vocab_size)
    states = np.arange(graph.num_states)
    off_mask = states != graph.mask_id  # all states where there is no mask
    # the loss and the samplers keep one ratio for all states but x_0: see `score_entropy.target`
    expected = np.where(off_mask, graph.limit_of_token, 1.0)
    if not np.allclose(graph.limit, expected, atol=1e-9) or abs(expected.sum() - 1) > 1e-4:
        raise BadInput(
            f"config.graph={name}: its limiting distribution must be uniform over all states, or "
            "entirely on the mask."
        )
    return graph


def build_noise(config: NoiseConfig) -> Noise:
    """Builds the schedule: `config.schedule` is a key of NOISES, or a path of function(config).

    Raises:
      BadInput: no such schedule, or an object without sigma and dsigma.
    """
    return NOISES.build(config.schedule, config)


def network_config(
    model: ModelConfig, num_states: int, placement: Placement, *, learned_positions: bool = False
) -> TransformerConfig:
    """Returns the sizes of a network, with "auto" settings resolved.

    Args:
      model: the settings.
      num_states: V.
      placement: how activations are sharded over the devices.
      learned_positions: True overrides `model.learned_positions`.
    """
    learned = learned_positions or model.learned_positions
    return TransformerConfig(
        model,
        num_states=num_states,
        dtype=compute_dtype(model.dtype, placement.platform),
        max_length=model.length if learned else None,
        unroll=unrolled(model, placement),
    )


def unrolled(model: ModelConfig, placement: Placement) -> bool:
    """Returns whether the loop over blocks is unrolled; "auto": where it is faster on a GPU.

    It is not faster where blocks are recomputed. Sharded weights would be kept gathered from the
    forward pass to the backward pass.
    """
    if model.unroll == "auto":
        whole = placement.fsdp is None or placement.mesh.shape[placement.fsdp] == 1
        return placement.platform == "gpu" and whole and model.remat != "blocks"
    return model.unroll == "yes"


def compute_dtype(name: str, platform: str) -> jnp.dtype:
    """Returns the type of matrix products; "auto" is float32 on CPU and bfloat16 elsewhere."""
    if name == "auto":
        name = "float32" if platform == "cpu" else "bfloat16"
    return jnp.dtype(name)

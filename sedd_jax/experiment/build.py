"""From settings to graph, noise schedule and network sizes."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from sedd_jax.data.column_statistics import ColumnSize
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

    Options follow the name: "hybrid(mask=0.5)".

    Raises:
      BadInput: there is none, or it gives an object that is no `Graph` with Q = pi 1 - I.
    """
    graph = GRAPHS.build(name, vocab_size)
    if fault := _fault_of_graph(graph):
        raise BadInput(f"config.graph={name}: {fault}.")
    return graph


def _fault_of_graph(graph):
    if not isinstance(graph, Graph):
        return f"it gives {graph!r:.80}, which must be derived from {Graph.__module__}.Graph"
    count, limit = graph.num_states, np.asarray(graph.limit, np.float64)
    if limit.shape != (count,) or not (limit >= 0).all() or abs(limit.sum() - 1) > 1e-4:
        return f"its limit must be a distribution over its {count} states"
    if graph.mask_id not in (None, count - 1):
        return f"its mask_id must be the last state, {count - 1}, or None, got {graph.mask_id}"
    states, sigma = jnp.array([0, count - 1]), jnp.array(0.7)
    for method, arguments in (("rate", (states,)), ("transition", (states, sigma))):
        form = getattr(Graph, method)(graph, *arguments)
        if not np.allclose(getattr(graph, method)(*arguments), form, atol=1e-5):
            # the streamed loss and the samplers keep one number a position, times pi
            return (
                f"its {method} is not that of Q = pi 1 - I, with its limit as pi, which the "
                "streamed loss and the samplers need"
            )
    return None


def build_noise(config: NoiseConfig) -> Noise:
    """Builds the schedule: `config.schedule` is a key of NOISES, or a path of function(config).

    Raises:
      BadInput: no such schedule, or an object without sigma and dsigma.
    """
    return NOISES.build(config.schedule, config)


def network_config(
    model: ModelConfig,
    num_states: int,
    placement: Placement,
    *,
    learned_positions: bool = False,
    conditions: tuple[ColumnSize, ...] = (),
    told_given: bool = False,
) -> TransformerConfig:
    """Returns the sizes of a network, with "auto" settings resolved.

    Args:
      model: the settings.
      num_states: V.
      placement: how activations are sharded over the devices.
      learned_positions: True overrides `model.learned_positions`.
      conditions: what the network is told of a row.
      told_given: whether the network is told which tokens are given.
    """
    learned = learned_positions or model.learned_positions
    return TransformerConfig(
        model,
        num_states=num_states,
        dtype=compute_dtype(model.dtype, placement.platform),
        max_length=model.length if learned else None,
        unroll=unrolled(model, placement),
        conditions=conditions,
        told_given=told_given,
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

"""The training step and the first state, as programs for the devices of a mesh."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Key

from sedd_jax.experiment import mesh as sharding
from sedd_jax.experiment.build import Baseline, Components
from sedd_jax.experiment.config import Config
from sedd_jax.experiment.state import RunKeys, TrainState
from sedd_jax.model.sharding import shardings
from sedd_jax.training.step import Step, build_train_step, init_state


class Programs(NamedTuple):
    """The jitted functions of a run.

    Attributes:
      abstract: shapes, types and placement of the state.
      batch: the same of a batch of tokens.
      init: init(key) -> state, made in the parts that the devices hold.
      train_step: train_step(state, tokens) -> (state, metrics); the old state is used up.
    """

    abstract: TrainState
    batch: jax.ShapeDtypeStruct
    init: Callable[[Key[Array, ""]], TrainState]
    train_step: Step


def build_programs(
    components: Components | Baseline, config: Config, keys: RunKeys, mesh: Mesh
) -> Programs:
    """Returns the functions of a run, for the devices of the mesh."""

    def init(key):
        return init_state(key, components, config)

    shapes = jax.eval_shape(init, keys.init)
    layout = shardings(shapes, mesh)
    train_step = jax.jit(
        build_train_step(components, config, keys.train),
        in_shardings=(layout, sharding.over_batch(mesh)),
        out_shardings=(layout, sharding.replicated(mesh)),
        donate_argnums=0,
    )
    return Programs(
        abstract=sharding.placed(shapes, layout),
        batch=jax.ShapeDtypeStruct(
            (config.train.batch_size, config.model.length),
            jnp.int32,
            sharding=sharding.over_batch(mesh),
        ),
        init=jax.jit(init, out_shardings=layout),
        train_step=train_step,
    )

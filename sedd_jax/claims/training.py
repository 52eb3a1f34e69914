"""Algorithm 1: a small network, trained as any other, recovers the data it was shown."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from sedd_jax.enumeration.space import Law, Space
from sedd_jax.model.score_model import Params
from sedd_jax.runtime.components import Components
from sedd_jax.runtime.config import Config
from sedd_jax.runtime.step import build_train_step, init_state, run_keys


def train_on(
    components: Components, config: Config, space: Space, rows: Int[np.ndarray, "N"]
) -> Params:
    """Returns the averaged weights after the ordinary training on a set of sequences.

    Args:
      components: graph, noise and network.
      config: the settings of the training.
      space: all sequences.
      rows: the training set, as rows of `space.states`; batches are drawn from it.
    """
    keys = run_keys(config.seed)
    states = jnp.asarray(space.states)
    train_step = build_train_step(components, config, keys.train)

    @functools.partial(jax.jit, donate_argnums=0)
    def train_all(state, rows):
        def step(state, index):
            key = jax.random.fold_in(keys.evaluate, index)
            chosen = jax.random.choice(key, rows, (config.train.batch_size,))
            return train_step(state, states[chosen])

        return jax.lax.scan(step, state, jnp.arange(config.train.steps))

    state, metrics = train_all(init_state(keys.init, components, config), jnp.asarray(rows))
    return state.ema_params, metrics

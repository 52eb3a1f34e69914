"""Training that starts from the weights of another model."""

import jax
import jax.numpy as jnp

from sedd_jax.errors import BadInput
from sedd_jax.inference.load import Checkpoint
from sedd_jax.runtime.config import Config
from sedd_jax.runtime.step import TrainState


def with_weights_of(
    initial: Checkpoint, state: TrainState, config: Config, vocab_size: int
) -> TrainState:
    """Returns the first state with the weights of another model in place of random ones.

    Raises:
      BadInput: its weights are no weights of this run.
    """
    theirs = (initial.config.family, initial.config.graph, initial.vocab_size)
    ours = (config.family, config.graph, vocab_size)
    shapes = [jax.tree.map(jnp.shape, params) for params in (initial.params, state.params)]
    if theirs != ours or shapes[0] != shapes[1]:
        raise BadInput(
            f"config.train.initial={config.train.initial} is another model: its family, graph and "
            f"tokens are {theirs}, those of this run {ours}; the sizes in config.model must agree "
            "too."
        )
    # not the same buffers: the state is donated
    ema_params = jax.tree.map(jnp.copy, initial.params)
    return state._replace(params=initial.params, ema_params=ema_params)

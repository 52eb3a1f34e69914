"""A network for tests of what is around the network: small, and quick to compile."""

import functools

import jax
import jax.numpy as jnp
import pytest

from sedd_jax.diffusion import graph as graphs
from sedd_jax.diffusion import noise as noises
from sedd_jax.diffusion.padding import real_positions
from sedd_jax.experiment.config import Config, ModelConfig
from sedd_jax.inference.model import TrainedModel
from sedd_jax.inference.score_based import ScoreBased
from sedd_jax.model.score_model import dense_model

NUM_TOKENS, TRAINED = 50, 16


def _log_score(params, xt, sigma, key=None, lengths=None):
    """Log-scores from the tokens before and after a position, the mean of the row, and sigma."""
    del key
    x = params["table"][xt]
    lengths = jnp.full(len(xt), xt.shape[1]) if lengths is None else lengths
    real = real_positions(lengths, xt.shape[1])
    x = jnp.where(real[..., None], x, 0)
    mean = x.sum(1, keepdims=True) / lengths[:, None, None]
    mixed = jnp.sin(jnp.roll(x, 1, 1) + 2 * jnp.roll(x, -1, 1) + 3 * mean)
    ratio = -jnp.log(jnp.expm1(sigma) * xt.shape[-1])[:, None, None]
    return jnp.where(
        jax.nn.one_hot(xt, x.shape[-1], dtype=bool), 0, mixed @ params["table"] + ratio
    )


@pytest.fixture(scope="session")
def toy():
    """toy(graph name) -> checkpoint of trained length 16, with lengths like a real one."""

    @functools.cache
    def checkpoint(name):
        graph = graphs.GRAPHS[name](NUM_TOKENS)

        def init(key):
            return {"table": jax.random.normal(key, (graph.num_states, graph.num_states))}

        model = dense_model(init, _log_score)
        config = Config(graph=name, model=ModelConfig(length=TRAINED))
        components = ScoreBased(graph, noises.loglinear(), model)
        return TrainedModel(components, init(jax.random.key(1)), config, tokenizer=None, step=None)

    return checkpoint

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sedd_jax.data.tokenizer import Bytes
from sedd_jax.inference.load import Checkpoint
from sedd_jax.runtime.components import build_components
from sedd_jax.runtime.config import Config

POSITIONS = 16


@pytest.fixture(scope="session")
def causal():
    """A causal model over bytes, of random weights that make its laws depend on the past."""
    config = Config()
    sizes = {"hidden_size": 16, "num_blocks": 1, "num_heads": 2, "length": POSITIONS}
    model = dataclasses.replace(config.model, **sizes, dropout=0.0, attention="xla")
    config = dataclasses.replace(config, family="autoregressive", model=model)
    components = build_components(config, Bytes.vocab_size)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: jnp.asarray(0.5 * rng.standard_normal(x.shape), jnp.float32),
        jax.eval_shape(components.model.init, jax.random.key(0)),
    )
    return Checkpoint(components, params, config, Bytes(), None)

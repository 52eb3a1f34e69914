"""A training step for the benchmarks to time."""

import time

import jax

from sedd_jax.experiment.config import Config
from sedd_jax.experiment.state import run_keys
from sedd_jax.inference.family import Family
from sedd_jax.training.step import build_train_step, init_state


class Step:
    """A compiled training step with its own state, which every call advances."""

    def __init__(self, family: Family, config: Config, tokens: jax.Array):
        keys = run_keys(0)
        self._init = lambda: jax.jit(lambda key: init_state(key, family, config.optim))(keys.init)
        self._state = None
        self._tokens = tokens
        step = jax.jit(
            build_train_step(family, config.train, config.optim, keys.train), donate_argnums=0
        )
        self.compiled = step.lower(jax.eval_shape(self._init), self._tokens).compile()

    @property
    def ema_params(self):
        """The averaged weights."""
        return self._state.ema_params

    def __call__(self, tokens: jax.Array | None = None) -> float:
        """Runs one step, on other tokens of the same shape if given, and returns its seconds."""
        if self._state is None:
            self._state = jax.block_until_ready(self._init())
        began = time.perf_counter()
        self._state, metrics = self.compiled(
            self._state, self._tokens if tokens is None else tokens
        )
        jax.block_until_ready((self._state, metrics))
        return time.perf_counter() - began

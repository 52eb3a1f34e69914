"""Algorithm 1: a small network, trained as any other, recovers the data it was shown."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from sedd_jax.display.plot import Plot
from sedd_jax.display.table import Table
from sedd_jax.experiment.build import Components
from sedd_jax.experiment.config import Config
from sedd_jax.experiment.state import run_keys
from sedd_jax.model.score_model import Params
from sedd_jax.training.step import build_train_step, init_state
from sedd_jax.verification.exact.law import sampler_law
from sedd_jax.verification.exact.space import Law, Space, kl_divergence, total_variation
from sedd_jax.verification.report import Claim, Section
from sedd_jax.verification.samplers import LEVEL, draw, goodness_of_fit

LIMIT = 0.02  # of the total variation between samples and data
PADDED = 65_536  # rows of the program's training set; smaller sets, powers of 2, are repeated


class Trained(NamedTuple):
    """The claims on training, and the weights from the largest set."""

    section: Section
    params: Params


def check_training(
    config: Config,
    components: Components,
    space: Space,
    data: Law,
    *,
    set_sizes: tuple[int, ...],
    sampler_steps: int,
    num_samples: int,
) -> Trained:
    """Trains on sets of several sizes and measures how far the samples are from the data.

    Args:
      config: the settings of the training.
      components: graph, noise and network.
      space: all sequences.
      data: law of the data.
      set_sizes: sequences in each training set, increasing; the claims are on the last.
      sampler_steps: reverse steps of the sampler.
      num_samples: samples drawn from the last network.
    """
    train = build_training(components, config, space)
    settings = {"steps": sampler_steps, "t_min": config.train.t_min}
    rows, distances = [], []
    for size in set_sizes:
        shown = np.random.default_rng(config.seed).choice(len(data), size, p=data)
        params = train(shown)
        law = sampler_law(components, params, space, sampler="tweedie", **settings)
        frequencies = np.bincount(shown, minlength=len(data)) / size
        distances.append(total_variation(law, data))
        rows.append(
            (
                size,
                total_variation(frequencies, data),
                distances[-1],
                total_variation(law, frequencies),
                kl_divergence(data, law),
            )
        )
    drawn = draw(components, params, space, num_samples=num_samples, **settings)
    table = Table(
        f"Distance from the data by size of the training set; {config.train.steps} training steps "
        f"of {config.train.batch_size}, {sampler_steps} sampling steps",
        ("set", "TV, set to data", "TV, samples to data", "TV, samples to set", "KL, nats"),
        rows,
    )
    largest, p_value = set_sizes[-1], goodness_of_fit(drawn, law, num_samples)
    claims = [
        Claim(
            f"trained on {largest}: TV of the samples' law to the data", distances[-1], "<=", LIMIT
        ),
        Claim(
            f"... of {num_samples} drawn samples to the data",
            total_variation(drawn, data),
            "<=",
            LIMIT,
        ),
        Claim("... drawn samples and their law, chi-square p-value", p_value, ">=", LEVEL),
    ]
    sizes = list(set_sizes)
    curves = {
        "samples to data": (sizes, distances),
        "training set to data": (sizes, [row[1] for row in rows]),
    }
    plot = Plot("training", "sequences in the training set", "total variation", curves)
    return Trained(Section("Training", claims, [table], [plot]), params)


def build_training(components: Components, config: Config, space: Space):
    """Returns train(rows) -> params: the averaged weights after `config.train.steps` steps.

    One program: batches are drawn from the training set, given as rows of `space.states`, and
    every step is that of `sedd_jax.train`.
    """
    keys = run_keys(config.seed)
    states = jnp.asarray(space.states)
    train_step = build_train_step(components, config, keys.train)

    @jax.jit
    def train_all(state, rows):
        def step(state, index):
            key = jax.random.fold_in(keys.evaluate, index)
            batch = states[jax.random.choice(key, rows, (config.train.batch_size,))]
            return train_step(state, batch)

        state, _ = jax.lax.scan(step, state, jnp.arange(config.train.steps))
        return state.ema_params

    def train(rows: Int[np.ndarray, "N"]) -> Params:
        if PADDED % len(rows):
            raise ValueError(f"The size of the set must divide {PADDED}, got {len(rows)}.")
        state = init_state(keys.init, components, config)
        # padded by repetition to one shape, so that all sets share a program
        return train_all(state, jnp.asarray(np.resize(rows, PADDED)))

    return train

"""Algorithm 1 and Theorem 3.6: a small trained network recovers the data, and its bound holds.

The network is trained as any other; its samples, likelihood and bound are computed by enumeration.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import xlogy

from sedd_jax.diffusion.importance import guess_proposal, plain_proposal
from sedd_jax.diffusion.times import sample_quantiles
from sedd_jax.display.plot import Plot
from sedd_jax.display.table import Table
from sedd_jax.experiment.config import Config
from sedd_jax.experiment.state import run_keys
from sedd_jax.inference.batches import row_keys
from sedd_jax.inference.likelihood import nll_bound
from sedd_jax.inference.model import TrainedModel
from sedd_jax.inference.score_based import ScoreBased, sequence_loss
from sedd_jax.model.score_model import Params
from sedd_jax.training.step import build_train_step, init_state
from sedd_jax.verification.exact.reverse_process import (
    ReverseProcess,
    base_distribution,
    exact_process,
)
from sedd_jax.verification.exact.space import (
    Distribution,
    Space,
    goodness_of_fit,
    kl_divergence,
    total_variation,
)
from sedd_jax.verification.report import Claim, Section
from sedd_jax.verification.samplers import SIGNIFICANCE, sample_frequencies

MAX_DISTANCE = 0.02  # total variation between samples and data
PADDED_SIZE = 65_536  # rows of the program's training set; smaller sets, powers of 2, are repeated
STANDARD_ERRORS = 4  # within which Monte Carlo must agree with quadrature
# scores are float32, and the solver of the master equation keeps to 1e-7 in every step
GAP_TOLERANCE = 1e-5


class TrainingResult(NamedTuple):
    """The claims on training, and the weights from the largest set."""

    section: Section
    params: Params


def check_training(
    config: Config,
    family: ScoreBased,
    space: Space,
    data: Distribution,
    *,
    set_sizes: tuple[int, ...],
    sampler_steps: int,
    num_samples: int,
) -> TrainingResult:
    """Trains on sets of several sizes and measures how far the samples are from the data.

    Args:
      config: the settings of the training.
      family: graph, noise and network.
      space: all sequences.
      data: distribution of the data.
      set_sizes: sequences in each training set, increasing; the claims are on the last.
      sampler_steps: reverse steps of the sampler.
      num_samples: samples drawn from the last network.
    """
    train = build_training(family, config, space)
    settings = {"steps": sampler_steps, "t_min": config.train.t_min}
    rows = []
    for size in set_sizes:
        training_set = np.random.default_rng(config.seed).choice(len(data), size, p=data)
        params = train(training_set)
        process = ReverseProcess(family, params, space)
        sampled = process.sampler_distribution(sampler="tweedie", **settings)
        frequencies = np.bincount(training_set, minlength=len(data)) / size
        pairs = ((frequencies, data), (sampled, data), (sampled, frequencies))
        distances = (total_variation(*pair) for pair in pairs)
        rows.append((size, *distances, kl_divergence(data, sampled)))
    drawn = sample_frequencies(process, num_samples=num_samples, **settings)
    table = Table(
        f"Distance from the data by size of the training set; {config.train.steps} training steps "
        f"of {config.train.batch_size}, {sampler_steps} sampling steps",
        ("set", "TV, set to data", "TV, samples to data", "TV, samples to set", "KL, nats"),
        rows,
    )
    largest, _, distance, *_ = rows[-1]
    of_drawn, p_value = total_variation(drawn, data), goodness_of_fit(drawn, sampled, num_samples)
    fits = "... drawn samples and their distribution, chi-square p-value"
    claims = [
        Claim(f"trained on {largest}: TV of the samples to the data", distance, "<=", MAX_DISTANCE),
        Claim(f"... of {num_samples} drawn samples to the data", of_drawn, "<=", MAX_DISTANCE),
        Claim(fits, p_value, ">=", SIGNIFICANCE),
    ]
    sizes, to_data, of_samples, *_ = map(list, zip(*rows, strict=True))
    curves = {"samples to data": (sizes, of_samples), "training set to data": (sizes, to_data)}
    plot = Plot("training", "sequences in the training set", "total variation", curves)
    return TrainingResult(Section("Training", claims, [table], [plot]), params)


def build_training(family: ScoreBased, config: Config, space: Space) -> Callable[..., Params]:
    """Returns train(rows, condition=None) -> params: the averaged weights after all training steps.

    One program: batches are drawn from the training set, given as rows [N] of `space.states` and,
    for a network that is told something of them, a tree of arrays [N, ...]. Every step is that of
    `sedd_jax.train`.

    Args:
      family: graph, noise and network.
      config: the settings of the training.
      space: all sequences.
    """
    keys = run_keys(config.seed)
    states = jnp.asarray(space.states)
    train_step = build_train_step(family, config.train, config.optim, keys.train)

    @jax.jit
    def train_all(state, rows, condition):
        def step(state, index):
            key = jax.random.fold_in(keys.evaluate, index)
            drawn = jax.random.choice(key, PADDED_SIZE, (config.train.batch_size,))
            told = jax.tree.map(lambda x: x[drawn], condition)
            return train_step(state, states[rows[drawn]], told)

        state, _ = jax.lax.scan(step, state, jnp.arange(config.train.steps))
        return state.ema_params

    def train(rows, condition=None):
        if PADDED_SIZE % len(rows):
            raise ValueError(f"The size of the set must divide {PADDED_SIZE}, got {len(rows)}.")
        state = init_state(keys.init, family, config.optim, config.train)
        # padded by repetition to one shape, so that all sets share a program
        sets = jax.tree.map(
            lambda x: jnp.asarray(np.resize(x, (PADDED_SIZE, *x.shape[1:]))), (rows, condition)
        )
        return train_all(state, *sets)

    return train


def check_bound(
    config: Config,
    family: ScoreBased,
    params: Params,
    space: Space,
    data: Distribution,
    *,
    num_sequences: int = 256,
    repeats: int = 64,
) -> Section:
    """Returns the bound against the exact likelihood, of the truth and of a trained network.

    Args:
      config: the settings of the training.
      family: graph, noise and network.
      params: the trained weights.
      space: all sequences.
      data: distribution of the data.
      num_sequences: sequences per Monte-Carlo estimate.
      repeats: estimates by each estimator.
    """
    t_min = config.train.t_min
    base = base_distribution(space, family.noise, space.uniform_data())
    process = ReverseProcess(family, params, space)
    nll, bound = process.nll(base, t_min), process.bound(base, t_min)
    gap, clean = bound.total - nll, data[space.clean]
    terms = {
        "entropy of the data": -np.sum(xlogy(clean, clean)),
        "exact -log p": clean @ nll,
        "bound": clean @ bound.total,
        "of which prior": clean @ bound.prior,
        "of which diffusion": clean @ bound.diffusion,
        "of which final step": clean @ bound.reconstruction,
        "gap, mean": clean @ gap,
        "gap, least over all sequences": gap.min(),
        "gap, largest": gap.max(),
    }
    table = Table(
        "The trained network, nats per sequence, mean over the data",
        ("quantity", "nats"),
        [(name, float(value)) for name, value in terms.items()],
    )
    trained = TrainedModel(family, params, config, None, None)
    rows = np.random.default_rng(config.seed).choice(space.clean, num_sequences, p=clean)
    drawn = np.searchsorted(space.clean, rows)
    exact = bound.diffusion[drawn].mean() / (1 - t_min), bound.total[drawn].mean()
    estimates, estimate_claims = _estimates(trained, space.states[rows], *exact, repeats)
    least = "trained: bound - exact -log p, least over all x_0"
    claims = [
        *_tight_at_the_truth(space, family.noise, data, t_min),
        Claim(least, gap.min(), ">=", -GAP_TOLERANCE),
        *estimate_claims,
    ]
    return Section("The bound", claims, [table, estimates])


def _tight_at_the_truth(space, noise, data, t_min):
    """With true scores, started from p_1, the mean bound is the entropy of the data.

    Except for the final step, whose positions are independent: for sequences so rare that two
    redrawn tokens at t_min are as likely, that shows in the single bound.
    """
    with jax.enable_x64(True):
        process, base = exact_process(space, noise, data), base_distribution(space, noise, data)
        nll, bound = process.nll(base, t_min), process.bound(base, t_min).total
    support = data[space.clean] > 0
    clean, bound, nll = data[space.clean][support], bound[support], nll[support]
    entropy_error, gap = abs(clean @ (bound + np.log(clean))), (bound - nll).min()
    return [
        Claim("true scores: |mean bound - entropy of the data|", entropy_error, "<=", 1e-4),
        Claim("true scores: bound - exact -log p, least over the data", gap, ">=", -GAP_TOLERANCE),
    ]


def _estimates(trained, tokens, exact, exact_complete, repeats):
    """Monte Carlo against quadrature, and the variance of every estimator at equal NFE."""
    params, t_min = trained.params, trained.config.train.t_min
    plain_loss, guess_loss = (
        jax.jit(sequence_loss(trained.family, proposal))
        for proposal in (plain_proposal(t_min), guess_proposal(*trained.family[:2], t_min))
    )

    def estimator(loss, low_discrepancy):
        def estimate(key):
            time_key, noise_key = jax.random.split(key)
            quantiles = sample_quantiles(time_key, len(tokens), low_discrepancy)
            keys = row_keys(noise_key, np.arange(len(tokens)))
            return loss(params, keys, quantiles, tokens)

        return estimate

    def complete(key):
        return nll_bound(key, trained, tokens, batch_size=len(tokens), complete=True).nats

    def means(estimate):
        return np.array([estimate(jax.random.key(seed)).mean() for seed in range(repeats)])

    def agreement(name, values, exact):
        error = abs(values.mean() - exact) / (values.std(ddof=1) / np.sqrt(repeats))
        statement = f"{name}: |estimates - quadrature|, standard errors"
        return Claim(statement, error, "<=", STANDARD_ERRORS)

    estimates = {
        "independent t": means(estimator(plain_loss, False)),
        "low-discrepancy t": means(estimator(plain_loss, True)),
        "proposal of a guess": means(estimator(guess_loss, True)),
    }
    variance = {name: values.var(ddof=1) for name, values in estimates.items()}
    reduced = {name: float(variance["independent t"] / variance[name]) for name in estimates}
    rows = [
        (name, float(exact), float(values.mean()), float(variance[name] ** 0.5), reduced[name])
        for name, values in estimates.items()
    ]
    table = Table(
        f"Estimates of the diffusion term from {len(tokens)} network evaluations each, nats",
        ("estimator", "quadrature", "mean", "standard deviation", "variance reduced by"),
        rows,
    )
    reduction = reduced["proposal of a guess"]
    claims = [
        *(agreement(name, values, exact) for name, values in estimates.items()),
        agreement("complete bound", means(complete), exact_complete),
        Claim("proposal of a guess: variance reduced by", reduction, ">=", 4.0),
    ]
    return table, claims

"""Theorem 3.6: the bound holds for every sequence, is tight at the truth, and is estimated well."""

import jax
import numpy as np

from sedd_jax.diffusion.importance import guess_proposal, plain_proposal
from sedd_jax.diffusion.score_entropy import sample_quantiles
from sedd_jax.display.table import Table
from sedd_jax.experiment.build import Components
from sedd_jax.experiment.config import Config
from sedd_jax.inference.batches import row_keys
from sedd_jax.inference.bound import nll_bound
from sedd_jax.inference.estimate import estimate_bound, sequence_loss
from sedd_jax.inference.load import TrainedModel
from sedd_jax.model.score_model import Params
from sedd_jax.verification.exact.likelihood import base_law, exact_bound, exact_nll
from sedd_jax.verification.exact.scores import exact_model, exact_params
from sedd_jax.verification.exact.space import Law, Space, float64
from sedd_jax.verification.report import Claim, Section

STANDARD_ERRORS = 4  # within which Monte Carlo must agree with quadrature


def check_bound(
    config: Config,
    components: Components,
    params: Params,
    space: Space,
    data: Law,
    *,
    num_sequences: int = 256,
    repeats: int = 64,
) -> Section:
    """Returns the bound against the exact likelihood, of the truth and of a trained network.

    Args:
      config: the settings of the training.
      components: graph, noise and network.
      params: the trained weights.
      space: all sequences.
      data: law of the data.
      num_sequences: sequences per Monte-Carlo estimate.
      repeats: estimates by each estimator.
    """
    t_min = config.train.t_min
    truth_claims = _tight_at_the_truth(components, space, data, t_min)
    base = base_law(space, components.noise, space.guess())
    nll = exact_nll(components, params, space, base, t_min)
    bound = exact_bound(components, params, space, base, t_min)
    gap = bound.total - nll
    clean = data[space.clean]
    terms = {
        "entropy of the data": -np.sum(clean * np.log(np.where(clean > 0, clean, 1))),
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
    checkpoint = TrainedModel(components, params, config, None, None)
    rows = np.random.default_rng(config.seed).choice(space.clean, num_sequences, p=clean)
    positions = np.searchsorted(space.clean, rows)
    estimates, estimate_claims = _estimates(
        checkpoint,
        space.states[rows],
        bound.diffusion[positions].mean() / (1 - t_min),
        bound.total[positions].mean(),
        repeats,
    )
    claims = [
        *truth_claims,
        # scores are float32, and the solver of the master equation keeps to 1e-7 in every step
        Claim("trained: bound - exact -log p, least over all x_0", gap.min(), ">=", -1e-5),
        *estimate_claims,
    ]
    return Section("The bound", claims, [table, estimates])


def _tight_at_the_truth(components, space, data, t_min):
    """With true scores, started from p_1, the mean bound is the entropy of the data.

    But for the final step, whose positions are independent; for sequences so rare that two
    redrawn tokens at t_min are as likely, that shows in the single bound.
    """
    with float64():
        truth = components._replace(model=exact_model(space))
        params, base = exact_params(data), base_law(space, components.noise, data)
        bound = exact_bound(truth, params, space, base, t_min).total
        nll = exact_nll(truth, params, space, base, t_min)
    held = data[space.clean] > 0
    gap, clean = (bound - nll)[held], data[space.clean][held]
    return [
        Claim(
            "true scores: |mean bound - entropy of the data|",
            abs(clean @ bound[held] + np.sum(clean * np.log(clean))),
            "<=",
            1e-4,
        ),
        Claim("true scores: bound - exact -log p, least over the data", gap.min(), ">=", -1e-5),
    ]


def _estimates(checkpoint, tokens, exact, exact_complete, repeats):
    """Monte Carlo against quadrature, and the variance of every estimator at equal evaluations."""
    params, t_min = checkpoint.params, checkpoint.config.train.t_min
    plain = plain_proposal(t_min)
    guess = guess_proposal(checkpoint.graph, checkpoint.noise, t_min)
    plain_loss = jax.jit(sequence_loss(checkpoint.components, plain))
    guess_loss = jax.jit(sequence_loss(checkpoint.components, guess))
    keys = [jax.random.key(seed) for seed in range(repeats)]

    def independent(key):
        time_key, noise_key = jax.random.split(key)
        unit = sample_quantiles(time_key, len(tokens), low_discrepancy=False)
        keys = row_keys(noise_key, np.arange(len(tokens)))
        return plain_loss(params, keys, unit, tokens).mean()

    estimators = {
        "independent t": independent,
        "low-discrepancy t": lambda key: estimate_bound(plain_loss, params, key, [tokens]).mean(),
        "proposal of a guess": lambda key: estimate_bound(guess_loss, params, key, [tokens]).mean(),
    }
    means = {name: np.array([f(key) for key in keys]) for name, f in estimators.items()}
    complete = np.array(
        [
            nll_bound(key, checkpoint, tokens, batch_size=len(tokens), complete=True).nats.mean()
            for key in keys
        ]
    )
    variance = {name: values.var(ddof=1) for name, values in means.items()}
    rows = [
        (
            name,
            exact,
            values.mean(),
            variance[name] ** 0.5,
            variance["independent t"] / variance[name],
        )
        for name, values in means.items()
    ]
    table = Table(
        f"Estimates of the diffusion term from {len(tokens)} network evaluations each, nats",
        ("estimator", "quadrature", "mean", "standard deviation", "variance reduced by"),
        [(name, *map(float, figures)) for name, *figures in rows],
    )
    claims = [
        _agrees(f"{name}: |estimates - quadrature|, standard errors", values, exact)
        for name, values in means.items()
    ]
    claims.append(
        _agrees(
            "complete bound: |estimates - quadrature|, standard errors", complete, exact_complete
        )
    )
    claims.append(Claim("proposal of a guess: variance reduced by", rows[-1][-1], ">=", 4.0))
    return table, claims


def _agrees(statement, values, exact):
    error = abs(values.mean() - exact) / (values.std(ddof=1) / np.sqrt(len(values)))
    return Claim(statement, error, "<=", STANDARD_ERRORS)

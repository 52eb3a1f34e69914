"""Theorem 3.6: the bound holds for every sequence, is tight at the truth, and is estimated well."""

import jax
import numpy as np

from sedd_jax.claims.report import Claim, Section, Table
from sedd_jax.enumeration.likelihood import base_law, exact_bound, exact_nll
from sedd_jax.enumeration.scores import exact_model, exact_params
from sedd_jax.enumeration.space import Law, Space, float64
from sedd_jax.inference.bound import estimate_bound, nll_bound, sequence_loss
from sedd_jax.inference.draws import PLANS
from sedd_jax.inference.load import Checkpoint
from sedd_jax.model.score_model import Params
from sedd_jax.runtime.components import Components
from sedd_jax.runtime.config import Config

SIGMAS = 4  # standard errors within which Monte Carlo must agree with quadrature


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
      repeats: estimates per plan.
    """
    t_min = config.train.t_min
    truth_claim = _tight_at_the_truth(components, space, data, t_min)
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
    checkpoint = Checkpoint(components, params, config, None, None)
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
        truth_claim,
        # the solver of the master equation keeps to 1e-7 of the law
        Claim("trained: bound - exact -log p, least over all x_0", gap.min(), ">=", -1e-5),
        *estimate_claims,
    ]
    return Section("The bound", claims, [table, estimates])


def _tight_at_the_truth(components, space, data, t_min):
    """With true scores, started from p_1, the bound is -log p itself for every sequence."""
    with float64():
        truth = components._replace(model=exact_model(space))
        params, base = exact_params(data), base_law(space, components.noise, data)
        held = data[space.clean] > 0
        bound = exact_bound(truth, params, space, base, t_min).total[held]
        nll = exact_nll(truth, params, space, base, t_min)[held]
    apart = np.abs(bound - nll).max()
    return Claim("true scores: |bound - exact -log p|, largest over all x_0", apart, "<=", 1e-4)


def _estimates(checkpoint, tokens, exact, exact_complete, repeats):
    """Monte Carlo against quadrature, and the variance of every plan at equal evaluations."""
    components, params = checkpoint.components, checkpoint.params
    loss = jax.jit(sequence_loss(components))
    t_min = checkpoint.config.train.t_min
    means = {
        plan: np.array(
            [
                estimate_bound(
                    loss, components, params, jax.random.key(seed), [tokens], t_min, plan
                ).mean
                for seed in range(repeats)
            ]
        )
        for plan in PLANS
    }
    complete = np.array(
        [
            nll_bound(
                jax.random.key(seed), checkpoint, tokens, batch_size=len(tokens), complete=True
            ).mean
            for seed in range(repeats)
        ]
    )
    reference = means["independent"].var(ddof=1)
    rows = [
        (plan, exact, values.mean(), values.std(ddof=1), reference / values.var(ddof=1))
        for plan, values in means.items()
    ]
    table = Table(
        f"Estimates of the diffusion term from {len(tokens)} network evaluations each",
        ("plan", "quadrature", "mean", "standard deviation", "variance reduced by"),
        rows,
    )
    claims = [
        _agrees(f"{plan}: |estimates - quadrature| in standard errors", values, exact)
        for plan, values in means.items()
    ]
    claims.append(_agrees("complete bound: the same", complete, exact_complete))
    claims.append(Claim("importance: variance reduced by", rows[-1][-1], ">=", 4.0))
    return table, claims


def _agrees(statement, values, exact):
    error = abs(values.mean() - exact) / (values.std(ddof=1) / np.sqrt(len(values)))
    return Claim(statement, error, "<=", SIGMAS)

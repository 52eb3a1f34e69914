"""A network that was trained with given tokens: clamping follows Bayes' rule, on every graph.

And its bound on the rest given these tokens is one, for every pattern of given tokens.
"""

import itertools
from typing import NamedTuple

import jax
import numpy as np

from sedd_jax.display.table import Table
from sedd_jax.experiment.config import Config
from sedd_jax.inference.likelihood import nll_bound
from sedd_jax.inference.model import TrainedModel
from sedd_jax.inference.score_based import ScoreBased
from sedd_jax.verification.exact.given import given_process
from sedd_jax.verification.exact.reverse_process import (
    ReverseProcess,
    base_distribution,
    exact_process,
)
from sedd_jax.verification.exact.space import Distribution, Space, total_variation
from sedd_jax.verification.report import Claim, Section
from sedd_jax.verification.training import (
    GAP_TOLERANCE,
    PADDED_SIZE,
    STANDARD_ERRORS,
    build_training,
)

MAX_DISTANCE = 0.03  # total variation of clamped samples to Bayes' rule
STEPS = 64


class OfPattern(NamedTuple):
    """Figures of a pattern of given tokens, means over the data.

    Attributes:
      distance: total variation of clamped samples to Bayes' rule.
      not_told: the same of true scores that are not told which tokens are given.
      nll: exact -log p(rest | given) of the trained network, nats.
      bound: on it.
      least_gap: bound - exact -log p, the least over all sequences.
    """

    distance: float
    not_told: float
    nll: float
    bound: float
    least_gap: float


def check_held(config: Config, family: ScoreBased, space: Space, data: Distribution) -> Section:
    """Trains with `config.train.hold` and returns the claims on given tokens.

    Args:
      config: the settings of the training.
      family: graph, noise and a network that is told which tokens are given.
      space: all sequences.
      data: distribution of the data.
    """
    training_set = np.random.default_rng(config.seed).choice(len(data), PADDED_SIZE, p=data)
    params = build_training(family, config, space)(training_set)
    process, t_min = ReverseProcess(family, params, space), config.train.t_min
    places = range(space.length)
    patterns = [
        pattern for size in places if size for pattern in itertools.combinations(places, size)
    ]
    figures = {pattern: of_pattern(process, data, pattern, t_min) for pattern in patterns}
    table = Table(
        f"Every pattern of given tokens, means over the data; trained with "
        f"{config.train.hold}, {config.train.steps} steps; {STEPS} sampling steps of Tweedie",
        (
            "given positions",
            "TV to Bayes",
            "TV, true scores, not told",
            "exact -log p, nats",
            "bound",
            "least bound - exact",
        ),
        [(" ".join(map(str, pattern)), *figures[pattern]) for pattern in patterns],
    )
    worst = max(each.distance for each in figures.values())
    least = min(each.least_gap for each in figures.values())
    claims = [
        Claim(f"any pattern given, {STEPS} steps: TV to Bayes", worst, "<=", MAX_DISTANCE),
        Claim(
            "any pattern, tokens and rest: bound - exact -log p(rest | given)",
            least,
            ">=",
            -GAP_TOLERANCE,
        ),
        _estimate(config, process, data),
    ]
    return Section("Given tokens, trained", claims, [table])


def of_pattern(
    process: ReverseProcess, data: Distribution, pattern: tuple[int, ...], t_min: float
) -> OfPattern:
    """Returns the figures of a pattern, over all tokens at its positions that the data have.

    Args:
      process: of the trained network.
      data: distribution of the data.
      pattern: positions with given tokens.
      t_min: the time at which the steps end.
    """
    (graph, noise, _), _, space = process
    settings = {"steps": STEPS, "sampler": "tweedie", "t_min": t_min}
    truth = exact_process(space, noise, data)
    total, least = np.zeros(4), np.inf
    for tokens in itertools.product(range(graph.num_tokens), repeat=len(pattern)):
        given = dict(zip(pattern, tokens, strict=True))
        share = (data * agreeing(space, given)).sum()
        if not share:
            continue
        clamped = given_process(process, given)
        bayes = rest_given(space, data, given, clamped.space)
        base = base_distribution(clamped.space, noise, clamped.space.uniform_data())
        nll, bound = clamped.nll(base, t_min), clamped.bound(base, t_min).total
        distances = (
            total_variation(each.sampler_distribution(**settings), bayes)
            for each in (clamped, given_process(truth, given))
        )
        clean = bayes[clamped.space.clean]
        total += share * np.array([*distances, clean @ nll, clean @ bound])
        least = min(least, (bound - nll).min())
    return OfPattern(*map(float, total), float(least))


def agreeing(space: Space, given: dict[int, int]) -> np.ndarray:
    """Returns which sequences have the given tokens."""
    return np.all([space.states[:, i] == token for i, token in given.items()], axis=0)


def rest_given(
    space: Space, data: Distribution, given: dict[int, int], rest: Space
) -> Distribution:
    """Returns the distribution of the rest given tokens, by Bayes' rule.

    Args:
      space: all sequences.
      data: distribution of the data.
      given: tokens by position.
      rest: the sequences of the other positions.
    """
    conditional = space.conditional(data, given)
    others = [i for i in range(space.length) if i not in given]
    return np.bincount(rest.index(space.states[:, others]), conditional, minlength=len(rest.states))


def _estimate(config, process, data, count=128, draws=32):
    """The estimate of `nll_bound` from draws against sums and quadrature, for mixed patterns."""
    (_, noise, _), _, space = process
    rng = np.random.default_rng(config.seed)
    rows = space.states[rng.choice(len(data), count, p=data)]
    held = rng.random(rows.shape) < 0.5
    held[:, 0] &= ~held.all(1)  # something is left to score
    trained = TrainedModel(process.family, process.params, config, None, None)
    settings = {"draws": draws, "complete": True}
    found = nll_bound(jax.random.key(config.seed), trained, rows, held=held, **settings)
    t_min, exact, known = config.train.t_min, 0.0, {}
    for row, where in zip(rows, held, strict=True):
        given = {int(i): int(row[i]) for i in np.flatnonzero(where)}
        case = tuple(given.items())
        if case not in known:
            rest = given_process(process, given) if given else process
            base = base_distribution(rest.space, noise, rest.space.uniform_data())
            known[case] = rest.space, rest.bound(base, t_min).total
        of_rest, bounds = known[case]
        index = of_rest.index(row[~where])
        exact += bounds[np.searchsorted(of_rest.clean, index)]
    exact /= found.tokens.sum()
    return Claim(
        f"{count} rows with random given tokens: |estimate - sum over all x_t| in standard errors",
        abs(found.nats_per_token - exact) / found.stderr,
        "<=",
        float(STANDARD_ERRORS),
    )

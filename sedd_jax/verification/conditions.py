"""A network that is told a class: it draws p(x | c), and its bound is one on -log p(x | c).

Told nothing, or guided with a power of 0, it draws p(x).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import xlogy

from sedd_jax.data.column_statistics import Label
from sedd_jax.data.columns import parse_columns
from sedd_jax.data.conditions import Conditions
from sedd_jax.display.table import Table
from sedd_jax.inference.generate import generate
from sedd_jax.inference.likelihood import nll_bound
from sedd_jax.inference.model import TrainedModel
from sedd_jax.inference.score_based import ScoreBased
from sedd_jax.model.context import Context
from sedd_jax.model.score_model import dense_model
from sedd_jax.verification.exact.reverse_process import PerClean, ReverseProcess, base_distribution
from sedd_jax.verification.exact.space import (
    Distribution,
    Space,
    goodness_of_fit,
    total_variation,
)
from sedd_jax.verification.report import Claim, ExactConfig, Section
from sedd_jax.verification.samplers import SIGNIFICANCE
from sedd_jax.verification.training import (
    GAP_TOLERANCE,
    MAX_DISTANCE,
    PADDED_SIZE,
    STANDARD_ERRORS,
    build_training,
)

CLASSES = ("first", "second")
DRAWN_STEPS = 64
NUM_DRAWN = 8192  # samples of every class, by the network itself
DRAWS = 256  # of the bound of every sequence


class OfClass(NamedTuple):
    """What a network does that is told a class, or (None) nothing.

    Attributes:
      told: as a user tells it.
      data: p(x | c).
      sampled: the distribution of Tweedie's samples.
      drawn: that of `DRAWN_STEPS` steps.
      nll: exact -log p of the network, nats.
      bound: on it.
    """

    told: dict[str, str]
    data: Distribution
    sampled: Distribution
    drawn: Distribution
    nll: PerClean
    bound: PerClean

    @property
    def distance(self) -> float:
        """Total variation of the samples to the data."""
        return total_variation(self.sampled, self.data)

    @property
    def least_gap(self) -> float:
        """Bound - exact -log p, the least over all sequences."""
        return float((self.bound - self.nll).min())


def two_classes(config: ExactConfig) -> Conditions | None:
    """Returns the two classes of the column that the settings name, None where they name none."""
    columns = parse_columns(config.data.condition)
    return Conditions((Label(columns[0].name, dict.fromkeys(CLASSES, 1)),)) if columns else None


def check_conditions(
    config: ExactConfig,
    family: ScoreBased,
    space: Space,
    data: Distribution,
    conditions: Conditions,
) -> Section:
    """Trains a network that is told a class and returns the claims on it.

    Args:
      config: the settings of the training.
      family: graph, noise and a network that is told a class.
      space: all sequences.
      data: distribution of the data; each sequence has a class with a random probability.
      conditions: the column of classes.
    """
    (name,) = conditions.names
    rng = np.random.default_rng(config.seed)
    of_second = rng.uniform(size=len(data))  # p(c | x)
    joint = np.stack([data * (1 - of_second), data * of_second])
    classes, rows = np.divmod(rng.choice(joint.size, PADDED_SIZE, p=joint.ravel()), len(data))
    condition = {name: classes.astype(np.int32)}
    params = build_training(family, config, space)(rows, condition)
    given = [(number, {name: each}) for number, each in enumerate(CLASSES)]
    cases = [(number, told, joint[number] / joint[number].sum()) for number, told in given]
    found = []
    for number, told, of_case in (*cases, (-1, {}, data)):
        weights = {"network": params, "class": jnp.int32(number)}
        process = ReverseProcess(_telling(family, name), weights, space)
        found.append(_of_class(config, process, told, of_case))
    trained = TrainedModel(family, params, config, None, None, conditions=conditions)
    *of_classes, nothing = found
    worst, least = max(each.distance for each in of_classes), min(each.least_gap for each in found)
    bound = "any class, or none: bound - exact -log p(x | c), least over all x"
    claims = [
        Claim("told a class: TV of the samples to p(x | c)", worst, "<=", MAX_DISTANCE),
        Claim("told nothing: TV of the samples to p(x)", nothing.distance, "<=", MAX_DISTANCE),
        *_drawn(trained, space, found),
        Claim(bound, least, ">=", -GAP_TOLERANCE),
        *_estimates(trained, space, found),
    ]
    return Section("Classes, trained", claims, [_table(config, space, found)])


def _table(config, space, found):
    *_, nothing = found
    rows = []
    for each in found:
        name = " ".join(each.told.values()) or "nothing"
        apart, clean = total_variation(nothing.data, each.data), each.data[space.clean]
        nats = -xlogy(clean, clean).sum(), clean @ each.nll, clean @ each.bound
        rows.append((name, each.distance, apart, *map(float, nats), each.least_gap))
    return Table(
        f"Two classes; {config.train.steps} training steps, {config.exact.max_steps} sampling "
        "steps of Tweedie; nats are means over the data of the class",
        (
            "told",
            "TV, samples to p(x | c)",
            "TV, p(x) to p(x | c)",
            "entropy",
            "exact -log p",
            "bound",
            "least bound - exact",
        ),
        rows,
    )


@functools.lru_cache(maxsize=8)  # the class is a parameter: one program for all
def _telling(family: ScoreBased, name: str) -> ScoreBased:
    """A family whose network is told {"class": []} of its parameters of every row."""

    def apply(params, xt, sigma, key=None):
        del key
        told = {name: jnp.broadcast_to(params["class"], len(xt))}
        return family.model.apply(params["network"], xt, sigma, context=Context(condition=told))

    return family._replace(model=dense_model(family.model.init, apply))


def _of_class(config, process, told, data):
    t_min, space = config.train.t_min, process.space
    base = base_distribution(space, process.family.noise, space.uniform_data())
    settings = {"sampler": "tweedie", "t_min": t_min}
    sampled, drawn = (
        process.sampler_distribution(steps=steps, **settings)
        for steps in (config.exact.max_steps, DRAWN_STEPS)
    )
    bound = process.bound(base, t_min).total
    return OfClass(told, data, sampled, drawn, process.nll(base, t_min), bound)


def _drawn(trained, space, found):
    """Samples as a user draws them, rows of all classes in one batch."""
    told = [each.told for each in found for _ in range(NUM_DRAWN)]

    def p_values(wanted, **settings):
        rows_told = told[: len(wanted) * NUM_DRAWN]
        options = {"steps": DRAWN_STEPS, "batch_size": len(rows_told), **settings}
        rows, _ = generate(
            jax.random.key(0), trained, len(rows_told), condition=rows_told, **options
        )
        for each, numbers in zip(wanted, space.index(rows).reshape(-1, NUM_DRAWN), strict=True):
            frequencies = np.bincount(numbers, minlength=len(space.states)) / NUM_DRAWN
            yield goodness_of_fit(frequencies, each.drawn, NUM_DRAWN)

    *of_classes, nothing = found
    fits, unguided = p_values(found), p_values([nothing] * len(of_classes), guidance=0.0)
    count = f"{NUM_DRAWN} drawn samples"
    return [
        Claim(f"{count} of each: chi-square p-value, least", min(fits), ">=", SIGNIFICANCE),
        Claim(f"{count} of each class, guidance 0, as of none", min(unguided), ">=", SIGNIFICANCE),
    ]


def _estimates(trained, space, found):
    """`nll_bound` of every sequence and class against the exact numbers."""
    clean = space.states[space.clean]
    tokens = np.tile(clean, (len(found), 1))
    estimate = nll_bound(
        jax.random.key(0),
        trained,
        tokens,
        condition=[each.told for each in found for _ in clean],
        draws=DRAWS,
        batch_size=len(tokens),
        complete=True,
    )
    exact, bound = (
        np.concatenate([getattr(each, name) for each in found]) for name in ("nll", "bound")
    )
    mean, error = estimate.nats.mean(0), estimate.nats.std(0, ddof=1) / np.sqrt(DRAWS)
    off = abs(estimate.nats_per_token - bound.mean() / space.length) / estimate.stderr
    limit = float(STANDARD_ERRORS)
    return [
        Claim(
            "nll_bound - exact -log p(x | c), standard errors, least over all x and c",
            ((mean - exact) / error).min(),
            ">=",
            -limit,
        ),
        Claim("|mean nll_bound - sum over all x_t|, standard errors", off, "<=", limit),
    ]

"""Guidance with true scores: where it is exact, how far it is from the tilt, and what mends that.

The data have a condition c, and the ratios of p_t(x) and of p_t(x | c) are known. Guided by a power
g they are those of the tilt of p_t, p_t(x | c) ** g p_t(x) ** (1 - g), normalised. Its
distributions at two times are not linked by the noise, unless g is 0 or 1: the reverse process with
guided rates ends elsewhere than at the tilt of the data. Gibbs moves on guided ratios leave the
tilt of p_t as it is, at every t, and so draw from that of the data where there are enough of them.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from sedd_jax.diffusion.euler import reverse_rate
from sedd_jax.diffusion.gibbs import gibbs_move
from sedd_jax.diffusion.guidance import Evidence, on_schedule, times_evidence
from sedd_jax.diffusion.noise import Noise
from sedd_jax.diffusion.sampler import Clamp, Process
from sedd_jax.diffusion.score import DenseScore
from sedd_jax.display.plot import Plot
from sedd_jax.display.table import Table
from sedd_jax.inference.guidance import CONSTRAINTS
from sedd_jax.inference.score_based import ScoreBased
from sedd_jax.model.score_model import ScoreModel, dense_model
from sedd_jax.verification.exact.moves import drawn_distribution, move_probs
from sedd_jax.verification.exact.reverse_process import ReverseProcess
from sedd_jax.verification.exact.scores import exact_model
from sedd_jax.verification.exact.space import (
    Distribution,
    Space,
    product_distribution,
    total_variation,
)
from sedd_jax.verification.report import Claim, Section

WEIGHTS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0)
TIMES = (0.1, 0.5, 0.9)
EVALUATIONS = (16, 64)
FEW = 1e-12


class Conditioned(NamedTuple):
    """Data with a condition.

    Attributes:
      data: distribution of the data, p(x).
      given: the same given the condition, p(x | c).
    """

    data: Distribution
    given: Distribution

    def tilted(self, weight: float) -> Distribution:
        """Returns p(x | c) ** g p(x) ** (1 - g), normalised."""
        possible = self.given > 0
        logs = (np.log(np.where(possible, each, 1)) for each in (self.given, self.data))
        first, other = logs
        tilt = np.where(possible, np.exp(weight * first + (1 - weight) * other), 0)
        return tilt / tilt.sum()

    def noised(self, space: Space, sigma: float) -> "Conditioned":
        """Returns the distributions after total noise sigma."""
        kernel = space.transition(sigma)
        return Conditioned(self.data @ kernel, self.given @ kernel)


def check_guidance(space: Space, noise: Noise, data: Distribution, *, t_min: float) -> Section:
    """Returns how far guided samples are from the tilt of the data, and the claims on guidance.

    Args:
      space: all sequences.
      noise: the schedule.
      data: distribution of the data; half of it, at random, has the condition.
      t_min: the time at which samplers end.
    """
    likelihood = np.random.default_rng(0).uniform(size=len(data))  # p(c | x)
    given = data * likelihood
    both = Conditioned(data, given / given.sum())
    with jax.enable_x64(True):
        claims = [
            _bayes(space, noise, both, likelihood),
            *_carried(space, noise, both),
            _left_by_gibbs(space, noise, both, t_min),
        ]
        more, table, plot = _distances(space, noise, both, t_min)
        constraint_claims, constraint_table = _constraints(space, noise, data, t_min)
    claims += [*more, *constraint_claims]
    return Section("Guidance with true scores", claims, [table, constraint_table], [plot])


@functools.lru_cache(maxsize=8)
def guided_model(space: Space, scaled: bool = True) -> ScoreModel:
    """Returns the model of guided ratios.

    Its parameters are {"data": [2, S], "weight": []}: p(x | c) and p(x), and g.

    Args:
      space: all sequences.
      scaled: on schedule, as samplers draw.
    """
    truth = exact_model(space)

    def score_fn(params, xt, sigma):
        first, other = (
            DenseScore(xt, truth.apply({"data": data}, xt, sigma)) for data in params["data"]
        )
        return first.guided(other, jnp.broadcast_to(params["weight"], len(xt)))

    def apply(params, xt, sigma, key=None):
        del key
        guided = functools.partial(score_fn, params)
        return (on_schedule(guided, space.graph) if scaled else guided)(xt, sigma).log_score

    return dense_model(lambda key: None, apply)


def guided_process(
    space: Space, noise: Noise, both: Conditioned, weight: float, *, scaled: bool = True
) -> ReverseProcess:
    """Returns the reverse process with guided true scores.

    Args:
      space: all sequences.
      noise: the schedule.
      both: the data, and the data given the condition.
      weight: g.
      scaled: on schedule, as samplers draw.
    """
    params = {"data": jnp.asarray([both.given, both.data]), "weight": jnp.asarray(weight, float)}
    return ReverseProcess(
        ScoreBased(space.graph, noise, guided_model(space, scaled)), params, space
    )


def evidence_model(space: Space, evidence: Evidence) -> ScoreModel:
    """Returns the model of the true ratios times evidence; its parameters are {"data": [S]}."""
    truth = exact_model(space)

    def apply(params, xt, sigma, key=None):
        del key

        def score_fn(xt, sigma):
            return DenseScore(xt, truth.apply(params, xt, sigma))

        times = times_evidence(score_fn, evidence, 1.0, "exact", space.graph.num_states)
        return on_schedule(times, space.graph)(xt, sigma).log_score

    return dense_model(lambda key: None, apply)


def _sigma(noise, t):
    return float(noise.sigma(jnp.float64(t)))


def _log_scores(process, t):
    states = jnp.asarray(process.space.states)
    sigma = jnp.full(len(states), _sigma(process.family.noise, t))
    return process.family.model.apply(process.params, states, sigma)


def _bayes(space, noise, both, likelihood):
    """Conditional ratios are unconditional ones times ratios of the posterior of the condition."""
    worst = []
    for t in TIMES:
        kernel, p_t = space.transition(_sigma(noise, t)), both.noised(space, _sigma(noise, t))
        joint = (both.data * likelihood) @ kernel  # p_t(x, c)
        table = jnp.log(
            jnp.asarray(np.where(p_t.data > 0, joint / np.maximum(p_t.data, 1e-300), 1))
        )

        def evidence(xt, sigma, table=table):
            return table[space.index(xt)]

        params = {"data": jnp.asarray(both.data)}
        by_bayes = ReverseProcess(
            ScoreBased(space.graph, noise, evidence_model(space, evidence)), params, space
        )
        found, wanted = (
            np.asarray(_rates(process, t))
            for process in (by_bayes, guided_process(space, noise, both, 1.0))
        )
        worst.append(np.abs(found - wanted).max() / np.abs(wanted).max())
    statement = "ratios given c by a classifier: largest error, relative to the largest ratio"
    return Claim(statement, np.max(worst), "<=", FEW)


def _rates(process, t):
    """Reverse rates of every change by unit noise, [S, L, V]."""
    states = jnp.asarray(process.space.states)
    return reverse_rate(process.family.graph, states, jnp.exp(_log_scores(process, t)))


def _residual(process, noise, distribution):
    """How much the reverse process changes p_t otherwise than the noise does, by unit noise."""
    space, worst = process.space, []
    forward = space.forward_generator()
    for t in TIMES:
        p_t = distribution(_sigma(noise, t))
        backward = space.generator(np.float64(_rates(process, t)))
        worst.append(np.abs(backward @ p_t + forward @ p_t).sum() / 2)
    return max(worst)


def _carried(space, noise, both):
    """The reverse process takes p_t to p_s for g = 0 and 1, and no tilt to another."""

    def residual(weight):
        process = guided_process(space, noise, both, weight)
        return _residual(process, noise, lambda sigma: both.noised(space, sigma).tilted(weight))

    statement = "guidance {:g}: rate at which the reverse process leaves {}, TV by unit noise"
    return [
        Claim(statement.format(1, "p_t given c"), residual(1.0), "<=", FEW),
        Claim(statement.format(0, "p_t"), residual(0.0), "<=", FEW),
        Claim(statement.format(2, "the tilt of p_t"), residual(2.0), ">=", 1e-3),
    ]


def gibbs_kernel(process: ReverseProcess, t: float, position: int) -> Float[np.ndarray, "S S"]:
    """Returns a Gibbs move of one position at time t, [from, to]; a mask stays.

    Args:
      process: the reverse process of a dense model.
      t: the time.
      position: which position.
    """
    space, graph = process.space, process.family.graph
    states = jnp.asarray(space.states)
    chosen = jnp.broadcast_to(jnp.arange(space.length) == position, states.shape)
    if graph.absorbs:
        chosen &= states != graph.mask_id
    nothing = Clamp(jnp.zeros_like(states), jnp.zeros(states.shape, bool))
    of_rows = Process(graph, process.family.noise, None, nothing, t, None)
    move = gibbs_move(of_rows, states, chosen, 0.5)
    move = move._replace(active=move.active & chosen)
    score = jnp.exp(process.family.model.apply(process.params, move.xt, move.sigma.astype(float)))
    return product_distribution(np.asarray(move_probs(space, move, score)))


def _left_by_gibbs(space, noise, both, t_min):
    """Moves of one position on guided ratios leave the tilt of p_t as it is."""
    worst = []
    for weight in WEIGHTS:
        process = guided_process(space, noise, both, weight)
        for t in (t_min, 0.5):
            tilt = both.noised(space, _sigma(noise, t)).tilted(weight)
            for position in range(space.length):
                after = tilt @ gibbs_kernel(process, t, position)
                worst.append(total_variation(tilt, after))
    statement = "Gibbs on guided ratios: TV after a move of one position to the tilt of p_t, any g"
    return Claim(statement, np.max(worst), "<=", FEW)


def _distances(space, noise, both, t_min):
    """Samples against the tilt of the data, by strength of the guidance."""
    methods = {"tweedie": "tweedie", "Gibbs": f"gibbs(spacing={space.length})"}
    rows, found = [], {}
    for weight in WEIGHTS:
        tilt, process = both.tilted(weight), guided_process(space, noise, both, weight)
        row = {"the data given c": total_variation(both.given, tilt)}
        for count in EVALUATIONS:
            for name, sampler in methods.items():
                drawn = drawn_distribution(process, sampler, steps=count, t_min=t_min)
                row[f"{name}, {count} steps"] = total_variation(drawn, tilt)
        if space.graph.absorbs:
            row["first hitting"] = total_variation(process.first_hitting_distribution(), tilt)
            unscaled = guided_process(space, noise, both, weight, scaled=False)
            for count in EVALUATIONS:
                drawn = drawn_distribution(unscaled, "tweedie", steps=count, t_min=t_min)
                row[f"tweedie off schedule, {count} steps"] = total_variation(drawn, tilt)
        rows.append((weight, *row.values()))
        found[weight] = row
    title = "TV of the samples to the tilt of the data, p(x | c) ** g p(x) ** (1 - g), by g"
    table = Table(title, ("g", *found[2.0]), rows)
    plain, mended = (found[2.0][f"{name}, {EVALUATIONS[-1]} steps"] for name in methods)
    claims = [
        Claim("guidance 2: TV of Tweedie's samples to the tilt of the data", plain, ">=", 0.01),
        Claim(
            f"guidance 2, {EVALUATIONS[-1]} steps: TV with Gibbs moves / without",
            mended / plain,
            "<=",
            0.1,
        ),
    ]
    if space.graph.absorbs:
        statement = "guidance 1, first hitting: TV to the data given c"
        claims.append(Claim(statement, found[1.0]["first hitting"], "<=", FEW))
    curves = {name: (WEIGHTS, [found[g][name] for g in WEIGHTS]) for name in found[2.0]}
    return claims, table, Plot("guidance", "guidance g", "total variation to the tilt", curves)


def _constraints(space, noise, data, t_min):
    """Ratios times h: exact for independent tokens, and otherwise mended by Gibbs moves."""
    tokens = space.graph.num_tokens
    frequencies = tuple(float(x) for x in np.random.default_rng(1).dirichlet(np.ones(tokens)))
    states = space.states[space.clean]
    independent = space.extend(np.prod(np.array(frequencies)[states], axis=-1))
    is_counted = (space.states == 0).sum(-1)
    constraints = {
        "count": ("count(tokens=(0,), at_least=1{})", is_counted >= 1),
        "forbid": ("forbid(tokens=(0,){})", is_counted == 0),
    }
    rows, residuals, left = [], [], []
    for name, (text, allowed) in constraints.items():
        for case, distribution, known in (
            ("independent tokens", independent, f", frequencies={frequencies}"),
            ("the data", data, ""),
        ):
            evidence = CONSTRAINTS.build(text.format(known), space.graph)
            family = ScoreBased(space.graph, noise, evidence_model(space, evidence))
            process = ReverseProcess(family, {"data": jnp.asarray(distribution)}, space)
            target = distribution * allowed / (distribution * allowed).sum()
            if case == "independent tokens":
                residuals.append(
                    _residual(process, noise, lambda s, p=target: p @ space.transition(s))
                )
            if space.graph.absorbs:
                moves = (gibbs_kernel(process, t_min, i) for i in range(space.length))
                left += [total_variation(target, target @ move) for move in moves]
            samplers = ("tweedie", f"gibbs(spacing={space.length})")
            drawn = [
                drawn_distribution(process, sampler, steps=EVALUATIONS[-1], t_min=t_min)
                for sampler in samplers
            ]
            rows.append((name, case, *(total_variation(each, target) for each in drawn)))
    statement = "constraints, independent tokens: rate of leaving p_t given them, TV by unit noise"
    claims = [Claim(statement, np.max(residuals), "<=", FEW)]
    if left:
        statement = "constraints: TV after a Gibbs move of one position to the data given them"
        claims.append(Claim(statement, np.max(left), "<=", FEW))
    title = f"TV of the samples to the data given a constraint, {EVALUATIONS[-1]} steps"
    return claims, Table(title, ("constraint", "data", "tweedie", "Gibbs"), rows)

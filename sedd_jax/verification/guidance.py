"""Guidance with true scores: where it is exact, how far it is from the tilt, and what mends that.

The data have a condition c, and the ratios of p_t(x) and of p_t(x | c) are known. Guided by a power
g they are those of the tilt of p_t, p_t(x | c) ** g p_t(x) ** (1 - g), normalised. Its
distributions at two times are not linked by the noise, unless g is 0 or 1: the reverse process with
guided rates ends elsewhere than at the tilt of the data. Gibbs moves on guided ratios leave the
tilt of p_t as it is, at every t, and so draw from that of the data where there are enough of them.
"""

import jax
import jax.numpy as jnp
import numpy as np

from sedd_jax.diffusion.noise import Noise
from sedd_jax.display.plot import Plot
from sedd_jax.display.table import Table
from sedd_jax.inference.guidance import CONSTRAINTS
from sedd_jax.inference.score_based import ScoreBased
from sedd_jax.verification.exact.guided import (
    TIMES,
    Conditioned,
    evidence_model,
    gibbs_kernel,
    guided_process,
    rates_of,
    residual,
    sigma_at,
)
from sedd_jax.verification.exact.moves import drawn_distribution
from sedd_jax.verification.exact.reverse_process import ReverseProcess
from sedd_jax.verification.exact.space import Distribution, Space, total_variation
from sedd_jax.verification.report import Claim, Section

WEIGHTS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0)
EVALUATIONS = (16, 64)
FEW = 1e-12


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


def _bayes(space, noise, both, likelihood):
    """Conditional ratios are unconditional ones times ratios of the posterior of the condition."""
    worst = []
    for t in TIMES:
        kernel = space.transition(sigma_at(noise, t))
        joint, p_t = (both.data * likelihood) @ kernel, both.data @ kernel  # p_t(x, c), p_t(x)
        table = jnp.log(jnp.asarray(np.divide(joint, p_t, out=np.ones_like(p_t), where=p_t > 0)))

        def evidence(xt, sigma, table=table):
            return table[space.index(xt)]

        params = {"data": jnp.asarray(both.data)}
        by_bayes = ReverseProcess(
            ScoreBased(space.graph, noise, evidence_model(space, evidence)), params, space
        )
        found, wanted = (
            rates_of(process, t) for process in (by_bayes, guided_process(space, noise, both, 1.0))
        )
        worst.append(np.abs(found - wanted).max() / np.abs(wanted).max())
    statement = "ratios given c by a classifier: largest error, relative to the largest ratio"
    return Claim(statement, np.max(worst), "<=", FEW)


def _carried(space, noise, both):
    """The reverse process takes p_t to p_s for g = 0 and 1, and no tilt to another."""
    forward = space.forward_generator()

    def carried(weight):
        def distribution(sigma):
            return both.noised(space, sigma).tilted(weight)

        def change(tilt, sigma):
            noised = both.noised(space, sigma)
            given, data = (
                (forward @ p) / np.where(p > 0, p, 1) for p in (noised.given, noised.data)
            )
            log_change = weight * given + (1 - weight) * data
            return tilt * (log_change - tilt @ log_change)  # it stays normalised

        process = guided_process(space, noise, both, weight)
        return residual(process, distribution, change)

    statement = "guidance {:g}: the reverse process against the change of {}, TV by unit noise"
    return [
        Claim(statement.format(1, "p_t given c"), carried(1.0), "<=", FEW),
        Claim(statement.format(0, "p_t"), carried(0.0), "<=", FEW),
        Claim(statement.format(2, "the tilt of p_t"), carried(2.0), ">=", 1e-3),
    ]


def _left_by_gibbs(space, noise, both, t_min):
    """Moves of one position on guided ratios leave the tilt of p_t as it is."""
    worst = []
    for weight in WEIGHTS:
        process = guided_process(space, noise, both, weight)
        for t in (t_min, 0.5):
            tilt = both.noised(space, sigma_at(noise, t)).tilted(weight)
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
        Claim("guidance 2: TV of Tweedie's samples to the tilt of the data", plain, ">=", 0.001),
        Claim(
            f"guidance 2, {EVALUATIONS[-1]} steps: TV with Gibbs moves / without",
            mended / plain,
            "<=",
            0.2,
        ),
    ]
    if space.graph.absorbs:
        statement = "guidance 1, first hitting: TV to the data given c"
        claims.append(Claim(statement, found[1.0]["first hitting"], "<=", FEW))
    shown = [name for name in found[2.0] if str(EVALUATIONS[0]) not in name]
    curves = {name: (WEIGHTS, [found[g][name] for g in WEIGHTS]) for name in shown}
    labels = "guidance", "guidance g", "total variation to the tilt"
    return claims, table, Plot(*labels, curves, log_x=False, log_y=False)


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
    rows, residuals, left, forward = [], [], [], space.forward_generator()
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

                def noised(sigma, target=target):
                    return target @ space.transition(sigma)

                residuals.append(residual(process, noised, lambda p, _: forward @ p))
            if space.graph.absorbs:
                moves = (gibbs_kernel(process, t_min, i) for i in range(space.length))
                left += [total_variation(target, target @ move) for move in moves]
            samplers = ("tweedie", f"gibbs(spacing={space.length})")
            drawn = [
                drawn_distribution(process, sampler, steps=EVALUATIONS[-1], t_min=t_min)
                for sampler in samplers
            ]
            rows.append((name, case, *(total_variation(each, target) for each in drawn)))
    statement = "constraints, independent tokens: the same against the change of p_t given them"
    claims = [Claim(statement, np.max(residuals), "<=", FEW)]
    if left:
        statement = "constraints: TV after a Gibbs move of one position to the data given them"
        claims.append(Claim(statement, np.max(left), "<=", FEW))
    title = f"TV of the samples to the data given a constraint, {EVALUATIONS[-1]} steps"
    return claims, Table(title, ("constraint", "data", "tweedie", "Gibbs"), rows)

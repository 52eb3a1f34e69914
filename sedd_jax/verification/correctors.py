"""Correctors with true scores: what they leave as it is, and what samplers with them draw.

At a temperature, a row of ratios is the conditional ** (1 / temperature), normalised, which is the
conditional of p_t ** (1 / temperature), normalised: a distribution of whole sequences, sharper than
p_t, that a tempered move of one position leaves as it is. With top-p there is no such distribution.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from sedd_jax.diffusion.gibbs import gibbs_move
from sedd_jax.diffusion.graph import Graph
from sedd_jax.diffusion.noise import Noise
from sedd_jax.diffusion.renoising import step_weights
from sedd_jax.diffusion.sampler import Clamp, Move, Process
from sedd_jax.diffusion.score import DenseScore
from sedd_jax.diffusion.temperature import NO_FILTER, TokenFilter
from sedd_jax.display.plot import Plot
from sedd_jax.display.table import Table
from sedd_jax.verification.exact.moves import drawn_distribution, move_probs
from sedd_jax.verification.exact.reverse_process import exact_process
from sedd_jax.verification.exact.scores import exact_model, exact_params
from sedd_jax.verification.exact.space import (
    Distribution,
    Space,
    product_distribution,
    total_variation,
)
from sedd_jax.verification.report import Claim, Section

TEMPERATURE = 0.5
STEPS = (4, 16, 64, 128)
REMASKING = ("remdm_cap", "remdm_rescale", "remdm_loop")


def check_correctors(
    space: Space, schedules: dict[str, Noise], data: Distribution, *, t_min: float
) -> Section:
    """Returns how far correctors take the distribution that they should leave as it is.

    That is p_t under the uniform graph, the clean data for Gibbs moves under the absorbing graph;
    and the distance to the data of the samples of every sampler with a corrector.

    Args:
      space: all sequences.
      schedules: noise schedules by name, "loglinear" among them.
      data: distribution of the data.
      t_min: the time at which samplers end.
    """
    noise = schedules["loglinear"]
    with jax.enable_x64(True):
        claims, tables = _gibbs(space, schedules, data, t_min)
        more, table = _forward_backward(space, noise, data)
        claims, tables = claims + more, [*tables, table]
        more, table, plot = _samplers(space, noise, data, t_min)
        claims, tables = claims + more, [*tables, table]
        if space.graph.absorbs:
            claims.append(_given(space, noise, data, t_min))
    return Section("Correctors with true scores", claims, tables, [plot])


def correctors_of(graph: Graph, length: int) -> tuple[str, ...]:
    """Returns the samplers with correctors, with options, for rows of `length` tokens."""
    always = "gibbs(spacing=2)", f"gibbs(spacing={length})", "forward_backward", "psi(kappa=0.9)"
    return (*always, *(REMASKING if graph.absorbs else ()))


def _gibbs(space, schedules, data, t_min):
    """Moves of one position, and of several at once."""
    rows, of_one, of_tempered = [], [], []
    for name, noise in schedules.items():
        before = data
        if not space.graph.absorbs:
            before = data @ space.transition(float(noise.sigma(t_min)))
        settings = space, noise, data, t_min

        def after(chosen, before=before, settings=settings):
            return total_variation(before, before @ _gibbs_kernel(*settings, chosen))

        row = [
            max(
                after(_positions(space, chosen))
                for chosen in itertools.combinations(range(space.length), count)
            )
            for count in range(1, space.length + 1)
        ]
        rows.append((name, "worst", *row))
        of_one.append(row[0])
        if not space.graph.absorbs:
            row = [after(chosen) for chosen in _least_likely(before, space)]
            rows.append((name, "least likely", *row))
            of_tempered.append(_tempered(*settings, before))
    title = "TV after a Gibbs move of several positions at once to the distribution before it"
    counts = (f"{n} position{'s' * (n > 1)}" for n in range(1, space.length + 1))
    statement = "Gibbs: TV after a move of one position, any position and noise"
    claims = [Claim(statement, np.max(of_one), "<=", 1e-12)]
    if of_tempered:
        statement = f"Gibbs at temperature {TEMPERATURE}: the same, of p_t ** {1 / TEMPERATURE:g}"
        claims.append(Claim(statement, np.max(of_tempered), "<=", 1e-12))
    return claims, [Table(title, ("noise", "which", *counts), rows)]


def _positions(space, chosen):
    """The same positions in every sequence, [S, L]."""
    return np.isin(np.arange(space.length), chosen) & np.ones(space.states.shape, bool)


def _least_likely(distribution, space):
    """Yields the 1, 2, ... positions whose tokens are the least likely given the others."""
    others = distribution[space.neighbours].sum(-1)  # large where the own token has a small share
    rank = np.argsort(np.argsort(-others, axis=-1, kind="stable"), axis=-1)
    for count in range(1, space.length + 1):
        yield rank < count


def _tempered(space, noise, data, t_min, before):
    """How far tempered moves of one position take p_t ** (1 / temperature), normalised."""
    sharp = before ** (1 / TEMPERATURE)
    sharp, token_filter = sharp / sharp.sum(), TokenFilter(TEMPERATURE)
    kernels = (
        _gibbs_kernel(space, noise, data, t_min, _positions(space, position), token_filter)
        for position in range(space.length)
    )
    return max(total_variation(sharp, sharp @ kernel) for kernel in kernels)


def _gibbs_kernel(space, noise, data, t_min, chosen, token_filter=NO_FILTER):
    """The move as a matrix over all sequences, [from, to]."""
    states = jnp.asarray(space.states)
    nothing = Clamp(jnp.zeros_like(states), jnp.zeros(states.shape, bool))
    process = Process(space.graph, noise, None, nothing, t_min, None)
    share = chosen[0].sum() / (space.length + 1)
    move = gibbs_move(process, states, jnp.asarray(chosen), share)
    return _kernel(space, data, move, token_filter)


def _kernel(space, data, move, token_filter=NO_FILTER):
    log_score = exact_model(space).apply(exact_params(data), move.xt, move.sigma.astype(float))
    score = jnp.exp(DenseScore(move.xt, log_score).tempered(token_filter).log_score)
    return product_distribution(np.asarray(move_probs(space, move, score)))


def _forward_backward(space, noise, data, t=0.5):
    """Noise is added at a time and removed again: what that does to p_t."""
    graph, states, shape = space.graph, jnp.asarray(space.states), space.states.shape
    sigma = float(noise.sigma(jnp.float64(t)))
    p_t = data @ space.transition(sigma)

    def tv(added, position=None):
        """After noise on one position, or on all."""
        where = jnp.ones(shape, bool)
        if position is not None:
            where = jnp.zeros(shape, bool).at[:, position].set(True)
        token = np.asarray(graph.transition(jnp.arange(graph.num_states), jnp.float64(added)))
        stays = np.eye(graph.num_states)[space.states]
        forward = np.where(np.asarray(where)[..., None], token[space.states], stays)
        total = sigma + added
        weights = functools.partial(
            step_weights, graph, states, sigma=jnp.float64(total), reach=jnp.full(shape, sigma)
        )
        active = where & (graph.limit[states] > 0)
        move = Move(states, jnp.full(len(states), total), active, weights)
        after = p_t @ product_distribution(forward) @ _kernel(space, data, move)
        return total_variation(p_t, after)

    added = [0.4 / 2**i for i in range(6)]
    distances = [tv(each) for each in added]
    order = float(np.log2(distances[-2] / distances[-1]))
    statement = "forward-backward: |order of the TV after a correction in its noise - 2|"
    claims = [Claim(statement, abs(order - 2), "<=", 0.1)]
    if graph.absorbs:  # under the uniform graph the network knows one noise for all
        worst = max(tv(0.4, position) for position in range(space.length))
        statement = "forward-backward: TV after a correction of one position, any position"
        claims.append(Claim(statement, worst, "<=", 1e-12))
    title = f"TV after a forward-backward correction of all positions at t = {t} to p_t"
    rows = list(zip(added, distances, strict=True))
    return claims, Table(title, ("total noise added", "TV"), rows)


def _samplers(space, noise, data, t_min):
    """Distance to the data at equal network evaluations."""
    correctors = correctors_of(space.graph, space.length)
    process = exact_process(space, noise, data)
    distances = {
        name: [
            total_variation(drawn_distribution(process, name, steps=count, t_min=t_min), data)
            for count in STEPS
        ]
        for name in ("euler", "tweedie", *correctors)
    }
    columns = ("sampler", *(f"{count + 1} evaluations" for count in STEPS))
    title = "TV of the samples to the data, log-linear noise"
    table = Table(title, columns, [(name, *row) for name, row in distances.items()])
    coarse, fine = distances["forward_backward"][-2:]
    one_by_one = distances[correctors[1]]
    claims = [
        Claim(
            f"forward_backward: |TV at {STEPS[-2]} steps / TV at {STEPS[-1]} - 2|",
            abs(coarse / fine - 2),
            "<=",
            0.3,
        ),
        Claim(
            f"gibbs, one position a move: TV / that of Tweedie, {STEPS[-2]} steps",
            one_by_one[-2] / distances["tweedie"][-2],
            "<=",
            0.1,
        ),
    ]
    curves = {name: ([count + 1 for count in STEPS], row) for name, row in distances.items()}
    plot = Plot("correctors", "network evaluations", "total variation to the data", curves)
    return claims, table, plot


def _given(space, noise, data, t_min):
    """With all tokens but one given nothing is left to go wrong under the absorbing graph."""
    likeliest = space.states[np.argmax(data)]
    given = {position: int(likeliest[position]) for position in range(space.length - 1)}
    process, bayes = exact_process(space, noise, data), space.conditional(data, given)
    worst = max(
        total_variation(
            drawn_distribution(process, name, steps=count, t_min=t_min, given=given), bayes
        )
        for name in correctors_of(space.graph, space.length)
        for count in STEPS[:2]
    )
    return Claim("all but the last given: TV to Bayes, any corrector", worst, "<=", 1e-10)

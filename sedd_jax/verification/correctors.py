"""Correctors with true scores: a move of one position leaves the distribution as it is.

At a temperature, a row of ratios is the conditional ** (1 / temperature), normalised, which is the
conditional of p_t ** (1 / temperature), normalised: a distribution of whole sequences, sharper than
p_t, that a tempered move of one position leaves as it is. With top-p there is no such distribution.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from sedd_jax.diffusion.categorical import jump_probs
from sedd_jax.diffusion.gibbs import gibbs_move
from sedd_jax.diffusion.noise import Noise
from sedd_jax.diffusion.sampler import Clamp, Move, Process
from sedd_jax.diffusion.score import DenseScore, total_away
from sedd_jax.diffusion.temperature import NO_FILTER, TokenFilter
from sedd_jax.display.table import Table
from sedd_jax.verification.exact.scores import exact_model, exact_params
from sedd_jax.verification.exact.space import (
    Distribution,
    Space,
    product_distribution,
    total_variation,
)
from sedd_jax.verification.report import Claim, Section

TEMPERATURE = 0.5


def check_correctors(
    space: Space, schedules: dict[str, Noise], data: Distribution, *, t_min: float
) -> Section:
    """Returns how far a Gibbs move takes the distribution that it should leave as it is.

    That is the data noised to t_min under the uniform graph, the clean data under the absorbing.

    Args:
      space: all sequences.
      schedules: noise schedules by name.
      data: distribution of the data.
      t_min: the time of a move.
    """
    rows, of_one, of_tempered = [], [], []
    with jax.enable_x64(True):
        for name, noise in schedules.items():
            before = data
            if space.graph.mask_id is None:
                before = data @ space.transition(float(noise.sigma(t_min)))
            row = [name]
            for count in range(1, space.length + 1):
                row.append(
                    max(
                        total_variation(before, before @ _kernel(space, noise, data, chosen, t_min))
                        for chosen in itertools.combinations(range(space.length), count)
                    )
                )
            rows.append(tuple(row))
            of_one.append(row[1])
            if space.graph.mask_id is None:
                of_tempered.append(_tempered(space, noise, data, before, t_min))
    title = "TV after a Gibbs move of several positions at once to the distribution before it"
    columns = ("noise", *(f"{n} position{'s' * (n > 1)}" for n in range(1, space.length + 1)))
    statement = "Gibbs: TV after a move of one position, any position and noise"
    claims = [Claim(statement, np.max(of_one), "<=", 1e-12)]
    if of_tempered:
        statement = f"Gibbs at temperature {TEMPERATURE}: the same, of p_t ** {1 / TEMPERATURE:g}"
        claims.append(Claim(statement, np.max(of_tempered), "<=", 1e-12))
    return Section("Correctors with true scores", claims, [Table(title, columns, rows)])


def _tempered(space, noise, data, before, t_min):
    """How far tempered moves of one position take p_t ** (1 / temperature), normalised."""
    sharp = before ** (1 / TEMPERATURE)
    sharp, token_filter = sharp / sharp.sum(), TokenFilter(TEMPERATURE)
    kernels = (
        _kernel(space, noise, data, (position,), t_min, token_filter)
        for position in range(space.length)
    )
    return max(total_variation(sharp, sharp @ kernel) for kernel in kernels)


def _kernel(space, noise, data, chosen, t_min, token_filter=NO_FILTER):
    """The move as a matrix over all sequences, [from, to]."""
    states = jnp.asarray(space.states)
    nothing = Clamp(jnp.zeros_like(states), jnp.zeros(states.shape, bool))
    process = Process(space.graph, noise, None, nothing, t_min, None)
    positions = jnp.zeros(states.shape, bool).at[:, jnp.array(chosen)].set(True)
    share = len(chosen) / (space.length + 1)
    move = gibbs_move(process, states, positions, share)
    log_score = exact_model(space).apply(exact_params(data), move.xt, move.sigma.astype(float))
    score = jnp.exp(DenseScore(move.xt, log_score).tempered(token_filter).log_score)
    return product_distribution(np.asarray(move_probs(space, move, score)))


def move_probs(space: Space, move: Move, score: jax.Array) -> jax.Array:
    """Returns the distribution of every position after a move, [S, L, V].

    Args:
      space: all sequences.
      move: of every sequence of the space.
      score: ratio estimates for what the move evaluates, [S, L, V].
    """
    total = jnp.where(move.active, total_away(move.xt, score), 0)
    probs = jump_probs(move.weights(total).weights(move.xt, score))
    stays = jax.nn.one_hot(move.xt, space.graph.num_states, dtype=probs.dtype)
    return jnp.where(move.active[..., None], probs, stays)

"""Importance sampling of (t, which positions move), in proportion to the loss of a uniform guess.

The loss of a sequence is a mean over t uniform on [t_min, 1] and over which positions have moved,
and varies widely between draws, above all with how many moved. The loss
of a uniform guess is known: a(t) at a position that moved and b(t) at any other. With draws in
proportion to m a + (L - m) b, where m of L positions moved, the average is over the ratio of the
model's loss to the guess's, which varies little; under the absorbing graph, where b = 0, it is the
mean loss per mask. Weights keep the expectation of the loss, and of its gradient, unchanged.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from sedd_jax.diffusion import categorical
from sedd_jax.diffusion.graph import Graph
from sedd_jax.diffusion.noise import Noise
from sedd_jax.diffusion.padding import turned, zero_padding
from sedd_jax.diffusion.score_entropy import score_entropy

CELLS = 128  # intervals of t; within one, times are uniform
FLOOR = 0.05  # share of the times that are uniform over [t_min, 1]: every cell has draws
FEW = 0.25  # see `bound_proposal`


class Proposal(NamedTuple):
    """A proposal distribution of (t, moved positions), piecewise constant in t.

    Its arrays are NumPy's, but for the density of times that are learned.

    Attributes:
      edges: borders of the C cells of t.
      density: of t in each cell, relative to the uniform density.
      moved: loss a of the guess at a position that moved.
      other: loss b of the guess at any other position.
      discrete: a time is the upper border of its cell, see `on_grid`.
      widths: of the cells; None: all have the same.
    """

    edges: Float[np.ndarray, "C+1"]
    density: Float[np.ndarray, "C"] | Float[Array, "C"]
    moved: Float[np.ndarray, "C"]
    other: Float[np.ndarray, "C"]
    discrete: bool = False
    widths: Float[np.ndarray, "C"] | None = None

    @property
    def quantiles(self) -> Float[np.ndarray, "_"] | Float[Array, "_"]:
        """The probability of a time below each of the edges."""
        xp = jnp if isinstance(self.density, jax.Array) else np
        mass = self.density if self.widths is None else self.density * self.widths
        return xp.concatenate([xp.zeros(1), xp.cumsum(mass / mass.sum())])

    def times(self, quantiles: Float[Array, "*B"]) -> Float[Array, "*B"]:
        """Returns the times of quantiles."""
        return _times_of(self, quantiles)[0]

    def time_weight(self, quantiles: Float[Array, "*B"]) -> Float[Array, "*B"]:
        """Returns the importance weights of the times of quantiles, without that of the moves."""
        _, cell = _times_of(self, quantiles)
        return 1 / jnp.asarray(self.density)[cell]


class NoisedBatch(NamedTuple):
    """Times, noised tokens and importance weights, as `propose` draws them.

    Attributes:
      t: times of the rows, or of all positions.
      xt: noised tokens.
      weight: importance weights of the times.
      held: tokens that stay clean at every time and have no loss; None: none does.
    """

    t: Float[Array, "B *L"]
    xt: Int[Array, "B L"]
    weight: Float[Array, "B *L"]
    held: Bool[Array, "B L"] | None = None

    def free(self, weight: Float[Array, "B L"]) -> Float[Array, "B L"]:
        """Returns weights of positions with 0 at held ones."""
        return weight if self.held is None else jnp.where(self.held, 0, weight)


def plain_proposal(t_min: float) -> Proposal:
    """Returns the distribution of Algorithm 1: t uniform, positions independent; weights are 1."""
    ones = np.ones(1)
    return Proposal(np.array([t_min, 1.0]), ones, ones, ones)


def on_grid(proposal: Proposal, num_times: int) -> Proposal:
    """Returns the distribution at the T discrete times i / T, i = 1 ... T.

    Time i has the density that the proposal has in the middle of ((i - 1) / T, i / T], and weights
    make the mean that over equally likely i.

    Args:
      proposal: of continuous times, whose smallest one is then without effect.
      num_times: T.
    """
    middle = (np.arange(num_times) + 0.5) / num_times
    cell = np.searchsorted(proposal.edges[1:-1], middle, side="right")
    density, moved, other = (column[cell] for column in proposal[1:4])
    edges = np.linspace(0, 1, num_times + 1)
    return Proposal(edges, density / density.mean(), moved, other, discrete=True)


def guess_proposal(graph: Graph, noise: Noise, t_min: float) -> Proposal:
    """Returns the distribution in proportion to the loss of a uniform guess.

    Args:
      graph: the token graph.
      noise: the schedule.
      t_min: the smallest time.
    """
    edges = np.linspace(t_min, 1, CELLS + 1)
    _, mean, moved, other = _guess_losses(graph, noise, edges)
    density = (1 - FLOOR) * mean / mean.mean() + FLOOR
    return Proposal(edges, *(np.asarray(column) for column in (density, moved, other)))


def bound_proposal(graph: Graph, noise: Noise, t_min: float) -> Proposal:
    """Returns the distribution that a bound is estimated from: `guess_proposal`, with two changes.

    Few moved positions tell less of a sequence than many: the mean over m of them varies as 1 / m,
    and times in proportion to its root are the best for one sequence. But sequences differ in their
    losses, and weights that differ by time make more of that. So times are in proportion to
    p^(-1/4) too, half way in the exponent, where p is the probability that a position moves. And
    cells are narrow near both ends, where losses are steep in t.

    Args:
      graph: the token graph.
      noise: the schedule.
      t_min: the smallest time.
    """
    v = np.linspace(0, 1, CELLS + 1)
    edges = t_min + (1 - t_min) * v**2 * (3 - 2 * v)
    p, mean, moved, other = map(np.float64, _guess_losses(graph, noise, edges))
    widths, wanted = np.diff(edges), mean * p**-FEW
    density = (1 - FLOOR) * wanted / np.average(wanted, weights=widths) + FLOOR
    return Proposal(edges, density, moved, other, widths=widths)


def _guess_losses(graph, noise, edges):
    """In the middle of every cell: p, and the loss of the guess, in all, if moved and if not."""
    with jax.ensure_compile_time_eval():
        t = jnp.asarray((edges[1:] + edges[:-1]) / 2, jnp.float32)
        sigma = noise.sigma(t)
        moved, other = noise.dsigma(t)[None] * _guess_entropy(graph, sigma)
        p = -jnp.expm1(-sigma)
        return p, p * moved + (1 - p) * other, moved, other


def propose(
    key: Key[Array, ""],
    proposal: Proposal,
    graph: Graph,
    noise: Noise,
    quantiles: Float[Array, "B"],
    x0: Int[Array, "B L"],
    lengths: Int[Array, "B"] | None = None,
    held: Bool[Array, "B L"] | None = None,
) -> NoisedBatch:
    """Draws x_t at the times of given quantiles.

    The mean of weight * f(t, x_t) is that of f under Algorithm 1, for every f that is 0 where the
    guess has no loss: under the absorbing graph, without a mask.

    Args:
      key: random key, used once.
      proposal: the distribution to draw from.
      graph: the token graph.
      noise: the schedule.
      quantiles: of t, each uniform on [0, 1).
      x0: clean tokens.
      lengths: of the rows, whose padding does not move; None for full rows.
      held: tokens that do not move either, in a row that is then as long as the rest; None: none.
    """
    length = places = x0.shape[1] if lengths is None else lengths
    if held is not None:
        free = zero_padding(~held, lengths)
        length = free.sum(-1)
        places = jnp.maximum(length, 1)  # a row without a free token has no weight
    t, cell = _times_of(proposal, quantiles)
    density, a, b = (jnp.asarray(column)[cell] for column in proposal[1:4])
    p = -jnp.expm1(-noise.sigma(t))
    mean = p * a + (1 - p) * b

    # P(moves) (m a + (L - m) b) / (L mean) is the distribution of independent moves except for one
    # position, chosen uniformly, that moves with probability p a / mean
    special_key, chance_key, moves_key, limit_key = jax.random.split(key, 4)
    special = jax.random.randint(special_key, quantiles.shape, 0, places)
    special_moves = categorical.bernoulli(chance_key, p * a / mean)
    moves = categorical.bernoulli(moves_key, jnp.broadcast_to(p[:, None], x0.shape))
    place = jnp.arange(x0.shape[1])[None] if held is None else jnp.cumsum(free, axis=-1) - 1
    is_special = place == special[:, None]
    moves = zero_padding(jnp.where(is_special, special_moves[:, None], moves), lengths)
    moves = moves if held is None else moves & free
    count = moves.sum(-1)
    tilt = (count * a + (length - count) * b) / (places * mean)
    xt = jnp.where(moves, graph.sample_limit(limit_key, x0.shape), x0)
    # rounding of a probability of 1 can leave nothing moved: there is no loss, so no weight
    weight = jnp.where(tilt > 0, 1 / (density * jnp.where(tilt > 0, tilt, 1)), 0)
    return NoisedBatch(t, xt, weight, held)


def propose_rows(
    keys: Key[Array, "B"],
    proposal: Proposal,
    graph: Graph,
    noise: Noise,
    quantiles: Float[Array, "B"],
    x0: Int[Array, "B L"],
    lengths: Int[Array, "B"] | None = None,
    held: Bool[Array, "B L"] | None = None,
    start: Int[Array, "B"] | None = None,
) -> NoisedBatch:
    """Draws x_t as `propose`, each row from its own key: a function of the row, not of its padding.

    Args:
      keys: random keys, each used once.
      proposal: the distribution to draw from.
      graph: the token graph.
      noise: the schedule.
      quantiles: of t.
      x0: clean tokens.
      lengths: of the rows; None for full rows.
      held: tokens that do not move; None: none.
      start: position of a row that noise is counted from, all tokens before it held; None: 0.
    """

    def draw(key, *row):
        rows = jax.tree.map(lambda x: x[None], row)
        return jax.tree.map(lambda x: x[0], propose(key, proposal, graph, noise, *rows))

    rest = lengths if start is None or lengths is None else lengths - start
    batch = jax.vmap(draw)(keys, quantiles, turned(x0, start), rest, turned(held, start))
    return batch._replace(xt=turned(batch.xt, start, back=True), held=held)


def propose_by_position(
    key: Key[Array, ""],
    proposal: Proposal,
    graph: Graph,
    noise: Noise,
    quantiles: Float[Array, "B L"],
    x0: Int[Array, "B L"],
    held: Bool[Array, "B L"] | None = None,
) -> NoisedBatch:
    """Draws x_t where every position has a time of its own; weights are 1.

    Args:
      key: random key, used once.
      proposal: distribution of the times; its density must be uniform.
      graph: the token graph.
      noise: the schedule.
      quantiles: of t.
      x0: clean tokens.
      held: tokens that do not move; None: none.
    """
    t, _ = _times_of(proposal, quantiles)
    moves_key, limit_key = jax.random.split(key)
    moves = categorical.bernoulli(moves_key, -jnp.expm1(-noise.sigma(t)))
    moves = moves if held is None else moves & ~held
    xt = jnp.where(moves, graph.sample_limit(limit_key, x0.shape), x0)
    return NoisedBatch(t, xt, jnp.ones_like(t), held)


def _times_of(proposal, quantiles):
    """The times of quantiles, and their cells."""
    if proposal.discrete:
        cell = jnp.searchsorted(jnp.asarray(proposal.quantiles[1:-1]), quantiles, side="right")
        return jnp.asarray(proposal.edges[1:])[cell], cell
    t = jnp.interp(quantiles, jnp.asarray(proposal.quantiles), jnp.asarray(proposal.edges))
    return t, jnp.searchsorted(jnp.asarray(proposal.edges[1:-1]), t, side="right")


def _guess_entropy(graph, sigma):
    """The score entropy of the uniform guess, [2, T]: mean at a moved position, and at any other.

    One x_0 represents every token, and the last token every other x_t but the mask: by symmetry,
    where pi is the same for all tokens; else that of the largest pi, which has a loss if any has.
    """
    limit, mask, last = np.asarray(graph.limit), graph.mask_id, graph.num_tokens - 1
    x0 = int(limit[: last + 1].argmax())
    states, shares = [x0, 0 if x0 == last else last], [limit[x0], 1 - limit[x0]]
    if mask is not None:
        states, shares = [*states, mask], [limit[x0], 1 - limit[x0] - limit[mask], limit[mask]]
    states = jnp.array([states])

    def at(sigma):
        log_prob = jnp.log(graph.noised_guess(sigma))
        log_score = log_prob[None, None] - log_prob[states][..., None]
        return score_entropy(graph, log_score, sigma[None], states, jnp.full_like(states, x0))[0]

    by_state = jnp.maximum(jax.lax.map(at, sigma), 0).T
    moved = sum(share * entropy for share, entropy in zip(shares, by_state, strict=True))
    entropy = jnp.stack([moved, by_state[0]])
    # where only rounding is left, positions move independently
    return jnp.where(entropy.sum(0) > 1e-6, entropy, 1e-6)

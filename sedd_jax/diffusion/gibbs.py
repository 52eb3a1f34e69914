"""Gibbs moves after the reverse steps: positions are drawn again, given the others.

A row of ratios, with 1 at x_t, is p_t(x_i = y, rest) / p_t(x_t): divided by its sum it is the
conditional distribution p_t(x_i = y | rest). Under the uniform and the hybrid graph a move draws
positions from it at the smallest noise, sigma(t_min). Under the absorbing graph a move masks
positions of the clean row and draws them from the denoiser. Drawing one position leaves the
distribution of the data (noised to t_min) unchanged: an exact corrector without any training.

A move draws a share 1 / `spacing` of the positions: every `spacing`-th one, the next move their
right neighbours, and so on. It is exact where these are independent given the others, as every
second one is in a Markov chain of clean tokens; elsewhere an approximation, since positions that
depend on each other are drawn from what each was given before. Positions chosen at random may be
neighbours. The positions whose tokens are the least likely given the others (order="unlikely")
depend on the tokens that are drawn: even a move of one of them changes the distribution.
`python -m sedd_jax.exact` measures all of it.

References:
  Geman and Geman, Stochastic Relaxation, Gibbs Distributions, and the Bayesian Restoration of
    Images, 1984;
  Gonzalez et al., Parallel Gibbs Sampling: From Colored Fields to Thin Junction Trees, 2011: sets
    of positions that are independent given the others;
  Zhao et al., Informed Correctors for Discrete Diffusion Models, 2024 (arXiv 2407.21243): the
    least likely positions, there of a network that answers at unmasked positions too;
  the schedule is ours.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Key

from sedd_jax.diffusion import categorical
from sedd_jax.diffusion.graph import Graph
from sedd_jax.diffusion.sampler import (
    Move,
    Process,
    SamplerInfo,
    SamplerState,
    advance,
    denoising,
)
from sedd_jax.diffusion.score import StepWeights
from sedd_jax.diffusion.tweedie import Tweedie
from sedd_jax.diffusion.unmasking import smallest
from sedd_jax.errors import BadInput

ORDERS = ("spaced", "random", "unlikely")


@dataclasses.dataclass(frozen=True)
class Gibbs(Tweedie):
    """Tweedie steps with a part of the evaluations, then Gibbs moves with the others.

    Attributes:
      share: of the evaluations before the final one, those of Gibbs moves.
      spacing: a move draws one of so many positions, at least 2.
      order: which ones: "spaced", evenly; "random", each by itself with probability 1 / spacing;
        or "unlikely", those whose tokens are the least likely given the others (not under the
        absorbing graph).
    """

    weighs_held_tokens = False  # the noise stays the same during a move
    share: float = 0.5
    spacing: int = 4
    order: str = "spaced"

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.share < 1:
            raise BadInput(f"share must be in [0, 1), got {self.share}.")
        if self.spacing < 2:
            raise BadInput(f"spacing must be at least 2, got {self.spacing}.")
        if self.order not in ORDERS:
            raise BadInput(f"order must be one of {', '.join(ORDERS)}, got {self.order!r}.")

    @property
    def needs(self) -> str:
        return "a graph without an absorbing mask for order='unlikely'"

    def serves(self, graph: Graph) -> bool:
        return self.order != "unlikely" or not graph.absorbs

    def step(
        self, keys: Key[Array, "B"], process: Process, state: SamplerState
    ) -> tuple[SamplerState, SamplerInfo]:
        if self.order == "spaced":
            return super().step(keys, process, state)
        if self.order == "random":
            keys, choice_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
            draw = functools.partial(categorical.uniform_by_position, shape=state.xt.shape[1:])
            chosen = jax.vmap(draw)(choice_keys) < 1 / self.spacing
            return advance(keys, process, state, self._move(process, state, chosen))
        move = self._move(process, state, jnp.ones(state.xt.shape, bool))
        score = process.score_fn(move.xt, move.sigma)
        free = process.changeable(state.xt)
        predicts = state.step < self._predictions(self.num_steps(process.steps))
        log_prob = score.log_prob(move.weights, free & ~predicts, state.xt)
        chosen = smallest(log_prob, free, -(-free.sum(-1) // self.spacing))
        move = move._replace(active=jnp.where(predicts, move.active, chosen))
        return advance(keys, process, state, move, score)

    def move(self, process: Process, xt: Int[Array, "B L"], step: Int[Array, ""]) -> Move:
        turn = (step - self._predictions(self.num_steps(process.steps))) % self.spacing
        chosen = jnp.broadcast_to(jnp.arange(xt.shape[1]) % self.spacing == turn, xt.shape)
        return self._move(process, SamplerState(xt, step), chosen)

    def _move(self, process, state, chosen):
        """The Tweedie step, or the Gibbs move of chosen positions when its time has come."""
        predictions = self._predictions(self.num_steps(process.steps))
        times, last = self.times(process, predictions), jnp.minimum(state.step, predictions - 1)
        prediction = self.prediction(process, state.xt, times[last], times[last + 1])
        move = gibbs_move(process, state.xt, chosen, 1 / self.spacing)
        return either(state.step < predictions, prediction, move)

    def _predictions(self, steps):
        return max(steps - int(self.share * steps), 1)


def gibbs_move(
    process: Process, xt: Int[Array, "B L"], chosen: Bool[Array, "B L"], share: float
) -> Move:
    """Returns the move that draws chosen positions again, each given all positions not chosen.

    Args:
      process: the reverse process.
      xt: tokens, noised to t_min.
      chosen: positions to draw, unless they are held.
      share: about the share of the positions that are chosen; under the absorbing graph the
        network is given the noise at which this share is masked on average.
    """
    graph, rows = process.graph, len(xt)
    if graph.absorbs:
        xt = jnp.where(chosen & ~process.clamp.held, graph.mask_id, xt)
        return denoising(process, xt, jnp.full(rows, -jnp.log1p(-share)))

    def weights(total):
        return StepWeights(jnp.ones_like(total), None, jnp.ones_like(total))

    sigma = process.noise.sigma(jnp.broadcast_to(process.t_min, rows))
    return Move(xt, sigma, process.changeable(xt) & chosen, weights)


def either(first: Bool[Array, ""], one: Move, other: Move) -> Move:
    """Returns the one move or the other, which takes one network evaluation.

    Args:
      first: whether it is the one.
      one: a step of the sampler.
      other: a Gibbs move.
    """

    def choose(a, b):
        return jnp.where(first, a, b)

    def weights(total):
        a, b = one.weights(total), other.weights(total)
        if a.cut is not None:  # a move of Gibbs cuts nothing
            b = b._replace(cut=jax.tree.map(jnp.zeros_like, a.cut))
        return jax.tree.map(choose, a, b)

    return Move(*map(choose, one[:3], other[:3]), weights)

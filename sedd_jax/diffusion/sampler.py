"""Samplers of the reverse process (Algorithm 2), and those on a grid of times."""

import abc
import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from sedd_jax.diffusion.denoiser import denoise_weights
from sedd_jax.diffusion.graph import Graph
from sedd_jax.diffusion.noise import Noise
from sedd_jax.diffusion.score import Score, ScoreFn, StepWeights, StepWeightsFn
from sedd_jax.diffusion.temperature import NO_FILTER, TokenFilter
from sedd_jax.errors import BadInput

# log-probability of a token that the clamped step weights exclude, so that rows stay comparable
MIN_LOG_PROB = -30.0


class Clamp(NamedTuple):
    """Positions held at given tokens while the rest is sampled.

    Attributes:
      tokens: the tokens to hold; any value where not held.
      held: True where the token is held.
    """

    tokens: Int[Array, "B L"]
    held: Bool[Array, "B L"]

    def __call__(self, xt: Int[Array, "B L"]) -> Int[Array, "B L"]:
        return jnp.where(self.held, self.tokens, xt)


class Process(NamedTuple):
    """The reverse process of a batch, as a sampler works on it.

    Attributes:
      graph: the token graph.
      noise: the schedule.
      score_fn: maps (x_t, sigma) to a `Score`.
      clamp: the positions to hold; they are restored after every step.
      t_min: the smallest time of training, where the final step takes over.
      steps: network evaluations before the final denoising step; None for the sampler's default.
      token_filter: temperature and top-p of the token that a changing position takes.
      log_prob_at: held positions whose log-probability each step reports; None for none.
      lengths: tokens of every row, without padding; None for full rows.
    """

    graph: Graph
    noise: Noise
    score_fn: ScoreFn
    clamp: Clamp
    t_min: float
    steps: int | None
    token_filter: TokenFilter = NO_FILTER
    log_prob_at: Bool[Array, "B L"] | None = None
    lengths: Int[Array, "B"] | None = None

    def changeable(self, xt: Int[Array, "B L"]) -> Bool[Array, "B L"]:
        """Returns where a token can change and is not held; scores are needed only there."""
        return (self.graph.limit[xt] > 0) & ~self.clamp.held


class Move(NamedTuple):
    """One network evaluation, and what is drawn from it.

    Attributes:
      xt: the tokens that the network sees.
      sigma: the total noise that the network is given.
      active: the positions that are drawn.
      weights: maps the sum of the ratios over y != x_t to the weights of the next state.
    """

    xt: Int[Array, "B L"]
    sigma: Float[Array, "B"]
    active: Bool[Array, "B L"]
    weights: StepWeightsFn


class SamplerState(NamedTuple):
    """State of a sampler: the tokens, and how many steps are done.

    A sampler that needs more has a state of its own with these two fields.
    """

    xt: Int[Array, "B L"]
    step: Int[Array, ""]


class SamplerInfo(NamedTuple):
    """What one step did to every row.

    Attributes:
      changed: number of positions that changed.
      finite: whether all sums of scores were finite.
      sigma: total noise at which the network was evaluated, the first time in the step.
      evaluations: network evaluations that the row needed.
      log_prob: of the tokens at `Process.log_prob_at` under the step, summed; None without them.
    """

    changed: Int[Array, "B"]
    finite: Bool[Array, "B"]
    sigma: Float[Array, "B"]
    evaluations: Int[Array, "B"]
    log_prob: Float[Array, "B"] | None = None


class Sampler(abc.ABC):
    """A way to simulate the reverse process: pure functions of (keys, state, process).

    There is one key for each row, so that what is drawn for a row does not depend on the rest of
    the batch. Options of a sampler are fields of a frozen dataclass.

    Attributes:
      default_steps: `Process.steps` if none are given; None where they follow from the length.
      evaluations_per_step: network evaluations of a step; the final step makes one.
      rows_differ: whether rows need different numbers of steps: then `step` makes the final step
        too, and is called while a row is `unfinished`.
      needs: the graphs that it serves, in words, if not all.
      weighs_held_tokens: whether the step weights of held tokens approximate their conditional
        probability, as resampling needs; clamped Euler weights do not.
      blends_outputs: whether a step blends two outputs of the network, which are not tempered then.
    """

    default_steps: int | None = 128
    evaluations_per_step: int = 1
    rows_differ: bool = False
    needs: str = ""
    weighs_held_tokens: bool = False
    blends_outputs: bool = False

    def serves(self, graph: Graph) -> bool:
        """Returns whether the sampler is defined on the graph."""
        del graph
        return True

    @abc.abstractmethod
    def max_nfe(self, steps: int | None, length: int) -> int:
        """Returns the largest number of network evaluations of a row of `length` free tokens."""

    @abc.abstractmethod
    def init(self, keys: Key[Array, "B"], process: Process, xt: Int[Array, "B L"]) -> Any:
        """Returns the state before the first step.

        Args:
          keys: one for each row, used once.
          process: the reverse process.
          xt: draws from the limiting distribution.
        """

    @abc.abstractmethod
    def step(self, keys: Key[Array, "B"], process: Process, state: Any) -> tuple[Any, SamplerInfo]:
        """Returns the state after one reverse step, and what the step did.

        Args:
          keys: one for each row, used once.
          process: the reverse process.
          state: before the step.
        """

    @abc.abstractmethod
    def final(self, keys: Key[Array, "B"], process: Process, state: Any) -> tuple[Any, SamplerInfo]:
        """Returns the state after the last step, without masks, and what the step did.

        Args:
          keys: one for each row, used once.
          process: the reverse process.
          state: before the last step.
        """

    def nfe(self, process: Process, state: Any) -> Int[Array, "B"]:
        """Returns the most network evaluations that each row needs, known before the first step.

        Args:
          process: the reverse process.
          state: before the first step.
        """
        return jnp.full(len(state.xt), self.max_nfe(process.steps, state.xt.shape[1]))

    def unfinished(self, process: Process, state: Any) -> Bool[Array, "B"]:
        """Returns whether a row needs a further step; only if `rows_differ`.

        Args:
          process: the reverse process.
          state: after some steps.
        """
        raise TypeError(f"All rows of {type(self).__name__} take the same steps.")


@dataclasses.dataclass(frozen=True)
class GridSampler(Sampler):
    """Samplers that go through a grid of times from 1 to t_min (tau-leaping, Eq. 17).

    The final step removes the remaining noise at t_min. A subclass gives the weights of one step.

    Attributes:
      power: the times are t_min + (1 - t_min) u^power for u evenly from 1 to 0; above 1 they are
        denser near t_min.
    """

    power: float = 1.0

    def __post_init__(self):
        if not 0 < self.power < float("inf"):
            raise BadInput(f"power must be above 0 and finite, got {self.power}.")

    @abc.abstractmethod
    def weights(
        self,
        graph: Graph,
        noise: Noise,
        xt: Int[Array, "B L"],
        total: Float[Array, "B L"],
        t: Float[Array, "B"],
        t_next: Float[Array, "B"],
    ) -> StepWeights:
        """Returns the weights of the states at t_next given x_t.

        Args:
          graph: the token graph.
          noise: the schedule.
          xt: noised tokens.
          total: sum of the ratios over y != x_t.
          t: time of x_t.
          t_next: time to step to, below t.
        """

    def max_nfe(self, steps: int | None, length: int) -> int:
        return self.num_steps(steps) * self.evaluations_per_step + 1

    def num_steps(self, steps: int | None) -> int:
        """Returns the number of reverse steps within a budget of network evaluations.

        What is left of it and too little for a step is not used.
        """
        return (steps or self.default_steps) // self.evaluations_per_step

    def times(self, process: Process, num_steps: int) -> Float[Array, "..."]:
        """Returns the grid of times, num_steps + 1 of them, from 1 to t_min.

        Args:
          process: the reverse process.
          num_steps: intervals between them.
        """
        if self.power == 1:
            return jnp.linspace(1.0, process.t_min, num_steps + 1)
        u = jnp.linspace(1.0, 0.0, num_steps + 1)
        return process.t_min + (1 - process.t_min) * u**self.power

    def init(self, keys: Key[Array, "B"], process: Process, xt: Int[Array, "B L"]) -> SamplerState:
        return SamplerState(process.clamp(xt), jnp.zeros((), jnp.int32))

    def step(
        self, keys: Key[Array, "B"], process: Process, state: SamplerState
    ) -> tuple[SamplerState, SamplerInfo]:
        return advance(keys, process, state, self.move(process, state.xt, state.step))

    def final(
        self, keys: Key[Array, "B"], process: Process, state: SamplerState
    ) -> tuple[SamplerState, SamplerInfo]:
        sigma = process.noise.sigma(jnp.broadcast_to(process.t_min, len(state.xt)))
        return advance(keys, process, state, denoising(process, state.xt, sigma))

    def move(self, process: Process, xt: Int[Array, "B L"], step: Int[Array, ""]) -> Move:
        """Returns what a step evaluates and draws.

        Args:
          process: the reverse process.
          xt: noised tokens.
          step: number of the step, from 0.
        """
        times = self.times(process, self.num_steps(process.steps))
        return self.prediction(process, xt, times[step], times[step + 1])

    def prediction(
        self, process: Process, xt: Int[Array, "B L"], t: Float[Array, ""], t_next: Float[Array, ""]
    ) -> Move:
        """Returns the step from time t to t_next, the same for all rows.

        Args:
          process: the reverse process.
          xt: noised tokens.
          t: their time.
          t_next: time to step to, below t.
        """
        t, t_next = (jnp.broadcast_to(time, len(xt)) for time in (t, t_next))

        def weights(total):
            return self.weights(process.graph, process.noise, xt, total, t, t_next)

        return Move(xt, process.noise.sigma(t), process.changeable(xt), weights)


def denoising(process: Process, xt: Int[Array, "B L"], sigma: Float[Array, "B"]) -> Move:
    """Returns the step that removes all noise (Theorem 4.1).

    Args:
      process: the reverse process.
      xt: noised tokens.
      sigma: total noise of x_t.
    """

    def weights(total):
        return denoise_weights(process.graph, xt, total, sigma)

    return Move(xt, sigma, process.changeable(xt), weights)


def advance(
    keys: Key[Array, "B"],
    process: Process,
    state: SamplerState,
    move: Move,
    score: Score | None = None,
) -> tuple[SamplerState, SamplerInfo]:
    """Returns the state after a move, and what it did.

    Args:
      keys: one for each row, used once.
      process: the reverse process.
      state: before the move.
      move: what is evaluated and drawn.
      score: the answer of the network, if it has been evaluated.
    """
    log_prob_at = process.log_prob_at
    score = process.score_fn(move.xt, move.sigma) if score is None else score
    draw = score.draw(keys, move.weights, move.active, process.token_filter)
    xt = process.clamp(draw.xt)
    info = SamplerInfo(
        changed=jnp.sum(xt != state.xt, axis=-1),
        finite=jnp.all(jnp.isfinite(draw.total), axis=-1),
        sigma=move.sigma,
        evaluations=jnp.ones(len(xt), jnp.int32),
        log_prob=None if log_prob_at is None else _log_prob(score, move.weights, log_prob_at, xt),
    )
    return SamplerState(xt, state.step + 1), info


def _log_prob(score: Score, step_weights, positions, xt):
    """The log-probability, summed over some positions of every row, of drawing x_t there."""
    log_prob = jnp.maximum(score.log_prob(step_weights, positions, xt), MIN_LOG_PROB)
    return jnp.sum(jnp.where(positions, log_prob, 0), axis=-1)

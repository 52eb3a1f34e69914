"""The interface of a network's output, and the dense output that serves as oracle.

The loss and the samplers never look at all log-scores at once: they need sums over the vocabulary
and, where a position jumps, one token. So a network's output at (x_t, sigma) is a `Score`, with the
methods below. `DenseScore` holds the array [B, L, V]: it works for any model, and is the oracle of
`model.vocab_head.StreamedScore`, which never builds it.

A sampler's step needs the sum of the ratios before it knows its weights (how likely a position is
to stay depends on it). So it hands `draw` a function, total -> `StepWeights`.
"""

import abc
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from sedd_jax.diffusion import categorical
from sedd_jax.diffusion.blend import Blend
from sedd_jax.diffusion.graph import PerState, align, at_states, leading
from sedd_jax.diffusion.score_entropy import Target, entropy_terms
from sedd_jax.diffusion.temperature import NO_FILTER, TokenFilter, conditional_bounds


class StepWeights(NamedTuple):
    """The weights of the next state of every position, as functions of the ratio estimates.

    Any state y != x_t has weight scale * max(0, score_y - cut), x_t itself max(0, stay).

    Attributes:
      scale: non-negative; 0 where nothing can move.
      cut: subtracted from the ratios, the same number for all y or one that depends on y; None for
        0.
      stay: of x_t, may be negative.
    """

    scale: Float[Array, "B L"]
    cut: PerState | None
    stay: Float[Array, "B L"]

    def weights(self, xt: Int[Array, "B L"], score: Float[Array, "B L V"]) -> Float[Array, "B L V"]:
        """Returns the weights of all V states, unclamped and not normalised.

        Args:
          xt: noised tokens.
          score: ratio estimates; ignored at x_t.
        """
        states = jnp.arange(score.shape[-1])
        cut = 0 if self.cut is None else at_states(self.cut, states, score.ndim)
        at_xt = jax.nn.one_hot(xt, score.shape[-1], dtype=bool)
        return jnp.where(at_xt, self.stay[..., None], self.scale[..., None] * (score - cut))


class OfStates(NamedTuple):
    """A network's output at some states of every position.

    Attributes:
      states: the states.
      log_score: log of the ratio estimates; means nothing at x_t.
      log_posterior: log p(x0 | x_t), -inf at the mask; None of an output that is no softmax.
      log_stays: that of x0 = x_t, -inf where x_t is the mask; None of an output that is no softmax.
    """

    states: Int[Array, "C"]
    log_score: Float[Array, "*s C"]
    log_posterior: Float[Array, "*s C"] | None = None
    log_stays: Float[Array, "*s"] | None = None

    def at(self, states: Int[Array, "*s"]) -> Bool[Array, "*s C"]:
        """Returns which of the states is the one given for each position."""
        return leading(self.states, states.ndim + 1) == states[..., None]


# terms(OfStates of C states, *arguments [*s]) -> nats [*s, C], see `Score.weighted`
Terms = Callable[..., Float[Array, "*s C"]]

# maps the sum of the ratios over y != x_t, meaningless where nothing can move, to the weights
StepWeightsFn = Callable[[Float[Array, "B L"]], StepWeights]


class Drawn(NamedTuple):
    """Drawn states, and the sum of the ratio estimates over y != x_t."""

    xt: Int[Array, "B L"]
    total: Float[Array, "B L"]


class Score(abc.ABC):
    """A network's output at noised tokens x_t and total noise sigma."""

    @abc.abstractmethod
    def entropy(self, target: Target) -> Float[Array, "B L"]:
        """Returns the score entropy of every position, in nats (Eqs. 5 and 10).

        A streamed score has no gradient here, see `weighted_entropy`.
        """

    @abc.abstractmethod
    def weighted_entropy(self, target: Target, weight: Float[Array, "B *L"]) -> Float[Array, ""]:
        """Returns the sum over positions of the score entropy, times a weight of rows or positions.

        Training differentiates this, in the network's parameters and in the weight alone: a
        streamed score has no gradient in target or sigma.
        """

    @abc.abstractmethod
    def weighted(
        self, terms: Terms, arguments: Sequence[Any], weight: Float[Array, "B L"]
    ) -> Float[Array, ""]:
        """Returns the sum over positions of any loss that is a sum over states, times a weight.

        Training differentiates this, in the network's parameters and in the weight.

        Args:
          terms: of the loss, by state: a function of the output at some states of some positions,
            `OfStates`, and of the arguments of these positions.
          arguments: trees of arrays [B, L, ...] that `terms` takes.
          weight: positions with a weight of 0 are not computed.
        """

    @abc.abstractmethod
    def tempered(self, token_filter: TokenFilter) -> "Score":
        """Returns the ratios of a sharper distribution of each token given all others.

        A row of ratios, with 1 at x_t, is p_t(x_i = y | rest) / p_t(x_i | rest). The ratios
        returned are those of this conditional ** (1 / temperature), cut to its smallest set of
        states, x_t among them or not, that has probability top_p; states as likely as the last of
        these, within 0.2 %, are in it too. Outside of it a ratio is 0, and if x_t is outside the
        ratios are so large that every step leaves it.

        Args:
          token_filter: temperature, not 0, and top-p.
        """

    @abc.abstractmethod
    def draw(
        self,
        keys: Key[Array, "B"],
        step_weights: StepWeightsFn,
        active: Bool[Array, "B L"],
        token_filter: TokenFilter = NO_FILTER,
    ) -> Drawn:
        """Draws the next state of every position: first whether it leaves x_t, then where to.

        Args:
          keys: one for each row, used once.
          step_weights: maps the sum of the ratios to the weights of the next state.
          active: positions to draw for; the others stay, and their total is 0.
          token_filter: temperature and top-p of the state that x_t jumps to; not of the jump.
        """

    @abc.abstractmethod
    def log_prob(
        self, step_weights: StepWeightsFn, active: Bool[Array, "B L"], states: Int[Array, "B L"]
    ) -> Float[Array, "B L"]:
        """Returns the log-probability, per position, that `draw` gives these states.

        Args:
          step_weights: maps the sum of the ratios to the weights of the next state.
          active: positions that can change; the others stay.
          states: next states.
        """

    @abc.abstractmethod
    def shannon_entropy(self, active: Bool[Array, "B L"]) -> Float[Array, "B L"]:
        """Returns the entropy of the ratios over y != x_t, divided by their sum, in nats.

        Under the absorbing graph it is that of the clean token of a masked position. It is 0 where
        not active.
        """

    @abc.abstractmethod
    def at(self, states: Int[Array, "B L"]) -> Float[Array, "B L"]:
        """Returns the ratio of one state of every position, 1 at x_t."""

    @abc.abstractmethod
    def blended(self, other: "Score", blend: Blend, xt: Int[Array, "B L"]) -> "Score":
        """Returns the blend of the ratios with those of another output of the same network.

        It is drawn from, and gives log-probabilities, as any other.

        Args:
          other: the other output, at tokens and noise of its own.
          blend: of both, by position.
          xt: the tokens that a draw leaves.
        """

    @abc.abstractmethod
    def guided(self, other: "Score", weight: float | Float[Array, "B"]) -> "Score":
        """Returns the ratios s ** weight * s' ** (1 - weight), see `diffusion.guidance`.

        Args:
          other: s', the output at the same tokens and noise in another context.
          weight: of this output, s.
        """

    @abc.abstractmethod
    def times(self, log_factors: Float[Array, "B L V"]) -> "Score":
        """Returns the ratios times factors, written out: for few states.

        Args:
          log_factors: of all states; -inf for a factor of 0, ignored at x_t.
        """

    @abc.abstractmethod
    def scaled_to(self, total: Float[Array, "B L"]) -> "Score":
        """Returns the ratios times a number for each position, so that they have this sum.

        It is for weights without a cut: under the absorbing graph.

        Args:
          total: the sum over y != x_t.
        """


# maps x_t, and the total noise of rows or of positions, to a score
ScoreFn = Callable[[Int[Array, "B L"], Float[Array, "B *L"]], Score]


def tempered_score_fn(score_fn: ScoreFn, token_filter: TokenFilter) -> ScoreFn:
    """Returns a function whose scores are tempered, see `Score.tempered`."""
    return lambda xt, sigma: score_fn(xt, sigma).tempered(token_filter)


@dataclasses.dataclass(frozen=True)
class DenseScore(Score):
    """All log-scores as one array.

    Attributes:
      xt: noised tokens.
      log_score: log of the ratio estimates, float32; ignored at x_t.
      log_posterior: log p(x0 | x_t), -inf at the mask, of an output that is a softmax.
    """

    xt: Int[Array, "B L"]
    log_score: Float[Array, "B L V"]
    log_posterior: Float[Array, "B L V"] | None = None

    def entropy(self, target: Target) -> Float[Array, "B L"]:
        states = jnp.arange(self.log_score.shape[-1])
        terms = entropy_terms(target, states, self.log_score)
        return target.weight * terms.sum(-1)

    def weighted_entropy(self, target: Target, weight: Float[Array, "B *L"]) -> Float[Array, ""]:
        each = self.entropy(target)
        return jnp.sum(weight * (each.sum(-1) if weight.ndim == 1 else each))

    def weighted(
        self, terms: Terms, arguments: Sequence[Any], weight: Float[Array, "B L"]
    ) -> Float[Array, ""]:
        each = terms(self._of_states, *arguments).sum(-1)
        return jnp.sum(jnp.where(weight == 0, 0, weight * each))

    def tempered(self, token_filter: TokenFilter) -> "DenseScore":
        at_xt = jax.nn.one_hot(self.xt, self.log_score.shape[-1], dtype=bool)
        log_ratios = jnp.where(at_xt, 0, self.log_score) / token_filter.temperature
        excess, floor = conditional_bounds(log_ratios, token_filter.top_p)
        kept = log_ratios >= floor[..., None]
        log_score = jnp.where(kept, log_ratios - excess[..., None], -jnp.inf)
        return dataclasses.replace(self, log_score=log_score)

    def draw(
        self,
        keys: Key[Array, "B"],
        step_weights: StepWeightsFn,
        active: Bool[Array, "B L"],
        token_filter: TokenFilter = NO_FILTER,
    ) -> Drawn:
        total, weights = self._weigh(step_weights, active)
        xt = jax.vmap(functools.partial(categorical.jump, token_filter=token_filter))(
            keys, self.xt, weights
        )
        return Drawn(jnp.where(active, xt, self.xt), total)

    def log_prob(
        self, step_weights: StepWeightsFn, active: Bool[Array, "B L"], states: Int[Array, "B L"]
    ) -> Float[Array, "B L"]:
        _, weights = self._weigh(step_weights, active)
        probs = categorical.jump_probs(weights)
        prob = jnp.take_along_axis(probs, states[..., None], axis=-1)[..., 0]
        return jnp.log(jnp.where(active, prob, states == self.xt))

    def shannon_entropy(self, active: Bool[Array, "B L"]) -> Float[Array, "B L"]:
        score = jnp.exp(self.log_score)
        log_terms = jnp.where(score > 0, score * self.log_score, 0)
        totals = total_away(self.xt, score), total_away(self.xt, log_terms)
        return jnp.where(active, entropy_of_ratios(*totals), 0)

    def at(self, states: Int[Array, "B L"]) -> Float[Array, "B L"]:
        return jnp.take_along_axis(self._ratios, states[..., None], axis=-1)[..., 0]

    def blended(self, other: "DenseScore", blend: Blend, xt: Int[Array, "B L"]) -> "DenseScore":
        states = jnp.arange(self.log_score.shape[-1])
        return DenseScore(xt, jnp.log(blend(self._ratios, other._ratios, states)))

    def guided(self, other: "DenseScore", weight: float | Float[Array, "B"]) -> "DenseScore":
        weight = align(jnp.asarray(weight), 3)
        return DenseScore(self.xt, weight * self.log_score + (1 - weight) * other.log_score)

    def times(self, log_factors: Float[Array, "B L V"]) -> "DenseScore":
        return DenseScore(self.xt, self.log_score + log_factors)

    def scaled_to(self, total: Float[Array, "B L"]) -> "DenseScore":
        found = total_away(self.xt, jnp.exp(self.log_score))
        factor = jnp.where(found > 0, total / found, 1)
        return DenseScore(self.xt, self.log_score + jnp.log(factor)[..., None])

    @property
    def _of_states(self):
        output = OfStates(jnp.arange(self.log_score.shape[-1]), self.log_score)
        if self.log_posterior is None:
            return output
        at_xt = jax.nn.one_hot(self.xt, self.log_score.shape[-1], dtype=bool)
        log_stays = jnp.where(at_xt, self.log_posterior, -jnp.inf).max(-1)
        return output._replace(log_posterior=self.log_posterior, log_stays=log_stays)

    @property
    def _ratios(self):
        """All ratios, 1 at x_t."""
        at_xt = jax.nn.one_hot(self.xt, self.log_score.shape[-1], dtype=bool)
        return jnp.where(at_xt, 1, jnp.exp(self.log_score))

    def _weigh(self, step_weights, active):
        score = jnp.exp(self.log_score)
        total = jnp.where(active, total_away(self.xt, score), 0)
        return total, step_weights(total).weights(self.xt, score)


def entropy_of_ratios(
    total: Float[Array, "*s"], log_total: Float[Array, "*s"]
) -> Float[Array, "*s"]:
    """Returns the Shannon entropy, in nats, of ratios divided by their sum.

    Args:
      total: sum of the ratios s.
      log_total: sum of s log s.
    """
    return jnp.maximum(jnp.log(total) - log_total / total, 0)


def total_away(xt: Int[Array, "B L"], score: Float[Array, "B L V"]) -> Float[Array, "B L"]:
    """Returns the sum of the ratios over y != x_t."""
    return jnp.where(jax.nn.one_hot(xt, score.shape[-1], dtype=bool), 0, score).sum(-1)

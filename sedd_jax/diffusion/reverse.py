"""The reverse process and its samplers (Eq. 3 and Algorithm 2)."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from sedd_jax.diffusion.graph import Graph, align
from sedd_jax.diffusion.noise import Noise
from sedd_jax.diffusion.score import ScoreFn, StepWeights
from sedd_jax.diffusion.temperature import NO_FILTER, TokenFilter


def reverse_rate(
    graph: Graph, xt: Int[Array, "B L"], score: Float[Array, "B L V"]
) -> Float[Array, "B L V"]:
    """Returns the reverse rates of leaving x_t: score_y Q[x_t, y], minus their sum at x_t (Eq. 3).

    Not multiplied by dsigma. Rows sum to 0.
    """
    at_xt = jax.nn.one_hot(xt, graph.num_states, dtype=bool)
    rates = jnp.where(at_xt, 0, graph.transposed_rate(xt) * score)
    return jnp.where(at_xt, -rates.sum(-1, keepdims=True), rates)


def euler_probs(
    graph: Graph,
    xt: Int[Array, "B L"],
    score: Float[Array, "B L V"],
    rate_times_step: Float[Array, "B"],
) -> Float[Array, "B L V"]:
    """Returns the Euler step's weights one_hot(x_t) + rate_times_step * reverse_rate (Eq. 17).

    Rows sum to 1; a step too large for the rates makes the entry at x_t negative: clamp before
    sampling.

    Args:
      graph: the token graph.
      xt: noised tokens.
      score: positive ratios, 1 at y = x_t.
      rate_times_step: dsigma(t) dt.
    """
    stay = jax.nn.one_hot(xt, graph.num_states)
    return stay + align(rate_times_step, 3) * reverse_rate(graph, xt, score)


def euler_weights(
    graph: Graph,
    xt: Int[Array, "B L"],
    total: Float[Array, "B L"],
    rate_times_step: Float[Array, "B"],
) -> StepWeights:
    """Returns the law of `euler_probs`, given the sum of the ratios over y != x_t."""
    rate = align(rate_times_step, 2) * graph.limit[xt]
    return StepWeights(scale=rate, cut=None, stay=1 - rate * total)


def tweedie_weights(
    graph: Graph,
    xt: Int[Array, "B L"],
    total: Float[Array, "B L"],
    delta_sigma: Float[Array, "B"],
) -> StepWeights:
    """Returns the law of `tweedie_probs`, given the sum of the ratios over y != x_t."""
    delta = align(delta_sigma, 2)
    limit, moved, growth = graph.limit[xt], -jnp.expm1(-delta), jnp.expm1(delta)
    cut = moved * graph.limit_of_token * (1 + total) if graph.limit_of_token else None
    staggered = 1 + growth * (1 - limit - limit * total)  # of x_t, whose score is 1
    likelihood = jnp.exp(-delta) + moved * limit
    return StepWeights(scale=growth * limit, cut=cut, stay=staggered * likelihood)


def denoise_weights(
    graph: Graph,
    xt: Int[Array, "B L"],
    total: Float[Array, "B L"],
    sigma: Float[Array, "B"],
) -> StepWeights:
    """Returns the law of `denoise_probs`, given the sum of the ratios: the mask must leave."""
    law = tweedie_weights(graph, xt, total, sigma)
    return law._replace(stay=jnp.where(xt < graph.num_tokens, law.stay, 0))


def _euler(graph, noise, xt, total, t, t_next):
    return euler_weights(graph, xt, total, noise.dsigma(t) * (t - t_next))


def _tweedie(graph, noise, xt, total, t, t_next):
    return tweedie_weights(graph, xt, total, noise.sigma(t) - noise.sigma(t_next))


# what a clamped weight rules out counts as this improbable, so that any two rows can be compared
LEAST_LOG_PROB = -30.0

StepRule = Callable[..., StepWeights]  # (graph, noise, xt, total, t [B], t_next [B])
SAMPLERS: dict[str, StepRule] = {"euler": _euler, "tweedie": _tweedie}


class Clamp(NamedTuple):
    """Positions held at given tokens while the rest is sampled.

    Attributes:
      tokens: the tokens to hold, any value where free.
      held: True where the token is held.
    """

    tokens: Int[Array, "B L"]
    held: Bool[Array, "B L"]

    def __call__(self, xt: Int[Array, "B L"]) -> Int[Array, "B L"]:
        return jnp.where(self.held, self.tokens, xt)


class SamplerState(NamedTuple):
    """State of the sampler: the tokens, and how many steps are done."""

    xt: Int[Array, "B L"]
    step: Int[Array, ""]


class SamplerInfo(NamedTuple):
    """What one step did to every row.

    Attributes:
      changed: positions that changed.
      finite: whether all sums of scores were.
      sigma: total noise at which the network was called.
      called: whether the row had use for the call.
      log_prob: of the step to what the positions to weigh are held at, if there are any.
    """

    changed: Int[Array, "B"]
    finite: Bool[Array, "B"]
    sigma: Float[Array, "B"]
    called: Bool[Array, "B"]
    log_prob: Float[Array, "B"] | None = None


Kernel = Callable[[Key[Array, "B"], SamplerState], tuple[SamplerState, SamplerInfo]]


def build_kernels(
    graph: Graph,
    noise: Noise,
    score_fn: ScoreFn,
    times: Float[Array, "T"],
    sampler: str,
    clamp: Clamp,
    token_filter: TokenFilter = NO_FILTER,
    weighed: Bool[Array, "B L"] | None = None,
) -> tuple[Kernel, Kernel]:
    """Returns the kernels of one reverse step and of the final denoising step (Algorithm 2).

    A kernel maps (keys, state) to (state, info), with one key per row, so that what is drawn for
    a row does not depend on the rest of the batch. Held positions are restored after every step,
    the final one included. One network evaluation per call.

    Args:
      graph: the token graph.
      noise: the schedule.
      score_fn: maps (x_t, sigma) to a `Score`.
      times: decreasing times; step i goes from times[i] to times[i + 1], the final step removes
        the noise left at times[-1].
      sampler: a key of SAMPLERS.
      clamp: the positions to hold.
      token_filter: how a token is drawn where a position changes.
      weighed: the held positions of which the probability is asked.
    """
    rule = SAMPLERS[sampler]

    def advance(keys, state, t, law):
        sigma = noise.sigma(jnp.broadcast_to(t, state.xt.shape[:1]))
        # what cannot move, or is held anyway, needs no scores
        active = (graph.limit[state.xt] > 0) & ~clamp.held
        score = score_fn(state.xt, sigma)
        draw = score.draw(keys, law, active, token_filter)
        xt = clamp(draw.xt)
        info = SamplerInfo(
            changed=jnp.sum(xt != state.xt, axis=-1),
            finite=jnp.all(jnp.isfinite(draw.total), axis=-1),
            sigma=sigma,
            called=jnp.ones(len(sigma), bool),
            log_prob=None if weighed is None else _held_log_prob(score, law, weighed, xt),
        )
        return SamplerState(xt, state.step + 1), info

    def reverse_step(keys, state):
        t, t_next = times[state.step], times[state.step + 1]

        def law(total):
            rows = len(total)
            return rule(
                graph,
                noise,
                state.xt,
                total,
                jnp.broadcast_to(t, rows),
                jnp.broadcast_to(t_next, rows),
            )

        return advance(keys, state, t, law)

    def denoise_step(keys, state):
        def law(total):
            sigma = noise.sigma(jnp.broadcast_to(times[-1], len(total)))
            return denoise_weights(graph, state.xt, total, sigma)

        return advance(keys, state, times[-1], law)

    return reverse_step, denoise_step


def _held_log_prob(score, law, weighed, xt):
    """The log-probability of the tokens of a row that are weighed."""
    log_prob = jnp.maximum(score.log_prob(law, weighed, xt), LEAST_LOG_PROB)
    return jnp.sum(jnp.where(weighed, log_prob, 0), axis=-1)

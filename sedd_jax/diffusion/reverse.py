"""The reverse process and its samplers (Eq. 3 and Algorithm 2)."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from sedd_jax.diffusion import categorical
from sedd_jax.diffusion.graph import Graph, align
from sedd_jax.diffusion.noise import Noise
from sedd_jax.diffusion.score_entropy import LogScore
from sedd_jax.diffusion.tweedie import denoise_probs, tweedie_probs


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


def _euler(graph, noise, xt, score, t, t_next):
    return euler_probs(graph, xt, score, noise.dsigma(t) * (t - t_next))


def _tweedie(graph, noise, xt, score, t, t_next):
    return tweedie_probs(graph, xt, score, noise.sigma(t) - noise.sigma(t_next))


StepRule = Callable[..., Float[Array, "B L V"]]  # (graph, noise, xt, score, t, t_next) -> weights
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
    """What one step did: positions that changed, and whether every score was finite."""

    changed: Int[Array, "B"]
    finite: Bool[Array, "B"]


Kernel = Callable[[Key[Array, "B"], SamplerState], tuple[SamplerState, SamplerInfo]]


def build_kernels(
    graph: Graph,
    noise: Noise,
    log_score_fn: LogScore,
    times: Float[Array, "T"],
    sampler: str,
    clamp: Clamp,
) -> tuple[Kernel, Kernel]:
    """Returns the kernels of one reverse step and of the final denoising step (Algorithm 2).

    A kernel maps (keys, state) to (state, info), with one key per row, so that what is drawn for
    a row does not depend on the rest of the batch. Held positions are restored after every step,
    the final one included. One network evaluation per call.

    Args:
      graph: the token graph.
      noise: the schedule.
      log_score_fn: maps (x_t, sigma) to log scores.
      times: decreasing times; step i goes from times[i] to times[i + 1], the final step removes
        the noise left at times[-1].
      sampler: a key of SAMPLERS.
      clamp: the positions to hold.
    """
    step_probs = SAMPLERS[sampler]

    def advance(keys, state, t, probs_fn):
        t = jnp.broadcast_to(t, state.xt.shape[:1])
        log_score = log_score_fn(state.xt, noise.sigma(t))
        score = jnp.exp(log_score)
        probs = probs_fn(score, t)
        xt = clamp(jax.vmap(categorical.jump)(keys, state.xt, probs))
        info = SamplerInfo(
            changed=jnp.sum(xt != state.xt, axis=-1),
            finite=jnp.all(jnp.isfinite(score), axis=(1, 2)),
        )
        return SamplerState(xt, state.step + 1), info

    def reverse_step(keys, state):
        def probs(score, t):
            t_next = jnp.broadcast_to(times[state.step + 1], t.shape)
            return step_probs(graph, noise, state.xt, score, t, t_next)

        return advance(keys, state, times[state.step], probs)

    def denoise_step(keys, state):
        def probs(score, t):
            return denoise_probs(graph, state.xt, score, noise.sigma(t))

        return advance(keys, state, times[-1], probs)

    return reverse_step, denoise_step

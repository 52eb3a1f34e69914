"""Samplers of second order: two network evaluations a step, the second one within it.

Given the other tokens at time t, the reverse process of one position has a closed form, Tweedie's
step. So all error of Tweedie comes from the other tokens, which change during the step. A step from
y_n is split at rho: Tweedie's step takes it to y* at rho, and the network is evaluated again there.
Both rows of ratios are brought to the noise of rho and divided by the ratio of the token that is
left, so that they are rates of leaving the same token: r_n from y_n, r* from y*. Then

    trapezoid: from y* over the rest of the step, with max(0, a_1 r* - a_2 r_n),
               a_1 = 1 / (2 theta (1 - theta)),  a_2 = a_1 - 1;
    RK-2:      from y_n over the whole step, with max(0, (1 - 1 / (2 theta)) r_n + r* / (2 theta)),

again by Tweedie's step, so that both are exact for a single position. rho is where the share
theta of the step is done, in the time -log(1 - exp(-sigma)), in which a mask leaves at rate 1.

The error, with true scores (`python -m sedd_jax.exact` measures it, in total variation):

- The trapezoid is of second order as long as nothing is clipped: no change of one position makes
  a token at another one less than a_2 / a_1 times as probable, 1/2 for theta = 1/2 and more for
  any other theta. Where one does, as in text, two such changes within a step are too probable by
  an amount of the order of the step squared, and the order is one, with a smaller constant.
- RK-2 is of first order wherever positions depend on each other. It draws all of them anew from
  y_n, so two that change in the same step do not see each other, whatever r* is. It serves for
  comparison.

The paper bounds the KL divergence, by a multiple of the step size squared: for the trapezoid if
nothing is clipped, for RK-2 if theta <= 1/2. By Pinsker's inequality this is first order in total
variation, which Euler's and Tweedie's steps have as well.

The paper takes Poisson numbers of changes with constant rates and rejects several at a position;
that error alone is of first order. Tweedie's step in place of that is ours.

References:
  Ren et al., Fast Solvers for Discrete Diffusion Models: Theory and Applications of High-Order
    Algorithms, 2025 (arXiv 2502.00234): both;
  Anderson and Mattingly, A weak trapezoidal method for a class of stochastic differential
    equations, 2011 (arXiv 0906.3475).
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from sedd_jax.diffusion.blend import Blend
from sedd_jax.diffusion.denoiser import tweedie_weights
from sedd_jax.diffusion.graph import Graph, align, times_limit
from sedd_jax.diffusion.noise import Noise
from sedd_jax.diffusion.sampler import Process, SamplerInfo, SamplerState
from sedd_jax.diffusion.score import Score, StepWeights, StepWeightsFn
from sedd_jax.diffusion.tweedie import Tweedie
from sedd_jax.errors import BadInput

TINY = 1e-20  # replaces a ratio that has rounded to 0 before it is divided by


class Evaluation(NamedTuple):
    """What the network said.

    Attributes:
      xt: the tokens that it saw.
      score: its output.
    """

    xt: Int[Array, "B L"]
    score: Score


@dataclasses.dataclass(frozen=True)
class ThetaTrapezoidal(Tweedie):
    """The theta-trapezoidal sampler: the second part of a step with extrapolated rates.

    Attributes:
      theta: the share of a step after which the network is evaluated again, in (0, 1).
    """

    evaluations_per_step = 2
    blends_outputs = True
    weighs_held_tokens = False  # the blended weights have not been tried for that
    theta: float = 0.5

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.theta < 1:
            raise BadInput(f"theta must be above 0 and below 1, got {self.theta}.")

    @property
    def factors(self) -> tuple[float, float]:
        """Factors of the rates r_n and r*."""
        later = 1 / (2 * self.theta * (1 - self.theta))
        return 1 - later, later

    def start(
        self, xt: Int[Array, "B L"], mid: Int[Array, "B L"], sigmas: Float[Array, "3 B"]
    ) -> tuple[Int[Array, "B L"], Float[Array, "B"]]:
        """Returns the tokens from which the second part starts, and their total noise.

        Args:
          xt: tokens before the step.
          mid: tokens after the first part.
          sigmas: total noise of both, and of the end of the step.
        """
        del xt
        return mid, sigmas[1]

    def step(
        self, keys: Key[Array, "B"], process: Process, state: SamplerState
    ) -> tuple[SamplerState, SamplerInfo]:
        graph, xt = process.graph, state.xt
        first_keys, second_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
        times = self.times(process, self.num_steps(process.steps))
        sigmas = self.sigmas(process.noise, times[state.step], times[state.step + 1])
        sigmas = jnp.broadcast_to(sigmas[:, None], (3, len(xt)))
        before = Evaluation(xt, process.score_fn(xt, sigmas[0]))
        draw = before.score.draw(
            first_keys,
            lambda total: tweedie_weights(graph, xt, total, sigmas[0] - sigmas[1]),
            process.changeable(xt),
            process.token_filter,
        )
        mid = process.clamp(draw.xt)
        after = Evaluation(mid, process.score_fn(mid, sigmas[1]))
        start, score, weights = self.second(graph, sigmas, before, draw.total, after)
        last = score.draw(second_keys, weights, process.changeable(start), process.token_filter)
        new = process.clamp(last.xt)
        info = SamplerInfo(
            changed=jnp.sum(new != xt, axis=-1),
            finite=jnp.all(jnp.isfinite(draw.total) & jnp.isfinite(last.total), axis=-1),
            sigma=sigmas[0],
            evaluations=jnp.full(len(xt), 2, jnp.int32),
        )
        return SamplerState(new, state.step + 1), info

    def sigmas(
        self, noise: Noise, t: Float[Array, ""], t_next: Float[Array, ""]
    ) -> Float[Array, "3"]:
        """Returns the total noise at t, at rho, of the second evaluation, and at t_next.

        Args:
          noise: the schedule.
          t: time before the step.
          t_next: time after it.
        """
        sigma, sigma_next = noise.sigma(t), noise.sigma(t_next)
        between = (1 - self.theta) * _mask_time(sigma) + self.theta * _mask_time(sigma_next)
        return jnp.stack([sigma, _mask_time(between), sigma_next])  # its own inverse

    def second(
        self,
        graph: Graph,
        sigmas: Float[Array, "3 B"],
        before: Evaluation,
        total: Float[Array, "B L"],
        after: Evaluation,
    ) -> tuple[Int[Array, "B L"], Score, StepWeightsFn]:
        """Returns what the second part of a step draws: the tokens left, a score and its weights.

        Args:
          graph: the token graph.
          sigmas: total noise before the step, after its first part and at its end.
          before: the evaluation before the step.
          total: sum of its ratios over y != x_t.
          after: the evaluation after the first part.
        """
        start, sigma = self.start(before.xt, after.xt, sigmas)
        # the rows of y_n at the noise of rho: exp(-delta Q) score, see `staggered_score`
        delta = align(sigmas[0] - sigmas[1], 2)
        growth = jnp.expm1(delta) * (1 + total)
        at_start = jnp.exp(delta) * before.score.at(start) - growth * graph.limit[start]
        earlier, later = self.factors
        known = graph.limit[after.xt] > 0  # else y* has left the mask: no rates there
        earlier = jnp.where(known, earlier, 1) / jnp.maximum(at_start, TINY)
        later = jnp.where(known, later / jnp.maximum(after.score.at(start), TINY), 0)
        offset = times_limit(graph, -earlier * growth)
        blend = Blend(later, earlier * jnp.exp(delta), offset)
        score = after.score.blended(before.score, blend, start)

        def weights(total):
            return _weights(graph, start, total, sigmas[1] - sigmas[2], sigma - sigmas[2])

        return start, score, weights


@dataclasses.dataclass(frozen=True)
class ThetaRK2(ThetaTrapezoidal):
    """The theta-RK-2 sampler: the whole step with rates from within it.

    Attributes:
      theta: the share of a step after which the network is evaluated again, in (0, 1).
    """

    @property
    def factors(self) -> tuple[float, float]:
        later = 1 / (2 * self.theta)
        return 1 - later, later

    def start(
        self, xt: Int[Array, "B L"], mid: Int[Array, "B L"], sigmas: Float[Array, "3 B"]
    ) -> tuple[Int[Array, "B L"], Float[Array, "B"]]:
        return xt, sigmas[0]


def _mask_time(sigma: Float[Array, ""]) -> Float[Array, ""]:
    """-log(1 - exp(-sigma)), minus the log of the probability of a mask; its own inverse."""
    small = -jnp.log(-jnp.expm1(-sigma))
    return jnp.where(sigma < 0.7, small, -jnp.log1p(-jnp.exp(-sigma)))


def _weights(graph, xt, total, back, delta):
    """Tweedie's weights of a step of delta sigma, by ratios at less noise than that of x_t.

    Only a part of the noise, `back`, is left to be taken off the ratios.
    """
    back, delta = align(back, 2), align(delta, 2)
    limit, moved = graph.limit[xt], -jnp.expm1(-delta)
    redrawn, cut = jnp.expm1(back) * (1 + total), None
    if graph.equal_limit != 0:
        cut = times_limit(graph, -jnp.expm1(-back) * (1 + total))
    return StepWeights(
        scale=jnp.exp(back) * moved * limit,
        cut=cut,
        stay=(jnp.exp(back) - redrawn * limit) * (jnp.exp(-delta) + moved * limit),
    )

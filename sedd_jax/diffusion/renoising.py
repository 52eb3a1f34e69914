"""Steps that go too far, then forward noise back to the grid: every remasking sampler in one form.

A Tweedie step from t ends at less noise than that of the next time, `reach` <= sigma(t_next), and
the forward process adds what is missing. Noise is added exactly, so that where the step is exact
the result has the distribution at t_next; and a token that an earlier step has drawn wrongly can be
drawn again. The price is the error of a longer step. A step makes one network evaluation.

Under the absorbing graph a token is masked again with probability r = 1 - exp(reach -
sigma(t_next)), and a mask leaves with probability (alpha_next - (1 - r) alpha) / (1 - alpha), where
alpha = exp(-sigma): this is the posterior of ReMDM. The Psi posterior, kappa times the reverse step
plus 1 - kappa times noised clean tokens, is a step whose reach is drawn for each position: 0 with
probability 1 - kappa, else sigma(t_next).

References:
  Wang et al., Remasking Discrete Diffusion Models with Inference-Time Scaling, 2025 (arXiv
    2503.00307): ReMDM;
  Deschenaux et al., The Diffusion Duality, Chapter II: Psi-Samplers and Efficient Curriculum, 2026
    (arXiv 2602.21185);
  Campbell et al., A Continuous Time Framework for Discrete Denoising Models, 2022 (arXiv
    2205.14987): forward-backward correctors;
  that they are one form is ours.
"""

import abc
import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from sedd_jax.diffusion import categorical
from sedd_jax.diffusion.denoiser import cut_off_mask, tweedie_weights
from sedd_jax.diffusion.graph import Graph
from sedd_jax.diffusion.noise import Noise
from sedd_jax.diffusion.sampler import Move, Process, SamplerInfo, SamplerState, advance
from sedd_jax.diffusion.score import StepWeights
from sedd_jax.diffusion.tweedie import Tweedie
from sedd_jax.errors import BadInput


@dataclasses.dataclass(frozen=True)
class Renoising(Tweedie):
    """A step to less noise than that of the next time, then forward noise.

    Attributes:
      far: share of the positions whose step goes to `reach`; that of others to sigma(t_next).
    """

    weighs_held_tokens = False

    @property
    def far(self) -> float:
        return 1.0

    @abc.abstractmethod
    def reach(
        self, noise: Noise, t: Float[Array, ""], t_next: Float[Array, ""]
    ) -> Float[Array, ""]:
        """Returns the total noise to step to, at most sigma(t_next).

        Args:
          noise: the schedule.
          t: time of x_t.
          t_next: time of the next tokens, at most t.
        """

    def step(
        self, keys: Key[Array, "B"], process: Process, state: SamplerState
    ) -> tuple[SamplerState, SamplerInfo]:
        far_keys, draw_keys, noise_keys = jax.vmap(lambda key: jax.random.split(key, 3), 0, 1)(keys)
        far = jnp.ones(state.xt.shape, bool)
        if self.far < 1:
            draw = functools.partial(categorical.uniform_by_position, shape=state.xt.shape[1:])
            far = jax.vmap(draw)(far_keys) < self.far
        move, added = self.far_move(process, state.xt, state.step, far)
        drawn, info = advance(draw_keys, process, state, move)
        noise = jax.vmap(functools.partial(add_noise, process.graph))
        xt = process.clamp(noise(noise_keys, drawn.xt, added))
        return drawn._replace(xt=xt), info._replace(changed=jnp.sum(xt != state.xt, axis=-1))

    def far_move(
        self,
        process: Process,
        xt: Int[Array, "B L"],
        step: Int[Array, ""],
        far: Bool[Array, "B L"],
    ) -> tuple[Move, Float[Array, "B L"]]:
        """Returns what a step evaluates and draws, and the total noise to add after it.

        Args:
          process: the reverse process.
          xt: noised tokens.
          step: number of the step, from 0.
          far: positions that step to `reach`; others step to the next time.
        """
        times = self.times(process, self.num_steps(process.steps))
        t, t_next = times[step], times[step + 1]
        sigma, sigma_next = (process.noise.sigma(time) for time in (t, t_next))
        reach = jnp.where(far, self.reach(process.noise, t, t_next), sigma_next)

        def weights(total):
            return step_weights(process.graph, xt, total, sigma, reach)

        move = Move(xt, jnp.full(len(xt), sigma), process.changeable(xt), weights)
        return move, sigma_next - reach


def step_weights(
    graph: Graph,
    xt: Int[Array, "B L"],
    total: Float[Array, "B L"],
    sigma: Float[Array, ""],
    reach: Float[Array, "B L"],
) -> StepWeights:
    """Returns the Tweedie weights of a step whose end differs by position; no masks at reach 0.

    Args:
      graph: the token graph.
      xt: noised tokens.
      total: sum of the ratios over y != x_t.
      sigma: total noise of x_t.
      reach: total noise to step to.
    """
    weights = tweedie_weights(graph, xt, total, sigma - reach)
    leaves = (reach == 0) & (xt >= graph.num_tokens)
    stay = jnp.where(leaves, 0, weights.stay)
    return weights._replace(stay=stay, cut=cut_off_mask(weights.cut, reach == 0))


def add_noise(
    graph: Graph, key: Key[Array, ""], x: Int[Array, "L"], sigma: Float[Array, "L"]
) -> Int[Array, "L"]:
    """Draws the tokens after more noise, as `Graph.sample_transition` does, for rows of any width.

    Which tokens of a row move does not depend on its padding.

    Args:
      graph: the token graph.
      key: random key, used once.
      x: tokens.
      sigma: total noise to add, by position.
    """
    move_key, limit_key = jax.random.split(key)
    moves = categorical.uniform_by_position(move_key, x.shape) < -jnp.expm1(-sigma)
    return jnp.where(moves, graph.sample_limit(limit_key, x.shape), x)


@dataclasses.dataclass(frozen=True)
class ForwardBackward(Renoising):
    """Forward-backward corrections within every step, on every graph.

    A step goes too far by a fixed share of its length in time. So the noise that is added in all
    stays the same for any number of steps, and the error falls as 1 / steps: in the limit the
    forward and the backward rates leave p_t as it is (Campbell et al. 2022, Proposition 4).

    Attributes:
      churn: how much too far, in lengths of the step.
    """

    churn: float = 0.5

    def __post_init__(self):
        super().__post_init__()
        _check(churn=(self.churn, 0, float("inf")))

    def reach(
        self, noise: Noise, t: Float[Array, ""], t_next: Float[Array, ""]
    ) -> Float[Array, ""]:
        return noise.sigma(jnp.maximum(t_next - self.churn * (t - t_next), 0))


@dataclasses.dataclass(frozen=True)
class Psi(Renoising):
    """The Psi-sampler with a constant kappa, on every graph (Deschenaux et al. 2026).

    Every step a position is denoised and noised again with probability 1 - kappa. The mixture has
    the right marginals for the clean row that the network predicts. Positions of the row are drawn
    independently, and 1 - kappa is a share of every step: with true scores this error falls about
    as 1 / sqrt(steps), where that of Tweedie falls as 1 / steps.

    Attributes:
      kappa: the share of the reverse step; 1 for Tweedie steps.
    """

    kappa: float = 0.98

    def __post_init__(self):
        super().__post_init__()
        _check(kappa=(self.kappa, 0, 1))

    @property
    def far(self) -> float:
        return 1 - self.kappa

    def reach(
        self, noise: Noise, t: Float[Array, ""], t_next: Float[Array, ""]
    ) -> Float[Array, ""]:
        return jnp.zeros_like(t)


class _Remasking(Renoising):
    """ReMDM: tokens are masked again with a probability that a schedule gives.

    The posterior has the right marginals for the clean row that the network predicts. Masked
    positions are drawn independently, and a share of all tokens is masked in every step: with true
    scores this error falls about as 1 / sqrt(steps), where that of Tweedie falls as 1 / steps. A
    probability above 1 - alpha_next, for which the step would go past the clean tokens, counts as
    1 - alpha_next.
    """

    needs = "the absorbing graph, whose positions can be masked again"

    def serves(self, graph: Graph) -> bool:
        return graph.absorbs

    def reach(
        self, noise: Noise, t: Float[Array, ""], t_next: Float[Array, ""]
    ) -> Float[Array, ""]:
        sigma, sigma_next = noise.sigma(t), noise.sigma(t_next)
        largest = jnp.minimum(-jnp.expm1(-sigma_next) * jnp.exp(sigma), 1)
        prob = self.remasked(t, t_next, largest)
        return jnp.maximum(sigma_next + jnp.log1p(-prob), 0)

    @abc.abstractmethod
    def remasked(
        self, t: Float[Array, ""], t_next: Float[Array, ""], largest: Float[Array, ""]
    ) -> Float[Array, ""]:
        """Returns the probability that a token is masked again.

        Args:
          t: time of x_t.
          t_next: time of the next tokens.
          largest: min(1, (1 - alpha_next) / alpha), for which the posterior exists.
        """


@dataclasses.dataclass(frozen=True)
class RemdmCap(_Remasking):
    """ReMDM-cap (Wang et al. 2025, Section 4.1): a constant probability, where it is possible.

    Attributes:
      eta: the probability.
    """

    eta: float = 0.02

    def __post_init__(self):
        super().__post_init__()
        _check(eta=(self.eta, 0, 1))

    def remasked(
        self, t: Float[Array, ""], t_next: Float[Array, ""], largest: Float[Array, ""]
    ) -> Float[Array, ""]:
        return jnp.minimum(self.eta, largest)


@dataclasses.dataclass(frozen=True)
class RemdmRescale(RemdmCap):
    """ReMDM-rescale (Wang et al. 2025, Section 4.1): a share of the largest probability.

    Attributes:
      eta: the share.
    """

    def remasked(
        self, t: Float[Array, ""], t_next: Float[Array, ""], largest: Float[Array, ""]
    ) -> Float[Array, ""]:
        return self.eta * largest


@dataclasses.dataclass(frozen=True)
class RemdmLoop(RemdmCap):
    """ReMDM-loop (Wang et al. 2025, Section 4.2): steps without noise, a loop at one time, steps.

    Steps of the loop do not get shorter with more of them, and so their error stays.

    Attributes:
      eta: the probability that a token is masked again in a step of the loop.
      time: of the loop; under log-linear noise about 1 - alpha_on of the paper.
      before: share of the steps before the loop.
      after: share of the steps after it.
    """

    time: float = 0.1
    before: float = 0.45
    after: float = 0.05

    def __post_init__(self):
        super().__post_init__()
        _check(
            time=(self.time, 0, 1),
            before=(self.before, 0, 1),
            after=(self.after, 0, 1 - self.before),
        )

    def times(self, process: Process, num_steps: int) -> Float[Array, "..."]:
        if num_steps == 1:
            return super().times(process, 1)
        before, after = (max(round(part * num_steps), 1) for part in (self.before, self.after))
        before, loop = min(before, num_steps - after), max(num_steps - before - after, 0)
        time = jnp.maximum(self.time, process.t_min)
        return jnp.concatenate(
            [
                jnp.linspace(1.0, time, before + 1),
                jnp.full(loop, time),
                jnp.linspace(time, process.t_min, after + 1)[1:],
            ]
        )

    def remasked(
        self, t: Float[Array, ""], t_next: Float[Array, ""], largest: Float[Array, ""]
    ) -> Float[Array, ""]:
        return jnp.where(t == t_next, jnp.minimum(self.eta, largest), 0)


def _check(**options):
    for name, (value, low, high) in options.items():
        if not low <= value <= high or value == float("inf"):
            raise BadInput(f"{name} must be in [{low:g}, {high:g}], got {value}.")

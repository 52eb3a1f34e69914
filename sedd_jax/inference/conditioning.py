"""What held positions are while the rest is sampled: clean, noised, or noised and weighed.

Under the absorbing graph a token that is held clean is what the network was trained to see at any
time: an unmasked token is a clean one. Under the uniform graph the network takes every token for a
noised one, so one that is held clean counts too little while the noise is large. There held tokens
can follow the forward process instead, backwards: from p(x_1 | x_0) by `Graph.bridge` to x_0. Each
step then sees what it was trained on, but it does not know where the path of the held tokens will
end. What is missing is made up for by weights: of several copies of a row that share one path of
the held tokens, those survive whose free text made the next tokens of the path likely.

With the exact reverse process, the free text given the whole path is the free text given its end,
since the forward process noises positions independently of each other. So with many copies and
steps the samples are Bayes' (particle smoothing, as SMCDiff of Trippe et al. 2022 for continuous
data). The copies must share the path: with a path of its own a copy would be weighed for it too.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from sedd_jax.diffusion import categorical
from sedd_jax.diffusion.graph import Graph
from sedd_jax.diffusion.noise import Noise
from sedd_jax.diffusion.reverse import Clamp, Kernel, SamplerInfo, SamplerState

KernelsOf = Callable[..., tuple[Kernel, Kernel]]  # (clamp, weighed=None), see `build_kernels`


class HeldPath(NamedTuple):
    """The tokens of held positions, from noise to clean.

    Attributes:
      graph: the token graph.
      noise: the schedule.
      times: of the steps.
      clamp: what is held in the end, and all the time in the padding.
      given: the positions that are noised on the way.
    """

    graph: Graph
    noise: Noise
    times: Float[Array, "T"]
    clamp: Clamp
    given: Bool[Array, "B L"]

    def start(self, keys: Key[Array, "B"], xt: Int[Array, "B L"]) -> Int[Array, "B L"]:
        """Returns x_t with held tokens noised to the first time."""
        sigma = self.noise.sigma(self.times[0])
        noised = jax.vmap(self.graph.sample_transition, (0, 0, None))(
            keys, self.clamp.tokens, sigma
        )
        return jnp.where(self.given, noised, self.clamp(xt))

    def after(self, keys: Key[Array, "B"], xt: Int[Array, "B L"], step: Int[Array, ""]) -> Clamp:
        """Returns what is held after the step from x_t."""
        sigma, sigma_next = (self.noise.sigma(self.times[step + i]) for i in (0, 1))
        bridge = jax.vmap(self.graph.sample_bridge, (0, 0, 0, None, None))
        noised = bridge(keys, xt, self.clamp.tokens, sigma, sigma_next)
        return self.clamp._replace(tokens=jnp.where(self.given, noised, self.clamp.tokens))


def condition(
    conditioning: str,
    kernels_of: KernelsOf,
    path: HeldPath,
    particles: int,
    keys: Key[Array, "B"],
    xt: Int[Array, "B L"],
) -> tuple[Any, Kernel, Kernel]:
    """Returns the first state, and the kernels of a reverse step and of the final one.

    Args:
      conditioning: what held tokens are on the way.
      kernels_of: gives kernels for what is held, see `build_kernels`.
      path: of the held tokens.
      particles: copies of every row.
      keys: one for each row, used once.
      xt: noise to start from.
    """
    step = jnp.zeros((), jnp.int32)
    if conditioning == "clamp":
        return SamplerState(path.clamp(xt), step), *kernels_of(path.clamp)
    xt = path.start(keys, xt)
    if conditioning == "renoise":
        return SamplerState(xt, step), *renoised_kernels(kernels_of, path)
    copies = jnp.repeat(xt[:, None], particles, axis=1)
    log_weight = jnp.zeros(copies.shape[:2], jnp.float32)
    state = ParticleState(xt, step, copies, log_weight)
    return state, *resampled_kernels(kernels_of, path, particles)


def renoised_kernels(kernels_of: KernelsOf, path: HeldPath) -> tuple[Kernel, Kernel]:
    """Returns the kernels of a reverse step and of the final one, with held tokens on their path.

    They start from `path.start`, and after the final step the held tokens are clean.
    """
    _, denoise_step = kernels_of(path.clamp)

    def reverse_step(keys, state):
        path_keys, step_keys = _split(keys, 2)
        kernel, _ = kernels_of(path.after(path_keys, state.xt, state.step))
        return kernel(step_keys, state)

    return reverse_step, denoise_step


class ParticleState(NamedTuple):
    """State of the sampler of several copies of every row.

    Attributes:
      xt: the first copy, which resampling may replace by another; the one drawn, in the end.
      step: how many steps are done.
      copies: all copies; held positions are the same in all.
      log_weight: of the copies.
    """

    xt: Int[Array, "B L"]
    step: Int[Array, ""]
    copies: Int[Array, "B K L"]
    log_weight: Float[Array, "B K"]


ParticleKernel = Callable[[Key[Array, "B"], ParticleState], tuple[ParticleState, SamplerInfo]]


def resampled_kernels(
    kernels_of: KernelsOf, path: HeldPath, particles: int
) -> tuple[ParticleKernel, ParticleKernel]:
    """Returns the kernels of a reverse step and of the final one, for copies of every row.

    After every step copies are weighed by the probability of what is held next, and drawn anew by
    weight where these are worth less than half as many of equal weight. The final step draws one.

    Args:
      kernels_of: of K B rows, the copies of a row one after another.
      path: of the held tokens of the B rows.
      particles: K.
    """

    def per_copy(x):
        return jnp.repeat(x, particles, axis=0)

    def advance(keys, state, clamp, which):
        held = jax.tree.map(per_copy, clamp)
        kernel = kernels_of(held, weighed=per_copy(path.given))[which]
        copy_keys = _split(keys, particles).T.reshape(-1)
        rows, _, length = state.copies.shape
        flat, info = kernel(copy_keys, SamplerState(state.copies.reshape(-1, length), state.step))
        of_rows = jax.tree.map(lambda x: x.reshape(rows, particles), info)
        log_weight = state.log_weight + of_rows.log_prob
        return flat.xt.reshape(state.copies.shape), log_weight, of_rows

    def finished(state, copies, log_weight, xt, info):
        first = jax.tree.map(lambda x: x[:, 0], info)._replace(log_prob=None)
        return ParticleState(xt, state.step + 1, copies, log_weight), first._replace(
            changed=jnp.sum(xt != state.xt, axis=-1), finite=jnp.all(info.finite, axis=-1)
        )

    def reverse_step(keys, state):
        path_keys, step_keys, choice_keys = _split(keys, 3)
        clamp = path.after(path_keys, state.xt, state.step)
        copies, log_weight, info = advance(step_keys, state, clamp, 0)
        weights = jax.nn.softmax(log_weight, axis=-1)
        poor = jnp.sum(weights**2, axis=-1, keepdims=True) * particles > 2
        chosen = jax.vmap(systematic)(choice_keys, weights)
        chosen = jnp.where(poor, chosen, jnp.arange(particles)[None])
        copies = jnp.take_along_axis(copies, chosen[..., None], axis=1)
        return finished(state, copies, jnp.where(poor, 0, log_weight), copies[:, 0], info)

    def denoise_step(keys, state):
        step_keys, choice_keys = _split(keys, 2)
        copies, log_weight, info = advance(step_keys, state, path.clamp, 1)
        weights = jax.nn.softmax(log_weight, axis=-1)
        chosen = jax.vmap(categorical.categorical)(choice_keys, weights)
        xt = jnp.take_along_axis(copies, chosen[:, None, None], axis=1)[:, 0]
        return finished(state, copies, log_weight, xt, info)

    return reverse_step, denoise_step


def systematic(key: Key[Array, ""], weights: Float[Array, "K"]) -> Int[Array, "K"]:
    """Draws K indices of which i comes K weights[i] times on average, rounded up or down.

    Args:
      key: random key, used once.
      weights: non-negative, of sum 1.
    """
    count = len(weights)
    marks = (jnp.arange(count) + categorical.uniform(key, ())) / count
    chosen = jnp.searchsorted(jnp.cumsum(weights), marks, side="right")
    return jnp.minimum(chosen, count - 1).astype(jnp.int32)


def _split(keys, count):
    return jax.vmap(lambda key: jax.random.split(key, count), out_axes=1)(keys)

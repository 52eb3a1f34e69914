"""What held positions are while the rest is sampled: clean, noised, or clean and weighed.

Under the absorbing graph a held token is what the network was trained to see at any time: a token
that is not masked is a clean one. So clamping is exact. Under the uniform graph the network takes
every token for a noised one, and one that is held clean counts too little while the noise is large.

Noised like the rest, from p(x_1 | x_0) by `Graph.bridge` to x_0, held tokens are what the network
was trained on; but a step then sees only what the noise has left of them, and what it misses comes
too late for the text that is settled. That makes it worse, not better, on spaces where the laws
can be written down (docs/sampling.md): it is here to be compared.

What is missing are weights. With the exact reverse process, the free text given the whole path of
the held tokens is the free text given its end, since the forward process noises positions
independently of each other. This holds for any one path, of which the constant one says the most.
So of several copies of a row, held clean, those survive whose free text makes it probable that the
held tokens stay; with many copies and steps what is drawn is Bayes'. (Particle smoothing with one
path for all copies, as SMCDiff of Trippe et al., 2022, has it for continuous data. Copies with
paths of their own would be weighed for these as well.) Many copies with few steps are not Bayes':
their law is `enumeration.law.sampler_law(conditioning="resample")`. With nothing held all copies
weigh the same: their cost is K times that of one, for nothing.
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
    if conditioning == "renoise":
        return SamplerState(path.start(keys, xt), step), *renoised_kernels(kernels_of, path)
    copies = jnp.repeat(path.clamp(xt)[:, None], particles, axis=1)
    state = ParticleState(copies[:, 0], step, copies, jnp.zeros(copies.shape[:2], jnp.float32))
    return state, *resampled_kernels(kernels_of, path.clamp, path.given, particles)


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
      copies: all copies.
      log_weight: of the copies.
    """

    xt: Int[Array, "B L"]
    step: Int[Array, ""]
    copies: Int[Array, "B K L"]
    log_weight: Float[Array, "B K"]


ParticleKernel = Callable[[Key[Array, "B"], ParticleState], tuple[ParticleState, SamplerInfo]]


def resampled_kernels(
    kernels_of: KernelsOf, clamp: Clamp, given: Bool[Array, "B L"], particles: int
) -> tuple[ParticleKernel, ParticleKernel]:
    """Returns the kernels of a reverse step and of the final one, for copies of every row.

    After every step copies are weighed by the probability of what is held, and drawn anew by weight
    where these are worth less than half as many of equal weight. The final step draws one.

    Copies are weighed by the model's law even where tokens are drawn more sharply. What changed in
    a row counts against the copy shown before, so that a swap of copies counts too.

    Args:
      kernels_of: of K B rows, the copies of a row one after another.
      clamp: the positions to hold in the B rows.
      given: those of them that are text.
      particles: K.
    """

    def per_copy(x):
        return jnp.repeat(x, particles, axis=0)

    held = jax.tree.map(per_copy, clamp)
    kernels = kernels_of(held, weighed=per_copy(given))

    def advance(kernel, keys, state):
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
        step_keys, choice_keys = _split(keys, 2)
        copies, log_weight, info = advance(kernels[0], step_keys, state)
        weights = jax.nn.softmax(log_weight, axis=-1)
        poor = jnp.sum(weights**2, axis=-1, keepdims=True) * particles > 2
        chosen = jax.vmap(systematic)(choice_keys, weights)
        chosen = jnp.where(poor, chosen, jnp.arange(particles)[None])
        copies = jnp.take_along_axis(copies, chosen[..., None], axis=1)
        return finished(state, copies, jnp.where(poor, 0, log_weight), copies[:, 0], info)

    def denoise_step(keys, state):
        step_keys, choice_keys = _split(keys, 2)
        copies, log_weight, info = advance(kernels[1], step_keys, state)
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
    shares = jnp.cumsum(weights)
    return jnp.searchsorted(shares / shares[-1], marks, side="right").astype(jnp.int32)


def _split(keys, count):
    return jax.vmap(lambda key: jax.random.split(key, count), out_axes=1)(keys)

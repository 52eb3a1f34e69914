"""How given tokens are held while the rest is sampled: clean, or clean in weighted copies.

Under the absorbing graph a held token is what the network was trained to see at any time: a token
that is not masked is a clean one. So clamping is exact. Under the uniform graph the network takes
every token for a noised one, and a token that is held clean counts too little while the noise is
large.

Importance weights correct this. With the exact reverse process, the distribution of the free text
given the whole path of the held tokens depends on the end of the path alone, since the forward
process noises positions independently of each other. This holds for any one path, and the constant
one is the most informative. So several copies of a row are held clean, and those survive whose
free text makes it probable that the held tokens stay; with many copies and steps the samples follow
Bayes' rule. (Particle smoothing with one path for all copies, as SMCDiff does for continuous data.
Copies with different paths would need weights for these as well.) Many copies with few steps do not
follow Bayes' rule: `verification.exact` computes their distribution. With nothing held all copies
have the same weight, and cost K times as much as one for no gain.

References:
  Trippe et al., Diffusion probabilistic modeling of protein backbones in 3D for the
  motif-scaffolding problem, 2022 (arXiv 2206.04119): SMCDiff.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from sedd_jax.diffusion import categorical
from sedd_jax.diffusion.sampler import Process, Sampler, SamplerInfo, SamplerState


class ParticleState(NamedTuple):
    """State of a sampler of several copies of every row.

    Attributes:
      xt: the first copy, which resampling may replace; after the final step the copy drawn.
      step: number of steps done.
      copies: all K copies.
      log_weight: log importance weight of each copy.
    """

    xt: Int[Array, "B L"]
    step: Int[Array, ""]
    copies: Int[Array, "B K L"]
    log_weight: Float[Array, "B K"]


class Resampled(Sampler):
    """A sampler of K copies of every row, weighted by the probability of the held tokens.

    After every step copies are resampled by weight where their effective number is less than K / 2.
    The final step draws one. `process.log_prob_at` are the held positions; `process.score_fn`
    takes K B rows, the copies of a row one after another.

    The weights follow the model's distribution even where tokens are drawn with a filter. `changed`
    compares with the first copy before the step, so a swap of copies counts too.
    """

    def __init__(self, sampler: Sampler, particles: int):
        """Wraps `sampler`, with `particles` = K copies."""
        self._sampler, self._particles = sampler, particles
        self.default_steps = sampler.default_steps

    def max_nfe(self, steps: int | None, length: int) -> int:
        return self._sampler.max_nfe(steps, length)

    def init(self, keys: Key[Array, "B"], process: Process, xt: Int[Array, "B L"]) -> ParticleState:
        copies = jnp.repeat(process.clamp(xt)[:, None], self._particles, axis=1)
        log_weight = jnp.zeros(copies.shape[:2], jnp.float32)
        return ParticleState(copies[:, 0], jnp.zeros((), jnp.int32), copies, log_weight)

    def step(
        self, keys: Key[Array, "B"], process: Process, state: ParticleState
    ) -> tuple[ParticleState, SamplerInfo]:
        step_keys, choice_keys = _split(keys, 2)
        copies, log_weight, info = self._advance(self._sampler.step, step_keys, process, state)
        weights = jax.nn.softmax(log_weight, axis=-1)
        degenerate = jnp.sum(weights**2, axis=-1, keepdims=True) * self._particles > 2
        chosen = jax.vmap(systematic)(choice_keys, weights)
        chosen = jnp.where(degenerate, chosen, jnp.arange(self._particles)[None])
        copies = jnp.take_along_axis(copies, chosen[..., None], axis=1)
        return _result(state, copies, jnp.where(degenerate, 0, log_weight), copies[:, 0], info)

    def final(
        self, keys: Key[Array, "B"], process: Process, state: ParticleState
    ) -> tuple[ParticleState, SamplerInfo]:
        step_keys, choice_keys = _split(keys, 2)
        copies, log_weight, info = self._advance(self._sampler.final, step_keys, process, state)
        weights = jax.nn.softmax(log_weight, axis=-1)
        chosen = jax.vmap(categorical.categorical)(choice_keys, weights)
        xt = jnp.take_along_axis(copies, chosen[:, None, None], axis=1)[:, 0]
        return _result(state, copies, log_weight, xt, info)

    def _advance(self, kernel: Callable[..., Any], keys, process, state):
        """The copies after a step, their log-weights, and what the step did, [B, K]."""

        def per_copy(x):
            return jnp.repeat(x, self._particles, axis=0)

        copy_keys = _split(keys, self._particles).T.reshape(-1)
        rows, _, length = state.copies.shape
        of_copies = process._replace(
            clamp=jax.tree.map(per_copy, process.clamp), log_prob_at=per_copy(process.log_prob_at)
        )
        flat, info = kernel(
            copy_keys, of_copies, SamplerState(state.copies.reshape(-1, length), state.step)
        )
        info = jax.tree.map(lambda x: x.reshape(rows, self._particles), info)
        return flat.xt.reshape(state.copies.shape), state.log_weight + info.log_prob, info


def _result(state, copies, log_weight, xt, info):
    first = jax.tree.map(lambda x: x[:, 0], info)._replace(log_prob=None)
    return ParticleState(xt, state.step + 1, copies, log_weight), first._replace(
        changed=jnp.sum(xt != state.xt, axis=-1), finite=jnp.all(info.finite, axis=-1)
    )


def systematic(key: Key[Array, ""], weights: Float[Array, "K"]) -> Int[Array, "K"]:
    """Draws K indices; i occurs K weights[i] times on average, each time rounded up or down.

    Args:
      key: random key, used once.
      weights: non-negative, of sum 1.
    """
    count = len(weights)
    marks = (jnp.arange(count) + categorical.uniform(key, ())) / count
    marks = jnp.minimum(marks, categorical.BELOW_ONE)  # K - 1 + u can round to K
    shares = jnp.cumsum(weights)
    return jnp.searchsorted(shares / shares[-1], marks, side="right").astype(jnp.int32)


def _split(keys, count):
    return jax.vmap(lambda key: jax.random.split(key, count), out_axes=1)(keys)

"""PLAID, the Gaussian diffusion baseline: embeddings are noised, not tokens.

References:
  Gulrajani and Hashimoto, Likelihood-Based Diffusion Language Models, 2023 (arXiv 2305.18619).
"""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from sedd_jax.diffusion import gaussian
from sedd_jax.diffusion.padding import zero_padding
from sedd_jax.diffusion.sampler import Sampler
from sedd_jax.diffusion.times import sample_quantiles
from sedd_jax.errors import BadInput, check_positive
from sedd_jax.experiment.build import network_config
from sedd_jax.experiment.config import Config, TrainConfig
from sedd_jax.inference.batches import RowKeys
from sedd_jax.inference.family import (
    BatchLoss,
    DrawnTimes,
    RowLoss,
    draw_quantiles,
    sampling_settings,
)
from sedd_jax.inference.generator import Diagnostics, Generator
from sedd_jax.inference.prompt import Prompt
from sedd_jax.inference.sampling import MAX_STEPS
from sedd_jax.model.config import ModelConfig
from sedd_jax.model.gaussian import GaussianModel, NoiseLevels
from sedd_jax.model.score_model import Params, network_flops
from sedd_jax.model.sharding import ANYWHERE, Placement


class NoiseDraw(NamedTuple):
    """The random inputs of the bound.

    Attributes:
      t: times in [0, 1].
      eps: standard normal noise of z at these times.
      first: that of z at t = 0.
    """

    t: Float[Array, "B"]
    eps: Float[Array, "B L E"]
    first: Float[Array, "B L E"]


@dataclasses.dataclass(frozen=True)
class GaussianSampling:
    """How a Gaussian diffusion model draws.

    Attributes:
      steps: network evaluations, evenly spaced in t from 1 to 0; 128 if not given.
    """

    steps: int | None = None

    def __post_init__(self):
        if self.steps is None:
            object.__setattr__(self, "steps", Sampler.default_steps)

    def check(self) -> None:
        """Raises BadInput for a number of steps that is out of range."""
        check_positive(steps=self.steps)
        if self.steps > MAX_STEPS:
            raise BadInput(f"steps must be at most {MAX_STEPS:,}, got {self.steps:,}.")


class Gaussian(NamedTuple):
    """A Gaussian diffusion model, as a `Family`.

    Time runs over all of [0, 1]: what `t_min` does elsewhere the learned gamma at t = 0 does here.
    Tokens cannot be given: replacing their z by noised ones at every step does not draw from the
    model's conditional distribution, with any number of steps; the published code guides instead.
    """

    num_tokens: int
    model: GaussianModel

    exact_likelihood = False
    complete_bound = True
    infills = False

    @property
    def num_states(self) -> int:
        return self.num_tokens

    @property
    def max_length(self) -> int | None:
        return self.model.max_length

    @property
    def summary(self) -> str:
        return f"{self.num_tokens} tokens (Gaussian diffusion in {self.model.embed_dim} dimensions)"

    def objective(self, config: TrainConfig) -> BatchLoss:
        def draw(time_key, noise_key, x0):
            t = sample_quantiles(time_key, x0.shape[0], config.low_discrepancy)
            eps, first = jax.random.normal(noise_key, (2, *x0.shape, self.model.embed_dim))
            return NoiseDraw(t, eps, first)

        def loss(params, noise, x0, key):
            return sequence_bound(self.model, params, noise, x0, key=key).mean()

        return BatchLoss(draw, loss)

    def row_loss(self, t_min: float, times: str) -> RowLoss:
        dimensions = self.model.embed_dim

        def draw_row(key, length):
            # a row's noise does not depend on its padding: the position is the leading axis
            return jnp.moveaxis(jax.random.normal(key, (length, 2, dimensions)), 1, 0)

        def loss(params, keys, quantiles, x0, lengths=None):
            eps, first = jnp.moveaxis(jax.vmap(draw_row, (0, None))(keys, x0.shape[1]), 1, 0)
            noise = NoiseDraw(quantiles, eps, first)
            return sequence_bound(self.model, params, noise, x0, lengths=lengths)

        return loss

    def control(self, t_min: float) -> None:
        return None

    def reconstruction_loss(self, t_min: float) -> RowLoss:
        raise TypeError("The bound has this term already.")

    def draw_times(
        self, key: Key[Array, ""], times: str, t_min: float, draws: int, rows: int
    ) -> DrawnTimes:
        quantiles, weights = draw_quantiles(key, times, draws, rows)
        return DrawnTimes(quantiles, quantiles, weights)

    def prior_nll(self) -> float:
        raise TypeError("The bound has this term already.")

    def sampling(self, **settings: Any) -> GaussianSampling:
        sampling = sampling_settings(GaussianSampling, "Gaussian diffusion", settings)
        sampling.check()
        return sampling

    def generator(
        self, sampling: GaussianSampling, *, t_min: float, trace: bool = False
    ) -> Generator:
        return build_generator(self.model, sampling.steps)

    def check_prompt(self, prompt: Prompt) -> None:
        if jax.tree.map(jnp.asarray, prompt).given.any():
            raise BadInput(
                "A Gaussian diffusion model cannot hold tokens: sample without a prompt, or use "
                "another checkpoint for that."
            )

    def max_nfe(self, sampling: GaussianSampling, length: int) -> int:
        return sampling.steps

    def training_share(self, config: TrainConfig) -> float:
        return 1.0

    def forward_flops(self, config: ModelConfig, share: float = 1.0) -> float:
        dimensions = self.model.embed_dim
        # projection to the hidden size; evidence and mean of the embeddings; evidence at t = 0
        own = config.hidden_size + (2 * share + 1) * self.num_states
        of_network = network_flops(config, self.num_states, share)
        return 2 * config.length * dimensions * own + of_network


def build_gaussian(config: Config, vocab_size: int, placement: Placement = ANYWHERE) -> Gaussian:
    """Builds the baseline.

    Args:
      config: the settings.
      vocab_size: tokens of the tokenizer.
      placement: how activations are sharded over the devices.
    """
    network, own = network_config(config.model, vocab_size, placement), config.gaussian
    gamma = own.gamma_first, own.gamma_last
    return Gaussian(vocab_size, GaussianModel(network, own.embed_dim, gamma, placement))


def sequence_bound(
    model: GaussianModel,
    params: Params,
    noise: NoiseDraw,
    x0: Int[Array, "B L"],
    *,
    key: Key[Array, ""] | None = None,
    lengths: Int[Array, "B"] | None = None,
) -> Float[Array, "B"]:
    """Returns all terms of the bound at one time of every row, nats per sequence.

    Its mean over t and the noise is the bound (see `diffusion.gaussian`), and so is that of its
    gradient, but for the shape of the schedule, which does not change the bound: that is the
    gradient of the square of the diffusion term, in units of twice the nats of a uniform guess: the
    gradients of the two are clipped together.

    Args:
      model: the network and the schedule.
      params: their parameters.
      noise: times and noise.
      x0: the tokens.
      key: of dropout, None for none.
      lengths: of the rows, None for full rows.
    """
    unit = 2 * x0.shape[1] * math.log(model.config.num_states)

    def diffusion_term(params, levels, data):
        eps, x0, key, lengths = data
        first, last = model.ends(params)
        gamma, rate = first + (last - first) * levels.level, (last - first) * levels.rate
        x = model.table(params)[x0]
        x_hat = model.denoised(params, gaussian.noised(x, gamma, eps), gamma, key, lengths)
        loss = gaussian.diffusion_loss(x, x_hat, gamma, rate)
        return zero_padding(loss, lengths).sum(-1) / unit

    data = noise.eps, x0, key, lengths
    levels = NoiseLevels(*model.levels(params, noise.t))
    diffusion = unit * gaussian.by_variance(diffusion_term, params, levels, data)

    first, last = model.ends(params)
    gamma = jnp.broadcast_to(first, x0.shape[:1])
    z = gaussian.noised(model.table(params)[x0], gamma, noise.first)
    prior = gaussian.prior_kl(last, model.embed_dim)
    ends = model.token_nll(params, z, gamma, x0) + prior[None, None]
    return diffusion + zero_padding(ends, lengths).sum(-1)


def build_generator(model: GaussianModel, steps: int) -> Generator:
    """Returns generate(params, keys, prompt) -> (tokens, diagnostics), one program when jitted.

    Every step draws z_s given z_t as if the network's mean of the embeddings were the embeddings;
    at t = 0 the tokens are drawn given z (Kingma et al. 2021, Appendix A.4).

    Args:
      model: the network and the schedule.
      steps: network evaluations.
    """

    def generator(params, keys, prompt):
        batch, length = prompt.tokens.shape
        row_keys = RowKeys.split(keys)
        first, last = model.ends(params)
        times = jnp.linspace(1.0, 0.0, steps + 1)
        gammas = first + (last - first) * model.levels(params, times).level

        def normal(keys):
            return jax.vmap(lambda key: jax.random.normal(key, (length, model.embed_dim)))(keys)

        def step(state, numbered):
            z, finite = state
            index, now, then = numbered
            gamma = jnp.broadcast_to(now, batch)
            x_hat = model.denoised(params, z, gamma, lengths=prompt.lengths)
            step_keys = jax.vmap(jax.random.fold_in, (0, None))(row_keys.steps, index)
            z = gaussian.posterior_step(z, x_hat, (now, then), normal(step_keys))
            real = zero_padding(~jnp.isfinite(x_hat).all(-1), prompt.lengths)
            return (z, finite & ~real.any(-1)), None

        start = normal(row_keys.limit), jnp.ones(batch, bool)
        numbered = jnp.arange(steps), gammas[:-1], gammas[1:]
        (z, finite), _ = jax.lax.scan(step, start, numbered)
        tokens = model.draw(params, row_keys.times, z, jnp.broadcast_to(first, batch))
        tokens = zero_padding(tokens, prompt.lengths)
        changed = zero_padding(jnp.ones_like(tokens), prompt.lengths).sum(-1)[None]
        return tokens, Diagnostics(jnp.full(batch, steps), changed, finite, None)

    return generator

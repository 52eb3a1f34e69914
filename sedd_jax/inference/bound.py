"""The bound on the negative log-likelihood (Theorem 3.6), by Monte Carlo over t and x_t."""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from sedd_jax.diffusion.categorical import jump_law
from sedd_jax.diffusion.score_entropy import prior_kl, score_entropy
from sedd_jax.diffusion.tweedie import denoise_probs
from sedd_jax.errors import BadInput
from sedd_jax.inference.draws import PLANS, Draws
from sedd_jax.inference.load import Checkpoint
from sedd_jax.model.score_model import Params
from sedd_jax.runtime.components import Components

Tokens = Int[Array | np.ndarray, "B L"]
SequenceLoss = Callable[[Params, Key[Array, ""], Draws, Tokens], Float[Array, "B"]]


class Bound(NamedTuple):
    """An estimate of the bound on -log p(x_0) of N sequences, nats per sequence.

    Attributes:
      nats: one unbiased draw for every sequence, [N].
      length: tokens per sequence.
    """

    nats: np.ndarray
    length: int

    @property
    def mean(self) -> float:
        """Nats per sequence."""
        return float(self.nats.mean())

    @property
    def stderr(self) -> float:
        """Standard error of `mean`, an overestimate where draws are spread evenly."""
        return float(self.nats.std(ddof=1) / np.sqrt(len(self.nats))) if len(self.nats) > 1 else 0.0

    @property
    def nats_per_token(self) -> float:
        """The bound per token."""
        return self.mean / self.length

    @property
    def perplexity(self) -> float:
        """Exp of the bound per token."""
        return float(np.exp(self.nats_per_token))


def sequence_loss(components: Components) -> SequenceLoss:
    """Returns f(params, key, draws, x0 [B, L]) -> nats [B]: the loss at one x_t per draw.

    Its mean over the draws of a plan is that of the DWDSE loss over t uniform on [t_min, 1].
    """
    graph, _, model = components

    def loss(params, key, draws, x0):
        xt = graph.sample_moved(key, x0, draws.moved)
        log_score = model.apply(params, xt, draws.sigma)
        return draws.weight * score_entropy(graph, log_score, draws.sigma, xt, x0).sum(-1)

    return loss


def reconstruction_loss(components: Components, t_min: float) -> Callable[..., Float[Array, "B"]]:
    """Returns f(params, key, x0 [B, L]) -> nats [B]: -log of the final denoising step at t_min."""
    graph, noise, model = components

    def loss(params, key, x0):
        sigma = jnp.broadcast_to(noise.sigma(t_min), x0.shape[:1])
        xt = graph.sample_transition(key, x0, sigma)
        score = jnp.exp(model.apply(params, xt, sigma))
        law = jump_law(denoise_probs(graph, xt, score, sigma))
        chosen = jnp.take_along_axis(law, x0[..., None], axis=-1)[..., 0]
        return -jnp.log(chosen).sum(-1)

    return loss


def estimate_bound(
    loss: SequenceLoss,
    components: Components,
    params: Params,
    key: Key[Array, ""],
    batches: Sequence[Tokens],
    t_min: float,
    plan: str = "importance",
) -> Bound:
    """Returns the DWDSE term of the bound, by one draw for every sequence.

    The published convention: the mean of the loss over t uniform on [t_min, 1], without the factor
    1 - t_min, the prior term of Eq. 9 and the term for t < t_min.

    Args:
      loss: a (jitted) `sequence_loss`.
      components: graph, noise and network.
      params: the weights.
      key: random key; the estimate is a function of it, the weights and the data.
      batches: token batches; those of one size share a compiled program.
      t_min: smallest time, that of training.
      plan: a key of PLANS: how noise is spread over the set.
    """
    sizes = [len(batch) for batch in batches]
    length = batches[0].shape[1]
    plan_key, noise_key = jax.random.split(key)
    rng = np.random.default_rng(np.asarray(jax.random.key_data(plan_key)))
    draws = PLANS[plan](rng, components.graph, components.noise, sum(sizes), length, t_min)
    parts = zip(*(np.split(column, np.cumsum(sizes)[:-1]) for column in draws), strict=True)
    keys = jax.random.split(noise_key, len(batches))
    nats = [
        loss(params, k, Draws(*part), batch)
        for k, part, batch in zip(keys, parts, batches, strict=True)
    ]
    return Bound(np.concatenate(jax.device_get(nats)), length)


def nll_bound(
    key: Key[Array, ""],
    checkpoint: Checkpoint,
    tokens: Int[Array | np.ndarray, "N L"],
    *,
    batch_size: int = 32,
    plan: str = "importance",
    complete: bool = False,
) -> Bound:
    """Returns the bound on the negative log-likelihood of `tokens`, with its standard error.

    One network evaluation per sequence, two if complete; call again with other keys and average
    for less noise.

    Args:
      key: random key.
      checkpoint: the model, from `sedd.load`.
      tokens: token ids.
      batch_size: sequences at a time.
      plan: how noise is drawn, see `inference/draws.py`; all are unbiased, "importance" varies
        least.
      complete: every term of the bound on what the sampler draws: the DWDSE integral over
        [t_min, 1], the prior term and the final denoising step. Else the published convention,
        the mean of the loss over [t_min, 1] alone.
    """
    if len(tokens) == 0:
        raise BadInput("nll_bound needs at least one sequence, got none.")
    num_tokens = checkpoint.graph.num_tokens
    if not 0 <= tokens.min() <= tokens.max() < num_tokens:
        raise BadInput(f"nll_bound needs ids in [0, {num_tokens}), the model's tokens.")
    if plan not in PLANS:
        raise BadInput(f"plan must be one of {', '.join(PLANS)}, got {plan!r}.")
    batches = [tokens[i : i + batch_size] for i in range(0, len(tokens), batch_size)]
    components, params = checkpoint.components, checkpoint.params
    t_min = checkpoint.config.train.t_min
    loss, reconstruction = _compiled(components, t_min)
    draw_key, final_key = jax.random.split(key)
    bound = estimate_bound(loss, components, params, draw_key, batches, t_min, plan)
    if not complete:
        return bound
    prior = bound.length * float(prior_kl(checkpoint.graph, checkpoint.noise.sigma(jnp.array(1.0))))
    keys = jax.random.split(final_key, len(batches))
    final = [reconstruction(params, k, batch) for k, batch in zip(keys, batches, strict=True)]
    final = np.concatenate(jax.device_get(final))
    return bound._replace(nats=(1 - t_min) * bound.nats + prior + final)


@functools.lru_cache(maxsize=8)
def _compiled(components, t_min):
    """The losses as programs, kept so that the next call does not compile them again."""
    return jax.jit(sequence_loss(components)), jax.jit(reconstruction_loss(components, t_min))

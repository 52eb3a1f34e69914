"""The bound on the negative log-likelihood (Theorem 3.6), by Monte Carlo over t and x_t.

Of an autoregressive model the same questions have an exact answer.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key
from numpy.typing import ArrayLike

from sedd_jax.diffusion.loss import dwdse_loss
from sedd_jax.diffusion.proposal import Proposal, guess_proposal, propose
from sedd_jax.diffusion.reverse import denoise_law
from sedd_jax.diffusion.score_entropy import prior_kl, sample_quantiles
from sedd_jax.errors import BadInput
from sedd_jax.inference.load import Checkpoint
from sedd_jax.model.score_model import Params
from sedd_jax.runtime.components import Baseline, Components

Batches = Sequence[Int[Array | np.ndarray, "_ L"]]  # the last may be smaller
SequenceLoss = Callable[..., Float[Array, "B"]]  # (params, key, unit [B], x0 [B, L]) -> nats


class Bound(NamedTuple):
    """An estimate of the bound on -log p(x_0) of N sequences, nats per sequence; or that itself.

    Attributes:
      nats: one unbiased draw for every sequence, [N]; exact for an autoregressive model.
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


def sequence_loss(components: Components, proposal: Proposal) -> SequenceLoss:
    """Returns f(params, key, unit [B], x0 [B, L]) -> nats [B]: the loss at one (t, x_t) each.

    `unit` are the quantiles of the times under the proposal. The mean over uniform quantiles is
    that of the DWDSE loss over t uniform on [t_min, 1], whatever the proposal.
    """
    graph, noise, model = components

    def loss(params, key, unit, x0):
        draw = propose(key, proposal, graph, noise, unit, x0)
        score_fn = functools.partial(model.score, params)
        return draw.weight * dwdse_loss(graph, noise, score_fn, draw.t, draw.xt, x0)

    return loss


def reconstruction_loss(components: Components, t_min: float) -> Callable[..., Float[Array, "B"]]:
    """Returns f(params, key, x0 [B, L]) -> nats [B]: -log of the final denoising step at t_min."""
    graph, noise, model = components

    def loss(params, key, x0):
        sigma = jnp.broadcast_to(noise.sigma(t_min), x0.shape[:1])
        xt = graph.sample_transition(key, x0, sigma)
        score = model.score(params, xt, sigma)
        law = functools.partial(denoise_law, graph, xt, sigma=sigma)
        return -score.log_prob(law, graph.limit[xt] > 0, x0).sum(-1)

    return loss


def estimate_bound(
    loss: SequenceLoss, params: Params, key: Key[Array, ""], batches: Batches
) -> Bound:
    """Returns the DWDSE term of the bound, by one draw for every sequence, spread evenly in time.

    The published convention: the mean of the loss over t uniform on [t_min, 1], without the factor
    1 - t_min, the prior term of Eq. 9 and the term for t < t_min.

    Args:
      loss: a (jitted) `sequence_loss`.
      params: the weights.
      key: random key; the estimate is a function of it, the weights and the data.
      batches: token batches; those of one size share a compiled program.
    """
    sizes = [len(batch) for batch in batches]
    time_key, noise_key = jax.random.split(key)
    units = np.split(np.asarray(sample_quantiles(time_key, sum(sizes))), np.cumsum(sizes)[:-1])
    keys = jax.random.split(noise_key, len(batches))
    nats = [
        loss(params, k, jnp.asarray(unit), batch)
        for k, unit, batch in zip(keys, units, batches, strict=True)
    ]
    return Bound(np.concatenate(jax.device_get(nats)), batches[0].shape[1])


def exact_nll(
    nll: Callable[[Params, Int[Array, "B L"]], Float[Array, "B"]], params: Params, batches: Batches
) -> Bound:
    """Returns -log p of every sequence under an autoregressive model.

    Args:
      nll: a (jitted) `CausalModel.nll`.
      params: the weights.
      batches: token batches; those of one size share a compiled program.
    """
    nats = [nll(params, batch) for batch in batches]
    return Bound(np.concatenate(jax.device_get(nats)), batches[0].shape[1])


def nll_bound(
    key: Key[Array, ""],
    checkpoint: Checkpoint,
    tokens: ArrayLike,
    *,
    batch_size: int = 32,
    complete: bool = False,
) -> Bound:
    """Returns the bound on the negative log-likelihood of `tokens`, with its standard error.

    One network evaluation per sequence, two if complete; call again with other keys and average
    for less noise. Of an autoregressive model it is the negative log-likelihood itself, of which
    `stderr` is how much sequences differ, not an error of the estimate.

    Args:
      key: random key; it makes no difference to an exact value.
      checkpoint: the model, from `sedd.load`.
      tokens: token ids, [N, L].
      batch_size: sequences at a time.
      complete: a true bound, on the learned reverse process in continuous time from a noised
        uniform guess: the integral of the loss over [t_min, 1], the prior term and the final
        denoising step, infinite where that step denies a token. Else the published convention,
        the mean of the loss over [t_min, 1] alone. An exact value is complete.

    Raises:
      BadInput: no such array, ids that the model does not have, or more positions than it has.
    """
    tokens = np.asarray(tokens)
    if tokens.ndim != 2 or tokens.size == 0 or not np.issubdtype(tokens.dtype, np.integer):
        raise BadInput(
            "nll_bound needs integers [N, L], at least one sequence of at least one token; got "
            f"{tokens.dtype} {list(tokens.shape)}."
        )
    components = checkpoint.components
    num_tokens = components.num_tokens
    if not 0 <= tokens.min() <= tokens.max() < num_tokens:
        raise BadInput(f"nll_bound needs ids in [0, {num_tokens}), the model's tokens.")
    model = checkpoint.config.model
    learned = model.learned_positions or isinstance(components, Baseline)
    if learned and tokens.shape[1] > model.length:
        raise BadInput(
            f"nll_bound needs sequences of at most {model.length} tokens, the positions that the "
            f"model has learned; got {tokens.shape[1]}."
        )
    batches = [tokens[i : i + batch_size] for i in range(0, len(tokens), batch_size)]
    params, t_min = checkpoint.params, checkpoint.config.train.t_min
    if isinstance(components, Baseline):
        return exact_nll(_compiled_nll(components.model), params, batches)
    loss, reconstruction = _compiled(components, t_min)
    draw_key, final_key = jax.random.split(key)
    bound = estimate_bound(loss, params, draw_key, batches)
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
    proposal = guess_proposal(components.graph, components.noise, t_min)
    return (
        jax.jit(sequence_loss(components, proposal)),
        jax.jit(reconstruction_loss(components, t_min)),
    )


@functools.lru_cache(maxsize=8)
def _compiled_nll(model):
    return jax.jit(model.nll)

"""One estimate of the bound (Theorem 3.6) for every row: the loss at a random (t, x_t)."""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from sedd_jax.diffusion.importance import Proposal, propose
from sedd_jax.diffusion.loss import dwdse_loss
from sedd_jax.diffusion.padding import zero_padding
from sedd_jax.diffusion.reverse import denoise_weights
from sedd_jax.diffusion.score_entropy import sample_quantiles
from sedd_jax.experiment.build import Components
from sedd_jax.inference.batches import row_keys
from sedd_jax.model.score_model import Params

Batches = Sequence[Int[Array | np.ndarray, "_ L"]]  # the last may be smaller
RowLoss = Callable[..., Float[Array, "B"]]  # (params, ..., x0 [B, L], lengths=None) -> nats


def sequence_loss(components: Components, proposal: Proposal) -> RowLoss:
    """Returns f(params, keys [B], unit [B], x0 [B, L], lengths=None) -> nats [B].

    The loss of every row at one (t, x_t), a function of its own key and tokens alone, whatever its
    padding. `unit` are the quantiles of the times under the proposal. The mean over uniform
    quantiles is that of the DWDSE loss over t uniform on [t_min, 1], whatever the proposal.
    """
    graph, noise, model = components

    def draw_row(key, unit, x0, length):
        rows = jax.tree.map(lambda x: x[None], (unit, x0, length))
        return jax.tree.map(lambda x: x[0], propose(key, proposal, graph, noise, *rows))

    def loss(params, keys, unit, x0, lengths=None):
        draw = jax.vmap(draw_row)(keys, unit, x0, lengths)
        score_fn = functools.partial(model.score, params, lengths=lengths)
        return draw.weight * dwdse_loss(graph, noise, score_fn, draw.t, draw.xt, x0, lengths)

    return loss


def reconstruction_loss(components: Components, t_min: float) -> RowLoss:
    """Returns f(params, keys [B], x0 [B, L], lengths=None) -> nats [B].

    -log of the final denoising step at t_min, infinite where it denies a token.
    """
    graph, noise, model = components

    def loss(params, keys, x0, lengths=None):
        sigma = jnp.broadcast_to(noise.sigma(t_min), x0.shape[:1])
        xt = jax.vmap(graph.sample_transition)(keys, x0, sigma)
        score = model.score(params, xt, sigma, lengths=lengths)
        law = functools.partial(denoise_weights, graph, xt, sigma=sigma)
        active = zero_padding(graph.limit[xt] > 0, lengths)
        return -zero_padding(score.log_prob(law, active, x0), lengths).sum(-1)

    return loss


def estimate_bound(
    loss: RowLoss, params: Params, key: Key[Array, ""], batches: Batches
) -> Float[np.ndarray, "N"]:
    """Returns the DWDSE term of the bound, nats by one draw for every sequence, spread evenly in t.

    The published convention, see `nll_bound`.

    Args:
      loss: a (jitted) `sequence_loss`.
      params: the weights.
      key: random key; the estimate is a function of it, the weights and the data.
      batches: token batches; those of one size share a compiled program.
    """
    ends = np.cumsum([len(batch) for batch in batches])
    time_key, noise_key = jax.random.split(key)
    units = np.split(np.asarray(sample_quantiles(time_key, int(ends[-1]))), ends[:-1])
    rows = np.split(np.arange(ends[-1]), ends[:-1])
    nats = [
        loss(params, row_keys(noise_key, row), unit, batch)
        for row, unit, batch in zip(rows, units, batches, strict=True)
    ]
    return np.concatenate(jax.device_get(nats))


def exact_nll(
    nll: Callable[[Params, Int[Array, "B L"]], Float[Array, "B"]], params: Params, batches: Batches
) -> Float[np.ndarray, "N"]:
    """Returns -log p of every sequence under an autoregressive model, nats.

    Args:
      nll: a (jitted) `CausalModel.nll`.
      params: the weights.
      batches: token batches; those of one size share a compiled program.
    """
    return np.concatenate(jax.device_get([nll(params, batch) for batch in batches]))

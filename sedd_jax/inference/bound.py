"""The bound on the negative log-likelihood (Theorem 3.6), by Monte Carlo over t and x_t."""

import functools
from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from sedd_jax.diffusion.score_entropy import dwdse_loss, sample_times
from sedd_jax.errors import BadInput
from sedd_jax.inference.load import Checkpoint
from sedd_jax.model.score_model import Params
from sedd_jax.runtime.components import Components

SequenceLoss = Callable[
    [Params, Key[Array, ""], Float[Array, "B"], Int[Array, "B L"]], Float[Array, "B"]
]


class Bound(NamedTuple):
    """An estimate of the mean bound over N sequences, in the convention of the published code.

    The mean of the loss over t uniform on [t_min, 1]: neither the factor 1 - t_min, nor the term
    for t < t_min, nor the prior term of Eq. 9 is included.

    Attributes:
      nats: one unbiased draw for every sequence, nats per sequence, [N].
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
        """Standard error of `mean`, an overestimate where times are of low discrepancy."""
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
    """Returns f(params, key, t [B], x0 [B, L]) -> nats [B]: one draw of x_t at the given times."""
    graph, noise, model = components

    def loss(params, key, t, x0):
        xt = graph.sample_transition(key, x0, noise.sigma(t))

        def log_score_fn(xt, sigma):
            return model.apply(params, xt, sigma)

        return dwdse_loss(graph, noise, log_score_fn, t, xt, x0)

    return loss


def estimate_bound(
    loss: SequenceLoss,
    params: Params,
    key: Key[Array, ""],
    batches: Iterable[Int[Array | np.ndarray, "_ L"]],
    t_min: float,
) -> Bound:
    """Returns the bound of all sequences, one draw each, with times spread evenly over the set.

    Args:
      loss: a (jitted) `sequence_loss`.
      params: the weights.
      key: random key; the estimate is a function of it, the weights and the data.
      batches: token batches; those of one size share a compiled program.
      t_min: smallest time, that of training.
    """
    batches = list(batches)
    sizes = [len(batch) for batch in batches]
    time_key, noise_key = jax.random.split(key)
    times = np.split(np.asarray(sample_times(time_key, sum(sizes), t_min)), np.cumsum(sizes)[:-1])
    keys = jax.random.split(noise_key, len(batches))
    draws = [
        loss(params, k, jnp.asarray(t), batch)
        for k, t, batch in zip(keys, times, batches, strict=True)
    ]
    return Bound(np.concatenate(jax.device_get(draws)), batches[0].shape[1])


def nll_bound(
    key: Key[Array, ""],
    checkpoint: Checkpoint,
    tokens: Int[Array | np.ndarray, "N L"],
    *,
    batch_size: int = 32,
) -> Bound:
    """Returns the bound on the negative log-likelihood of `tokens`, with its standard error.

    One network evaluation per sequence; call again with other keys and average for less noise.

    Args:
      key: random key.
      checkpoint: the model, from `sedd.load`.
      tokens: token ids.
      batch_size: sequences at a time.
    """
    if len(tokens) == 0:
        raise BadInput("nll_bound needs at least one sequence, got none.")
    num_tokens = checkpoint.graph.num_tokens
    if not 0 <= tokens.min() <= tokens.max() < num_tokens:
        raise BadInput(f"nll_bound needs ids in [0, {num_tokens}), the model's tokens.")
    batches = [tokens[i : i + batch_size] for i in range(0, len(tokens), batch_size)]
    loss = _compiled(checkpoint.components)
    return estimate_bound(loss, checkpoint.params, key, batches, checkpoint.config.train.t_min)


@functools.lru_cache(maxsize=8)
def _compiled(components):
    """The loss as one program, kept so that the next call does not compile it again."""
    return jax.jit(sequence_loss(components))

"""Likelihood as an interval: -log p between two bounds, of a model with the absorbing graph."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key
from numpy.typing import ArrayLike

from sedd_jax.diffusion import categorical
from sedd_jax.diffusion.any_order import lower_bound, order_log_prob, upper_bound
from sedd_jax.diffusion.padding import zero_padding
from sedd_jax.errors import BadInput, check_positive
from sedd_jax.inference.model import TrainedModel
from sedd_jax.inference.row_passes import passes_over
from sedd_jax.inference.score_based import ScoreBased
from sedd_jax.model.context import NOTHING

FEW_DRAWS = 5.0  # effective ones, below which neither bound nor its error is to be relied on


@dataclasses.dataclass(frozen=True)
class NLLInterval:
    """Bounds on either side of -log p of N sequences, from K draws of C blocks.

    -log p is that of `first_hitting(block=...)`. The mean of `low` over draws is at most it and
    that of `high` at least, for any number of draws; both become it as K grows.

    Attributes:
      log_weights: of every draw, block and sequence, float64 [K, C, N]; 0 for blocks beyond the end
        of a sequence.
      tokens: number of tokens of every sequence that were scored, [N].
      block: tokens of a block.
    """

    log_weights: np.ndarray
    tokens: np.ndarray
    block: int

    @functools.cached_property
    def low_by_row(self) -> Float[np.ndarray, "N"]:
        """The lower bound on -log p of every sequence, nats."""
        return -self._over_blocks(upper_bound)

    @functools.cached_property
    def high_by_row(self) -> Float[np.ndarray, "N"]:
        """The upper bound on -log p of every sequence, nats."""
        return -self._over_blocks(lower_bound)

    @property
    def low(self) -> float:
        """The lower bound, nats per token."""
        return self._per_token(self.low_by_row)

    @property
    def high(self) -> float:
        """The upper bound, nats per token."""
        return self._per_token(self.high_by_row)

    @functools.cached_property
    def low_stderr(self) -> float:
        """Standard error of `low` from the draws, by the jackknife; NaN with two draws."""
        return self._jackknife(upper_bound)

    @functools.cached_property
    def high_stderr(self) -> float:
        """Standard error of `high` from the draws, by the jackknife; NaN with two draws."""
        return self._jackknife(lower_bound)

    @property
    def evidence_bound(self) -> float:
        """The bound of a single draw, -E log w, nats per token: the upper bound without many draws.

        It is what the mean loss over orders gives.
        """
        return self._per_token(-self.log_weights.mean(0).sum(0))

    @property
    def effective_draws(self) -> float:
        """Of how many equal draws the sums of weights are made, the mean over blocks.

        Below `FEW_DRAWS` of them, the bounds are means that few draws decide: their expectations
        are bounds all the same, but the estimates have errors that no standard error shows.
        """
        relative = self.log_weights - self.log_weights.max(0)
        weights = np.exp(relative)[:, self._present]
        return float(np.mean(weights.sum(0) ** 2 / (weights**2).sum(0)))

    @property
    def _present(self) -> Bool[np.ndarray, "C N"]:
        """The blocks that a sequence has."""
        return np.arange(self.log_weights.shape[1])[:, None] * self.block < self.tokens

    def _over_blocks(self, bound) -> Float[np.ndarray, "N"]:
        draws, blocks, rows = self.log_weights.shape
        return bound(self.log_weights.reshape(draws, -1)).reshape(blocks, rows).sum(0)

    def _per_token(self, nats):
        return float(nats.sum() / self.tokens.sum())

    def _jackknife(self, bound):
        """The error of the sum of bounds, whose blocks and sequences are independent."""
        draws = len(self.log_weights)
        if draws < 3:
            return float("nan")
        flat = self.log_weights.reshape(draws, -1)
        without = np.stack([bound(np.delete(flat, draw, axis=0)) for draw in range(draws)])
        variance = (draws - 1) * without.var(0)
        return float(np.sqrt(variance.sum()) / self.tokens.sum())


def nll_interval(
    key: Key[Array, ""],
    model: TrainedModel,
    tokens: ArrayLike,
    *,
    lengths: ArrayLike | None = None,
    condition: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
    held: ArrayLike | None = None,
    block: int | None = None,
    draws: int = 64,
    batch_size: int = 32,
    progress: Callable[[int, int], None] | None = None,
) -> NLLInterval:
    """Returns bounds on either side of the negative log-likelihood of `tokens`.

    It is that of the distribution which `first_hitting(block=...)` draws from, see
    `diffusion.any_order`. As many network evaluations per draw as a sequence has tokens. What is
    drawn is a function of (key, row, draw, block): another `batch_size` or mesh gives the same
    figures up to rounding.

    Args:
      key: random key.
      model: the model, from `sedd.load`, with the absorbing graph.
      tokens: token ids, [N, L].
      lengths: number of tokens of every row, [N]; the rest is padding. None for full rows.
      condition: what the model is told, see `nll_bound`.
      held: tokens that are given, [N, L], see `nll_bound`.
      block: tokens of a block; with 1, tokens are drawn from left to right, and only when differs
        between draws. None for the whole row: any order.
      draws: of every block, at least 2.
      batch_size: sequences at a time.
      progress: called as progress(done, total) after every batch.

    Raises:
      BadInput: a model of another kind, a setting out of range, or what `nll_bound` refuses.
      FloatingPointError: a probability is NaN.
    """
    check_interval(model, draws, block)
    passes, count = passes_over(
        model,
        tokens,
        lengths=lengths,
        condition=condition,
        held=held,
        batch_size=batch_size,
        progress=progress,
    )
    longest = int(count.max())
    block = longest if block is None else min(block, longest)
    blocks = -(-longest // block)
    passes.total = draws * blocks * len(passes.rows)
    static = block, model.config.train.t_min
    log_weights = [
        [
            -passes(
                _order_loss,
                static,
                jax.random.fold_in(jax.random.fold_in(key, draw), number),
                np.full(len(count), number, np.int32),
                may_be_infinite=True,
            )
            for number in range(blocks)
        ]
        for draw in range(draws)
    ]
    return NLLInterval(np.array(log_weights), count, block)


def check_interval(model: TrainedModel, draws: int, block: int | None) -> None:
    """Raises BadInput unless the model has an interval.

    Args:
      model: the model.
      draws: of every block.
      block: tokens of a block; None for the whole row.
    """
    if block is not None:
        check_positive(block=block)
    if draws < 2:
        raise BadInput(f"An interval needs at least 2 draws, got {draws}: set draws.")
    family = model.family
    if not (isinstance(family, ScoreBased) and family.graph.absorbs):
        known = "an exact likelihood" if family.exact_likelihood else "no upper bound that is known"
        raise BadInput(
            "An interval of the likelihood is for diffusion models with the absorbing graph; this "
            f"model has {known}: leave the interval out."
        )


def _order_loss(family: ScoreBased, block: int, t_min: float) -> Callable[..., Float[Array, "B"]]:
    graph, noise, model = family

    def loss(params, keys, number, x0, lengths=None, context=NOTHING):
        u = jax.vmap(lambda key: categorical.uniform_by_position(key, x0.shape[1:]))(keys)
        free = _free(x0, lengths, context.given)
        score_fn = functools.partial(
            model.score, params, lengths=lengths, context=model.told(context)
        )
        found = order_log_prob(
            score_fn, noise, graph.mask_id, u, x0, free, number, block=block, t_min=t_min
        )
        return -found

    return loss


def _free(
    x0: Int[Array, "B L"], lengths: Int[Array, "B"] | None, given: Bool[Array, "B L"] | None
) -> Bool[Array, "B L"]:
    """Which tokens are scored: neither padding nor given."""
    free = jnp.ones(x0.shape, bool) if given is None else ~given
    return zero_padding(free, lengths)

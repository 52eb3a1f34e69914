"""The likelihood of a text, as it was found: per token, with what it may be off by."""

import dataclasses
from typing import Literal

import numpy as np

BINS = 16  # of t, see `Bound.by_t`


@dataclasses.dataclass(frozen=True)
class Bound:
    """The bound on -log p of N sequences, by D draws each; exact for an autoregressive model.

    Attributes:
      nats: what every draw gives for every sequence, float64 [D, N]; its mean over draws is the
        estimate. Infinite where a complete bound is.
      tokens: how many tokens of every sequence were scored, [N].
      times: where the draws lie in t. "low-discrepancy": each draw of all sequences is spread
        evenly, apart from the other draws. "quadrature": a draw is one node, the same t for all
        sequences. "exact": nothing was drawn, D is 1.
      by_t: (t_low, t_high, nats per token that fall there), equal parts of [t_min, 1] that add up
        to `nats_per_token`, but for the prior term and the final step of a complete bound. Empty
        if exact. Where nodes are few, they show.
    """

    nats: np.ndarray
    tokens: np.ndarray
    times: Literal["low-discrepancy", "quadrature", "exact"]
    by_t: list[tuple[float, float, float]] = dataclasses.field(default_factory=list)

    @property
    def nats_per_token(self) -> float:
        """All nats over all tokens."""
        return float(self.nats.mean(0).sum() / self.tokens.sum())

    @property
    def stderr(self) -> float:
        """What another seed may move `nats_per_token` by: one standard error of the draws alone.

        From how the draws of the same sequence differ, all sequences together; 0 if exact.

        Low-discrepancy: a slight overestimate, which takes the times of a draw for independent. A
        single draw cannot be told from the difference between sequences: then it is `data_stderr`,
        an overestimate. Quadrature: from what is left of the differences between nodes once the
        mean of all sequences at that node is taken off, so an overestimate where sequences depend
        on t differently; the error of the quadrature itself, the same for all seeds, is not in it.

        NaN where it cannot be told: a single sequence with a single draw or by quadrature, or an
        infinite bound.
        """
        if self.times == "exact":
            return 0.0
        draws = len(self.nats)
        if draws == 1:
            return self.data_stderr
        with np.errstate(invalid="ignore"):  # infinite
            apart = self.nats - self.nats.mean(0)
            freedom = (draws - 1) / draws
            if self.times == "quadrature":
                apart = apart - np.outer(apart.sum(1) / self.tokens.sum(), self.tokens)
                freedom *= self._freedom
            return _root(np.sum(apart**2), freedom) / (draws * self.tokens.sum())

    @property
    def data_stderr(self) -> float:
        """What another text of the same kind may move `nats_per_token` by: one standard error.

        Of a ratio of means over sequences, the noise of the draws included. NaN for a single
        sequence or an infinite bound.
        """
        with np.errstate(invalid="ignore"):  # infinite
            apart = self.nats.mean(0) - self.nats_per_token * self.tokens
        return _root(np.sum(apart**2), self._freedom) / float(self.tokens.sum())

    @property
    def _freedom(self) -> float:
        """What a mean over sequences leaves of their variance, which is as their tokens.

        (N - 1) / N where all are of one length.
        """
        return 1 - float(np.sum((self.tokens / self.tokens.sum()) ** 2))

    @property
    def perplexity(self) -> float:
        """Exp of the bound per token."""
        with np.errstate(over="ignore"):
            return float(np.exp(self.nats_per_token))

    @property
    def perplexity_stderr(self) -> float:
        """What another seed may move `perplexity` by, to first order."""
        return self.perplexity * self.stderr


def _root(squares, freedom):
    """The root of a sum of squares, made up for the degrees of freedom; NaN where none are."""
    return float(np.sqrt(squares / freedom)) if freedom else float("nan")


def split_by_t(
    nats: np.ndarray, times: np.ndarray, tokens: np.ndarray, t_min: float
) -> list[tuple[float, float, float]]:
    """Returns `Bound.by_t`.

    Args:
      nats: what belongs to a time, [D, N].
      times: of every draw, [D, N].
      tokens: scored of every sequence, [N].
      t_min: the smallest time.
    """
    edges = np.linspace(t_min, 1, BINS + 1)
    cell = np.digitize(times, edges[1:-1])
    parts = np.bincount(cell.ravel(), nats.ravel(), BINS) / (len(nats) * tokens.sum())
    return [tuple(map(float, part)) for part in zip(edges[:-1], edges[1:], parts, strict=True)]

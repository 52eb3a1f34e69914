"""Negative log-likelihoods: the bound (Theorem 3.6) of a diffusion model, or the exact value.

One estimator serves `nll_bound`, the evaluator of a training run and evaluation suites.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np
from jaxtyping import Array, Float, Int, Key
from numpy.typing import ArrayLike

from sedd_jax.errors import BadInput, check_positive
from sedd_jax.inference.control import controlled
from sedd_jax.inference.family import STRATIFIED, Family, RowLoss, draw_times_by_number
from sedd_jax.inference.model import TrainedModel, compiled
from sedd_jax.inference.row_passes import RowPasses, passes_over

BINS = 16  # of t, see `NLLEstimate.by_t`
TIMES = ("low-discrepancy", "quadrature")


@dataclasses.dataclass(frozen=True)
class NLLEstimate:
    """The bound on -log p of N sequences, from D draws each; exact for an autoregressive model.

    Attributes:
      nats: what every draw gives for every sequence, float64 [D, N]; its mean over draws is the
        estimate, and each of several is for a part of [t_min, 1]. Infinite where a complete bound
        is.
      tokens: number of tokens of every sequence that were scored, [N].
      times: how the draws are spread in t, see `nll_bound`; "exact": nothing was drawn, D is 1.
      by_t: (t_low, t_high, nats per token in between), equal parts of [t_min, 1] that add up to
        `nats_per_token`, less the prior term and final step of a complete bound. Empty if exact.
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
        """Standard error of `nats_per_token` from the draws alone: its spread over seeds.

        From how the draws of the same sequence differ after subtracting the mean over sequences of
        every draw, whose times are those of one part of [t_min, 1] or one node: an overestimate
        where sequences depend on t differently. The error of a quadrature itself, the same for all
        seeds, is not included.

        A single draw cannot be separated from the differences between sequences: then this is
        `data_stderr`, an overestimate. Nor can the draws of a single sequence be separated from
        how its loss depends on t: an overestimate too, from how they differ.

        NaN where it is unknown: a single sequence with a single draw or by quadrature, or an
        infinite bound.
        """
        if self.times == "exact":
            return 0.0
        if (draws := len(self.nats)) == 1:
            return self.data_stderr
        with np.errstate(invalid="ignore"):  # infinite
            residuals = self.nats - self.nats.mean(0)
            freedom = (draws - 1) / draws
            if self.nats.shape[1] > 1 or self.times == "quadrature":
                residuals -= np.outer(residuals.sum(1) / self.tokens.sum(), self.tokens)
                freedom *= self._freedom
            return _root(np.sum(residuals**2), freedom) / (draws * self.tokens.sum())

    @property
    def data_stderr(self) -> float:
        """Standard error of `nats_per_token` from the data: its spread over texts of the same kind.

        Of a ratio of means over sequences, the noise of the draws included. NaN for a single
        sequence or an infinite bound.
        """
        with np.errstate(invalid="ignore"):  # infinite
            residuals = self.nats.mean(0) - self.nats_per_token * self.tokens
        return _root(np.sum(residuals**2), self._freedom) / float(self.tokens.sum())

    @property
    def _freedom(self) -> float:
        """The share of a variance left after subtracting the mean: (N - 1) / N at equal lengths."""
        return 1 - float(np.sum((self.tokens / self.tokens.sum()) ** 2))

    @property
    def perplexity(self) -> float:
        """Exp of the nats per token."""
        with np.errstate(over="ignore"):
            return float(np.exp(self.nats_per_token))

    @property
    def perplexity_stderr(self) -> float:
        """Standard error of `perplexity` from the draws, to first order."""
        return self.perplexity * self.stderr


def _root(squares, freedom):
    """The root of a sum of squares, by the degrees of freedom; NaN without any."""
    return float(np.sqrt(squares / freedom)) if freedom else float("nan")


def split_by_t(
    nats: np.ndarray, times: np.ndarray, tokens: np.ndarray, t_min: float
) -> list[tuple[float, float, float]]:
    """Returns `NLLEstimate.by_t`.

    Args:
      nats: of every draw, [D, N].
      times: of every draw, [D, N].
      tokens: scored in every sequence, [N].
      t_min: the smallest time.
    """
    edges = np.linspace(t_min, 1, BINS + 1)
    cell = np.digitize(times, edges[1:-1])
    parts = np.bincount(cell.ravel(), nats.ravel(), BINS) / (len(nats) * tokens.sum())
    return [tuple(map(float, part)) for part in zip(edges[:-1], edges[1:], parts, strict=True)]


def nll_bound(
    key: Key[Array, ""],
    model: TrainedModel,
    tokens: ArrayLike,
    *,
    lengths: ArrayLike | None = None,
    condition: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
    held: ArrayLike | None = None,
    rows: ArrayLike | None = None,
    batch_size: int = 32,
    draws: int = 1,
    times: str = "low-discrepancy",
    complete: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> NLLEstimate:
    """Returns the bound on the negative log-likelihood of `tokens`, with its standard errors.

    One network evaluation per sequence and draw, two if complete, over all devices of the model's
    mesh. What is drawn for a row is a function of (key, row, draw), and its time also of the number
    of rows and draws: another `batch_size`, mesh or padding gives the same figures up to rounding.
    With several draws, the loss of a guess at the same (t, x_t) is subtracted and its mean added,
    see `inference.control`. For an autoregressive model it is the negative log-likelihood itself,
    from one evaluation, and the other settings have no effect.

    Args:
      key: random key; it makes no difference to an exact value.
      model: the model, from `sedd.load`.
      tokens: token ids, [N, L].
      lengths: number of tokens of every row, [N], at least 1; the rest of the row is padding of any
        ids, which the model does not see. None for full rows.
      condition: what the model is told, by column with values as in the data, of all rows or of
        each; the bound is then on -log p(tokens | condition). None: nothing is told.
      held: tokens that are given, [N, L]: the bound is that of the other tokens of a row given
        these, and the figures are per token of the others. For an autoregressive model they must
        come first in their row. None: none is given.
      rows: numbers of the rows, below 2^32. All that is drawn for a row is then a function of (key,
        its number), also its times, which are spread evenly over its own draws; and noise is
        counted from its first token that is not held. So rows of the same number are compared on
        common random numbers, and no guess is subtracted. None: rows have different ones, as said
        above.
      batch_size: sequences at a time, rounded up to a multiple of what the devices divide.
      draws: of every sequence.
      times: "low-discrepancy": a single draw has times in proportion to the loss of a uniform
        guess, spread evenly over all sequences. Of several, each has a part of [t_min, 1] for its
        own, with more times where few positions move, see `bound_proposal`, and is spread evenly
        over all sequences there. "quadrature": a draw is one node of Gauss-Legendre quadrature, of
        at least 2, the same t for all sequences, and x_t is drawn by the forward process.
      complete: a true bound, on the learned reverse process in continuous time from a noised
        uniform guess: the integral of the loss over [t_min, 1], the prior term and the final
        denoising step, infinite where that step gives a token probability 0. Else the published
        convention, the mean of the loss over [t_min, 1] alone. An exact value is complete, and so
        is the bound of a Gaussian diffusion model.
      progress: called as progress(done, total) after every batch, in network passes over a batch.

    Raises:
      BadInput: no such array, ids or conditions that the model does not have, more positions than
        it has, tokens given to a model of another family, or a setting out of range.
      FloatingPointError: the loss of a row is not finite.
    """
    if not model.family.exact_likelihood:
        check_draws(draws, times)
    passes, count = passes_over(
        model,
        tokens,
        lengths=lengths,
        condition=condition,
        held=held,
        rows=rows,
        batch_size=batch_size,
        progress=progress,
    )
    t_min = model.config.train.t_min
    return estimate_nll(
        passes, key, count, t_min=t_min, draws=draws, times=times, complete=complete
    )


def estimate_nll(
    passes: RowPasses,
    key: Key[Array, ""],
    tokens: Int[np.ndarray, "N"],
    *,
    t_min: float,
    draws: int = 1,
    times: str = "low-discrepancy",
    complete: bool = False,
) -> NLLEstimate:
    """Returns the estimate for the rows of `passes`.

    Args:
      passes: evaluates functions of all rows.
      key: random key.
      tokens: number of tokens of every row.
      t_min: the smallest time.
      draws: of every sequence.
      times: how draws are spread in t, see `nll_bound`.
      complete: add the prior term and the final denoising step, see `nll_bound`.
    """
    family = passes.family
    time_key, noise_key, final_key = jax.random.split(key, 3)
    if family.exact_likelihood:
        passes.total = len(passes.rows)
        nats = passes(_row_loss, (t_min, times), noise_key, np.zeros(len(tokens), np.float32))
        return NLLEstimate(nats[None], tokens, "exact")
    if family.complete_bound:
        complete, t_min = False, 0.0  # nothing is left to add
    passes.total = draws * (1 + complete) * len(passes.rows)

    def over_draws(passes, build, static, key, *columns, **options):
        """The loss [D, N, ...] of every draw and row."""
        keys = [jax.random.fold_in(key, draw) for draw in range(draws)]
        every = zip(keys, *columns, strict=True)
        return np.stack([passes(build, static, *each, **options) for each in every])

    spread = STRATIFIED if times == "low-discrepancy" and draws > 1 else times
    by_number = passes.numbers is not None
    if by_number:
        of_rows = t_min, draws, passes.numbers
        drawn = draw_times_by_number(family, time_key, spread, *of_rows)
    else:
        drawn = family.draw_times(time_key, spread, t_min, draws, len(tokens))
    inputs = noise_key, drawn.quantiles
    nats = at_t = over_draws(passes, _row_loss, (t_min, spread), *inputs)
    # one guess serves all rows of a call, and figures of a number depend on no other row
    if spread == STRATIFIED and not by_number and family.control(t_min) is not None:
        guessing = _guessing(passes, t_min)
        guess = over_draws(guessing, _control_loss, (t_min,), *inputs, *_parts(*nats.shape))
        nats, at_t = controlled(nats, guess)
    scale = drawn.weights[:, None] * (1 - t_min if complete else 1)
    nats, at_t = nats * scale, at_t * scale
    by_t = split_by_t(at_t * (nats.sum() / (at_t.sum() or 1)), drawn.t, tokens, t_min)
    if complete:
        final = over_draws(passes, _reconstruction_loss, (t_min,), final_key, may_be_infinite=True)
        nats = nats + family.prior_nll() * tokens + final
    return NLLEstimate(nats, tokens, times, by_t)


def check_draws(draws: int, times: str) -> None:
    """Raises BadInput unless the times exist, and that many draws of them are possible."""
    check_positive(draws=draws)
    if times not in TIMES:
        raise BadInput(f"times must be one of {', '.join(TIMES)}, got {times!r}.")
    if times == "quadrature" and draws == 1:
        raise BadInput("Quadrature needs at least 2 nodes: set draws.")


def _guessing(passes, t_min):
    """Passes of the guess in place of the network, not counted: they take next to no time."""
    tokens, known = passes.placed(passes.rows[0])
    guess = compiled(passes.family, passes.mesh, _guess, t_min)
    params = guess(passes.params, tokens, lengths=known.get("lengths"))
    return dataclasses.replace(passes, params=params, progress=None)


def _parts(draws, rows):
    """The quantiles from which to which the times of every draw are, [D, N] each."""
    borders = np.float32(np.arange(draws + 1) / draws)
    return (np.repeat(each[:, None], rows, axis=1) for each in (borders[:-1], borders[1:]))


def _row_loss(family: Family, t_min: float, times: str) -> RowLoss:
    return family.row_loss(t_min, times)


def _guess(family: Family, t_min: float) -> Callable[..., Any]:
    return family.control(t_min).guess


def _control_loss(family: Family, t_min: float) -> Callable[..., Float[Array, "B 3"]]:
    return family.control(t_min).loss


def _reconstruction_loss(family: Family, t_min: float) -> Callable[..., Float[Array, "B"]]:
    return family.reconstruction_loss(t_min)

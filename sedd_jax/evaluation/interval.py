"""Likelihoods of data sets as intervals, a record for each beside that of the bound."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from sedd_jax.evaluation.likelihood import EvalSet
from sedd_jax.evaluation.record import Record, describe_model, find_or_measure
from sedd_jax.inference.interval import FEW_DRAWS, NLLInterval, check_interval, nll_interval
from sedd_jax.inference.model import TrainedModel
from sedd_jax.system import processes
from sedd_jax.system.progress import progress

_BOUNDS = "both sides of the distribution of first hitting"
_FEW = (
    "the bounds rest on few draws, {:.1f} effective ones: no standard error tells how far they may "
    "be off; take a smaller --block, or more draws."
)


@dataclasses.dataclass(frozen=True)
class Settings:
    """How intervals are measured.

    Attributes:
      draws: of every block, at least 2.
      block: tokens that are drawn in any order before the next ones; None for the whole row.
      seed: of the draws.
    """

    draws: int
    block: int | None = None
    seed: int = 0

    def check(self, checkpoint: TrainedModel) -> None:
        """Raises BadInput unless the model has such an interval."""
        check_interval(checkpoint, self.draws, self.block)


def measure(
    checkpoint: TrainedModel,
    sets: Sequence[EvalSet],
    settings: Settings,
    folder: Path,
    *,
    averaged: bool = True,
    batch_size: int = 32,
) -> list[Record]:
    """Returns the intervals of data sets, read from `folder` or else computed and saved there.

    All processes of a job call this with the same sets and compute; process 0 reads and writes.

    Args:
      checkpoint: the model, see `check_interval`.
      sets: the data sets.
      settings: of the intervals.
      folder: of records.
      averaged: whether the weights are averages, for the record.
      batch_size: rows at a time; it does not affect the figures.

    Raises:
      BadInput: a model without an interval, or a file that is not a record.
      FloatingPointError: a probability is NaN.
    """
    settings.check(checkpoint)
    processes.assert_equal_across_processes(repr((settings, batch_size)), "settings")
    model = describe_model(checkpoint, averaged=averaged) if sets else {}
    return [_measure(checkpoint, model, it, settings, folder, batch_size) for it in sets]


def _measure(checkpoint, model, eval_set, settings, folder, batch_size):
    blocks = eval_set.blocks
    protocol = dataclasses.asdict(eval_set.protocol) | {
        "t": "by order",
        "bound": _BOUNDS,
        "draws": settings.draws,
        "seed": settings.seed,
        "block": settings.block or "the whole row",
    }
    query = Record("interval", eval_set.name, model, protocol)

    def compute():
        with progress(f"{eval_set.name}, interval") as advance:
            found = nll_interval(
                jax.random.key(settings.seed),
                checkpoint,
                blocks.tokens,
                lengths=blocks.lengths,
                condition=blocks.told,
                block=settings.block,
                draws=settings.draws,
                batch_size=batch_size,
                progress=advance,
            )
        return _figures(found)

    return find_or_measure(folder, query, compute)


def _figures(found: NLLInterval) -> dict[str, Any]:
    few = found.effective_draws < FEW_DRAWS
    with_notes = {"notes": [_FEW.format(found.effective_draws)]} if few else {}
    return {
        "tokens": int(found.tokens.sum()),
        "blocks": len(found.tokens),
        "low": found.low,
        "low_stderr": found.low_stderr,
        "high": found.high,
        "high_stderr": found.high_stderr,
        "width": found.high - found.low,
        "perplexity_low": _exp(found.low),
        "perplexity_high": _exp(found.high),
        "evidence_bound": found.evidence_bound,
        "effective_draws": found.effective_draws,
        **with_notes,
    }


def _exp(nats):
    """Exp of nats per token, infinite where it is too large for a float."""
    return math.exp(nats) if nats < 700 else math.inf

"""The figures of a row, over its seeds, from the files of its runs."""

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from sedd_jax.comparison.runs import Plan, Run
from sedd_jax.comparison.settings import Row
from sedd_jax.evaluation.frontier import BY_SAMPLES, BY_TOKENS, matched, temperature_of
from sedd_jax.evaluation.likelihood import HELDOUT
from sedd_jax.evaluation.record import Record
from sedd_jax.experiment import metrics
from sedd_jax.inference.likelihood import NLLEstimate

MEMORY = ("peak_memory_gib", "step_memory_gib")  # the first one where devices report it
ALONE = "†"  # marks samples at one temperature
_PERPLEXITIES = (BY_SAMPLES, BY_TOKENS)  # the second one by a judge with another tokenizer
_OF_BLOCKS = ("sha256", "tokenizer", "length", "part", "end_of_text")  # settings of the same blocks


class Mean(NamedTuple):
    """A figure of a row.

    Attributes:
      value: the mean over seeds.
      data: its standard error from the data: over held-out blocks, or over samples. None if
        unknown.
      seeds: its standard error over seeds; None with one seed.
    """

    value: float
    data: float | None
    seeds: float | None

    @classmethod
    def over(cls, values: Sequence[float], errors: Sequence[float], shared: bool) -> "Mean":
        """Returns the mean over seeds.

        Args:
          values: of each seed.
          errors: their standard errors from the data.
          shared: whether the data are the same for all seeds: then their error does not shrink.
        """
        count = len(values)
        own = [error for error in errors if math.isfinite(error)]
        data = None
        if len(own) == count:
            data = statistics.fmean(own) if shared else math.hypot(*own) / count
        finite = count > 1 and all(map(math.isfinite, values))
        seeds = statistics.stdev(values) / math.sqrt(count) if finite else None
        return cls(sum(values) / count, data, seeds)

    @property
    def error(self) -> float | None:
        """Both errors together, as far as they are known."""
        known = [error for error in (self.data, self.seeds) if error is not None]
        return math.hypot(*known) if known else None


class Scored(NamedTuple):
    """A run with its records and its rows of metrics."""

    run: Run
    records: list[Record]
    logged: list[dict[str, Any]]

    def likelihood(self, name: str = HELDOUT) -> Record:
        """Returns the record of a data set."""
        return next(it for it in self.records if (it.kind, it.name) == ("likelihood", name))

    @property
    def drawn(self) -> list[Record]:
        """Records of its samples, by temperature."""
        found = [it for it in self.records if it.kind == "quality" and not it.is_real]
        return sorted(found, key=temperature_of)

    @property
    def real(self) -> Record | None:
        """The record of real text."""
        return next((it for it in self.records if it.is_real), None)


class RowFigures(NamedTuple):
    """What is known of a row.

    Attributes:
      row: the row.
      scored: its runs that are complete.
      failures: why runs failed, by the title of the run.
      missing: of every other run, what it lacks: "not run yet" or "not scored yet".
    """

    row: Row
    scored: list[Scored]
    failures: dict[str, str]
    missing: list[str]

    @property
    def exact(self) -> bool:
        """Whether its likelihood is exact and not a bound."""
        return bool(self.scored[0].likelihood().figures["exact"])

    @property
    def parameters(self) -> int:
        return self.scored[0].likelihood().model["parameters"]

    @property
    def data_sets(self) -> list[str]:
        """Names of the data sets beside the held-out text."""
        records = self.scored[0].records
        return [it.name for it in records if it.kind == "likelihood" and it.name != HELDOUT]

    def nats(self, name: str = HELDOUT) -> Mean:
        """Returns the nats per token of a data set."""
        return self._mean(name, lambda figures: 1.0)

    def bits_per_byte(self, name: str = HELDOUT) -> Mean:
        """Returns the bits per byte of a data set."""
        return self._mean(name, _bits)

    def _mean(self, name, scale: Callable[[dict[str, Any]], float]):
        found = [each.likelihood(name).figures for each in self.scored]
        values = [it["nats_per_token"] * scale(it) for it in found]
        errors = [it["data_stderr"] * scale(it) for it in found]
        return Mean.over(values, errors, shared=True)

    @property
    def step_seconds(self) -> float | None:
        """The median over the logged rows of all seeds."""
        found = self._logged("step_seconds")
        return statistics.median(found) if found else None

    def memory_gib(self, kind: str) -> float | None:
        """Returns the largest logged figure of a kind of memory."""
        return max(self._logged(kind), default=None)

    def _logged(self, name):
        return [it[name] for each in self.scored for it in each.logged if name in it]

    @property
    def evaluations(self) -> float | None:
        """Mean network evaluations of a sample."""
        found = [it.figures["evaluations"] for each in self.scored for it in each.drawn]
        return statistics.fmean(found) if found else None

    def matched(self, level: float) -> tuple[Mean, str] | None:
        """Returns the generative perplexity at an entropy, and a mark; None without a judge.

        Args:
          level: entropy of real text, nats.
        """
        each = [it.drawn for it in self.scored]
        records = [record for drawn in each for record in drawn]
        known = [name for name in _PERPLEXITIES if _all_have(name, records)]
        if not known:
            return None
        found = [matched(drawn, level, known[0]) for drawn in each]
        errors = [it.stderr for it in found]
        mean = Mean.over([it.perplexity for it in found], errors, shared=False)
        if any(len(it.temperatures) == 1 for it in found):
            return mean, ALONE
        return mean, "*" if any(it.beyond for it in found) else ""


def _bits(figures):
    """Bits per byte of a nat per token."""
    return figures["tokens"] / (figures["bytes"] * math.log(2))


def _all_have(name, records):
    return bool(records) and all(math.isfinite(it.figures.get(name, math.nan)) for it in records)


def collect(plan: Plan) -> list[RowFigures]:
    """Returns what is known of every row, in the order of the comparison."""
    return [_row(plan, row) for row in plan.comparison.rows]


def _row(plan, row):
    scored, failures, missing = [], {}, []
    for run in plan.runs:
        if run.row is not row:
            continue
        if (records := plan.records(run)) is not None:
            path = run.folder / metrics.FILE
            scored.append(Scored(run, records, metrics.read_rows(path, run.steps)))
        elif failure := run.failure:
            failures[run.title] = failure
        else:
            missing.append("not scored yet" if run.is_trained else "not run yet")
    return RowFigures(row, scored, failures, missing)


def memory_kind(rows: Sequence[RowFigures]) -> str | None:
    """Returns the kind of memory that all rows have; None if there is none, or no row."""
    kinds = (kind for kind in MEMORY if all(row.memory_gib(kind) is not None for row in rows))
    return next(kinds, None) if rows else None


def difference(one: RowFigures, other: RowFigures) -> tuple[Mean, bool]:
    """Returns the bits per byte of a row less those of another, and whether blocks are paired.

    Of two rows on the same blocks the error from the data is that of the difference in each block,
    which is smaller than either's own, since both have the same difficult blocks.

    Args:
      one: a row with scored runs.
      other: the row to subtract.
    """
    a, b = one.bits_per_byte(), other.bits_per_byte()
    data = _paired_error(one, other)
    paired = data is not None
    if not paired and None not in (a.data, b.data):
        data = math.hypot(a.data, b.data)
    seeds = None if None in (a.seeds, b.seeds) else math.hypot(a.seeds, b.seeds)
    return Mean(a.value - b.value, data, seeds), paired


def _paired_error(one, other):
    """The error of the difference in bits per byte; None if the blocks are not the same."""
    first, second = one.scored[0].likelihood(), other.scored[0].likelihood()
    if any(first.protocol[key] != second.protocol[key] for key in _OF_BLOCKS):
        return None
    tokens = _tokens_of_blocks(first)
    blocks = [_mean_blocks(each) for each in (one, other)]
    if tokens is None or not all(len(it) == len(tokens) for it in blocks):
        return None
    with np.errstate(invalid="ignore"):  # an infinite bound
        nats = blocks[0] - blocks[1]
    error = NLLEstimate(nats[None], tokens, "exact").data_stderr * _bits(first.figures)
    return error if math.isfinite(error) else None


def _mean_blocks(row):
    each = [it.likelihood().figures.get("nats_by_block", []) for it in row.scored]
    same = len({len(it) for it in each}) == 1
    return np.mean(each, axis=0) if same else np.array([])


def _tokens_of_blocks(record):
    """Tokens of every block: all are full but perhaps the last one; None if that is not so."""
    count, length = record.figures["blocks"], record.protocol["length"]
    last = record.figures["tokens"] - length * (count - 1)
    return np.array([length] * (count - 1) + [last]) if 0 < last <= length else None

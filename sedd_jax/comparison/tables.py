"""The tables and plots of a comparison, and its report: these and its notes."""

import dataclasses
import itertools
import json
import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from sedd_jax.comparison.figures import Mean, RowFigures, difference, memory_kind
from sedd_jax.comparison.notes import notes
from sedd_jax.comparison.settings import Comparison
from sedd_jax.display.plot import Plot
from sedd_jax.display.table import Cell, Table, plain, with_error
from sedd_jax.evaluation.datasets import TEXT_SETS, ZEROSHOT
from sedd_jax.evaluation.frontier import temperature_of
from sedd_jax.evaluation.published_results import paper_table_1
from sedd_jax.experiment.card import without_folders
from sedd_jax.experiment.config import Config
from sedd_jax.system.registry import is_dotted
from sedd_jax.system.settings import flatten, marked

_DECIDED = 2.0  # standard errors
_SHOWN = 60  # characters of a failure in the table; the notes have all of it
_ORDER = "The order of the paper's Table 1"


class Report(NamedTuple):
    """What a comparison has found so far.

    Attributes:
      tables: the first one is the comparison itself.
      notes: sentences on what the figures say and do not say.
      plots: curves.
    """

    tables: list[Table]
    notes: list[str]
    plots: list[Plot]


def report(comparison: Comparison, rows: Sequence[RowFigures], judge: str | None) -> Report:
    """Returns the tables, notes and plots of the rows.

    Args:
      comparison: the settings.
      rows: their figures.
      judge: the name of the model that scored samples, for the notes; None: the comparison's own
        autoregressive row, if it has one.
    """
    done = [row for row in rows if row.scored]
    level = _real_entropy(done)
    tables = [
        _main(comparison, rows, level),
        *(_against(comparison, done) if len(done) > 1 else []),
        *(_zeroshot(comparison, done) if done else []),
        *_order(done),
        *_samples(done),
        _published(),
        _settings(comparison),
    ]
    said = notes(comparison, rows, done, judge, level)
    return Report([table for table in tables if table.rows], said, _plots(comparison, done, level))


def _main(comparison, rows, level):
    """The table of all rows, without the columns that no row has."""
    columns: dict[str, list[Cell]] = {"row": [row.row.title for row in rows]}
    memory = memory_kind([row for row in rows if row.scored])
    cells = [_cells(comparison, row, level, memory) if row.scored else {} for row in rows]
    for key in dict.fromkeys(key for each in cells for key in each):
        columns[key] = [each.get(key) for each in cells]
    columns["remark"] = [_remark(row, comparison.settings.seeds) for row in rows]
    kept = {name: each for name, each in columns.items() if any(it is not None for it in each)}
    return Table("Comparison", tuple(kept), list(zip(*kept.values(), strict=True)))


def _cells(comparison, row, level, memory):
    sign = "=" if row.exact else "<="
    bits, nats = row.bits_per_byte(), row.nats()
    found: dict[str, Cell] = {
        "bits/byte": f"{sign} {plain(bits.value)}",
        "± data": _error(bits.data),
        "± seeds": _error(bits.seeds),
    }
    if comparison.one_tokenizer:
        found["perplexity"] = f"{sign} {plain(_exp(nats.value))}"
        if level is not None and (quality := row.matched(level)):
            mean, mark = quality
            found["gen. perplexity"] = f"{_with_error(mean)}{mark}"
        if row.evaluations is not None:
            found["evaluations"] = f"{row.evaluations:,.6g}"
    found["parameters"] = f"{row.parameters:,}"
    seconds, held = row.step_seconds, memory and row.memory_gib(memory)
    found["ms/step"] = None if seconds is None else plain(1000 * seconds)
    found["memory, MiB"] = held and f"{1024 * held:,.1f}"
    return found


def _remark(row, seeds):
    remarks = []
    if row.failures:
        reason = next(iter(row.failures.values()))
        short = reason if len(reason) <= _SHOWN else f"{reason[: _SHOWN - 1]}…"
        count = f"{len(row.failures)} of {seeds} seeds " if seeds > 1 else ""
        remarks.append(f"{count}failed: {short}")
    if row.missing:
        count = f"{len(row.missing)} of {seeds} seeds " if row.scored else ""
        remarks.append(count + row.missing[0])
    return "; ".join(remarks) or None


def _against(comparison, rows):
    """Differences in bits per byte to the reference."""
    reference = next((row for row in rows if row.row == comparison.reference), None)
    if reference is None:
        return []
    cells = []
    for row in rows:
        if row is not reference:
            found, paired = difference(row, reference)
            errors = (_error(found.data), _error(found.seeds))
            cells.append((row.row.title, _signed(found.value), *errors, "yes" if paired else "no"))
    title = f"Bits per byte less those of {reference.row.title}"
    columns = ("row", "difference", "± data", "± seeds", "same blocks")
    return [_without_empty(Table(title, columns, cells))]


def _zeroshot(comparison, rows):
    """Perplexities of other data sets; bits per byte where tokens differ."""
    names = dict.fromkeys(name for row in rows for name in row.data_sets)
    if not names:
        return []

    def figure(row, name):
        if name not in row.data_sets:
            return None
        sign, per_token = ("=" if row.exact else "<="), comparison.one_tokenizer
        mean = row.nats(name) if per_token else row.bits_per_byte(name)
        if per_token:
            value = _exp(mean.value)
            mean = Mean(value, mean.data and mean.data * value, mean.seeds and mean.seeds * value)
        return f"{sign} {_with_error(mean)}"

    unit = "perplexity" if comparison.one_tokenizer else "bits per byte"
    columns = ("row", *(TEXT_SETS[name].title for name in names))
    cells = [(row.row.title, *(figure(row, name) for name in names)) for row in rows]
    return [Table(f"Zero-shot, {unit}", columns, cells)]


def _order(rows):
    """Every pair of rows that the paper has: its order there, and here."""
    theirs = {result.model: result for result in paper_table_1()}
    ours = [row for row in rows if row.row.published]
    cells = []
    for pair in itertools.combinations(ours, 2):
        one, other = sorted(pair, key=lambda row: _mean_log(theirs[row.row.published]))
        first, second = (theirs[row.row.published].figures for row in (one, other))
        sets = sum(first[name] < second[name] for name in ZEROSHOT)
        found, _ = difference(one, other)
        claim = f"{one.row.title} < {other.row.title}"
        cells.append((claim, f"{sets} of {len(ZEROSHOT)}", _with_sign(found), _verdict(found)))
    columns = ("pair", "sets on which the paper has it so", "bits/byte, difference", "here")
    return [Table(_ORDER, columns, cells)]


def _mean_log(result):
    return statistics.fmean(math.log(result.figures[name]) for name in ZEROSHOT)


def _verdict(found):
    if found.error is None or not math.isfinite(found.value):
        return "not decided: an error is unknown"
    if abs(found.value) < _DECIDED * found.error:
        return f"not decided: less than {_DECIDED:g} standard errors"
    return "confirmed" if found.value < 0 else "contradicted"


def _samples(rows):
    """The samples of every row by temperature, and real text; without rows if none were drawn."""
    cells = []
    for row in rows:
        for each in row.scored:
            for record in each.drawn:
                cells.append((each.run.title, temperature_of(record), *_quality(record)))
    if real := next((it.real for row in rows for it in row.scored if it.real), None):
        cells.insert(0, ("real text", None, *_quality(real)))
    columns = ("samples of", "temperature", "gen. perplexity", "by tokens", "entropy, nats")
    columns += ("distinct-1", "distinct-2", "self-repetition", "evaluations")
    return [_without_empty(Table("Samples", columns, cells))]


def _quality(record):
    figures = record.figures
    shown = [
        with_error(figures[name], figures[f"{name}_stderr"]) if name in figures else None
        for name in ("gen_perplexity_samples", "gen_perplexity_tokens", "entropy")
    ]
    distinct = [f"{figures[name]:.3f}" for name in ("distinct_1", "distinct_2")]
    repeated = with_error(figures["self_repetition"], figures["self_repetition_stderr"])
    evaluations = None if record.is_real else f"{figures['evaluations']:,.6g}"
    return (*shown, *distinct, repeated, evaluations)


def _published():
    columns = ("model", *(TEXT_SETS[name].title for name in ZEROSHOT), "caution")
    cells = [
        (it.model, *(f"{it.figures[name]:.2f}" for name in ZEROSHOT), it.caution or None)
        for it in paper_table_1()
    ]
    title = "The paper's Table 1: other data, size and training; not comparable with the above"
    return Table(title, columns, cells)


def _settings(comparison):
    """The settings in which rows differ; no value where a family does not have one."""
    each = [_own_settings(row.config) for row in comparison.rows]
    keys = [key for key in each[0] if len({it[key] for it in each}) > 1]
    cells = [
        (row.title, *(it[key] for key in keys))
        for row, it in zip(comparison.rows, each, strict=True)
    ]
    return Table("How the rows differ", ("row", *keys), cells)


def _own_settings(config):
    """The settings as text, None for those of other families."""
    values = flatten(without_folders(dataclasses.asdict(config)))
    texts = {key: it if isinstance(it, str) else json.dumps(it) for key, it in values.items()}
    if is_dotted(config.family):
        return texts
    families_of = marked(Config, "family").items()
    return texts | {key: None for key, families in families_of if config.family not in families}


def _plots(comparison, rows, level):
    """The bound while training, and quality against bits per byte."""
    training, quality = {}, {}
    for row in rows:
        logged = [it for it in row.scored[0].logged if "bits_per_byte" in it]
        training[row.row.title] = (
            [it["step"] for it in logged],
            [it["bits_per_byte"] for it in logged],
        )
        matched = row.matched(level) if level is not None and comparison.one_tokenizer else None
        if matched:
            bits, (mean, _) = row.bits_per_byte(), matched
            quality[row.row.title] = ([bits.value], [mean.value], [mean.error or 0.0])
    plots = []
    if any(len(x) > 1 for x, _ in training.values()):
        label = "held out, bits/byte"
        plots.append(Plot("training", "step", label, training, log_x=False, log_y=False))
    if quality:
        label = "gen. perplexity, matched entropy"
        plots.append(Plot("quality", "bits/byte", label, quality, log_x=False))
    return plots


def _real_entropy(rows):
    """The entropy of real text, nats; None without samples."""
    reals = (each.real for row in rows for each in row.scored if each.real)
    return next((it.figures["entropy"] for it in reals), None)


def _without_empty(table):
    kept = [
        index
        for index in range(len(table.columns))
        if any(row[index] is not None for row in table.rows)
    ]
    rows = [tuple(row[index] for index in kept) for row in table.rows]
    return Table(table.title, tuple(table.columns[index] for index in kept), rows)


def _exp(value):
    return math.exp(value) if value < 700 else math.inf


def _error(value):
    return None if value is None or not math.isfinite(value) else f"{value:.2g}"


def _signed(value):
    return f"{value:+.4f}" if math.isfinite(value) else f"{value:+g}"


def _with_sign(mean):
    return f"{_signed(mean.value)} +- {_error(mean.error) or 'unknown'}"


def _with_error(mean):
    return with_error(mean.value, mean.error or 0.0)

"""Tables and plots of the records of evaluations, side by side.

Below a table stands the protocol: what all rows share once, and what differs row by row, so that a
reader sees which numbers are comparable.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sedd_jax.display.plot import Plot, image
from sedd_jax.display.table import Cell, Table, markdown, to_json, with_error
from sedd_jax.evaluation import frontier_report, summary_plots
from sedd_jax.evaluation.frontier import own_temperature, temperature_of
from sedd_jax.evaluation.published_results import published
from sedd_jax.evaluation.published_samples import published_samples
from sedd_jax.evaluation.record import (
    Label,
    Record,
    differing_keys,
    labels,
    model_settings,
    read_records,
    real_names,
)
from sedd_jax.system.files import atomic_write

_LIKELIHOOD, _INTERVAL, _QUALITY = "Likelihood", "Likelihood as an interval", "Quality of samples"
_SAMPLER = ("sampler", "steps", "samples")  # settings with columns of their own
_FEW = 3  # names that are listed


def write(folder: Path) -> None:
    """Writes the tables, plots, JSON and frontiers of all records in `folder`, if any."""
    records = read_records(folder)
    if not records:
        return
    found, drawn = tables(records), plots(records)
    report = {
        "tables": [table._asdict() for table in found],
        "records": [dataclasses.asdict(record) for record in records],
    }
    parts = [f"## {table.title}\n\n{markdown(table)}" for table in found]
    parts += [f"![{plot.name}]({plot.name}.png)" for plot in drawn]
    text = "\n\n".join(parts) + "\n"
    files = {"summary.md": text, "summary.json": to_json(report)}
    if curves := frontier_report.as_json(records, labels(records)):
        files[frontier_report.FILE] = to_json(curves)
    files |= {f"{plot.name}.png": image(plot) for plot in drawn}
    for name, content in files.items():
        atomic_write(folder / name, content)


def tables(records: Sequence[Record], *, all_published: bool = False) -> list[Table]:
    """Returns the tables of likelihoods, frontiers and quality of samples, with their protocols.

    Args:
      records: in any order.
      all_published: print all published figures, not the comparable ones.
    """
    label = labels(records)
    scored, drawn = _likelihoods(records, label), qualities(records, label)
    enclosed = _likelihoods(records, label, "interval")
    found = [
        *(_likelihood_tables(scored, label) if scored else []),
        *(_interval_tables(enclosed, label) if enclosed else []),
        *published(scored, everything=all_published),
        *frontier_report.tables(drawn, label),
        *(_quality_tables(drawn, label) if drawn else []),
        *published_samples(drawn, everything=all_published),
        _models_table(records, label),
    ]
    return [table for table in found if table and table.rows]


def plots(records: Sequence[Record]) -> list[Plot]:
    """Returns frontiers, quality against evaluations, intervals, and the bounds over t."""
    label = labels(records)
    drawn = qualities(records, label)
    return [
        *frontier_report.plots(drawn, label),
        *summary_plots.quality(own_temperature(drawn), label),
        *summary_plots.intervals(_likelihoods(records, label, "interval"), label),
        *summary_plots.bounds_over_t(_likelihoods(records, label), label),
    ]


def qualities(records: Sequence[Record], label: Label) -> list[Record]:
    """Returns the records of samples: real text first and once, then by sampler and cost.

    Real text has the same figures beside whichever model it was measured.
    """
    unique = {}
    for index, record in enumerate(records):
        if record.kind == "quality":
            figures = {key: it for key, it in record.figures.items() if key != "seconds"}
            key = json.dumps([record.settings, figures]) if record.is_real else index
            unique[key] = record

    def order(record):
        cost = (record.figures.get(it, 0) for it in ("evaluations", "samples"))
        sampler = str(record.protocol.get("sampler")), temperature_of(record)
        return (not record.is_real, label(record), *sampler, *cost)

    return sorted(unique.values(), key=order)


def _likelihoods(records, label, kind="likelihood"):
    found = [record for record in records if record.kind == kind]
    return sorted(found, key=lambda it: (it.name, label(it)))


def _models_table(records, label):
    """What the models are."""
    found: dict[str, dict[str, Cell]] = {}
    for record in records:
        if not record.is_real:
            found.setdefault(label(record), record.model)
    keys = dict.fromkeys(key for model in found.values() for key in model)
    columns = {"model": list(found)} | {
        key.replace("_", " "): [_as_text(model.get(key)) for model in found.values()]
        for key in keys
        if key not in ("name", "step")
    }
    return _table("Models", columns)


def _likelihood_tables(records, label):
    names = {"data set": [it.name for it in records], "model": [label(it) for it in records]}
    table = _table(_LIKELIHOOD, names | _columns(map(_likelihood_cells, records)))
    return [
        table,
        *_by_class(records, label),
        *_protocols(_LIKELIHOOD, names, records, label),
        *_notes(_LIKELIHOOD, records),
    ]


def _interval_tables(records, label):
    names = {"data set": [it.name for it in records], "model": [label(it) for it in records]}
    return [
        _table(_INTERVAL, names | _columns(map(_interval_cells, records))),
        *_protocols(_INTERVAL, names, records, label),
        *_notes(_INTERVAL, records),
    ]


def _by_class(records, label):
    """The figures of every class that a model was told, with their errors over blocks."""
    rows = [
        (it.name, label(it), name, blocks, with_error(nats, error or 0.0))
        for it in records
        for name, blocks, nats, error in it.figures.get("by_class") or []
    ]
    columns = ("data set", "model", "class", "blocks", "nats/token")
    return [Table(f"{_LIKELIHOOD}: by class", columns, rows)] if rows else []


def _quality_tables(records, label):
    real = iter(real_names([record for record in records if record.is_real]))
    names = {"model": [next(real) if it.is_real else label(it) for it in records]}
    names |= _columns(map(_sampler_cells, records))
    if several := len({temperature_of(it) for it in records if not it.is_real}) > 1:
        names["temperature"] = [None if it.is_real else temperature_of(it) for it in records]
    return [
        _table(_QUALITY, names | _columns(map(_quality_cells, records))),
        *_protocols(_QUALITY, names, records, label, ("temperature",) if several else ()),
        *_notes(_QUALITY, records),
    ]


def _likelihood_cells(record):
    figures = record.figures
    perplexity = _number(figures, "perplexity")
    return {
        "perplexity": perplexity and f"{'=' if figures.get('exact') else '<='} {perplexity}",
        "nats/token": _number(figures, "nats_per_token", figures.get("stderr")),
        "bits/token": _number(figures, "bits_per_token", _scaled_error(figures, "bits_per_token")),
        "bits/byte": _number(figures, "bits_per_byte", _scaled_error(figures, "bits_per_byte")),
        "characters lost": _formatted(figures, "lost_characters", ".2%"),
        "stderr by data": _formatted(figures, "data_stderr", ".2g"),
        **{name: _formatted(figures, name, ",") for name in ("tokens", "blocks", "documents")},
    }


def _interval_cells(record):
    figures, protocol = record.figures, record.protocol
    ends = [_formatted(figures, f"perplexity_{end}", ".5g") for end in ("low", "high")]
    return {
        **{name: _as_text(protocol.get(name)) for name in ("block", "draws")},
        "perplexity": " to ".join(ends) if all(ends) else None,
        "at least, nats/token": _number(figures, "low"),
        "at most, nats/token": _number(figures, "high"),
        "width": _formatted(figures, "width", ".3g"),
        "at most, by one draw": _formatted(figures, "evidence_bound", ".5g"),
        "effective draws": _formatted(figures, "effective_draws", ".3g"),
        **{name: _formatted(figures, name, ",") for name in ("tokens", "blocks")},
    }


def _sampler_cells(record):
    figures, real = record.figures, record.is_real
    return {
        "sampler": None if real else record.protocol.get("sampler"),
        "steps": _formatted(record.protocol, "steps", ","),
        "evaluations": None if real else _formatted(figures, "evaluations", ",.6g"),
        "samples": _formatted(figures, "samples", ","),
    }


def _quality_cells(record):
    figures = record.figures
    return {
        "gen. ppl, by samples": _number(figures, "gen_perplexity_samples"),
        "gen. ppl, by tokens": _number(figures, "gen_perplexity_tokens"),
        "entropy, nats": _number(figures, "entropy"),
        **{f"distinct-{n}": _formatted(figures, f"distinct_{n}", ".3f") for n in (1, 2, 3)},
        "self-repetition": _number(figures, "self_repetition")
        if "self_repetition_stderr" in figures
        else _formatted(figures, "self_repetition", ".3f"),
        "MAUVE": _formatted(figures, "mauve", ".3f"),
    }


def _number(figures, name, error=None):
    """A figure with its standard error, None if there is no such figure."""
    value = figures.get(name)
    error = figures.get(f"{name}_stderr") if error is None else error
    return with_error(value, error or 0.0) if isinstance(value, int | float) else None


def _formatted(figures, name, form):
    value = figures.get(name)
    is_known = isinstance(value, int | float) and value == value  # the error of one block is NaN
    return format(value, form) if is_known else None


def _scaled_error(figures, name):
    """The error of a figure in bits, which are nats on another scale."""
    value, nats = figures.get(name), figures.get("nats_per_token")
    return figures.get("stderr", 0.0) * value / nats if value and nats else 0.0


def _protocols(title, names, records, label, shown=()):
    """Tables of the settings in which rows differ, row by row, and of those they share."""
    each = [
        {
            key: value
            for key, value in record.settings.items()
            if key not in (*_SAMPLER, *shown) and (key, value) != ("final_step", "none")
        }
        | model
        for record, model in zip(records, model_settings(records, label), strict=True)
    ]
    differing = differing_keys(each)
    shared = {key: value for one in each for key, value in one.items() if key not in differing}
    found = [Table(f"{title}: what the rows share", ("setting", "value"), list(shared.items()))]
    if differing:
        columns = names | {key: [one.get(key) for one in each] for key in differing}
        found.insert(0, _table(f"{title}: how the rows differ", columns))
    return found


def _notes(title, records):
    """Notes on figures, each once for all rows that it concerns."""
    rows: dict[str, list[str]] = {}
    for record in records:
        for note in record.figures.get("notes") or []:
            rows.setdefault(note, []).append(record.name)
    cells = [(note, _listed(names, len(records))) for note, names in rows.items()]
    return [Table(f"{title}: notes", ("note", "of"), cells)] if cells else []


def _listed(names, total):
    if len(names) == total:
        return "all rows"
    kinds = list(dict.fromkeys(names))
    more = [f"{len(kinds) - _FEW} more"] if len(kinds) > _FEW else []
    return ", ".join([*kinds[:_FEW], *more])


def _columns(rows) -> dict[str, list[Cell]]:
    """Rows of the same keys as columns."""
    rows = list(rows)
    return {key: [row[key] for row in rows] for key in rows[0]}


def _table(title: str, columns: dict[str, list[Any]]) -> Table:
    """A table without its empty columns."""
    kept = {name: cells for name, cells in columns.items() if any(it is not None for it in cells)}
    return Table(title, tuple(kept), list(zip(*kept.values(), strict=True)))


def _as_text(value):
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else value

"""What the records of evaluations say, side by side: tables and plots.

What all rows of a table share of their protocols is said once below it, and what they do not is
said row by row, so that it can be seen which numbers may be compared.
"""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sedd_jax.display.number import with_error
from sedd_jax.display.plot import Curve, Plot, image
from sedd_jax.display.table import Table, markdown, to_json
from sedd_jax.evaluation.anchors import published
from sedd_jax.evaluation.record import Record, read_records
from sedd_jax.runtime.files import write_whole

_WAY = ("sampler", "steps", "samples", "precision")  # columns of their own
# they say which model it is, as its name and step do
_OF_A_MODEL = ("model weights", "model tokenizer", "model family", "model graph")


def write(folder: Path) -> None:
    """Makes `summary.md`, `summary.json` and the plots of all records in `folder` anew.

    Without a record nothing is written.
    """
    records = read_records(folder)
    if not records:
        return
    found = tables(records)
    report = {
        "tables": [table._asdict() for table in found],
        "records": [dataclasses.asdict(record) for record in records],
    }
    text = "\n\n".join(f"## {table.title}\n\n{markdown(table)}" for table in found) + "\n"
    files = {"summary.md": text.encode(), "summary.json": to_json(report).encode()}
    files |= {f"{plot.name}.png": image(plot) for plot in plots(records)}
    for name, content in files.items():
        write_whole(folder / name, content)


def tables(records: Sequence[Record], *, all_published: bool = False) -> list[Table]:
    """Returns the tables of likelihoods and of the quality of samples, each with its protocol.

    Args:
      records: in any order.
      all_published: print all published likelihoods of the data sets, not the comparable ones.
    """
    likelihoods = sorted(_of("likelihood", records), key=lambda it: (it.name, model_name(it)))
    qualities = sorted(_of("quality", records), key=_order)
    found = [
        *(_likelihood_tables(likelihoods) if likelihoods else []),
        published(likelihoods, everything=all_published),
        *(_quality_tables(qualities) if qualities else []),
    ]
    return [table for table in found if table]


def plots(records: Sequence[Record]) -> list[Plot]:
    """Returns quality against network evaluations, and for every data set the bound over t."""
    qualities, likelihoods = sorted(_of("quality", records), key=_order), _of("likelihood", records)
    names = sorted({record.name for record in likelihoods if record.figures["by_t"]})
    return [*_sweeps(qualities), *(_over_t(name, likelihoods) for name in names)]


def model_name(record: Record) -> str:
    """Returns the name of the model, and which of its steps."""
    name, step = record.model["name"] or record.model["family"], record.model["step"]
    return name if step is None else f"{name}, step {step:,}"


def _of(kind, records):
    return [record for record in records if record.kind == kind]


def _order(record):
    way = (str(record.protocol.get(it)) for it in ("sampler", "precision"))
    return (model_name(record), *way, record.figures["evaluations"])


def _likelihood_tables(records):
    rows = [(it.name, model_name(it), *_likelihood(it)) for it in records]
    columns = (
        "data set", "model", "perplexity", "nats/token", "bits/token", "bits/byte",
        "stderr by data", "tokens", "blocks", "documents",
    )  # fmt: skip
    return [
        Table("Likelihood", columns, rows),
        *_protocols("Likelihood", columns[:2], [row[:2] for row in _named(records)], records),
    ]


def _named(records):
    return [(record.name, model_name(record)) for record in records]


def _likelihood(record):
    figures = _numbers(record.figures)
    error = figures["stderr"]
    # bits are nats on another scale, and so are their errors
    bits = [
        with_error(figures[it], error * figures[it] / figures["nats_per_token"])
        for it in ("bits_per_token", "bits_per_byte")
    ]
    perplexity = with_error(figures["perplexity"], figures["perplexity_stderr"])
    return (
        f"{'=' if record.figures['exact'] else '<='} {perplexity}",
        with_error(figures["nats_per_token"], error),
        *bits,
        f"{figures['data_stderr']:.2g}",
        *(f"{record.figures[it]:,}" for it in ("tokens", "blocks", "documents")),
    )


def _quality_tables(records):
    with_mauve = any(record.figures.get("mauve") is not None for record in records)
    columns = (
        "model", "sampler", "steps", "evaluations", "samples", "gen. perplexity, of samples",
        "gen. perplexity, of tokens", "entropy, nats", "distinct-1", "distinct-2", "distinct-3",
        "self-repetition", *(["MAUVE"] if with_mauve else []), "precision",
    )  # fmt: skip
    rows = [(model_name(it), *_quality(it, with_mauve)) for it in records]
    keys = columns[:4] + columns[-1:]
    at = [columns.index(name) for name in keys]
    names = [tuple(row[i] for i in at) for row in rows]
    return [
        Table("Quality of samples", columns, rows),
        *_protocols("Quality of samples", keys, names, records, apart=_WAY),
    ]


def _quality(record, with_mauve):
    figures, protocol = _numbers(record.figures), record.protocol

    def number(name):
        value = figures.get(name)
        return "" if value is None else with_error(value, figures.get(f"{name}_stderr", 0.0))

    shares = ("distinct_1", "distinct_2", "distinct_3", "self_repetition")
    return (
        str(protocol.get("sampler") or ""),
        f"{protocol['steps']:,}" if protocol.get("steps") else "",
        *(f"{record.figures[it]:,}" for it in ("evaluations", "samples")),
        number("gen_perplexity_samples"),
        number("gen_perplexity_tokens"),
        number("entropy"),
        *(f"{figures[name]:.3f}" for name in shares),
        *([number("mauve")] if with_mauve else []),
        str(protocol.get("precision") or ""),
    )


def _protocols(title, columns, names, records, apart=()):
    """Tables of what the rows differ in, row by row, and of what they share."""
    each = [_settings(record, apart) for record in records]
    differing, shared = _compared(each)
    tables = []
    if differing:
        rows = [
            (*name, *(settings.get(key, "") for key in differing))
            for name, settings in zip(names, each, strict=True)
        ]
        tables.append(Table(f"{title}: how the rows differ", (*columns, *differing), rows))
    rows = list(shared.items())
    return [*tables, Table(f"{title}: what all rows share", ("setting", "value"), rows)]


def _compared(each):
    """Keys whose values differ, and the rest with its values."""
    keys = dict.fromkeys(key for settings in each for key in settings)
    differing = [key for key in keys if len({settings.get(key) for settings in each}) > 1]
    return differing, {key: each[0][key] for key in keys if key not in differing}


def _settings(record, apart=()):
    """All that the figures depend on, by names, as text."""
    model = {key: value for key, value in record.model.items() if key not in ("name", "step")}
    flat = dict(_flat({"model": model, **record.protocol}))
    return {key: value for key, value in flat.items() if key not in apart}


def _flat(values: Mapping[str, Any], prefix: str = ""):
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key} ")
        elif key == "sha256":
            yield f"{prefix}{key}", str(value)[:12]
        else:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value)


def _numbers(figures):
    """The figures that are numbers; those that JSON lacks are text in a record."""
    numbers = {}
    for name, value in figures.items():
        if isinstance(value, int | float) or value in ("nan", "inf", "-inf"):
            numbers[name] = float(value)
    return numbers


def _sweeps(records):
    shown = (
        ("gen_perplexity_samples", "generative perplexity, mean of samples", True),
        ("gen_perplexity_tokens", "generative perplexity, of tokens", True),
        ("entropy", "entropy of a sample's tokens, nats", False),
    )
    for name, label, log_y in shown:
        curves: dict[str, Curve] = {}
        for curve, record in zip(_curve_names(records), records, strict=True):
            figures = _numbers(record.figures)
            # real text has cost no evaluations, and has no place on their axis
            if figures["evaluations"] and math.isfinite(figures.get(name, math.nan)):
                point = (figures["evaluations"], figures[name], figures.get(f"{name}_stderr", 0.0))
                for column, number in zip(
                    curves.setdefault(curve, ([], [], [])), point, strict=True
                ):
                    column.append(number)
        if curves:
            yield Plot(name, "network evaluations per sample", label, curves, log_y=log_y)


def _curve_names(records):
    """For each record what its curve is called: points on one curve differ in steps alone."""
    each = [
        {"model name": model_name(record)} | _settings(record, ("steps", "samples", *_OF_A_MODEL))
        for record in records
    ]
    differing, _ = _compared(each)
    keys = dict.fromkeys((*differing, "sampler", "precision"))
    return [", ".join(it[key] for key in keys if it.get(key)) for it in each]


def _over_t(name, records):
    """The share of each time in the bound: the area below a curve is its nats per token."""
    shown = [record for record in records if record.name == name and record.figures["by_t"]]
    each = [{"model name": model_name(it)} | _settings(it, _OF_A_MODEL) for it in shown]
    differing, _ = _compared(each)
    curves = {}
    for settings, record in zip(each, shown, strict=True):
        label = ", ".join(settings[key] for key in differing if key in settings) or name
        x, y = [], []
        for low, high, nats in record.figures["by_t"]:
            x += [low, high]
            y += [nats / (high - low)] * 2
        curves[label] = (x, y)
    return Plot(f"by_t-{name}", "t", f"{name}: nats/token per unit of t", curves, False, False)

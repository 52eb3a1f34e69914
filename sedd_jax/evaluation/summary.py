"""What the records of evaluations say, side by side: tables and plots."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from sedd_jax.display.plot import Plot, image
from sedd_jax.display.table import Table, markdown, to_json
from sedd_jax.evaluation.curves import over_t, quality_plot
from sedd_jax.evaluation.naming import Label, is_real, labels, settings
from sedd_jax.evaluation.published_results import published
from sedd_jax.evaluation.record import Record, read_records
from sedd_jax.evaluation.tables import likelihood_tables, models_table, quality_tables
from sedd_jax.system.files import atomic_write


def write(folder: Path) -> None:
    """Makes `summary.md`, `summary.json` and the plots of all records in `folder` anew.

    Without a record nothing is written.
    """
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
    files = {"summary.md": text.encode(), "summary.json": to_json(report).encode()}
    files |= {f"{plot.name}.png": image(plot) for plot in drawn}
    for name, content in files.items():
        atomic_write(folder / name, content)


def tables(records: Sequence[Record], *, all_published: bool = False) -> list[Table]:
    """Returns the tables of likelihoods and of the quality of samples, each with its protocol.

    Args:
      records: in any order.
      all_published: print all published likelihoods of the data sets, not the comparable ones.
    """
    label = labels(records)
    scored, drawn = _likelihoods(records, label), qualities(records, label)
    found = [
        *(likelihood_tables(scored, label) if scored else []),
        published(scored, everything=all_published),
        *(quality_tables(drawn, label) if drawn else []),
        models_table(records, label),
    ]
    return [table for table in found if table and table.rows]


def plots(records: Sequence[Record]) -> list[Plot]:
    """Returns quality against network evaluations, and for every data set the bound over t."""
    label = labels(records)
    bounds: dict[str, list[Record]] = {}
    for record in _likelihoods(records, label):
        if record.figures.get("by_t"):
            bounds.setdefault(record.name, []).append(record)
    quality = quality_plot(qualities(records, label), label)
    return [*([quality] if quality else []), *(over_t(*it, label) for it in bounds.items())]


def qualities(records: Sequence[Record], label: Label) -> list[Record]:
    """Returns those of samples: real text once, and first; then by the way and its cost.

    Real text is the same however many models it was measured beside.
    """
    once = {
        json.dumps([settings(it), _timeless(it)]) if is_real(it) else index: it
        for index, it in enumerate(records)
        if it.kind == "quality"
    }

    def order(record):
        way = (str(record.protocol.get("sampler")),)
        cost = (record.figures.get(it, 0) for it in ("evaluations", "samples"))
        return (not is_real(record), label(record), *way, *cost)

    return sorted(once.values(), key=order)


def _likelihoods(records: Sequence[Record], label: Label) -> list[Record]:
    found = [record for record in records if record.kind == "likelihood"]
    return sorted(found, key=lambda it: (it.name, label(it)))


def _timeless(record):
    return {name: value for name, value in record.figures.items() if name != "seconds"}

"""Frontiers as tables, plots and JSON."""

from collections.abc import Sequence
from typing import Any

from sedd_jax.display.plot import Plot
from sedd_jax.display.table import Table, with_error
from sedd_jax.evaluation.frontier import CONVENTIONS, sections, temperature_of
from sedd_jax.evaluation.record import Label, Record

FILE = "frontier.json"


def tables(records: Sequence[Record], label: Label) -> list[Table]:
    """Returns a table of matched perplexities for every section."""
    return [_table(section) for section in sections(records, label)]


def _table(section):
    real = section.real.figures
    convention = CONVENTIONS[section.figure]
    title = (
        f"Frontier: samplers at the entropy of {section.title} ({real['samples']} texts): "
        f"{_number(real, 'entropy')} nats. Its own perplexity, {convention}: "
        f"{_number(real, section.figure)}"
    )
    columns = (
        "sampler", "steps", "evaluations", f"gen. ppl, {convention}", "stderr by real text",
        "temperature", "how",
    )  # fmt: skip
    rows = []
    for frontier in section.frontiers:
        found = section.matched(frontier)
        between = " to ".join(f"{each:g}" for each in found.temperatures)
        rows.append((
            frontier.name,
            frontier.steps,
            f"{found.evaluations:,.4g}",
            with_error(found.perplexity, found.stderr),
            f"{float(f'{section.level_stderr(found):.2g}'):,.6g}",  # no exponent
            between,
            found.how,
        ))  # fmt: skip
    return Table(title, columns, rows)


def _number(figures, name):
    return with_error(figures[name], figures.get(f"{name}_stderr", 0.0))


def plots(records: Sequence[Record], label: Label) -> list[Plot]:
    """Returns for every section the curves, and perplexity at equal entropy over evaluations."""
    found = list(sections(records, label))
    drawn = []
    for number, section in enumerate(found, 1):
        suffix = f"-{number}" if len(found) > 1 else ""
        y_label = f"gen. perplexity, {CONVENTIONS[section.figure]}"
        curves = {f"{section.title} (the point)": _curve([section.real], section.figure)}
        owners = {}
        for frontier in section.frontiers:
            steps = "" if frontier.steps is None else f", {frontier.steps:,} steps"
            curves[f"{frontier.name}{steps}"] = _curve(frontier.records, section.figure)
            for name in (f"{frontier.name}{steps}", frontier.name):
                owners[name] = label(frontier.records[0])
        x_label = "entropy of a sample, nats"
        name = f"frontier{suffix}"
        drawn.append(Plot(name, x_label, y_label, curves, log_x=False, owners=owners))
        budgets: dict[str, list[tuple[float, float, float]]] = {}
        for frontier in section.frontiers:
            it = section.matched(frontier)
            budgets.setdefault(frontier.name, []).append((it.evaluations, it.perplexity, it.stderr))
        lines = {
            name: tuple(map(list, zip(*sorted(points), strict=True)))
            for name, points in budgets.items()
        }
        levels = {section.title: section.real.figures[section.figure]}
        y_label = "gen. ppl at equal entropy"
        x_label = "network evaluations per sample"
        name = f"frontier-matched{suffix}"
        drawn.append(Plot(name, x_label, y_label, lines, levels=levels, owners=owners))
    return drawn


def _curve(records, figure):
    """A curve by entropy."""
    points = sorted(
        (it.figures["entropy"], it.figures[figure], it.figures.get(f"{figure}_stderr", 0.0))
        for it in records
    )
    return tuple(map(list, zip(*points, strict=True)))


def as_json(records: Sequence[Record], label: Label) -> list[dict[str, Any]]:
    """Returns every section with its curves, in both conventions of perplexity, for `FILE`."""
    return [
        {
            "real_text": section.title,
            "compared": CONVENTIONS[section.figure],
            "length": section.real.protocol.get("length"),
            "judge": section.real.protocol.get("judge"),
            "level": _point(section, section.real),
            "frontiers": [
                {
                    "sampler": frontier.name,
                    "model": label(frontier.records[0]),
                    "steps": frontier.steps,
                    "seed": frontier.records[0].protocol.get("seed"),
                    "matched": {it: _matched(section, frontier, it) for it in section.figures},
                    "curve": [
                        {"temperature": temperature_of(it)} | _point(section, it)
                        for it in frontier.records
                    ],
                }
                for frontier in section.frontiers
            ],
        }
        for section in sections(records, label)
    ]


def _point(section, record):
    names = [name for it in ("entropy", *section.figures) for name in (it, f"{it}_stderr")]
    return {name: record.figures.get(name) for name in (*names, "samples", "evaluations")}


def _matched(section, frontier, figure):
    found = section.matched(frontier, figure)
    return found._asdict() | {"how": found.how, "level_stderr": section.level_stderr(found)}

"""The report on runs, side by side: settings, training, evaluations and samples."""

import dataclasses
import json
import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import sedd_jax
from sedd_jax.display import page
from sedd_jax.display.plot import Plot
from sedd_jax.display.table import Cell, Table, plain, with_error
from sedd_jax.evaluation import summary
from sedd_jax.evaluation.record import Record, labels, sample_titles
from sedd_jax.evaluation.runs import Run, as_text, origins
from sedd_jax.evaluation.training_plots import BOUNDS, training_plots
from sedd_jax.experiment import card
from sedd_jax.experiment.config import Config
from sedd_jax.system import mirror

_SETS = 10  # sets of samples from training that are shown beside the last one
_LONGEST, _SHORTENED = 1000, 600  # characters of a sample: longer ones are folded
_NAMED = 60  # characters of names in the heading, which numbers the runs otherwise
_RUNS, _QUALITY = "Runs", "Quality of samples"
# the tab of a table or a plot, by what its title or name begins with; others have their own
_TABS = {
    "Models": _RUNS,
    "Likelihood": "Likelihood",
    "interval": "Likelihood",
    "by_t": "Likelihood",
    "Quality": "Quality",
    "Published samples": "Quality",
    "Published": "Likelihood",
}
_PROTOCOLS = ("how the rows differ", "by class", "notes")  # ends of titles


class Tab(NamedTuple):
    """Evaluations of one kind.

    Attributes:
      name: of the tab.
      tables: their figures.
      plots: of these.
      narrow: tables of names and values, which stand beside plots.
      protocols: what else is to know of the figures.
    """

    name: str
    tables: list[Table]
    plots: list[Plot]
    narrow: list[Table]
    protocols: list[Table]


def dashboard(runs: Sequence[Run], *, made: str = "", command: str = "") -> str:
    """Returns the page, the runs in their order: beside the arguments, it depends on their files.

    Args:
      runs: from `read_runs`.
      made: when, for the head of the page.
      command: by which command, for the head of the page.
    """
    # a folder of records may hold those of a run again
    records = list({_identity(it): it for run in runs for it in run.records}.values())
    colours = _colours(runs, labels(records))
    tabs = _tabs(summary.tables(records), summary.plots(records))
    several = len(set(colours.values())) > 1
    return page.render(
        __package__,
        "report.html",
        title=f"Report: {', '.join(_heading(runs))}",
        heading=_heading(runs),
        made=made,
        command=command,
        runs=list(map(_overview, runs)),
        overview=_figures(runs) if len(runs) > 1 else None,
        models=tabs.pop(_RUNS).tables if _RUNS in tabs else [],
        settings=_settings(runs),
        training_plots=_coloured(training_plots(runs), colours if several else {}),
        evaluations=[
            tab._replace(plots=_coloured(tab.plots, colours if several else {}))
            for tab in tabs.values()
        ],
        samples=list(filter(None, map(_samples, runs))),
        colours=colours if several else {},
        key=_key(runs, colours) if several else [],
        longest=_LONGEST,
        shortened=_SHORTENED,
        version=sedd_jax.__version__,
    )


def _identity(record):
    return json.dumps(dataclasses.asdict(record), sort_keys=True)


def _heading(runs):
    names = [run.label for run in runs]
    is_short = len(names) == 1 or sum(map(len, names)) <= _NAMED
    return names if is_short else [f"{len(names)} runs"]


def _colours(runs, label) -> dict[str, int]:
    """The number of the colour of every run and model, by its names in tables and plots."""
    numbers: dict[str, int] = {}
    for run in runs:
        names = list(dict.fromkeys(map(label, run.records)))
        if run.facts:
            numbers |= dict.fromkeys([run.label, *names], _unused(numbers))
        else:
            for name in names:
                numbers.setdefault(name, _unused(numbers))
    return numbers


def _key(runs, colours) -> list[tuple[str, int]]:
    """A name for every colour, of a run or of a model without one; none if the heading has them."""
    names = {number: name for name, number in reversed(colours.items())}
    key = [(names[number], number) for number in sorted(names)]
    return [] if {name for name, _ in key} <= set(_heading(runs)) else key


def _unused(numbers):
    return 1 + max(numbers.values(), default=-1)


def _coloured(plots: Iterable[Plot], colours: Mapping[str, int]) -> list[Plot]:
    return [plot._replace(colours=colours) for plot in plots]


def _tabs(tables, plots) -> dict[str, Tab]:
    """Tables and plots by what they are about, in their order."""
    found: dict[str, Tab] = {}

    def tab(about):
        names = (name for start, name in _TABS.items() if about.startswith(start))
        name = next(names, _capitalized(about))
        return found.setdefault(name, Tab(name, [], [], [], []))

    for table in tables:
        about, _, detail = table.title.partition(": ")
        shown = tab(about)
        parts = [detail] if about in (shown.name, _QUALITY) else [about, detail]
        kind = shown.protocols if detail in _PROTOCOLS else shown.tables
        if table.columns == ("setting", "value"):
            kind = shown.narrow
        kind.append(table._replace(title=_capitalized(": ".join(filter(None, parts)))))
    for plot in plots:
        tab(plot.name.partition("-")[0]).plots.append(plot)
    return found


def _capitalized(text):
    return text[:1].upper() + text[1:]


def _overview(run):
    facts, folder = run.facts, shlex.quote(card.without_folders(mirror.shown(run.folder)))
    known = facts and [*card.training_facts(facts), *_origins(run)]
    return {
        "label": run.label,
        "latest": _latest(facts) if facts else "Evaluations only: not a run of train.",
        "model": facts and card.model_facts(facts),
        "training": known,
        "data": facts and card.data_facts(facts.manifest),
        "commands": _commands(facts.config, folder) if facts else [],
    }


def _origins(run):
    return [(name.capitalize(), value) for name, value in origins(run)]


def _commands(config, folder):
    """How to continue a run, and to use it."""
    yield f"python -m sedd_jax.train --config={folder}/config.json --workdir={folder}"
    yield f"python -m sedd_jax.sample {card.flags_of_use(config, folder)}"
    if config.family != "classifier":
        yield f"python -m sedd_jax.evaluate --checkpoint={folder} --suite=heldout,quality"


def _latest(facts):
    """The last logged step and the last held-out figures."""
    if facts.step is None:
        return "No step is logged yet."
    parts = [f"Step {facts.step:,} of {facts.config.train.steps:,}"]
    for name, row in _heldout(facts):
        figure = with_error(row[name], row.get(f"{name}_stderr", 0.0))
        relation = "<=" if name == "bound" else "="
        at = "" if row["step"] == facts.step else f" of step {row['step']:,}:"
        parts.append(f"held-out {name}{at} {figure} nats/token")
        parts.append(f"perplexity {relation} {plain(row['perplexity'])}")
    return " · ".join(parts)


def _heldout(facts):
    """The last measured bound and likelihood, with their rows."""
    for name in BOUNDS:
        if measured := [row for row in facts.rows if name in row]:
            yield name, measured[-1]


def _figures(runs) -> Table | None:
    """The runs in a few figures."""
    rows = [(run.label, *_row(run.facts)) for run in runs if run.facts]
    columns = ("run", "model", "parameters", "step", "of", "held out, nats/token", "perplexity")
    return Table("", columns, rows) if rows else None


def _row(facts) -> tuple[Cell, ...]:
    kind = dict(card.model_facts(facts))["Kind"]
    heldout: tuple[Cell, ...] = (None, None)
    for name, row in _heldout(facts):
        relation = "<=" if name == "bound" else "="
        figure = with_error(row[name], row.get(f"{name}_stderr", 0.0))
        heldout = (f"{relation} {figure}", f"{relation} {plain(row['perplexity'])}")
    counts = (facts.parameters, facts.step, facts.config.train.steps)
    return kind, *(None if it is None else f"{it:,}" for it in counts), *heldout


def _settings(runs) -> dict[str, Any] | None:
    """The settings in which runs differ, and those that they share, beside the defaults."""
    trained = [run for run in runs if run.facts]
    if not trained:
        return None
    default = as_text(Config())
    each = [run.settings | dict(origins(run) if len(trained) > 1 else []) for run in trained]
    compared = each if len(trained) > 1 else [*each, default]
    keys = dict.fromkeys(key for settings in each for key in settings)
    differing = [key for key in keys if len({settings.get(key) for settings in compared}) > 1]
    columns = ("setting", *(run.label for run in trained), "default")
    rows = [(key, *(it.get(key) for it in each), default.get(key)) for key in differing]
    shared = [(key, each[0][key]) for key in keys if key not in differing]
    return {"differing": Table("", columns, rows), "shared": shared, "count": len(trained)}


def _samples(run):
    """The texts of a run: from training, the last ones first, and from evaluations."""
    drawn: dict[str, list[str]] = {}
    for row in run.facts.rows if run.facts else []:
        if texts := [row[key] for key in row if key.startswith("sample_")]:
            drawn.setdefault(f"Step {row['step']:,}", []).extend(texts)
    newest_first = [*reversed(drawn.items())]
    last, earlier = newest_first[:1], newest_first[1:]
    # at most _SETS of the earlier ones, evenly spaced, including the first and the last
    count = min(len(earlier), _SETS)
    kept = [earlier[i * (len(earlier) - 1) // max(count - 1, 1)] for i in range(count)]
    title = "Earlier in training"
    if count < len(earlier):
        title += f": {count} of {len(earlier):,} steps, {len(earlier) - count:,} left out"
    label = labels(run.records)
    shown = summary.qualities([it for it in run.records if it.figures.get("texts")], label)
    evaluated = [
        {"title": title, "facts": _drawn(record), "texts": record.figures["texts"]}
        for title, record in zip(sample_titles(shown, label), shown, strict=True)
    ]
    if not (last or evaluated):
        return None
    return {
        "label": run.label,
        "drawing": run.drawing,
        "last": last[0] if last else None,
        "earlier_title": title,
        "earlier": kept,
        "evaluated": evaluated,
    }


def _drawn(record: Record) -> str:
    """What samples cost, and the figures by which to read them."""
    figures = record.figures
    parts = (
        []
        if record.is_real
        else [f"{figures.get('evaluations', math.nan):,.6g} network evaluations"]
    )
    for name, words in (("gen_perplexity_tokens", "gen. perplexity"), ("entropy", "entropy")):
        if isinstance(figures.get(name), int | float):
            figure = with_error(figures[name], figures.get(f"{name}_stderr") or 0.0)
            parts.append(f"{words} {figure}")
    return " · ".join(parts)

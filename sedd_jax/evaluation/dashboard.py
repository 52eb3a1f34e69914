"""The report on runs, side by side: training, samples and evaluations."""

import dataclasses
import json
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax

import sedd_jax
from sedd_jax.data.conditions import find_conditions
from sedd_jax.data.tokenizer import find_tokenizer
from sedd_jax.display import page
from sedd_jax.display.plot import Plot
from sedd_jax.display.table import Table, plain, with_error
from sedd_jax.errors import BadInput
from sedd_jax.evaluation import summary
from sedd_jax.evaluation.record import FOLDER, Record, labels, read_records, sample_titles
from sedd_jax.experiment import card
from sedd_jax.experiment.config import Config
from sedd_jax.experiment.run import CONFIG_FILE, DATA_FOLDER, read_settings
from sedd_jax.inference.build import build_family, dotted_paths
from sedd_jax.model.score_model import count_params
from sedd_jax.system.settings import flatten

_POINTS = 500  # of a curve; more are not visible
_SETS = 10  # sets of samples from training that are shown beside the last one
_BOUNDS = ("bound", "nll")  # logged by diffusion and by autoregressive models
# metrics, their axis label, whether their axis is logarithmic
_CURVES = (
    (("loss",), "training loss, nats/token (of a classifier: nats/sequence)", False),
    (_BOUNDS, "held out: {}, nats/token", False),
    (("cross_entropy",), "held out: cross-entropy, nats/sequence", False),
    (("accuracy",), "held out: accuracy", False),
    (("learning_rate",), "learning rate", False),
    (("grad_norm",), "norm of the gradient", True),
    (("tokens_per_second",), "tokens per second", False),
)


class Run(NamedTuple):
    """A run folder.

    Attributes:
      label: its unique name.
      facts: its settings and training; None where there are only evaluations.
      records: its evaluations, under its label.
    """

    label: str
    facts: card.RunFacts | None
    records: list[Record]


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Returns the runs in these folders, finished or not; duplicates are dropped.

    Raises:
      BadInput: a folder is missing, or holds neither a run nor evaluations.
    """
    folders = list(dict.fromkeys(folder.resolve() for folder in folders))
    return [_read(folder, label) for folder, label in zip(folders, _labels(folders), strict=True)]


def _labels(folders):
    """The shortest ending of each path that no other path has."""

    def last(folder, count):
        return "/".join(folder.parts[-count:])

    def label(folder):
        counts = range(1, len(folder.parts))
        others = [other for other in folders if other != folder]
        unique = (n for n in counts if last(folder, n) not in {last(it, n) for it in others})
        return last(folder, next(unique, len(folder.parts)))

    return [label(folder) for folder in folders]


def _read(folder, label):
    if not folder.is_dir():
        raise BadInput(f"There is no folder {folder}; name the folders of runs.")
    facts = _facts(folder)
    records = [
        dataclasses.replace(record, model=record.model | {"name": label})
        for record in read_records(folder / FOLDER)
    ]
    if facts is None and not records:
        raise BadInput(
            f"{folder} is no run: it holds neither {CONFIG_FILE} of a training nor {FOLDER}/."
        )
    return Run(label, facts, records)


def _facts(folder):
    settings, tokens = folder / CONFIG_FILE, folder / DATA_FOLDER
    if not settings.is_file() or not tokens.exists():
        return None  # the config.json of a published model has another layout
    config, tokenizer = read_settings(settings), find_tokenizer(tokens / "tokenizer")
    vocab_size = tokenizer.vocab_size if tokenizer else config.data.vocab_size
    if not vocab_size:
        raise BadInput(f"{folder} lacks its {DATA_FOLDER}/tokenizer; copy it there.")
    history = card.read_history(card.find_records(folder), sys.maxsize)
    rows = history["rows"]
    return card.RunFacts(
        config=config,
        parameters=_parameters(config, vocab_size, find_conditions(tokens)),
        tokenizer=tokenizer,
        **history | {"step": rows[-1]["step"] if rows else None},
    )


def _parameters(config, vocab_size, conditions):
    if dotted_paths(config):  # a report runs no code that a folder names
        return None
    # the run may have been trained on another kind of device
    here = dataclasses.replace(config, model=dataclasses.replace(config.model, attention="auto"))
    init = build_family(here, vocab_size, conditions=conditions).model.init
    return count_params(jax.eval_shape(init, jax.random.key(0)))


def dashboard(runs: Sequence[Run]) -> str:
    """Returns the page, the runs in their order: it depends on their files alone."""
    records = [record for run in runs for record in run.records]
    return page.render(
        __package__,
        "report.html",
        title=", ".join(run.label for run in runs),
        runs=list(map(_overview, runs)),
        differences=_differences(runs),
        training_plots=list(training_plots(runs)),
        tables=summary.tables(records),
        plots=summary.plots(records),
        samples=list(filter(None, map(_samples, runs))),
        version=sedd_jax.__version__,
    )


def _overview(run):
    facts = run.facts
    return {
        "label": run.label,
        "latest": _latest(facts) if facts else "Evaluations only: not a run of train.",
        "model": facts and card.model_facts(facts),
        "training": facts and card.training_facts(facts),
        "data": facts and card.data_facts(facts.manifest),
    }


def _latest(facts):
    """The last logged step and the last held-out figures."""
    if facts.step is None:
        return "No step is logged yet."
    parts = [f"Step {facts.step:,} of {facts.config.train.steps:,}"]
    for name in _BOUNDS:
        if measured := [row for row in facts.rows if name in row]:
            row = measured[-1]
            figure = with_error(row[name], row.get(f"{name}_stderr", 0.0))
            relation = "<=" if name == "bound" else "="
            at = "" if row["step"] == facts.step else f" of step {row['step']:,}:"
            parts.append(f"held-out {name}{at} {figure} nats/token")
            parts.append(f"perplexity {relation} {plain(row['perplexity'])}")
    return " · ".join(parts)


def _differences(runs):
    """The settings in which the runs differ; of a single run, those that are not the default."""
    trained = [run for run in runs if run.facts]
    each = [_settings(run.facts.config) for run in trained]
    columns = [run.label for run in trained]
    if len(trained) < 2:
        each, columns = [*each, _settings(Config())], [*columns, "default"]
    keys = [key for key in each[0] if len({settings[key] for settings in each}) > 1]
    if not trained or not keys:
        return None
    rows = [(key, *(settings[key] for settings in each)) for key in keys]
    return Table("", ("setting", *columns), rows)


def _settings(config):
    values = card.without_folders(flatten(dataclasses.asdict(config)))
    return {
        key: value if isinstance(value, str) else json.dumps(value) for key, value in values.items()
    }


def training_plots(runs: Sequence[Run]) -> Iterator[Plot]:
    """Yields a plot of every metric that a run has logged, with a curve for each run."""
    trained = [run for run in runs if run.facts]
    sizes = [it.facts.config.train.batch_size * it.facts.config.model.length for it in trained]
    # steps of different batch sizes are not comparable
    by_tokens = len(set(sizes)) > 1
    for names, label, log_y in _CURVES:
        logged = [
            name for name in names if any(name in row for it in trained for row in it.facts.rows)
        ]
        curves = {}
        for run, size in zip(trained, sizes, strict=True):
            rows = run.facts.rows
            name = next((name for name in logged if any(name in row for row in rows)), names[0])
            title = run.label if len(logged) < 2 else f"{run.label}, {name}"
            curves[title] = _curve(rows, name, size if by_tokens else 1, log_y)
        if any(x for x, *_ in curves.values()):
            x_label, y_label = "tokens" if by_tokens else "step", label.format(" or ".join(logged))
            yield Plot(f"training-{names[0]}", x_label, y_label, curves, log_x=False, log_y=log_y)


def _curve(rows, name, scale, log_y):
    """Steps times scale, values and their errors; means of neighbours where rows are many."""
    stderr = f"{name}_stderr"
    kept = [row for row in rows if name in row and (row[name] > 0 or not log_y)]
    together = math.ceil(len(kept) / _POINTS) or 1
    groups = [kept[i : i + together] for i in range(0, len(kept), together)]

    def means(value):
        return [sum(map(value, group)) / len(group) for group in groups]

    curve = (means(lambda row: row["step"] * scale), means(lambda row: row[name]))
    if any(stderr in row for row in kept):
        return *curve, means(lambda row: row.get(stderr, 0.0))
    return curve


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
        (title, record.figures["texts"])
        for title, record in zip(sample_titles(shown, label), shown, strict=True)
    ]
    if not (last or evaluated):
        return None
    return {
        "label": run.label,
        "last": last[0] if last else None,
        "earlier_title": title,
        "earlier": kept,
        "evaluated": evaluated,
    }

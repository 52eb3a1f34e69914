"""Compares models: `python -m sedd_jax.compare --config=configs/compare_table1.py --workdir=RUNS`.

Every row of the config is trained with the same network, text and budget, one process after
another, and scored by the same evaluator. The same command continues a comparison that was stopped
or killed. Writes tables with standard errors, plots and a page beside the paper's published rows.
"""

from pathlib import Path

import jax
from absl import flags

from sedd_jax.comparison.report import NAME, write
from sedd_jax.comparison.runs import Plan, complete
from sedd_jax.comparison.score import DataSets
from sedd_jax.comparison.settings import (
    LOCK,
    Comparison,
    ComparisonConfig,
    comparison_from,
    keep_settings,
    open_rows,
)
from sedd_jax.display.plot import check_plots
from sedd_jax.display.table import markdown
from sedd_jax.errors import BadInput
from sedd_jax.evaluation.likelihood import SUITES
from sedd_jax.evaluation.scoring_model import ScoringModel
from sedd_jax.experiment import cli
from sedd_jax.experiment.config_files import define_config_flag
from sedd_jax.inference.load import load
from sedd_jax.system.files import check_local
from sedd_jax.system.lock import exclusive

_CONFIG = define_config_flag(
    "The comparison: configs/compare_table1.py, or one of your own.", open_rows
)
_WORKDIR = flags.DEFINE_string("workdir", None, "The folder: created, or continued.")
_ROWS = flags.DEFINE_list("rows", None, "Train and score these rows now; all by default.")
_JUDGE = flags.DEFINE_string(
    "judge",
    None,
    "A GPT-2 or an autoregressive run that scores samples; by default the comparison's own "
    "autoregressive row.",
)
_SUITE = flags.DEFINE_list(
    "suite", [], f"Data sets to score beside the held-out text: {', '.join(SUITES)}."
)
_DATA = flags.DEFINE_string("data", None, "Folder with the files of data sets, at any depth.")
_SOURCES = flags.DEFINE_list("sources", [], "Files of single data sets, as in ptb=test.txt.")
_DOWNLOAD = flags.DEFINE_bool("download", False, "Fetch the data sets that are missing.")


def main() -> None:
    """Compares as the flags say."""
    # nothing is computed here, and an accelerator is for the rows
    jax.config.update("jax_platforms", "cpu")
    comparison = comparison_from(cli.config_from(_CONFIG, ComparisonConfig, "compare_table1"))
    if not _WORKDIR.value:
        raise BadInput("--workdir=FOLDER is needed: where the comparison is kept.")
    folder = Path(_WORKDIR.value)
    check_local(folder, "--workdir")
    check_plots()
    data = DataSets(tuple(_SUITE.value), _DATA.value, cli.named_files(_SOURCES), _DOWNLOAD.value)
    _check_data(data)
    if _JUDGE.value:
        _check_judge(comparison, _JUDGE.value)
    plan = Plan(comparison, folder, _picked(comparison), _JUDGE.value, data)
    with exclusive(folder / LOCK, "choose another --workdir"):
        keep_settings(folder, comparison)
        try:
            complete(plan, lambda: write(plan, drawn=False))
        finally:  # a comparison that is stopped keeps what it has found
            found = write(plan, drawn=True)
    print(f"\n{markdown(found.tables[0])}\n")
    print("\n".join(f"- {note}" for note in found.notes))
    print(f"\nTables, plots and a page: {folder}/{NAME}.md, .json and .html")


def _picked(comparison: Comparison) -> list[str]:
    names = [row.name for row in comparison.rows]
    picked = names if _ROWS.value is None else _ROWS.value
    if wrong := [name for name in picked if name not in names]:
        raise BadInput(f"--rows={wrong[0]!r} is no row; there are {', '.join(names)}.")
    return picked


def _check_data(data: DataSets) -> None:
    """Raises BadInput for data sets that are not there, and names those that a suite lacks."""
    if not data.suites and (_DATA.value or _SOURCES.value or _DOWNLOAD.value):
        raise BadInput("--data, --sources and --download are for data sets: name them by --suite.")
    for suite, words in data.resolve()[2].items():
        print("\n  ".join([f"Of {suite} there is no data for:", *words]), flush=True)


def _check_judge(comparison: Comparison, judge: str) -> None:
    """Raises BadInput unless the judge can be loaded and scores texts."""
    if not comparison.settings.samples:
        raise BadInput("--judge scores samples, and config.comparison.samples is 0.")
    ScoringModel(load(judge), comparison.rows[0].config.model.length)


if __name__ == "__main__":
    cli.run(main)

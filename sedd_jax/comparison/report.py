"""Writes what a comparison has found: Markdown, JSON, plots and an HTML page."""

import dataclasses
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sedd_jax
from sedd_jax.comparison.figures import RowFigures, collect
from sedd_jax.comparison.runs import Plan
from sedd_jax.comparison.tables import Report, report
from sedd_jax.display import page
from sedd_jax.display.plot import image
from sedd_jax.display.table import markdown, to_json
from sedd_jax.evaluation.frontier import temperature_of
from sedd_jax.system.files import atomic_write

NAME = "comparison"  # of the files, without their endings
_LETTERS = 1200  # of a sample on the page


def write(plan: Plan, *, drawn: bool) -> Report:
    """Writes the report into the folder of the comparison, and returns it.

    Args:
      plan: what was compared.
      drawn: whether to draw plots and write the page, too, which takes seconds.
    """
    rows = collect(plan)
    judge = None if plan.judge is None else Path(plan.judge).name
    found = report(plan.comparison, rows, judge)
    files: dict[str, Any] = {
        f"{NAME}.md": as_markdown(found),
        f"{NAME}.json": to_json(_values(plan, rows, found)),
    }
    if drawn:
        files |= {f"{plot.name}.png": image(plot) for plot in found.plots}
        files[f"{NAME}.html"] = _page(plan, rows, found)
    for name, content in files.items():
        atomic_write(plan.folder / name, content)
    return found


def as_markdown(found: Report) -> str:
    """Returns the report in Markdown."""
    first, *rest = (f"## {table.title}\n\n{markdown(table)}" for table in found.tables)
    notes = "\n".join(f"- {note}" for note in found.notes)
    drawn = [f"![{plot.name}]({plot.name}.png)" for plot in found.plots]
    return "\n\n".join(filter(None, [first, notes, *rest, *drawn])) + "\n"


def _values(plan: Plan, rows: Sequence[RowFigures], found: Report) -> dict[str, Any]:
    return {
        "comparison": dataclasses.asdict(plan.comparison.settings),
        "notes": found.notes,
        "tables": [table._asdict() for table in found.tables],
        "rows": [
            {
                "name": row.row.name,
                "title": row.row.title,
                "failures": row.failures,
                "missing": row.missing,
                "runs": [
                    {
                        "seed": each.run.config.seed,
                        "config": dataclasses.asdict(each.run.config),
                        "records": [dataclasses.asdict(record) for record in each.records],
                    }
                    for each in row.scored
                ],
            }
            for row in rows
        ],
    }


def _page(plan: Plan, rows: Sequence[RowFigures], found: Report) -> str:
    return page.render(
        __package__,
        "comparison.html",
        title=f"Comparison: {plan.folder.name}",
        tables=found.tables,
        notes=found.notes,
        plots=found.plots,
        samples=[sample for row in rows if row.scored for sample in _sample(row)],
        commands=[(row.row.title, command(plan, row)) for row in rows],
        version=sedd_jax.__version__,
    )


def _sample(row):
    """The first sample of a row, at the temperature nearest to 1."""
    if drawn := row.scored[0].drawn:
        record = min(drawn, key=lambda it: abs(temperature_of(it) - 1))
        title = f"{row.row.title}, temperature {temperature_of(record):g}"
        yield title, record.figures["texts"][0][:_LETTERS]


def command(plan: Plan, row: RowFigures) -> str:
    """Returns the command that trains the first run of a row alone."""
    run = next(run for run in plan.runs if run.row == row.row)
    flags = (f"--config={run.settings_file}", f"--workdir={run.folder}")
    return shlex.join(("python", "-m", "sedd_jax.train", *flags))

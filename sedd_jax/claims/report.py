"""A claim is a figure that must keep to a limit; a section holds claims, tables and plots."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple


class Claim(NamedTuple):
    """A statement that holds if its figure keeps to the limit.

    Attributes:
      statement: what is claimed, in one line.
      figure: what was computed; a figure that is not a number never holds.
      relation: how the figure must stand to the limit.
      limit: the stated tolerance.
    """

    statement: str
    figure: float
    relation: Literal["<=", ">="]
    limit: float

    @property
    def holds(self) -> bool:
        """Whether the claim holds."""
        if self.relation == "<=":
            return bool(self.figure <= self.limit)
        return bool(self.figure >= self.limit)


class Table(NamedTuple):
    """Rows of cells under named columns."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[float | int | str, ...]]


class Plot(NamedTuple):
    """Curves over one axis, by name: (x, y), both positive where the scale is logarithmic."""

    name: str
    x_label: str
    y_label: str
    curves: dict[str, tuple[list[float], list[float]]]
    log_x: bool = True
    log_y: bool = True


class Section(NamedTuple):
    """One part of the report."""

    title: str
    claims: list[Claim]
    tables: Sequence[Table] = ()
    plots: Sequence[Plot] = ()


def render(section: Section) -> str:
    """Returns the section as Markdown: every table, then every claim with its figure and limit."""
    lines = [f"## {section.title}", ""]
    for table in section.tables:
        lines += [table.title, "", *_markdown(table.columns, table.rows), ""]
    rows = [
        (c.statement, c.figure, f"{c.relation} {_cell(c.limit)}", "yes" if c.holds else "NO")
        for c in section.claims
    ]
    lines += _markdown(("claim", "figure", "limit", "holds"), rows)
    return "\n".join(lines) + "\n"


def write(sections: Sequence[Section], folder: Path, about: dict[str, Any] | None = None) -> None:
    """Writes `report.md` as rendered, all figures to `report.json` and every plot to a PNG file.

    Args:
      sections: the report.
      folder: an existing folder.
      about: what else `report.json` should say: settings and versions.
    """
    from matplotlib.figure import Figure  # only here: a plot is the last thing that is made

    report = [
        {
            "title": section.title,
            "claims": [claim._asdict() | {"holds": claim.holds} for claim in section.claims],
            "tables": [table._asdict() for table in section.tables],
        }
        for section in sections
    ]
    (folder / "report.md").write_text("\n".join(map(render, sections)))
    text = json.dumps(_strict((about or {}) | {"sections": report}), indent=1, allow_nan=False)
    (folder / "report.json").write_text(text + "\n")
    for plot in (plot for section in sections for plot in section.plots):
        figure = Figure(figsize=(5.5, 3.8), layout="constrained")
        axes = figure.subplots()
        for index, (name, (x, y)) in enumerate(plot.curves.items()):
            axes.plot(x, y, label=name, marker="o^sv"[index % 4], markersize=4)
        axes.set(xlabel=plot.x_label, ylabel=plot.y_label)
        axes.set_xscale("log", base=2) if plot.log_x else None
        axes.set_yscale("log") if plot.log_y else None
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
        figure.savefig(folder / f"{plot.name}.png", dpi=110)


def _markdown(columns, rows):
    cells = [columns, *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    lines = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in cells]
    return [lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]


def _cell(value):
    # a bar would end the cell
    return f"{value:.3g}" if isinstance(value, float) else str(value).replace("|", r"\|")


def _strict(value):
    """The value with numbers that JSON lacks (inf, nan) as strings."""
    if isinstance(value, dict):
        return {key: _strict(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(entry) for entry in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value

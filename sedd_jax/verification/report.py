"""A claim is a figure that must keep to a limit; a section holds claims, tables and plots."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from sedd_jax.display.plot import Plot, image
from sedd_jax.display.table import Table, cell, markdown, markdown_lines, to_json


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
        lines += [table.title, "", markdown(table), ""]
    rows = [
        (c.statement, c.figure, f"{c.relation} {cell(c.limit)}", "yes" if c.holds else "NO")
        for c in section.claims
    ]
    lines += markdown_lines(("claim", "figure", "limit", "holds"), rows)
    return "\n".join(lines) + "\n"


def write(sections: Sequence[Section], folder: Path, about: dict[str, Any] | None = None) -> None:
    """Writes `report.md` as rendered, all figures to `report.json` and every plot to a PNG file.

    Args:
      sections: the report.
      folder: an existing folder.
      about: what else `report.json` should say: settings and versions.
    """
    report = [
        {
            "title": section.title,
            "claims": [claim._asdict() | {"holds": claim.holds} for claim in section.claims],
            "tables": [table._asdict() for table in section.tables],
        }
        for section in sections
    ]
    (folder / "report.md").write_text("\n".join(map(render, sections)))
    (folder / "report.json").write_text(to_json((about or {}) | {"sections": report}))
    for plot in (plot for section in sections for plot in section.plots):
        (folder / f"{plot.name}.png").write_bytes(image(plot))

"""Tables, in Markdown and in JSON."""

import json
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

Cell = float | int | str | None


class Table(NamedTuple):
    """Rows of cells under named columns; None where there is nothing to say."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[Cell, ...]]


def markdown(table: Table) -> str:
    """Returns the table without its title; floats with three digits, give others as text."""
    return "\n".join(markdown_lines(table.columns, table.rows))


def markdown_lines(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> list[str]:
    """Returns the lines of a table."""
    cells = [[cell(value) for value in row] for row in (columns, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    lines = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in cells]
    return [lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]


def cell(value: Cell) -> str:
    """Returns a value as it stands in a table of Markdown."""
    return shown(value).replace("|", r"\|")  # a bar would end the cell


def shown(value: Cell) -> str:
    """Returns a value as text: floats with three digits, None as a dash."""
    if value is None:
        return "-"
    return f"{value:.3g}" if isinstance(value, float | np.floating) else str(value)


def to_json(value: Any) -> str:
    """Returns JSON text, with numbers that JSON lacks (inf, nan) as strings."""
    return json.dumps(_strict(value), indent=1, allow_nan=False) + "\n"


def _strict(value):
    if isinstance(value, dict):
        return {key: _strict(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(entry) for entry in value]
    if isinstance(value, np.generic):
        value = value.item()
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value

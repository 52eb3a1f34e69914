"""Tables in Markdown, JSON, and numbers and durations as text."""

import json
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

Cell = float | int | str | None


class Table(NamedTuple):
    """Rows of cells under named columns; None marks an empty cell."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[Cell, ...]]


def markdown(table: Table) -> str:
    """Returns the table in Markdown without its title, see `shown`."""
    return "\n".join(markdown_lines(table.columns, table.rows))


def markdown_lines(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> list[str]:
    """Returns the lines of a table in Markdown."""
    cells = [[cell(value) for value in row] for row in (columns, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    lines = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in cells]
    return [lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]


def cell(value: Cell) -> str:
    """Returns the text of a value in a table of Markdown."""
    return shown(value).replace("|", r"\|")  # an unescaped bar ends the cell


def shown(value: Cell) -> str:
    """Returns a value as text: floats with three digits, whole numbers in full, None as a dash."""
    if value is None:
        return "-"
    if not isinstance(value, float | np.floating):
        return str(value)
    return f"{value:.0f}" if value.is_integer() and abs(value) < 1e15 else f"{value:.3g}"


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


def plain(value: float) -> str:
    """Returns a number with four significant digits, or more where its integer part has more."""
    if not math.isfinite(value) or value == 0:
        return f"{value:g}"
    exponent = _exponent(value, 3)
    return f"{value:,.{max(0, 3 - exponent)}f}" if exponent >= -4 else f"{value:.3e}"


def with_error(value: float, error: float) -> str:
    """Returns "value +- error" to two digits of the error; the value alone if it is zero or NaN."""
    if error == 0 or math.isnan(error) or not math.isfinite(value):
        return plain(value)
    if not math.isfinite(error):
        return f"{plain(value)} +- {error:g}"
    decimals = max(0, 1 - _exponent(error, 1))
    return f"{value:,.{decimals}f} +- {error:,.{decimals}f}"


def in_brackets(error: float, form: str) -> str:
    """Returns " (+-error)", formatted, to follow a figure; nothing where it is unknown, NaN."""
    return "" if math.isnan(error) else f" (+-{error:{form}})"


def _exponent(value, digits):
    # of the rounded number: 0.0996 is shown as 0.10
    return int(f"{value:.{digits}e}".split("e")[1])


def duration(seconds: float) -> str:
    """Returns seconds as "42 s", "3 min 05 s", "7 h 12 min" or, from two days on, "3 d 14 h"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes_left = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours // 24} d {hours % 24} h"
    if hours:
        return f"{hours} h {minutes_left:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"

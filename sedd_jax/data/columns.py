"""The fields of a record that are read: its text, and what the network is told of it."""

import math
import numbers
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from sedd_jax.data.documents import Document, Fault, Recipe, checked_value
from sedd_jax.errors import BadInput

KINDS = ("label", "number", "vector")
# what a document tells in a column: a class, or numbers, float64 [entries]
Told = str | int | bool | np.ndarray
_NO_NAME = re.compile(r"[,:=\s]")


class Column(NamedTuple):
    """A column that conditions the network.

    Attributes:
      name: of the column, as in the data.
      kind: one of `KINDS`.
    """

    name: str
    kind: str

    def checked(self, value: Any) -> Told | Fault:
        """Returns what a value of the column tells, or why a document cannot be used.

        Args:
          value: as a reader gives it; text where a format knows nothing else.
        """
        value = value.item() if isinstance(value, np.generic) else value
        try:
            if isinstance(value, bytes):
                value = value.decode()
            elif isinstance(value, str):
                value.encode()  # half of a surrogate pair fails
        except UnicodeError:
            return Fault(f"has no UTF-8 text in {self.name!r}", f" but {value!r:.40}")
        value = value.strip() if isinstance(value, str) else value
        if value is None or (isinstance(value, str) and not value):
            return Fault(f"tells no {self.name!r}, which config.data.condition names")
        return self._class(value) if self.kind == "label" else self._numbers(value)

    def _class(self, value):
        if isinstance(value, str | int):  # bool, too
            return value
        what = f" but the {type(value).__name__} {value!r:.40}"
        if isinstance(value, float):
            what += f"; config.data.condition={self.name}:number tells numbers"
        return Fault(f"has no class in {self.name!r}", what)

    def _numbers(self, value):
        if self.kind == "vector" and isinstance(value, str):
            value = value.strip("[]()").replace(",", " ").split()
        is_list = isinstance(value, list | tuple | np.ndarray)
        try:
            if is_list != (self.kind == "vector") or isinstance(value, bool):
                raise ValueError
            found = np.array(value, np.float64).reshape(-1 if is_list else 1)
        except (ValueError, TypeError, OverflowError):
            detail = f" but {value!r:.40}" if isinstance(value, str | numbers.Number) else ""
            detail = detail or f" but a {type(value).__name__}"
            return Fault(f"has no {self.kind} in {self.name!r}", detail)
        if not len(found) or not np.isfinite(found).all():
            wrong = "an empty one" if not len(found) else str(found[~np.isfinite(found)][0])
            return Fault(f"has no finite {self.kind} in {self.name!r}", f" but {wrong}")
        return found


def parse_columns(text: str) -> tuple[Column, ...]:
    """Returns the columns of config.data.condition: NAME or NAME:KIND, with commas between.

    Raises:
      BadInput: it has another form, an unknown kind, or a name twice.
    """
    columns = []
    for part in text.split(",") if text.strip() else ():
        name, _, kind = (word.strip() for word in part.partition(":"))
        if not name or _NO_NAME.search(name) or (kind or KINDS[0]) not in KINDS:
            raise BadInput(
                f"config.data.condition is {text!r}; write NAME or NAME:KIND, with commas between, "
                f"where KIND is {', '.join(KINDS[:-1])} or {KINDS[-1]}, as in "
                "class,activity:number (a name has no space, comma, colon or equals sign)."
            )
        columns.append(Column(name, kind or KINDS[0]))
    names = [column.name for column in columns]
    if len(set(names)) < len(names):
        raise BadInput(f"config.data.condition is {text!r}; it names a column twice.")
    return tuple(columns)


def check_condition(recipe: Recipe) -> None:
    """Raises BadInput if config.data.condition is malformed, or a block has several documents."""
    if parse_columns(recipe.condition) and recipe.wrap:
        raise BadInput(
            f"config.data.condition is {recipe.condition!r}, and a condition is that of one "
            "document: set config.data.wrap=False and config.data.crop=blocks, so that a block "
            "holds one."
        )


def condition_text(columns: Iterable[Column]) -> str:
    """Returns columns in the form that `parse_columns` reads, each with its kind."""
    return ",".join(f"{column.name}:{column.kind}" for column in columns)


class Fields(NamedTuple):
    """What is read of a record.

    Attributes:
      text: name of the field with the document.
      told: the columns that condition the network.
    """

    text: str
    told: tuple[Column, ...] = ()

    @property
    def names(self) -> list[str]:
        """All names, the text's first."""
        return [self.text, *(column.name for column in self.told)]

    def tells(self, row: Mapping[str, Any]) -> tuple[Told, ...] | Fault:
        """Returns what a record tells in every column, or why it cannot be used."""
        told = tuple(column.checked(row.get(column.name)) for column in self.told)
        return next((each for each in told if isinstance(each, Fault)), told)

    def document(self, row: Mapping[str, Any], where: int = 0, limit: float = math.inf) -> Document:
        """Returns the document of a record that has a text.

        Args:
          row: the values of the record, by field.
          where: its position.
          limit: the largest document, in bytes.
        """
        content = checked_value(row[self.text], self.text, limit)
        if not self.told or isinstance(content, Fault):
            return Document(content, where)
        told = self.tells(row)
        return Document(told, where) if isinstance(told, Fault) else Document(content, where, told)


NO_FIELDS = Fields("")


def fields_of(recipe: Recipe) -> Fields:
    """Returns the fields that a recipe reads. BadInput: config.data.condition is malformed."""
    return Fields(recipe.field, parse_columns(recipe.condition))


def check_fields(fields: Fields, found: Iterable[Any], place: str) -> None:
    """Raises BadInput unless a table has every field.

    Args:
      fields: what is read.
      found: the names that there are.
      place: the table, as the subject of the message.
    """
    found = list(found)
    _check_there([fields.text], "field", found, place)
    check_told(fields, found, place)


def check_told(fields: Fields, found: Iterable[Any], place: str) -> None:
    """Raises BadInput unless a table has every column that conditions the network.

    Args:
      fields: what is read.
      found: the names that there are.
      place: the table, as the subject of the message.
    """
    _check_there([column.name for column in fields.told], "condition", found, place)


def _check_there(names, setting, found, place):
    found = list(map(str, found))
    for name in names:
        if name not in found:
            raise BadInput(
                f"{place} has no field {name!r} but {', '.join(found)}; set config.data.{setting}."
            )


def check_tells(fields: Fields, path: object, form: str) -> None:
    """Raises BadInput where columns are named and a source has none.

    Args:
      fields: what is read.
      path: the source.
      form: its format.
    """
    if fields.told:
        raise BadInput(
            f"config.data.condition names columns, and {path} ({form}) has none; give JSON lines, "
            "CSV, TSV, Parquet, FASTA with key=value, .npz, or a data set of TFDS or Hugging Face."
        )

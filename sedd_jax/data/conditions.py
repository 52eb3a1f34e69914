"""What the documents of a corpus tell in its columns, and how a network is told the same.

In files, a document tells a row of float64: the number of its class, and its numbers as they are.
A network is told a batch by a tree of arrays, by the name of the column: classes as int32 [B], -1
where none is told; numbers as float32 [B, width], standardised by the corpus, NaN where none are.
"""

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sedd_jax.data.column_statistics import (
    ColumnSize,
    Label,
    Numbers,
    column_from_json,
    column_to_json,
)
from sedd_jax.data.columns import Column, Told, condition_text
from sedd_jax.data.documents import Fault
from sedd_jax.errors import BadInput
from sedd_jax.system.files import atomic_write_json

FILE = "conditions.json"
Tree = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Conditions:
    """The columns of a corpus, and what is told in them.

    Attributes:
      columns: in the order of config.data.condition.
    """

    columns: tuple[Label | Numbers, ...]

    def __bool__(self) -> bool:
        return bool(self.columns)

    @property
    def names(self) -> list[str]:
        """The names of the columns."""
        return [column.name for column in self.columns]

    @property
    def text(self) -> str:
        """The columns as in config.data.condition."""
        return condition_text(Column(column.name, column.kind) for column in self.columns)

    @property
    def meaning(self) -> list[Any]:
        """What weights depend on: the numbers of classes, and how numbers are scaled."""
        return [column.meaning for column in self.columns]

    @property
    def width(self) -> int:
        """Entries of a row."""
        return sum(column.width for column in self.columns)

    @property
    def sizes(self) -> tuple[ColumnSize, ...]:
        """What a network must know."""
        return tuple(column.size for column in self.columns)

    def row(self, told: Sequence[Told]) -> np.ndarray:
        """Returns what a document tells in every column, float64 [width]."""
        pairs = zip(self.columns, told, strict=True)
        return np.array([entry for column, value in pairs for entry in column.entries(value)])

    def tree(self, rows: np.ndarray) -> Tree:
        """Returns rows of a file [N, width] as a network is told them."""
        return {
            column.name: column.leaf(part)
            for column, part in zip(self.columns, self._parts(rows), strict=True)
        }

    def encode(self, told: Sequence[Mapping[str, Any]]) -> Tree:
        """Returns values by the names of columns, for every row, as a network is told them.

        A column that is absent or None is not told.

        Raises:
          BadInput: no such column or class, or a value that is no finite number.
        """
        tree = self.tree(self._rows(told))
        for name, leaf in tree.items():
            if np.isinf(leaf).any():
                raise BadInput(
                    f"A condition has a number in {name!r} that is too large once it is "
                    "standardised; give one nearer to those of the data."
                )
        return tree

    def _rows(self, told):
        rows = np.full((len(told), self.width), np.nan)
        for row, values in zip(rows, told, strict=True):
            if unknown := [name for name in values if name not in self.names]:
                raise BadInput(
                    f"The model has no condition {unknown[0]!r}; it has {', '.join(self.names)}."
                )
            for column, part in zip(self.columns, self._parts(row[None]), strict=True):
                if values.get(column.name) is not None:
                    value = Column(column.name, column.kind).checked(values[column.name])
                    if isinstance(value, Fault):
                        raise BadInput(f"A condition {value.reason}; give a {column.kind}.")
                    part[:] = column.entries(value)
        return rows

    def check(self, tree: Any) -> None:
        """Raises BadInput for a tree that is not of the form that `encode` gives."""
        wanted = {column.name: column.leaf(np.zeros((0, column.width))) for column in self.columns}
        found = tree if isinstance(tree, dict) else {}
        fits = found.keys() == wanted.keys() and all(
            np.shape(found[name])[1:] == leaf.shape[1:] for name, leaf in wanted.items()
        )
        if not fits:
            raise BadInput(
                f"Encoded conditions need an array for each of {', '.join(self.names)}, as "
                "model.conditions.encode gives them."
            )

    def every(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the values of all columns as the data have them, None where one is not told."""
        parts = zip(self.columns, self._parts(self._rows([values])), strict=True)
        return {it.name: None if np.isnan(part[0, 0]) else it.values(part)[0] for it, part in parts}

    def values(self, rows: np.ndarray) -> list[dict[str, Any]]:
        """Returns what rows of a file [N, width] tell, by column."""
        parts = zip(self.columns, self._parts(rows), strict=True)
        found = [column.values(part) for column, part in parts]
        return [dict(zip(self.names, row, strict=True)) for row in zip(*found, strict=True)]

    def parse(self, text: str) -> dict[str, Any]:
        """Returns the values of a text such as "class=EI,activity=0.3", by column.

        Raises:
          BadInput: it has another form.
        """
        parts = re.split(r",(?=[^,=]*=)", text)  # not a comma inside a vector
        pairs = [part.partition("=") for part in parts]
        if not all(name.strip() and value.strip() for name, _, value in pairs):
            raise BadInput(
                f"A condition is written NAME=VALUE, with commas between, as in "
                f"{self.columns[0].name}=...; got {text!r}."
            )
        values = {name.strip(): value.strip() for name, _, value in pairs}
        if len(values) < len(pairs):
            raise BadInput(f"A condition tells each column once; got {text!r}.")
        self.encode([values])
        return values

    def renumbered(self, rows: np.ndarray, there: "Conditions") -> np.ndarray:
        """Returns rows [N, width] of a corpus of these conditions as rows of others.

        Args:
          rows: of a file.
          there: some of these columns, in any order, with at least these classes.
        """
        parts = dict(
            zip(self.names, zip(self.columns, self._parts(rows), strict=True), strict=True)
        )
        found = []
        for column in there.columns:
            own, part = parts[column.name]
            found.append(own.renumbered(part, column))
        return np.concatenate(found, axis=1)

    def chosen(self, columns: Sequence[Column], place: str) -> "Conditions":
        """Returns some of the columns, in the order given.

        Args:
          columns: which.
          place: what has these conditions, for the message.

        Raises:
          BadInput: there is no such column.
        """
        there = {Column(each.name, each.kind): each for each in self.columns}
        if missing := [column for column in columns if column not in there]:
            raise BadInput(
                f"{place} was prepared with config.data.condition={self.text!r}, which lacks "
                f"{condition_text(missing)}; set it to what is there, or prepare other data."
            )
        return Conditions(tuple(there[column] for column in columns))

    def joined(self, other: "Conditions") -> "Conditions":
        """Returns those of two corpora with the same columns."""
        pairs = zip(self.columns, other.columns, strict=True)
        return Conditions(tuple(mine.joined(others) for mine, others in pairs))

    def described(self) -> list[tuple[str, str]]:
        """Returns the name of every column and what is told in it, in words."""
        return [(column.name, column.described()) for column in self.columns]

    @property
    def constant(self) -> list[str]:
        """The names of the columns in which all documents tell the same."""
        return [column.name for column in self.columns if not column.varies]

    def to_json(self) -> list[dict[str, Any]]:
        """Returns what `from_json` reads."""
        return [column_to_json(column) for column in self.columns]

    @classmethod
    def from_json(cls, values: list[dict[str, Any]]) -> "Conditions":
        """Returns what `to_json` wrote. TypeError, KeyError: it is something else."""
        if not isinstance(values, list):
            raise TypeError(f"it is no list: {values!r:.40}")
        return cls(tuple(map(column_from_json, values)))

    def save(self, folder: Path) -> None:
        """Writes `FILE` into a folder, which is made."""
        folder.mkdir(parents=True, exist_ok=True)
        atomic_write_json(folder / FILE, self.to_json(), indent=1)

    def _parts(self, rows):
        return np.split(rows, np.cumsum([column.width for column in self.columns])[:-1], axis=1)


def values_text(values: Mapping[str, Any]) -> str:
    """Returns values by column as text, class=EI,activity=0.3; a long vector is cut short."""
    return ",".join(
        f"{name}={value:.6g}" if isinstance(value, float) else f"{name}={value!s:.40}"
        for name, value in values.items()
    )


def find_conditions(folder: Path) -> Conditions | None:
    """Returns the conditions that were saved in a folder, None if there are none.

    Raises:
      BadInput: they are damaged.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        return Conditions.from_json(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{path} is damaged ({error!r}); prepare the data again.") from error

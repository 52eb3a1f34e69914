"""What the documents of a corpus tell in a column: its classes, or the moments of its numbers."""

import collections
import dataclasses
import functools
import json
import math
from typing import Any, NamedTuple

import numpy as np

from sedd_jax.data.columns import Column, Told
from sedd_jax.errors import BadInput

MAX_CLASSES = 10_000
_SHOWN = 8  # classes in a message


class ColumnSize(NamedTuple):
    """What a network must know of a column: its name, and its classes or (0) its numbers."""

    name: str
    classes: int
    width: int


@dataclasses.dataclass(frozen=True)
class Label:
    """A column of classes.

    Attributes:
      name: of the column.
      counts: the documents of each class, by its name, in sorted order; a class has its place in it
        as its number.
    """

    name: str
    counts: dict[str, int]
    kind = "label"
    width = 1

    @property
    def size(self) -> ColumnSize:
        return ColumnSize(self.name, len(self.counts), 1)

    @property
    def meaning(self) -> tuple[Any, ...]:
        return (self.name, *self.counts)

    @property
    def varies(self) -> bool:
        return len(self.counts) > 1

    def joined(self, other: "Label") -> "Label":
        """Returns the classes of two corpora; BadInput: they are too many to be classes."""
        counts = collections.Counter(self.counts) + collections.Counter(other.counts)
        _check_classes(self.name, len(counts))
        return Label(self.name, dict(sorted(counts.items())))

    def entries(self, value: Told) -> list[float]:
        """Returns the number of a class. BadInput: there is no such class."""
        if (name := spelled(value)) in self._numbers:
            return [self._numbers[name]]
        shown = ", ".join(list(self.counts)[:_SHOWN])
        more = f" and {len(self.counts) - _SHOWN:,} more" if len(self.counts) > _SHOWN else ""
        raise BadInput(f"There is no class {name!r} of {self.name!r}; there are {shown}{more}.")

    @functools.cached_property
    def _numbers(self):
        return {name: float(number) for number, name in enumerate(self.counts)}

    def renumbered(self, entries: np.ndarray, there: "Label") -> np.ndarray:
        """Returns classes [N, 1] with the numbers that they have in `there`."""
        numbers = np.array([there.entries(name)[0] for name in self.counts])
        return numbers[entries.astype(int)]

    def leaf(self, entries: np.ndarray) -> np.ndarray:
        """Returns classes [N, 1], NaN where none is told, as a network is told them, int32 [N]."""
        return np.nan_to_num(entries[:, 0], nan=-1).astype(np.int32)

    def values(self, entries: np.ndarray) -> list[str]:
        """Returns the names of classes [N, 1]."""
        names = list(self.counts)
        return [names[int(number)] for number in entries[:, 0]]

    def described(self) -> str:
        """Returns the classes with their counts."""
        shown = [f"{name} {count:,}" for name, count in list(self.counts.items())[:_SHOWN]]
        if rest := len(self.counts) - len(shown):
            shown.append(f"{rest:,} more")
        return f"{len(self.counts):,} classes ({', '.join(shown)})"


@dataclasses.dataclass(frozen=True)
class Numbers:
    """A column of numbers, or of vectors of one length.

    Attributes:
      name: of the column.
      kind: "number" or "vector".
      width: entries of a vector; 1 for a number.
      count: documents.
      mean: of all entries together, so that standardising keeps the direction of a vector.
      variance: likewise.
    """

    name: str
    kind: str
    width: int
    count: int
    mean: float
    variance: float

    def __post_init__(self):
        if not math.isfinite(self.mean) or not math.isfinite(self.variance):
            raise BadInput(
                f"config.data.condition names {self.name!r}, whose numbers are too large to be "
                "standardised: their variance is no float64; give them in another unit."
            )

    @property
    def size(self) -> ColumnSize:
        return ColumnSize(self.name, 0, self.width)

    @property
    def meaning(self) -> tuple[Any, ...]:
        return self.name, self.width, self.mean, self.variance

    @property
    def varies(self) -> bool:
        return self.variance > 0

    @property
    def std(self) -> float:
        """The standard deviation; 1 where all entries are equal."""
        return math.sqrt(self.variance) or 1.0

    def joined(self, other: "Numbers") -> "Numbers":
        """Returns the numbers of two corpora. BadInput: their vectors have different lengths."""
        _check_width(self, other.width)
        share = other.count / (self.count + other.count)
        gap = other.mean - self.mean
        return dataclasses.replace(
            self,
            count=self.count + other.count,
            mean=self.mean + share * gap,
            variance=(1 - share) * self.variance
            + share * other.variance
            + share * (1 - share) * gap * gap,
        )

    def entries(self, value: Told) -> list[float]:
        """Returns the entries of a value. BadInput: a vector has another length."""
        _check_width(self, len(value))
        return value.tolist()

    def renumbered(self, entries: np.ndarray, there: "Numbers") -> np.ndarray:
        """Returns the entries [N, width]: they are the same in `there`."""
        return entries

    def leaf(self, entries: np.ndarray) -> np.ndarray:
        """Returns entries [N, width] as a network is told them, float32."""
        with np.errstate(over="ignore"):  # inf, which `Conditions.encode` refuses
            return ((entries - self.mean) / self.std).astype(np.float32)

    def values(self, entries: np.ndarray) -> list[float] | list[list[float]]:
        """Returns numbers, or vectors, of entries [N, width]."""
        return (entries if self.kind == "vector" else entries[:, 0]).tolist()

    def described(self) -> str:
        """Returns mean and standard deviation."""
        what = "numbers" if self.kind == "number" else f"vectors of {self.width:,}"
        return f"{what}, mean {self.mean:.6g}, standard deviation {math.sqrt(self.variance):.6g}"


def spelled(value: Any) -> str:
    """Returns the name of a class, as JSON spells what is no text: EI, 3, true."""
    return value if isinstance(value, str) else json.dumps(value)


def _check_classes(name, count):
    if count > MAX_CLASSES:
        raise BadInput(
            f"config.data.condition names {name!r}, which has more than {MAX_CLASSES:,} classes "
            f"and is probably a number or an id: write {name}:number, or leave it out."
        )


def _check_width(numbers, width):
    if width != numbers.width:
        raise BadInput(
            f"The {numbers.kind} {numbers.name!r} has {numbers.width} entries, and here {width}; "
            "all must have the same length."
        )


class Tally:
    """What documents tell in a column, while they are read."""

    def __init__(self, column: Column):
        self.column = column
        self.found: Label | Numbers | None = None
        self.types: dict[str, str] = {}
        self._counts = collections.Counter()

    def add(self, value: Told) -> None:
        """Counts a document. BadInput: its value does not go with those before."""
        name, kind = self.column
        if kind == "label":
            self._counts[spelled(value)] += 1
            _check_classes(name, len(self._counts))
            self._add_types({type(value).__name__: spelled(value)})
        else:
            with np.errstate(over="ignore", invalid="ignore"):  # `Numbers` refuses what it gives
                mean, variance = float(value.mean()), float(value.var())
            self._join(Numbers(name, kind, len(value), 1, mean, variance))

    def _join(self, other):
        self.found = self.found.joined(other) if self.found else other

    def _add_types(self, types):
        self.types = types | self.types
        if len(self.types) > 1:
            found = " and ".join(f"{kind} ({each})" for kind, each in sorted(self.types.items()))
            raise BadInput(
                f"config.data.condition names {self.column.name!r}, whose classes are of different "
                f"types, {found}; write all of them as text."
            )

    def to_json(self) -> dict[str, Any]:
        """Returns what was counted, for `add_counted`."""
        if self._counts:
            self._join(Label(self.column.name, dict(sorted(self._counts.items()))))
        return {"types": self.types, "found": self.found and column_to_json(self.found)}

    def add_counted(self, counted: dict[str, Any]) -> None:
        """Adds what `to_json` returned of other documents. BadInput: it does not go with these."""
        if counted["found"]:
            self._add_types(counted["types"])
            self._join(column_from_json(counted["found"]))


def column_to_json(column: Label | Numbers) -> dict[str, Any]:
    """Returns what `column_from_json` reads."""
    return {"kind": column.kind} | dataclasses.asdict(column)


def column_from_json(values: dict[str, Any]) -> Label | Numbers:
    """Returns what `column_to_json` wrote."""
    if values["kind"] == "label":
        return Label(values["name"], dict(values["counts"]))
    return Numbers(**values)

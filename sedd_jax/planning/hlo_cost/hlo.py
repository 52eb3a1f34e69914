"""Parses the HLO text of a compiled program: its instructions, and how often each one runs.

The compilers for TPUs and GPUs write the same language. Only what costs depend on is parsed:
shapes, operands, called computations and the trip counts of loops.
"""

import functools
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import NamedTuple

_BITS = {"pred": 8, "token": 0, "opaque": 0}  # of types whose name does not hold them
_ARRAY = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,<=]*)\]")
_HEADER = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_LINE = re.compile(r"^\s+(?:ROOT )?%([\w.\-]+) = ")
_OPCODE = re.compile(r"^\s*([\w\-]+)\(")
_NAME = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(
    r"\b(?:body|calls|to_apply|true_computation|false_computation|branch_computations|"
    r"called_computations)=(?:\{([^}]*)\}|%([\w.\-]+))"
)


class HloError(ValueError):
    """HLO text in a form that this package does not know.

    Args:
      what: the part that is not understood.
    """

    def __init__(self, what: str):
        super().__init__(
            f"The compiler's text is not understood ({what}): the compiler is newer than this "
            "parser. Use the versions that setup.py names."
        )


class Shape(NamedTuple):
    """An array: the name of its type, and its sizes."""

    dtype: str
    sizes: tuple[int, ...]

    @property
    def count(self) -> int:
        """Its elements."""
        return math.prod(self.sizes)

    @property
    def nbytes(self) -> int:
        """Its bytes, without the padding of tiled layouts."""
        bits = _BITS.get(self.dtype)
        if bits is None:
            bits = int(re.search(r"\d+", self.dtype).group())
        return self.count * bits // 8


class Instruction(NamedTuple):
    """An instruction of a computation.

    Attributes:
      name: unique in the module.
      opcode: such as fusion, while, all-gather.
      shapes: of the result, more than one if it is a tuple.
      operands: names of the instructions whose results it reads.
      attributes: the rest of the line.
    """

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    attributes: str

    @property
    def called(self) -> tuple[str, ...]:
        """The computations that it calls, without the condition of a loop."""
        return tuple(
            name
            for several, one in _CALLED.findall(self.attributes)
            for name in (_NAME.findall(several) if several else [one])
        )

    @property
    def source(self) -> str:
        """The traced operation, such as "jit(step)/while/body/dot_general"."""
        return self.attribute(r'op_name="([^"]*)"') or ""

    @property
    def count(self) -> int:
        """The elements of its result."""
        return sum(shape.count for shape in self.shapes)

    @property
    def nbytes(self) -> int:
        """The bytes of its result."""
        return sum(shape.nbytes for shape in self.shapes)

    def attribute(self, pattern: str) -> str | None:
        """Returns the first group of a pattern in the attributes, None without a match."""
        found = re.search(pattern, self.attributes)
        return found and found.group(1)


class Module(NamedTuple):
    """A compiled program.

    Attributes:
      computations: by name, their instructions by name, in the order of the schedule.
      entry: the name of the entry computation.
    """

    computations: dict[str, dict[str, Instruction]]
    entry: str

    def execution_counts(self, dynamic_trips: Callable[[Instruction], float]) -> dict[str, float]:
        """Returns how often every computation outside of fusions runs, per run of the program.

        The longest branch of a conditional counts. Asynchronous computations do not count.

        Args:
          dynamic_trips: returns the trips of a loop whose count is not in the program.
        """
        counts: dict[str, float] = defaultdict(float)

        def visit(name, times):
            counts[name] += times
            for instruction in self.computations[name].values():
                if instruction.opcode == "while":
                    trips = self.trips(instruction)
                    trips = dynamic_trips(instruction) if trips is None else trips
                    visit(instruction.called[0], times * trips)
                elif instruction.opcode in ("call", "conditional"):
                    visit(max(instruction.called, key=self._length), times)

        visit(self.entry, 1.0)
        return dict(counts)

    def _length(self, computation):
        """The instructions of a computation and of all that it calls."""
        instructions = self.computations[computation].values()
        return len(instructions) + sum(
            self._length(name) for each in instructions for name in each.called
        )

    def trips(self, loop: Instruction) -> int | None:
        """Returns how often a loop's body runs, None if only the running program knows.

        Loops count up by one from zero, as JAX writes them.
        """
        known = loop.attribute(r'"known_trip_count":\{"n":"(\d+)"\}')
        if known:
            return int(known)
        condition = self.computations[loop.attribute(r"condition=%([\w.\-]+)")]
        last = next(reversed(condition.values()))
        if last.opcode != "compare" or "direction=LT" not in last.attributes:
            return None
        bound = condition[last.operands[1]]
        return int(bound.attributes.split(")")[0]) if bound.opcode == "constant" else None


def parse(text: str) -> Module:
    """Returns the program whose text `jax.stages.Compiled.as_text` gives.

    Raises:
      HloError: the text is not such a program.
    """
    computations, entry, current = {}, "", {}
    for line in _joined_lines(text):
        if found := _HEADER.match(line):
            current = computations.setdefault(found.group(1), {})
            entry = found.group(1) if line.startswith("ENTRY") else entry
        elif found := _LINE.match(line):
            instruction = _instruction(found.group(1), line[found.end() :])
            current[instruction.name] = instruction
    if not computations.get(entry):
        raise HloError("it holds no entry computation")
    return Module(computations, entry)


def _joined_lines(text) -> Iterator[str]:
    """Yields a line per instruction: the metadata of custom calls has line breaks."""
    joined = ""
    for line in text.replace('": ', '":').splitlines():  # JSON has spaces in some versions
        if not line or line == "}" or _HEADER.match(line) or _LINE.match(line):
            yield joined
            joined = line
        else:
            joined += line
    yield joined


def _instruction(name, rest):
    """Parses "type opcode(operands), attributes"."""
    end = _closing(rest, 0) if rest.startswith("(") else rest.index(" ")
    kind, rest = rest[:end], rest[end:]
    opcode = _OPCODE.match(rest)
    if not opcode:
        raise HloError(f"the line of {name}")
    close = _closing(rest, opcode.end() - 1)
    inside = rest[opcode.end() : close - 1]
    # a constant's "operands" are its value
    attributes = inside + rest[close - 1 :] if opcode.group(1) == "constant" else rest[close:]
    return Instruction(
        name, opcode.group(1), shapes(kind), tuple(_NAME.findall(inside)), attributes
    )


def _closing(text, start):
    """The position behind the bracket that closes the one at `start`."""
    depth = 0
    for position in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[position], 0)
        if depth == 0:
            return position + 1
    raise HloError("it ends within brackets")


@functools.lru_cache(maxsize=65536)
def shapes(kind: str) -> tuple[Shape, ...]:
    """Returns the arrays of a type in HLO syntax: one, or those of a tuple."""
    # sizes come before the layout, which is in braces
    found = _ARRAY.findall(re.sub(r"\{[^{}]*\}", "", kind))
    return tuple(
        Shape(dtype, tuple(int(size.strip("<=")) for size in sizes.split(",") if size))
        for dtype, sizes in found
    )

"""What a chip holds while a compiled program runs, against what it has.

Compilers for TPUs refuse a program that does not fit, and say so in their own words; those for GPUs
never do.
"""

import re
from typing import NamedTuple

import jax

from sedd_jax.planning.hlo_cost.chips import Chip
from sedd_jax.planning.hlo_cost.hlo import Module, Shape

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SIZE = r"([\d.]+)([KMGT]?)"
_NEEDED = re.compile(rf"(?:HLO temporaries \(|Used ){_SIZE}")  # either way, arguments are in it
_BUFFER = re.compile(rf"^ *\d+\. Size: {_SIZE}\n(?: *Operator:.*\n)? *Shape: (\w+\[[\d,]*\])", re.M)
# of what was traced: what loops hand on, which no fusion keeps out of memory
_CARRIED = re.compile(r"stablehlo\.while\(.*\) : (.*)$", re.M)
_TENSOR = re.compile(r"tensor<((?:\d+x)+)([a-z]+\d+)>")
# what names arrays that are there already
_NO_ARRAYS = {"parameter", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call"}


class Memory(NamedTuple):
    """What a program needs on every chip.

    Attributes:
      capacity: bytes that a program may use.
      parts: bytes by purpose: what is given to it; results that do not lie in
        place of what was given; what it holds meanwhile.
      largest: arrays that it makes, bytes of a chip by type and shape, the largest first.
      refused: whether the compiler gave it up; then `parts` are what it said before it did, the
        least that is needed.
    """

    capacity: float
    parts: dict[str, float]
    largest: dict[str, float]
    refused: bool = False

    @property
    def needed(self) -> float:
        """Bytes, in all."""
        return sum(self.parts.values())

    @property
    def fits(self) -> bool:
        """Whether it can run."""
        return not self.refused and self.needed <= self.capacity


def memory_of(compiled: jax.stages.Compiled, module: Module, chip: Chip) -> Memory:
    """Returns what a compiled program needs, by the compiler's own figures.

    Args:
      compiled: the program.
      module: the same, read.
      chip: that it was compiled for.
    """
    found = compiled.memory_analysis()
    arguments = found.argument_size_in_bytes
    results = found.output_size_in_bytes - found.alias_size_in_bytes
    temporaries = found.temp_size_in_bytes
    if chip.platform == "tpu":  # there it counts on-chip memory too, and what lies in arguments
        temporaries = max(found.peak_memory_in_bytes - arguments - results, 0)
    parts = {"arguments": arguments, "results": results, "temporaries": temporaries}
    return Memory(chip.memory, parts, _largest(module))


def refusal(error: jax.errors.JaxRuntimeError, kept: float, chip: Chip) -> Memory:
    """Returns what the compiler said of a program that does not fit; other errors are raised.

    Args:
      error: of the compiler.
      kept: bytes of a chip that are given to the program.
      chip: that it was compiled for.
    """
    text = str(error)
    if "RESOURCE_EXHAUSTED" not in text:
        raise error
    found = _NEEDED.search(text)
    temporaries = _bytes(*found.groups()) - kept if found else 0.0
    largest = {shape: _bytes(size, unit) for size, unit, shape in _BUFFER.findall(text)[:2]}
    parts = {"arguments": kept, "temporaries": temporaries}
    return Memory(chip.memory, parts, largest, refused=True)


def largest_carried(text: str, devices: int, most: int = 2) -> dict[str, float]:
    """Returns the largest arrays that loops hand on, by type and shape: what blocks keep, mostly.

    The least bytes of a chip: of an array that all chips hold in equal parts.

    Args:
      text: of `jax.stages.Lowered`: shapes are those before anything is split.
      devices: of the program.
      most: arrays that are wanted.
    """
    arrays = {tensor for types in _CARRIED.findall(text) for tensor in _TENSOR.findall(types)}
    shapes = [Shape(dtype, tuple(map(int, sizes[:-1].split("x")))) for sizes, dtype in arrays]
    shapes.sort(key=lambda shape: (-shape.nbytes, shape))
    return {f"{_name(each)} over {devices} chips": each.nbytes / devices for each in shapes[:most]}


def _bytes(size, unit):
    return float(size) * _UNITS[unit]


def _largest(module: Module, most: int = 3) -> dict[str, float]:
    """Arrays that are written to memory, by type and shape: one may take the place of another."""
    found: dict[Shape, int] = {}
    for name in module.runs(lambda loop: 1.0):
        for instruction in module.computations[name].values():
            if instruction.opcode not in _NO_ARRAYS:
                found |= {shape: shape.nbytes for shape in instruction.shapes}
    names = sorted(found, key=found.__getitem__, reverse=True)[:most]
    return {_name(each): float(found[each]) for each in names}


def _name(shape):
    return f"{shape.dtype}[{','.join(map(str, shape.sizes))}]"

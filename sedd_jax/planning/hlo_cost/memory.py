"""What a chip holds while a compiled program runs, and what it has.

The TPU compiler refuses a program that does not fit, with an error in its own words; the GPU
compiler never does.
"""

import re
from typing import NamedTuple

import jax

from sedd_jax.planning.hlo_cost import Chip
from sedd_jax.planning.hlo_cost.hlo import Module, Shape

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SIZE = r"([\d.]+)([KMGT]?)"
_NEEDED = re.compile(rf"(?:HLO temporaries \(|Used ){_SIZE}")  # either way with the arguments
_BUFFER = re.compile(rf"^ *\d+\. Size: {_SIZE}\n(?: *Operator:.*\n)? *Shape: (\w+\[[\d,]*\])", re.M)
# in the traced program: what loops carry, which no fusion keeps out of memory
_CARRIED = re.compile(r"stablehlo\.while\(.*\) : (.*)$", re.M)
_TENSOR = re.compile(r"tensor<((?:\d+x)+)([a-z]+\d+)>")
_NO_ARRAYS = {"parameter", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call"}


class Memory(NamedTuple):
    """What a program needs on every chip.

    Attributes:
      hbm_bytes: that a program may use.
      bytes_by_part: arguments; results, without those that take the place of arguments;
        temporaries.
      largest_temporaries_bytes: by type and shape, the largest first.
      refused: whether the compiler refused the program; `bytes_by_part` is then a lower bound.
    """

    hbm_bytes: float
    bytes_by_part: dict[str, float]
    largest_temporaries_bytes: dict[str, float]
    refused: bool = False

    @property
    def needed_bytes(self) -> float:
        """Bytes, in all."""
        return sum(self.bytes_by_part.values())

    @property
    def fits(self) -> bool:
        """Whether the program can run."""
        return not self.refused and self.needed_bytes <= self.hbm_bytes


def memory_of(compiled: jax.stages.Compiled, module: Module, chip: Chip) -> Memory:
    """Returns what a compiled program needs, by the compiler's own figures.

    Args:
      compiled: the program.
      module: the same, parsed.
      chip: that it was compiled for.
    """
    found = compiled.memory_analysis()
    arguments = found.argument_size_in_bytes
    results = found.output_size_in_bytes - found.alias_size_in_bytes
    temporaries = found.temp_size_in_bytes
    if chip.platform == "tpu":  # there it counts on-chip memory too, and aliases of arguments
        temporaries = max(found.peak_memory_in_bytes - arguments - results, 0)
    parts = {"arguments": arguments, "results": results, "temporaries": temporaries}
    return Memory(chip.hbm_bytes, parts, _largest(module))


def memory_of_refused(error: jax.errors.JaxRuntimeError, arguments: float, chip: Chip) -> Memory:
    """Returns what the compiler says of a program that does not fit; raises any other error.

    Args:
      error: of the compiler.
      arguments: their bytes on a chip.
      chip: that the program was compiled for.
    """
    text = str(error)
    if "RESOURCE_EXHAUSTED" not in text:
        raise error
    found = _NEEDED.search(text)
    temporaries = _bytes(*found.groups()) - arguments if found else 0.0
    largest = {shape: _bytes(size, unit) for size, unit, shape in _BUFFER.findall(text)[:2]}
    parts = {"arguments": arguments, "temporaries": temporaries}
    return Memory(chip.hbm_bytes, parts, largest, refused=True)


def largest_carried(text: str, devices: int, most: int = 2) -> dict[str, float]:
    """Returns the largest arrays that loops carry, by type and shape: mostly saved activations.

    The bytes are the least of a chip: those of an array that is split over all chips.

    Args:
      text: of `jax.stages.Lowered`, with shapes before partitioning.
      devices: of the program.
      most: arrays to return.
    """
    arrays = {tensor for types in _CARRIED.findall(text) for tensor in _TENSOR.findall(types)}
    shapes = [Shape(dtype, tuple(map(int, sizes[:-1].split("x")))) for sizes, dtype in arrays]
    shapes.sort(key=lambda shape: (-shape.nbytes, shape))
    return {f"{_name(each)} over {devices} chips": each.nbytes / devices for each in shapes[:most]}


def _bytes(size, unit):
    return float(size) * _UNITS[unit]


def _largest(module: Module, most: int = 3) -> dict[str, float]:
    """The largest arrays that are written to memory; one may take the place of another."""
    found: dict[Shape, None] = {}
    for name in module.execution_counts(lambda loop: 1.0):
        for instruction in module.computations[name].values():
            if instruction.opcode not in _NO_ARRAYS:
                found |= dict.fromkeys(instruction.shapes)
    largest = sorted(found, key=lambda shape: -shape.nbytes)[:most]
    return {_name(each): float(each.nbytes) for each in largest}


def _name(shape):
    return f"{shape.dtype}[{','.join(map(str, shape.sizes))}]"

"""The bytes that an instruction of a compiled program reads from memory and writes to it.

What is computed within a fusion stays on the chip. Of an array that is only cut, no more than the
cut is read; one that is updated in place is not copied.
"""

from sedd_jax.planning.hlo_cost.hlo import Instruction, Module

_VIEWS = (
    "bitcast",
    "convert",
    "copy",
    "reshape",
    "transpose",
)  # of which no more is made than used
_CUTS = ("dynamic-slice", "slice", "gather")
_UPDATES = {"dynamic-update-slice": 1, "scatter": 2}  # which operand is written


def traffic(module: Module, computation: str, instruction: Instruction) -> int:
    """Returns the bytes that an instruction reads and writes each time."""
    lines = module.computations[computation]
    if instruction.opcode not in ("fusion", "fusion-start"):
        arrays = [lines[name] for name in instruction.operands]
        read = sum(_part(array, _taken(array, instruction)) for array in arrays)
        return read + _written(instruction, lines)
    inside = module.computations[instruction.called[0]]
    arrays = [line for line in inside.values() if line.opcode == "parameter"]
    read = sum(_part(array, _used(array, inside)) for array in arrays)
    return read + _written(next(reversed(inside.values())), inside)


def _part(array, numbers):
    """The bytes of some of its numbers."""
    count = _count(array)
    return array.nbytes * min(numbers, count) // max(count, 1)


def _used(array, inside):
    """How many numbers of an array the instructions of a fusion take, all together."""
    users = [line for line in inside.values() if array.name in line.operands]
    if not users:
        return 0 if array.opcode == "parameter" else _count(array)  # the result
    return sum(
        _used(user, inside) if user.opcode in _VIEWS else _taken(array, user) for user in users
    )


def _taken(array, user):
    """How many numbers of an array an instruction takes."""
    if array.name == user.operands[0]:
        if user.opcode in _CUTS:
            return _count(user)
        if user.opcode in _UPDATES:
            return 0
    return _count(array)


def _count(array):
    return sum(shape.count for shape in array.shapes)


def _written(result, lines):
    if result.opcode == "tuple":
        return sum(_written(lines[name], lines) for name in result.operands)
    if result.opcode == "bitcast":
        return _written(lines[result.operands[0]], lines)
    if result.opcode == "parameter":
        return 0
    if result.opcode in _UPDATES:
        return lines[result.operands[_UPDATES[result.opcode]]].nbytes
    return result.nbytes

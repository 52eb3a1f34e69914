"""The bytes that an instruction of a compiled program reads from memory and writes to it.

What is computed within a fusion stays on the chip. Of an array that is only cut, no more than the
cut is read; one that is updated in place is not copied.
"""

from sedd_jax.planning.hlo import Instruction, Module

_CUTS = ("dynamic-slice", "slice", "gather")
_UPDATES = {"dynamic-update-slice": 1, "scatter": 2}  # which operand is written


def traffic(module: Module, computation: str, instruction: Instruction) -> int:
    """Returns the bytes that an instruction reads and writes each time."""
    lines = module.computations[computation]
    if instruction.opcode not in ("fusion", "fusion-start"):
        return sum(_taken(instruction, x, lines) for x in instruction.operands) + _written(
            instruction, lines
        )
    inside = module.computations[instruction.called[0]]
    read = sum(_read(x, inside) for x in inside.values() if x.opcode == "parameter")
    return read + _written(next(reversed(inside.values())), inside)


def _read(array, inside):
    """What of an array the instructions of a fusion take."""
    users = [line for line in inside.values() if array.name in line.operands]
    taken = sum(
        _read(user, inside) if user.opcode == "bitcast" else _taken(user, array.name, inside)
        for user in users
        if user.opcode != "tuple"  # handed on as it is
    )
    return min(taken, array.nbytes)


def _taken(user, operand, lines):
    if operand == user.operands[0]:
        if user.opcode in _CUTS:
            return user.nbytes
        if user.opcode in _UPDATES:
            return 0
    return lines[operand].nbytes


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

"""The FLOPs of one instruction of a compiled program, and the bytes that it accesses in memory.

A multiply and an add are 2 FLOPs; elementwise operations count none. Shapes of attention: B batch,
H heads, L length, K head dimension.
"""

import math
import re

import numpy as np

from sedd_jax.planning.hlo_cost.hlo import Instruction, Module

_DOT = re.compile(r"lhs_contracting_dims=\{([\d,]*)\}")
_CUBLAS = re.compile(r'"lhs_contracting_dimensions":\[([\d", ]*)\]')
_WINDOW = re.compile(r"window=\{([^}]*)\}")
_LABELS = re.compile(r"dim_labels=(\w+)_(\w+)->(\w+)")

LANES = 128  # of a TPU: a shorter K is padded to it
# Matrix products of B H L L K multiplies in a kernel: 2 forward; backward recomputes the weights,
# then one per gradient and one for the gradient of the weights (Dao 2023, arXiv 2307.08691).
_SPLASH = {"fwd": 2, "dkv": 4, "dq": 3}
_SPLASH_FUSED = 5  # dkv and dq in one kernel
_CUDNN = {"__cudnn$fmhaSoftmax": 2, "__cudnn$fmhaSoftmaxBackward": 5}

_VIEWS = ("bitcast", "convert", "copy", "reshape", "transpose")  # read only as far as they are used
_SLICES = ("dynamic-slice", "slice", "gather")
_UPDATES = {"dynamic-update-slice": 1, "scatter": 2}  # which operand is written, in place


def matmul_flops(module: Module, computation: str, instruction: Instruction) -> float:
    """Returns the FLOPs of the matrix products of an instruction, also of those inside a fusion.

    Args:
      module: the program.
      computation: the name of the instruction's computation.
      instruction: of any opcode; a kernel that is not cuBLAS has none here.
    """
    lines = module.computations[computation]
    if instruction.opcode == "dot":
        return _dot(_DOT, instruction, lines)
    if instruction.opcode == "convolution":
        return _convolution(instruction, lines)
    if instruction.opcode == "custom-call" and "__cublas$" in instruction.attributes:
        return _dot(_CUBLAS, instruction, lines)
    if instruction.opcode != "fusion":
        return 0.0
    return sum(
        matmul_flops(module, name, inner)
        for name in instruction.called
        for inner in module.computations[name].values()
    )


def _dot(contracted, instruction, lines):
    left = lines[instruction.operands[0]].shapes[0].sizes
    axes = re.findall(r"\d+", contracted.search(instruction.attributes).group(1))
    return 2.0 * instruction.shapes[0].count * math.prod(left[int(axis)] for axis in axes)


def _convolution(instruction, lines):
    """A matrix product as the TPU compiler writes it: an axis may be a window over padding.

    Multiplies by padding do not count.
    """
    left, right = (lines[name].shapes[0].sizes for name in instruction.operands)
    labels = [re.findall(r"\w", part) for part in _LABELS.search(instruction.attributes).groups()]
    of_left, of_right, of_out = (
        dict(zip(names, sizes, strict=True))
        for names, sizes in zip(labels, (left, right, instruction.shapes[0].sizes), strict=True)
    )
    flops = 2.0 * of_out["b"] * of_out["f"] * of_right["i"]
    window = _window(instruction)
    for axis in (name for name in labels[2] if name.isdigit()):
        taps = {key: values[int(axis)] for key, values in window.items()}
        flops *= _taps_inside(of_left[axis], of_out[axis], taps)
    return flops


def _window(instruction):
    """A window's sizes, strides, padding before the first element and dilations, by axis."""
    found = _WINDOW.search(instruction.attributes)
    given = dict(part.split("=") for part in found.group(1).split()) if found else {"size": ""}
    axes = re.findall(r"\d+", given["size"])
    window = {"size": axes, "pad": ["0"] * len(axes)}
    window |= {key: ["1"] * len(axes) for key in ("stride", "lhs_dilate", "rhs_dilate")}
    window |= {key: given[key].split("x") for key in window if given.get(key)}
    return {key: [int(value.split("_")[0]) for value in window[key]] for key in window}


def _taps_inside(inputs, outputs, taps):
    """How many pairs of an output and a tap of the window meet an element of the input."""
    starts = np.arange(outputs) * taps["stride"] - taps["pad"]
    places = starts[:, None] + np.arange(taps["size"]) * taps["rhs_dilate"]
    index, off = np.divmod(places, taps["lhs_dilate"])
    return int(((off == 0) & (index >= 0) & (index < inputs)).sum())


def custom_call_flops(module: Module, computation: str, kernel: Instruction) -> float | None:
    """Returns the FLOPs of the matrix products of a kernel, None if the kernel is not known.

    Attention counts without a mask. A cost estimate by the kernel's author comes first.

    Args:
      module: the program.
      computation: the name of the kernel's computation.
      kernel: a custom call.
    """
    if estimate := kernel.attribute(r'"cost_estimate":\{[^}]*"flops":"?(\d+)'):
        return float(estimate)
    operands = [module.computations[computation][name] for name in kernel.operands]
    target = kernel.attribute(r'custom_call_target="([^"]*)"')
    if target in _CUDNN:
        return _cudnn(kernel, operands, _CUDNN[target])
    phase = re.match(r"splash_m[hq]a_(fwd|dkv|dq)", kernel.name)
    return _splash(kernel, operands, phase.group(1)) if phase else None


def _splash(kernel, operands, phase):
    """Queries [B, H, L, K] and keys come first after the blocks of the mask."""
    query, key = [x.shapes[0].sizes for x in operands if len(x.shapes[0].sizes) == 4][:2]
    # gradients of the queries come by block of keys: [B, blocks, H, L, K]
    fused = phase == "dkv" and any(len(shape.sizes) == 5 for shape in kernel.shapes)
    matmuls = _SPLASH_FUSED if fused else _SPLASH[phase]
    batch, heads, length, width = query
    return matmuls * 2.0 * batch * heads * length * key[2] * max(width, LANES)


def _cudnn(kernel, operands, matmuls):
    """The configuration holds the shape of the weights, [B, H, L, L]."""
    shape = kernel.attribute(r'"intermediate_tensor_shape":\{[^}]*"dimensions":\[([\d", ]*)\]')
    batch, heads, length, keys = (int(size) for size in re.findall(r"\d+", shape))
    width = operands[0].shapes[0].count / (batch * heads * length)
    return matmuls * 2.0 * batch * heads * length * keys * width


def bytes_accessed(module: Module, computation: str, instruction: Instruction) -> int:
    """Returns the bytes that an instruction reads from memory and writes to it each time.

    The intermediate results of a fusion stay on the chip. Of an array that is only sliced, the
    slice is read; an array that is updated in place is not copied.

    Args:
      module: the program.
      computation: the name of the instruction's computation.
      instruction: of any opcode.
    """
    lines = module.computations[computation]
    if instruction.opcode not in ("fusion", "fusion-start"):
        arrays = [lines[name] for name in instruction.operands]
        read = sum(_part_bytes(array, _read_by(instruction, array)) for array in arrays)
        return read + _written(instruction, lines)
    inside = module.computations[instruction.called[0]]
    arrays = [line for line in inside.values() if line.opcode == "parameter"]
    read = sum(_part_bytes(array, _read_inside(array, inside)) for array in arrays)
    return read + _written(next(reversed(inside.values())), inside)


def _part_bytes(array, elements):
    """The bytes of some of an array's elements, at most of all."""
    return array.nbytes * min(elements, array.count) // max(array.count, 1)


def _read_inside(array, inside):
    """The elements of an array that the instructions of a fusion read, all together."""
    users = [line for line in inside.values() if array.name in line.operands]
    if not users:
        return 0 if array.opcode == "parameter" else array.count  # the result
    return sum(
        _read_inside(user, inside) if user.opcode in _VIEWS else _read_by(user, array)
        for user in users
    )


def _read_by(user, array):
    """The elements of an array that an instruction reads."""
    if array.name == user.operands[0]:
        if user.opcode in _SLICES:
            return user.count
        if user.opcode in _UPDATES:
            return 0
    return array.count


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

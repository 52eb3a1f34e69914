"""The FLOPs of matrix products in a compiled program, 2 for a multiply and an add."""

import math
import re

import numpy as np

from sedd_jax.planning.hlo_cost import hlo

_DOT = re.compile(r"lhs_contracting_dims=\{([\d,]*)\}")
_LIBRARY = re.compile(r'"lhs_contracting_dimensions":\[([\d", ]*)\]')  # cuBLAS
_WINDOW = re.compile(r"window=\{([^}]*)\}")
_LABELS = re.compile(r"dim_labels=(\w+)_(\w+)->(\w+)")


def product_flops(module: hlo.Module, computation: str, instruction: hlo.Instruction) -> float:
    """Returns the FLOPs of the products of an instruction, also of those inside of a fusion."""
    lines = module.computations[computation]
    if instruction.opcode == "dot":
        return _dot(_DOT, instruction, lines)
    if instruction.opcode == "convolution":
        return _convolution(instruction, lines)
    if instruction.opcode == "custom-call" and "__cublas$" in instruction.attributes:
        return _dot(_LIBRARY, instruction, lines)
    if instruction.opcode != "fusion":
        return 0.0
    return sum(
        product_flops(module, name, inner)
        for name in instruction.called
        for inner in module.computations[name].values()
    )


def all_product_flops(module: hlo.Module, runs: dict[str, float]) -> float:
    """Returns the FLOPs of all products that one chip makes in a run of a program.

    Args:
      module: the program.
      runs: how often its computations run.
    """
    return sum(
        calls * product_flops(module, name, instruction)
        for name, calls in runs.items()
        for instruction in module.computations[name].values()
    )


def _dot(contracted, instruction, lines):
    left = lines[instruction.operands[0]].shapes[0].sizes
    axes = re.findall(r"\d+", contracted.search(instruction.attributes).group(1))
    return 2.0 * instruction.shapes[0].count * math.prod(left[int(axis)] for axis in axes)


def _convolution(instruction, lines):
    """A product as the compiler for TPUs writes it: an axis may be a window over padding.

    Of the window's products only those with numbers count, not those with padding.
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
        flops *= _pairs(of_left[axis], of_out[axis], taps)
    return flops


def _window(instruction):
    """What a window says by axis: sizes, strides, padding before the first number, dilations."""
    found = _WINDOW.search(instruction.attributes)
    said = dict(part.split("=") for part in found.group(1).split()) if found else {"size": ""}
    axes = re.findall(r"\d+", said["size"])
    window = {"size": axes, "pad": ["0"] * len(axes)}
    window |= {key: ["1"] * len(axes) for key in ("stride", "lhs_dilate", "rhs_dilate")}
    window |= {key: said[key].split("x") for key in window if said.get(key)}
    return {key: [int(value.split("_")[0]) for value in window[key]] for key in window}


def _pairs(inputs, outputs, taps):
    """How many pairs of an output and a tap of the window meet a number of the input."""
    starts = np.arange(outputs) * taps["stride"] - taps["pad"]
    places = starts[:, None] + np.arange(taps["size"]) * taps["rhs_dilate"]
    turns, off = np.divmod(places, taps["lhs_dilate"])
    return int(((off == 0) & (turns >= 0) & (turns < inputs)).sum())

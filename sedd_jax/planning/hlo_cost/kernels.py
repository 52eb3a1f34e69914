"""The FLOPs of kernels that a compiled program only calls: attention on TPUs and on GPUs.

Shapes: B batch, H heads, L length, K head dimension.
"""

import math
import re

from sedd_jax.planning.hlo_cost.hlo import Instruction

LANES = 128  # of a TPU: a shorter K is filled up

# products of B H L L K multiplies that a kernel makes: the forward pass two; the backward pass
# makes the weights again, then has one for each gradient and one for that of the weights
_SPLASH = {"fwd": 2, "dkv": 4, "dq": 3}
_SPLASH_FUSED = 5  # dkv and dq in one kernel
_CUDNN = {"__cudnn$fmhaSoftmax": 2, "__cudnn$fmhaSoftmaxBackward": 5}
_TOLD = re.compile(r'"cost_estimate":\{[^}]*"flops":"?(\d+)')


def kernel_flops(kernel: Instruction, operands: list[Instruction]) -> float | None:
    """Returns the FLOPs of a kernel's products, None if the kernel is not known.

    Without a mask: nothing is left out. What the kernel's author told the compiler goes first.

    Args:
      kernel: a call.
      operands: the instructions whose results it takes.
    """
    if told := kernel.attribute(_TOLD.pattern):
        return float(told)
    target = kernel.attribute(r'custom_call_target="([^"]*)"')
    if target in _CUDNN:
        return _cudnn(kernel, operands, _CUDNN[target])
    phase = re.match(r"splash_m[hq]a_(fwd|dkv|dq)", kernel.name)
    return _splash(kernel, operands, phase.group(1)) if phase else None


def _splash(kernel, operands, phase):
    """Queries [B, H, L, K] and keys are the first of what is not the mask's blocks."""
    query, key = [x.shapes[0].sizes for x in operands if len(x.shapes[0].sizes) == 4][:2]
    # gradients of the queries come by block of keys: [B, blocks, H, L, K]
    fused = phase == "dkv" and any(len(shape.sizes) == 5 for shape in kernel.shapes)
    products = _SPLASH_FUSED if fused else _SPLASH[phase]
    batch, heads, length, width = query
    return products * 2.0 * batch * heads * length * key[2] * max(width, LANES)


def _cudnn(kernel, operands, products):
    """The configuration holds the shape of the weights, [B, H, L, L]."""
    said = kernel.attribute(r'"intermediate_tensor_shape":\{[^}]*"dimensions":\[([\d", ]*)\]')
    batch, heads, length, keys = (int(size) for size in re.findall(r"\d+", said))
    width = operands[0].shapes[0].count / (batch * heads * length)
    return products * 2.0 * math.prod((batch, heads, length, keys)) * width

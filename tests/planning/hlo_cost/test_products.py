"""FLOPs of products, against counts by hand and by plain loops."""

import itertools

import pytest

from sedd_jax.planning.hlo_cost import hlo
from sedd_jax.planning.hlo_cost.products import all_product_flops, product_flops


def flops(shapes, line, result):
    """FLOPs of the last line of a program, whose operands have the shapes."""
    parameters = "".join(
        f"  %p{i} = {shape} parameter({i})\n" for i, shape in enumerate(shapes.split())
    )
    text = f"ENTRY %main (p: f32[]) -> {result} {{\n{parameters}  ROOT %x = {result} {line}\n}}\n"
    module = hlo.read(text)
    return product_flops(module, "main", module.computations["main"]["x"])


def test_a_batched_product():
    line = (
        "dot(%p0, %p1), lhs_batch_dims={0}, lhs_contracting_dims={2,3}, rhs_batch_dims={0}, "
        "rhs_contracting_dims={1,2}"
    )
    assert flops("bf16[5,7,3,4] bf16[5,3,4,11]", line, "f32[5,7,11]") == 2 * 5 * 7 * 11 * 3 * 4


def test_a_product_of_the_library():
    line = (
        'custom-call(%p0, %p1), custom_call_target="__cublas$lt$matmul", backend_config='
        '{"gemm_backend_config":{"alpha_real":1,"dot_dimension_numbers":{'
        '"lhs_contracting_dimensions":["0"],"rhs_contracting_dimensions":["0"],'
        '"lhs_batch_dimensions":[],"rhs_batch_dimensions":[]}}}'
    )
    assert flops("bf16[3,7] bf16[3,11]", line, "(bf16[7,11], s8[4096])") == 2 * 3 * 7 * 11


def test_a_product_that_is_a_convolution():
    line = "convolution(%p0, %p1), dim_labels=bf_io->bf"
    assert flops("bf16[8,128] bf16[128,50]", line, "f32[8,50]") == 2 * 8 * 128 * 50


def test_a_product_with_axes_that_are_windows_over_padding():
    # [N, D] x [D, 3, 16, K], as the compiler for TPUs writes it: every output meets one number
    line = (
        "convolution(%p0, %p1), window={size=3x16 pad=2_2x15_15 rhs_reversal=1x1}, "
        "dim_labels=bf01_i01o->b01f"
    )
    found = flops("bf16[80,10,1,1] bf16[10,3,16,4]", line, "bf16[80,3,16,4]")
    assert found == 2 * 80 * 10 * 3 * 16 * 4


@pytest.mark.parametrize(
    ("size", "stride", "pad", "left", "right"), [(3, 1, 1, 1, 1), (3, 2, 2, 1, 2), (2, 1, 1, 3, 1)]
)
def test_a_convolution_counts_the_numbers_that_meet(size, stride, pad, left, right):
    inputs, channels, features = 9, 2, 5
    spread = (inputs - 1) * left + 1
    outputs = (spread + 2 * pad - ((size - 1) * right + 1)) // stride + 1
    padded = [None] * pad + [None] * spread + [None] * pad
    padded[pad : pad + spread : left] = range(inputs)
    met = sum(
        padded[out * stride + tap * right] is not None
        for out, tap in itertools.product(range(outputs), range(size))
    )
    line = (
        f"convolution(%p0, %p1), window={{size={size} stride={stride} pad={pad}_{pad} "
        f"lhs_dilate={left} rhs_dilate={right}}}, dim_labels=b0f_0io->b0f"
    )
    shapes = f"f32[1,{inputs},{channels}] f32[{size},{channels},{features}]"
    assert flops(shapes, line, f"f32[1,{outputs},{features}]") == 2 * met * channels * features


def test_products_count_in_fusions_and_as_often_as_they_run():
    text = """\
%fused (p.1: f32[2,3], p.2: f32[3,5]) -> f32[2,5] {
  %p.1 = f32[2,3] parameter(0)
  %p.2 = f32[3,5] parameter(1)
  %dot.1 = f32[2,5] dot(%p.1, %p.2), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %add.1 = f32[2,5] add(%dot.1, %dot.1)
}

%body (b: f32[2,3]) -> f32[2,5] {
  %b = f32[2,3] parameter(0)
  %c = f32[3,5] parameter(1)
  ROOT %fusion.1 = f32[2,5] fusion(%b, %c), kind=kOutput, calls=%fused
}

ENTRY %main (a: f32[]) -> f32[] {
  %a = f32[3,3] parameter(0)
  %dot.2 = f32[3,3] dot(%a, %a), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %while = f32[2,5] while(%a), condition=%c, body=%body, \
backend_config={"known_trip_count":{"n":"4"}}
}
"""
    module = hlo.read(text)
    runs = module.runs(lambda loop: 1)
    assert all_product_flops(module, runs) == 2 * 27 + 4 * 2 * 2 * 3 * 5

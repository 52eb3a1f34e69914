"""FLOPs and bytes of instructions, against counts by hand and by plain loops."""

import itertools

import pytest

from sedd_jax.planning.hlo_cost import hlo
from sedd_jax.planning.hlo_cost.instructions import (
    bytes_accessed,
    custom_call_flops,
    matmul_flops,
)


def flops(shapes, line, result):
    """FLOPs of the last line of a program, whose operands have the shapes."""
    parameters = "".join(
        f"  %p{i} = {shape} parameter({i})\n" for i, shape in enumerate(shapes.split())
    )
    text = f"ENTRY %main (p: f32[]) -> {result} {{\n{parameters}  ROOT %x = {result} {line}\n}}\n"
    module = hlo.parse(text)
    return matmul_flops(module, "main", module.computations["main"]["x"])


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


def test_products_inside_a_fusion_count():
    text = """\
%fused (p.1: f32[2,3], p.2: f32[3,5]) -> f32[2,5] {
  %p.1 = f32[2,3] parameter(0)
  %p.2 = f32[3,5] parameter(1)
  %dot.1 = f32[2,5] dot(%p.1, %p.2), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %add.1 = f32[2,5] add(%dot.1, %dot.1)
}

ENTRY %main (b: f32[2,3], c: f32[3,5]) -> f32[2,5] {
  %b = f32[2,3] parameter(0)
  %c = f32[3,5] parameter(1)
  ROOT %fusion.1 = f32[2,5] fusion(%b, %c), kind=kOutput, calls=%fused
}
"""
    module = hlo.parse(text)
    fusion = module.computations["main"]["fusion.1"]
    assert matmul_flops(module, "main", fusion) == 2 * 2 * 3 * 5


# attention: B 8, H 16, L 1024, K 64, which a TPU pads to 128
ONE = 2 * 8 * 16 * 1024 * 1024  # a product of L x L, for each number of a head


def kernel_flops(name, result, operands, attributes):
    lines = "".join(f"  %p{i} = {shape} parameter({i})\n" for i, shape in enumerate(operands))
    names = ", ".join(f"%p{i}" for i in range(len(operands)))
    lines += f"  ROOT %{name} = {result} custom-call({names}), {attributes}\n"
    module = hlo.parse(f"ENTRY %main (p: f32[]) -> f32[] {{\n{lines}}}\n")
    return custom_call_flops(module, "main", module.computations["main"][name])


MASK = ["s8[1,1,1]", "s8[1,1,1]"]
HEADS = "bf16[8,16,1024,64]{3,2,1,0:T(8,128)(2,1)}"


@pytest.mark.parametrize(
    ("name", "result", "products"),
    [
        ("splash_mha_fwd_residuals.2", f"({HEADS}, f32[8,16,1024,128])", 2),
        ("splash_mha_fwd_segmented_no_residuals", HEADS, 2),
        ("splash_mha_dkv_no_residuals.1", f"(bf16[8,1,16,1024,64], {HEADS}, {HEADS})", 5),
        ("splash_mha_dkv_no_residuals.1", f"({HEADS}, {HEADS})", 4),
        ("splash_mha_dq_no_residuals", HEADS, 3),
    ],
)
def test_splash_attention(name, result, products):
    target = 'custom_call_target="tpu_custom_call"'
    assert kernel_flops(name, result, [*MASK, *[HEADS] * 3], target) == products * ONE * 128


@pytest.mark.parametrize("space", ["", " "])  # JSON of two versions of the compiler
@pytest.mark.parametrize(
    ("target", "products"), [("__cudnn$fmhaSoftmax", 2), ("__cudnn$fmhaSoftmaxBackward", 5)]
)
def test_cudnn_attention(target, products, space):
    said = (
        f'custom_call_target="{target}", backend_config={{"cudnn_fmha_backend_config":'
        '{"intermediate_tensor_shape":{"element_type":"BF16","dimensions":'
        '["8","16","1024","1024"],"tuple_shapes":[]},"fmha_scale":0.125}}'
    )
    said = said.replace(":", f":{space}").replace(",", f",{space}")
    operands = ["bf16[8,1024,16,64]{3,2,1,0}"] * 3
    assert kernel_flops("cudnn.1", f"({HEADS}, u8[0])", operands, said) == products * ONE * 64


def test_what_the_author_told_goes_first():
    said = (
        'custom_call_target="tpu_custom_call", backend_config={"custom_call_config":{"body":"",'
        '"cost_estimate":{"flops":"1234","transcendentals":"5","bytes_accessed":"6"}}}'
    )
    assert kernel_flops("splash_mha_fwd", HEADS, [*MASK, *[HEADS] * 3], said) == 1234


def test_other_kernels_are_not_known():
    assert kernel_flops("mine.1", HEADS, [HEADS], 'custom_call_target="tpu_custom_call"') is None


# every element here has 4 bytes, unless a type says otherwise
FUSED = """\
%fused (p.0: f32[24,10], p.1: f32[24,10], p.2: s32[], p.3: f32[10], p.4: f32[7]) -> f32[10] {
  %p.0 = f32[24,10] parameter(0)
  %p.1 = f32[24,10] parameter(1)
  %p.2 = s32[] parameter(2)
  %p.3 = f32[10] parameter(3)
  %p.4 = f32[7] parameter(4)
  %bitcast.0 = f32[240] bitcast(%p.0)
  %dynamic-slice.1 = f32[10] dynamic-slice(%bitcast.0, %p.2), dynamic_slice_sizes={10}
  %add.1 = f32[10] add(%dynamic-slice.1, %p.3)
  %bitcast.1 = f32[1,10] bitcast(%add.1)
  %dynamic-update-slice.1 = f32[24,10] dynamic-update-slice(%p.1, %bitcast.1, %p.2)
  ROOT %tuple.1 = (f32[10], f32[24,10]) tuple(%add.1, %dynamic-update-slice.1)
}

%turned (r.0: bf16[30,8], r.1: f32[6]) -> (f32[10,8], f32[6], f32[6]) {
  %r.0 = bf16[30,8] parameter(0)
  %r.1 = f32[6] parameter(1)
  %transpose.1 = bf16[8,30] transpose(%r.0), dimensions={1,0}
  %convert.1 = f32[8,30] convert(%transpose.1)
  %slice.1 = f32[8,10] slice(%convert.1), slice={[0:8], [0:10]}
  %negate.1 = f32[8,10] negate(%slice.1)
  %copy.1 = f32[6] copy(%r.1)
  ROOT %tuple.2 = (f32[8,10], f32[6]) tuple(%negate.1, %copy.1)
}

ENTRY %main (a: f32[]) -> f32[] {
  %a = f32[24,10] parameter(0)
  %i = s32[] parameter(1)
  %b = f32[10] parameter(2)
  %c = f32[7] parameter(3)
  %cut = f32[1,10] dynamic-slice(%a, %i), dynamic_slice_sizes={1,10}
  %put = f32[24,10] dynamic-update-slice(%a, %cut, %i)
  %add = f32[24,10] add(%a, %put)
  %fusion = (f32[10], f32[24,10]) fusion(%a, %put, %i, %b, %c), kind=kLoop, calls=%fused
  %d = bf16[30,8] parameter(4)
  %e = f32[6] parameter(5)
  %third = (f32[8,10], f32[6]) fusion(%d, %e), kind=kInput, calls=%turned
  ROOT %scatter = f32[24,10] scatter(%a, %i, %cut), to_apply=%sum
}
"""


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        ("cut", 10 + 1 + 10),
        ("put", 10 + 1 + 10),  # in place
        ("add", 3 * 240),
        ("fusion", 10 + 1 + 10 + 10 + 10),  # the cut, where, p.3; the sum, and it again in p.1
        ("third", 80 / 2 + 80 + 6 + 6),  # a third, of 2 bytes each, in another order
        ("scatter", 1 + 10 + 10),
    ],
)
def test_only_what_is_taken_and_put_counts(name, numbers):
    module = hlo.parse(FUSED)
    assert bytes_accessed(module, "main", module.computations["main"][name]) == 4 * numbers

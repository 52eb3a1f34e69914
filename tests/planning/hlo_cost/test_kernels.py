"""FLOPs of kernels, by hand: B 8, H 16, L 1024, K 64, which a TPU fills up to 128."""

import pytest

from sedd_jax.planning.hlo_cost import hlo
from sedd_jax.planning.hlo_cost.kernels import kernel_flops

ONE = 2 * 8 * 16 * 1024 * 1024  # a product of L x L, for each number of a head


def flops(name, result, operands, attributes):
    lines = "".join(f"  %p{i} = {shape} parameter({i})\n" for i, shape in enumerate(operands))
    names = ", ".join(f"%p{i}" for i in range(len(operands)))
    lines += f"  ROOT %{name} = {result} custom-call({names}), {attributes}\n"
    found = hlo.read(f"ENTRY %main (p: f32[]) -> f32[] {{\n{lines}}}\n").computations["main"]
    return kernel_flops(found[name], [x for x in found.values() if x.opcode == "parameter"])


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
    assert flops(name, result, [*MASK, *[HEADS] * 3], target) == products * ONE * 128


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
    assert flops("cudnn.1", f"({HEADS}, u8[0])", operands, said) == products * ONE * 64


def test_what_the_author_told_goes_first():
    said = (
        'custom_call_target="tpu_custom_call", backend_config={"custom_call_config":{"body":"",'
        '"cost_estimate":{"flops":"1234","transcendentals":"5","bytes_accessed":"6"}}}'
    )
    assert flops("splash_mha_fwd", HEADS, [*MASK, *[HEADS] * 3], said) == 1234


def test_other_kernels_are_not_known():
    assert flops("mine.1", HEADS, [HEADS], 'custom_call_target="tpu_custom_call"') is None

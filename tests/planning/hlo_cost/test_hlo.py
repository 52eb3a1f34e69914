"""Small programs in the compilers' own words, and what is read from them."""

import pytest

from sedd_jax.planning.hlo_cost import hlo

# lines as the compiler for TPUs writes them: layouts, tiles, memory spaces, a condition to resolve
TPU = """\
HloModule jit_step, is_scheduled=true, entry_computation_layout={(f32[8,128]{1,0:T(8,128)})->f32[]}

FileNames
1 "a.py"

%fused_computation.1 (param_0.1: bf16[8,128], param_1.2: bf16[128,256]) -> bf16[8,256] {
  %param_0.1 = bf16[8,128]{1,0:T(8,128)(2,1)} parameter(0)
  %param_1.2 = bf16[128,256]{1,0:T(8,128)(2,1)S(1)} parameter(1)
  ROOT %convolution.1 = bf16[8,256]{1,0:T(8,128)(2,1)} convolution(%param_0.1, %param_1.2), \
dim_labels=bf_io->bf
}

%body.2 (arg: (s32[], bf16[8,256], bf16[4,8,256], token[])) -> (s32[], bf16[8,256]) {
  %arg = (s32[]{:T(128)}, bf16[8,256]{1,0:T(8,128)(2,1)}, /*index=2*/bf16[4,8,256]{2,1,0}) \
parameter(0)
  %get-tuple-element.7 = bf16[8,256]{1,0} get-tuple-element(%arg), index=1
  %splash_mha_fwd.1 = bf16[8,256]{1,0} custom-call(%get-tuple-element.7), \
custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"xprof_metadata":"{\\"block_q\\": 1024}"
}}, metadata={op_name="jit(step)/while/body/attention" stack_frame_id=4}
  ROOT %tuple.3 = (s32[], bf16[8,256]) tuple(%splash_mha_fwd.1)
}

%condition.4 (arg.1: (s32[], bf16[8,256])) -> pred[] {
  %arg.1 = (s32[], bf16[8,256]) parameter(0)
  %constant.9 = s32[]{:T(128)} constant(24)
  %get-tuple-element.8 = s32[]{:T(128)} get-tuple-element(%arg.1), index=0
  ROOT %compare.1 = pred[]{:T(512)} compare(%get-tuple-element.8, %constant.9), direction=LT
}

%until.5 (arg.2: (s32[], s32[])) -> pred[] {
  %arg.2 = (s32[], s32[]) parameter(0)
  %get-tuple-element.10 = s32[] get-tuple-element(%arg.2), index=0
  %get-tuple-element.11 = s32[] get-tuple-element(%arg.2), index=1
  ROOT %compare.2 = pred[] compare(%get-tuple-element.10, %get-tuple-element.11), direction=LT
}

%outer.6 (arg.3: (s32[], s32[])) -> (s32[], s32[]) {
  %arg.3 = (s32[], s32[]) parameter(0)
  ROOT %while.2 = (s32[], bf16[8,256]) while(%arg.3), condition=%condition.4, body=%body.2
}

%skip.7 (arg.4: f32[]) -> f32[] {
  ROOT %arg.4 = f32[] parameter(0)
}

ENTRY %main.8 (param: f32[8,128]) -> f32[] {
  %param = f32[8,128]{1,0:T(8,128)} parameter(0), sharding={replicated}
  %fusion.1 = bf16[8,256]{1,0} fusion(%param, %param), kind=kOutput, calls=%fused_computation.1, \
metadata={op_name="jit(step)/dot_general"}, backend_config={"estimated_cycles":"1234"}
  %while.1 = (s32[], s32[]) while(%fusion.1), condition=%until.5, body=%outer.6, \
metadata={op_name="jit(step)/blocks_of_4096/while"}
  ROOT %conditional.1 = f32[] conditional(%while.1, %param, %param), \
branch_computations={%skip.7, %outer.6}
}
"""

GPU = """\
HloModule jit_step, is_scheduled=true

%body (arg: (s32[])) -> (s32[]) {
  ROOT %arg = (s32[]) parameter(0)
}

%command_buffer (p: f32[4]) -> f32[4] {
  ROOT %p = f32[4]{0} parameter(0)
}

%async_computation (p.1: f32[8]) -> f32[2] {
  %p.1 = f32[8]{0} parameter(0)
  ROOT %reduce-scatter.1 = f32[2]{0} reduce-scatter(%p.1), replica_groups={{0,1,2,3}}
}

ENTRY %main (a: f32[8]) -> f32[8] {
  %a = f32[8]{0} parameter(0)
  %call = f32[4]{0} call(%a), to_apply=%command_buffer
  %rs-start = ((f32[8]{0}), f32[2]{0}) async-start(%a), calls=%async_computation
  ROOT %while = (s32[]) while(%a), condition=%c, body=%body, \
backend_config={"known_trip_count": {"n": "12"}, "known_init_step": {"init": "0", "step": "1"}}
}
"""


def never(loop):
    raise AssertionError(f"{loop.name} has a known count")


@pytest.mark.parametrize(
    ("kind", "dtype", "sizes", "nbytes"),
    [
        ("bf16[8,16,1024]{2,1,0:T(8,128)(2,1)S(1)}", "bf16", (8, 16, 1024), 8 * 16 * 1024 * 2),
        ("f32[]{:T(128)}", "f32", (), 4),
        ("pred[3]{0}", "pred", (3,), 3),
        ("s4[10]{0:E(4)}", "s4", (10,), 5),
        ("f8e4m3fn[7]{0}", "f8e4m3fn", (7,), 7),
        ("c64[2,0]{1,0}", "c64", (2, 0), 0),
        ("s32[<=5]{0}", "s32", (5,), 20),
        ("token[]", "token", (), 0),
    ],
)
def test_a_shape_has_its_bytes(kind, dtype, sizes, nbytes):
    (shape,) = hlo.shapes(kind)
    assert (shape.dtype, shape.sizes, shape.nbytes) == (dtype, sizes, nbytes)


def test_a_tuple_has_the_shapes_of_its_parts():
    found = hlo.shapes("((f32[2]{0}, bf16[3,4]{1,0:T(8,128)}), /*index=2*/u32[]{:S(2)})")
    assert [shape.sizes for shape in found] == [(2,), (3, 4), ()]


def test_lines_are_taken_apart():
    module = hlo.parse(TPU)
    assert module.entry == "main.8"
    fusion = module.computations["main.8"]["fusion.1"]
    assert fusion.opcode == "fusion"
    assert fusion.operands == ("param", "param")
    assert fusion.called == ("fused_computation.1",)
    assert fusion.source == "jit(step)/dot_general"
    assert fusion.nbytes == 8 * 256 * 2
    assert fusion.attribute(r'"estimated_cycles":"(\d+)"') == "1234"
    assert fusion.attribute("no such (thing)") is None
    assert list(module.computations["body.2"]) == [
        "arg",
        "get-tuple-element.7",
        "splash_mha_fwd.1",
        "tuple.3",
    ]


def test_a_line_that_is_broken_is_read_to_its_end():
    kernel = hlo.parse(TPU).computations["body.2"]["splash_mha_fwd.1"]
    assert kernel.source == "jit(step)/while/body/attention"
    assert '"block_q' in kernel.attributes.replace("\\", "")


def test_a_condition_tells_how_often_a_loop_of_a_tpu_program_runs():
    module = hlo.parse(TPU)
    assert module.trips(module.computations["outer.6"]["while.2"]) == 24
    assert module.trips(module.computations["main.8"]["while.1"]) is None


def test_runs_multiply_through_nested_loops_and_the_longest_branch_counts():
    asked = []

    def trips(loop):
        asked.append(loop.source)
        return 2.5

    runs = hlo.parse(TPU).execution_counts(trips)
    # the outer loop 2.5 times, and once more as a branch
    assert runs == {"main.8": 1, "outer.6": 3.5, "body.2": 3.5 * 24}
    assert asked == ["jit(step)/blocks_of_4096/while"]


def test_runs_of_a_gpu_program():
    assert hlo.parse(GPU).execution_counts(never) == {
        "main": 1,
        "command_buffer": 1,
        "body": 12,
    }


@pytest.mark.parametrize(
    "text",
    [
        "",
        "HloModule x\n\n%f (a: f32[]) -> f32[] {\n}\n",
        "ENTRY main (a: f32[]) -> f32[] {\n  a = f32[] parameter(0)\n}\n",  # names without %
    ],
)
def test_a_text_without_an_entry_is_refused(text):
    with pytest.raises(hlo.HloError, match="no entry computation"):
        hlo.parse(text)


@pytest.mark.parametrize(
    ("line", "said"), [("add(%b, (%c)", "within brackets"), ("", "the line of a")]
)
def test_a_line_that_ends_too_early_is_refused(line, said):
    with pytest.raises(hlo.HloError, match=said):
        hlo.parse(f"ENTRY %main (a: f32[]) -> f32[] {{\n  %a = f32[] {line}\n}}\n")

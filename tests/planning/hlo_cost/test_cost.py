"""Predicted times of programs written by hand, and counts of a program that is compiled here."""

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from sedd_jax.experiment.mesh import placement
from sedd_jax.experiment.state import run_keys
from sedd_jax.inference.build import build_family
from sedd_jax.model.config import padded
from sedd_jax.model.rows import BLOCKS_OF
from sedd_jax.model.score_model import forward_flops
from sedd_jax.model.tiles import CPU
from sedd_jax.planning.hlo_cost import cost, hlo
from sedd_jax.planning.hlo_cost.collectives import collectives, totals
from sedd_jax.planning.hlo_cost.cost import predict
from sedd_jax.planning.hlo_cost.instructions import matmul_flops
from sedd_jax.planning.topology import CHIPS
from sedd_jax.training.step import build_programs

V5E, H100 = CHIPS["v5e"], CHIPS["h100"]
CYCLES = 'backend_config={"estimated_cycles":"%d"}'

TPU = f"""\
%product (p: bf16[8,8]) -> bf16[8,8] {{
  %p = bf16[8,8] parameter(0)
  ROOT %convolution.1 = bf16[8,8] convolution(%p, %p), dim_labels=bf_io->bf
}}

%sum (q: bf16[8,8]) -> bf16[8,8] {{
  %q = bf16[8,8] parameter(0)
  ROOT %add.1 = bf16[8,8] add(%q, %q)
}}

%body (b: bf16[8,8]) -> bf16[8,8] {{
  %b = bf16[8,8] parameter(0)
  %all-gather-start = (bf16[8,8], bf16[64,8]) all-gather-start(%b), replica_groups={{}}
  %fusion.1 = bf16[8,8] fusion(%b), kind=kOutput, calls=%product, {CYCLES % 3000}
  %all-gather-done = bf16[64,8] all-gather-done(%all-gather-start)
  ROOT %all-reduce.1 = bf16[8,8] all-reduce(%fusion.1), replica_groups={{}}
}}

ENTRY %main (a: bf16[8,8]) -> bf16[8,8] {{
  %a = bf16[8,8] parameter(0)
  %c = bf16[82000000] parameter(1)
  %fusion.2 = bf16[8,8] fusion(%a), kind=kLoop, calls=%sum, {CYCLES % 500}
  %copy-start = (bf16[8,8], bf16[8,8], u32[]) copy-start(%a)
  %custom-call.1 = bf16[24,9,9] custom-call(), custom_call_target="AllocateBuffer"
  %mine.1 = bf16[82000000] custom-call(%c), custom_call_target="tpu_custom_call"
  %reshape.1 = bf16[41000000] reshape(%a)
  ROOT %while = bf16[8,8] while(%a), condition=%until, body=%body
}}

%until (d: bf16[8,8]) -> pred[] {{
  ROOT %d = pred[] parameter(0)
}}
"""


def trips(loop):
    return 2.5


def line_of(n):
    """A mesh of n devices that share no more than their names with a TPU's."""
    return Mesh(
        np.array(jax.devices()[:n]).reshape(1, 1, n, 1), ("slice", "data", "fsdp", "tensor")
    )


def test_a_tpu_program_takes_its_cycles_its_kernels_and_its_collectives():
    found = predict(hlo.parse(TPU), V5E, line_of(8), trips)
    second = V5E.flops_per_second / V5E.flops_per_cycle
    reduced = 2.5 * 2 * 128 * 7 / 8 / V5E.link_bytes_per_second
    assert found.seconds_by_part == pytest.approx(
        {
            "matrix products": 2.5 * 3000 / second,
            # a reshape of which nothing is said reads 128 bytes and writes 82 MB
            "memory and elementwise": 500 / second + (82e6 + 128) / V5E.hbm_bytes_per_second,
            "other kernels": 328e6 / V5E.hbm_bytes_per_second,
            "exposed communication": reduced,
        }
    )
    assert found.seconds == pytest.approx(sum(found.seconds_by_part.values()))
    assert found.unknown == ("mine.1",)
    assert [x.overlapped for x in found.collectives] == [True, False]
    assert "A side of a slice is a closed ring" in " ".join(found.assumptions)


def test_a_collective_in_the_background_costs_what_outlasts_the_computation():
    quick = TPU.replace("3000", "10")
    found = predict(hlo.parse(quick), V5E, line_of(8), trips)
    gathered = 128 * 7 / V5E.link_bytes_per_second
    assert gathered > 10 / V5E.clock
    expected = 2.5 * (gathered - 10 / V5E.clock + 2 * 128 * 7 / 8 / V5E.link_bytes_per_second)
    assert found.seconds_by_part["exposed communication"] == pytest.approx(expected)


WAITING = f"""\
%inside (b: bf16[8,8]) -> bf16[8,8] {{
  %b = bf16[8,8] parameter(0)
  ROOT %fusion.9 = bf16[8,8] fusion(%b), kind=kLoop, calls=%sum, {CYCLES % 30}
}}

%sum (q: bf16[8,8]) -> bf16[8,8] {{
  %q = bf16[8,8] parameter(0)
  ROOT %add.1 = bf16[8,8] add(%q, %q)
}}

ENTRY %main (a: bf16[8,8]) -> bf16[8,8] {{
  %a = bf16[8,8] parameter(0)
  %gather = (bf16[8,8], bf16[64,8]) all-gather-start(%a), replica_groups={{}}
  %permute = (bf16[8,8], bf16[8,8]) collective-permute-start(%a), source_target_pairs={{{{0,1}}}}
  %reduce = bf16[8,8] all-reduce-start(%a), replica_groups={{}}
  MIDDLE
  %permuted = bf16[8,8] collective-permute-done(%permute)
  %fusion.2 = bf16[8,8] fusion(%a), kind=kLoop, calls=%sum, {CYCLES % 3}
  %reduced = bf16[8,8] all-reduce-done(%reduce)
  ROOT %gathered = bf16[64,8] all-gather-done(%gather)
}}
"""
LOOP = """%while = bf16[8,8] while(%a), condition=%until, body=%inside, \
backend_config={"known_trip_count":{"n":"2"}}"""


@pytest.mark.parametrize(
    ("middle", "cycles"),
    [
        ("", 0),
        (f"%fusion.1 = bf16[8,8] fusion(%a), kind=kLoop, calls=%sum, {CYCLES % 10}", 10),
        (LOOP, 60),
    ],
)
def test_what_was_started_first_is_sent_first(middle, cycles):
    found = predict(hlo.parse(WAITING.replace("MIDDLE", middle)), V5E, line_of(8), trips)
    gather, permute, reduce = (
        size / V5E.link_bytes_per_second for size in (128 * 7, 128, 2 * 128 * 7 / 8)
    )
    # what waits for the permutation waits for the gather before it, the end of which then is free
    first = max(0, gather + permute - cycles / V5E.clock)
    spare = max(0, cycles / V5E.clock - gather - permute)
    second = max(0, reduce - spare - 3 / V5E.clock)
    assert found.seconds_by_part["exposed communication"] == pytest.approx(first + second)


GPU = """\
%large (p: bf16[4096,4096]) -> bf16[4096,4096] {
  %p = bf16[4096,4096] parameter(0)
  ROOT %dot.1 = bf16[4096,4096] dot(%p, %p), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%thin (q: bf16[8,4096], r: bf16[4096,8]) -> f32[8,8] {
  %q = bf16[8,4096] parameter(0)
  %r = bf16[4096,8] parameter(1)
  ROOT %dot.2 = f32[8,8] dot(%q, %r), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

ENTRY %main (a: bf16[4096,4096]) -> f32[8,8] {
  %a = bf16[4096,4096] parameter(0)
  %b = bf16[8,4096] parameter(1)
  %c = bf16[4096,8] parameter(2)
  %h = bf16[8,1024,16,64] parameter(3)
  %s = bf16[24,4096] parameter(4)
  %v = bf16[1,4096] parameter(5)
  %i = s32[] parameter(6)
  %fusion.1 = bf16[4096,4096] fusion(%a), kind=kCustom, calls=%large
  %fusion.2 = f32[8,8] fusion(%b, %c), kind=kCustom, calls=%thin
  %copy.1 = bf16[4096,4096] copy(%a)
  %bitcast.1 = bf16[16777216] bitcast(%a)
  %cudnn.1 = (bf16[8,16,1024,64], u8[0]) custom-call(%h, %h, %h), \
custom_call_target="__cudnn$fmhaSoftmax", backend_config={"cudnn_fmha_backend_config":{\
"intermediate_tensor_shape":{"element_type":"BF16","dimensions":["8","16","1024","1024"]}}}
  %sort.1 = bf16[8,4096] custom-call(%b), custom_call_target="__cub$DeviceRadixSort"
  %fusion-start.1 = ((bf16[24,4096], bf16[4096], s32[]), bf16[24,4096]) fusion-start(%s, %v, %i), \
calls=%put
  %fusion-done.1 = bf16[24,4096] fusion-done(%fusion-start.1)
  %while.1 = s32[] while(%i), condition=%until, body=%again
  ROOT %while.2 = s32[] while(%i), condition=%until, body=%other, \
backend_config={"known_trip_count":{"n":"7"}}
}

%put (x: bf16[24,4096], y: bf16[4096], z: s32[]) -> bf16[24,4096] {
  %x = bf16[24,4096] parameter(0)
  %y = bf16[1,4096] parameter(1)
  %z = s32[] parameter(2)
  ROOT %dynamic-update-slice.1 = bf16[24,4096] dynamic-update-slice(%x, %y, %z)
}

%again (i: s32[]) -> s32[] {
  ROOT %i = s32[] parameter(0)
}

%other (j: s32[]) -> s32[] {
  ROOT %j = s32[] parameter(0)
}

%until (k: s32[]) -> pred[] {
  ROOT %k = pred[] parameter(0)
}
"""


def test_a_gpu_program_takes_its_flops_or_its_bytes():
    found = predict(hlo.parse(GPU), H100, line_of(1), trips)
    assert "slice" not in " ".join(found.assumptions)
    bandwidth = H100.hbm_bytes_per_second * cost.GPU_MEMORY_SHARE
    products = 2 * 4096**3 / (H100.flops_per_second * cost.GPU_MATMUL_SHARE)
    thin = (2 * 8 * 4096 * 2 + 8 * 8 * 4) / bandwidth  # moving it takes longer than the product
    attention = 4 * 8 * 16 * 1024**2 * 64 / (H100.flops_per_second * cost.GPU_ATTENTION_SHARE)
    assert found.seconds_by_part == pytest.approx(
        {
            "matrix products": products + thin,
            # the copy, and the row that is put into place beside other work
            "memory and elementwise": (2 * 2 * 4096**2 + 2 * 2 * 4096 + 4) / bandwidth,
            "attention kernels": attention,
            "other kernels": 2 * 8 * 4096 * 2 / bandwidth,
            # six kernels, and a loop of 2.5 turns of which the host must know the end
            cost.LAUNCHES: 6 * cost.GPU_LAUNCH + 2.5 * cost.GPU_HOST_WAIT,
            "exposed communication": 0,
        }
    )
    assert found.unknown == ("sort.1",)


@pytest.fixture(scope="module")
def module(compiled):
    return hlo.parse(compiled.as_text())


ANSWERED = 0.5  # of the positions, which makes whole blocks of rows


def half_of_the_rows(config, mesh):
    rows = config.train.batch_size * config.model.length / mesh.size

    def trips(loop):
        large = f"{BLOCKS_OF}{CPU.rows[0]}/" in loop.source
        assert BLOCKS_OF in loop.source
        return ANSWERED * rows / CPU.rows[0] if large else 0.0

    return trips


@pytest.mark.slow
def test_products_of_a_training_step_are_those_of_the_closed_formula(planned, module):
    """Every product of the formula is there, and no other: the count is exact."""
    config, mesh = planned
    counts = module.execution_counts(half_of_the_rows(config, mesh))
    counted = mesh.size * sum(
        times * matmul_flops(module, name, instruction)
        for name, times in counts.items()
        for instruction in module.computations[name].values()
    )
    model = config.model
    forward = forward_flops(
        hidden_size=model.hidden_size,
        cond_dim=model.cond_dim,
        num_blocks=model.num_blocks,
        num_states=padded(257 + 1),  # padding is multiplied too
        length=model.length,
        head_share=ANSWERED,
    )
    # nothing asks for the gradient by the embedding of sigma: one of its three products is not made
    saved = 2 * 256 * model.cond_dim
    assert counted == config.train.batch_size * (3 * forward - saved)


@pytest.mark.slow
def test_collectives_of_a_training_step_are_those_of_its_parameters(planned, module):
    config, mesh = planned
    family = build_family(config, 257, placement(mesh))
    params = build_programs(family, config, run_keys(config.seed), mesh).abstract.params
    found = collectives(module, module.execution_counts(half_of_the_rows(config, mesh)), V5E, mesh)
    split = sum(4 * x.size for x in jax.tree.leaves(params) if not x.sharding.is_fully_replicated)
    gathers = [x for x in totals(found) if x.kind == "all-gather"]
    # every parameter that is split over fsdp is gathered once, in float32: 3 of 4 parts come
    assert [(x.axes, x.bytes_sent) for x in gathers] == [(("fsdp",), split * 3 / 4)]
    axes = {x.axes for x in found}
    assert axes == {("fsdp",), ("data",), ("data", "fsdp")}
    assert not any(x.overlapped for x in found)
    # the gradients of the table are summed over fsdp in parts, and then over data
    (scatter,) = [x for x in found if x.kind == "reduce-scatter"]
    assert scatter.bytes_sent == 4 * params["head"]["kernel"].size * 3 / 4

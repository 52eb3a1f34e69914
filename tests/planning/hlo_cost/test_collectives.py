"""Collectives in programs written by hand: the bytes are worked out here, number by number."""

import dataclasses
import itertools

import numpy as np
import pytest
from jax.sharding import Mesh

from sedd_jax.planning.hlo_cost import hlo
from sedd_jax.planning.hlo_cost.collectives import (
    collectives,
    is_collective,
    mesh_axes,
    replica_groups,
    starts_by_end,
    totals,
)
from sedd_jax.planning.topology import CHIPS

GATHER = """all-gather(%param_0), channel_id=7, \
replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}, dimensions={0}, \
metadata={op_name="jit(step)/gather"}"""

# The same gather is begun, carried on within a fusion that multiplies, and ended.
TPU = f"""\
HloModule jit_step, is_scheduled=true

%fused_computation.1 (param_0: bf16[32,64]) -> (bf16[32,64], bf16[128,64]) {{
  %param_0 = bf16[32,64]{{1,0:T(8,128)(2,1)}} parameter(0)
  %all-gather.1 = bf16[128,64]{{1,0:T(8,128)(2,1)}} {GATHER}
  ROOT %custom-call.1 = (bf16[32,64]{{1,0}}, bf16[128,64]{{1,0}}, s32[2]{{0:S(4)}}) \
custom-call(%all-gather.1), custom_call_target="AsyncCollectiveStart"
}}

%async_collective_fusion.2 (param_0: bf16[32,64], param_1: f32[8,8]) -> f32[8,8] {{
  %param_0 = bf16[32,64]{{1,0}} parameter(0)
  %param_1 = f32[8,8]{{1,0}} parameter(1)
  %all-gather.2 = bf16[128,64]{{1,0}} {GATHER}
  ROOT %convolution.1 = f32[8,8]{{1,0}} convolution(%param_1, %param_1), dim_labels=bf_io->bf
}}

%fused_computation.3 (param_0: bf16[32,64]) -> bf16[128,64] {{
  %param_0 = bf16[32,64]{{1,0}} parameter(0)
  %all-gather.3 = bf16[128,64]{{1,0}} {GATHER}
  ROOT %custom-call.2 = bf16[128,64]{{1,0}} custom-call(%param_0, %all-gather.3), \
custom_call_target="AsyncCollectiveDone"
}}

%all-reduce-scatter.4 (input: f32[4,16]) -> f32[1,16] {{
  %input = f32[4,16]{{1,0}} parameter(0)
  %all-reduce.1 = f32[4,16]{{1,0}} all-reduce(%input), replica_groups={{{{0,1,2,3}},{{4,5,6,7}}}}
  ROOT %dynamic-slice.1 = f32[1,16]{{1,0}} dynamic-slice(%all-reduce.1)
}}

%body (a: (bf16[32,64], f32[8,8])) -> f32[1,16] {{
  %b = bf16[32,64]{{1,0}} parameter(0)
  %c = f32[8,8]{{1,0}} parameter(1)
  %d = f32[4,16]{{1,0}} parameter(2)
  %async-collective-start = (bf16[32,64]{{1,0}}, bf16[128,64]{{1,0}}) fusion(%b), kind=kCustom, \
calls=%fused_computation.1
  %fusion.2 = f32[8,8]{{1,0}} fusion(%b, %c), kind=kOutput, calls=%async_collective_fusion.2
  %async-collective-done = bf16[128,64]{{1,0}} fusion(%b), kind=kCustom, \
calls=%fused_computation.3
  ROOT %fusion.4 = f32[1,16]{{1,0}} fusion(%d), kind=kCustom, calls=%all-reduce-scatter.4
}}

ENTRY %main (a: f32[8]) -> f32[8] {{
  %e = f32[8]{{0}} parameter(0)
  %f = f32[2,3]{{1,0}} parameter(1)
  %while = (s32[]) while(%e), condition=%c, body=%body, \
backend_config={{"known_trip_count":{{"n":"3"}}}}
  %all-reduce.2 = (f32[8]{{0}}, f32[2,3]{{1,0}}) all-reduce(%e, %f), \
replica_groups=[1,8]<=[8], to_apply=%add
  ROOT %collective-permute.1 = f32[8]{{0}} collective-permute(%e), \
source_target_pairs={{{{0,4}},{{4,0}}}}
}}
"""

GPU = """\
HloModule jit_step, is_scheduled=true

%async_computation (p: f32[8]) -> f32[2] {
  %p = f32[8]{0} parameter(0)
  ROOT %reduce-scatter.1 = f32[2]{0} reduce-scatter(%p), replica_groups=[2,4]<=[8]
}

ENTRY %main (a: f32[8]) -> f32[8] {
  %a = f32[8]{0} parameter(0)
  %all-gather-start = (f32[8]{0}, f32[32]{0}) all-gather-start(%a), channel_id=1, \
replica_groups=[2,4]<=[8], backend_config={"collective_backend_config":{"is_sync":false}}
  %all-gather-done = f32[32]{0} all-gather-done(%all-gather-start)
  %all-reduce-start = f32[8]{0} all-reduce-start(%a), channel_id=2, replica_groups={}, \
backend_config={"collective_backend_config":{"is_sync":true}}
  %all-reduce-done = f32[8]{0} all-reduce-done(%all-reduce-start)
  %rs-start = ((f32[8]{0}), f32[2]{0}) async-start(%a), calls=%async_computation
  %rs-done = f32[2]{0} async-done(%rs-start)
  ROOT %all-to-all.1 = f32[8]{0} all-to-all(%a), replica_groups=[4,2]<=[2,4]T(1,0)
}
"""
AXES = ("slice", "data", "fsdp", "tensor")


@dataclasses.dataclass(frozen=True)
class Chip:
    """What a device of a topology tells."""

    id: int
    platform: str
    coords: tuple[int, ...] = ()
    slice_index: int = 0
    process_index: int = 0


def mesh_of(devices, shape):
    array = np.empty(len(devices), dtype=object)
    array[:] = devices
    return Mesh(array.reshape(shape), AXES)


def tpu(*sides, slices=1):
    """Slices whose first side is the data axis, and the other sides the fsdp axis."""
    places = itertools.product(range(slices), *(range(side) for side in sides))
    devices = [Chip(i, "tpu", place[1:], place[0]) for i, place in enumerate(places)]
    return mesh_of(devices, (slices, sides[0], -1, 1))


def gpus(nodes, each):
    devices = [Chip(i, "gpu", process_index=i // each) for i in range(nodes * each)]
    return mesh_of(devices, (1, nodes, each, 1))


def read(text, chip, mesh):
    module = hlo.parse(text)
    return collectives(module, module.execution_counts(lambda loop: 1), CHIPS[chip], mesh)


def only(operation, chip, mesh):
    """The one collective of a program that has no other."""
    lines = f"  %a = f32[8] parameter(0)\n  %b = {operation}\n"
    (one,) = read(f"ENTRY %main (a: f32[8]) -> f32[8] {{\n{lines}}}\n", chip, mesh)
    return one


def test_a_tpu_program_has_every_collective_once():
    reduce, permute, gather, scatter = read(TPU, "v5e", tpu(2, 4))
    # gathered in a loop of 3 trips, on a line of 4: 32 x 64 x 2 bytes go to the 3 others
    assert gather[:4] == ("all-gather", ("fsdp",), 3, 3 * 3 * 4096)
    assert gather.seconds == pytest.approx(3 * 3 * 4096 / 45e9)
    assert (gather.overlapped, gather.computation, gather.source) == (
        True,
        "body",
        "jit(step)/gather",
    )
    # the fusion keeps a quarter of the sum: 4 x 16 x 4 bytes
    assert scatter[:4] == ("reduce-scatter", ("fsdp",), 3, 3 * 256 * 3 / 4)
    assert not scatter.overlapped
    # 8 + 6 numbers over all 8 chips, on the wires of both sides
    assert reduce[:4] == ("all-reduce", ("data", "fsdp"), 1, 2 * 56 * 7 / 8)
    assert reduce.seconds == pytest.approx(2 * 56 * 7 / 8 / (2 * 45e9))
    assert permute[:4] == ("collective-permute", ("data",), 1, 32)


def test_a_collective_of_a_sparse_core_counts():
    text = """\
%called (p: f32[8], token: token[]) -> f32[32] {
  %p = f32[8]{0} parameter(0)
  %token = token[] parameter(1)
  ROOT %gather = f32[32]{0} all-gather(%p), replica_groups=[2,4]<=[8]
}, execution_thread="sparsecore"

ENTRY %main (a: f32[8]) -> f32[32] {
  %a = f32[8]{0} parameter(0)
  %prepared = token[] custom-call(), custom_call_target="PrepareAsyncCallDone"
  %start = ((f32[8]{0}, token[]), f32[32]{0}) call-start(%a, %prepared), \
async_execution_thread="sparsecore", to_apply=%called
  ROOT %done = f32[32]{0} call-done(%start)
}
"""
    (gather,) = read(text, "tpu7x", tpu(2, 4))
    assert (gather.kind, gather.bytes_sent, gather.overlapped) == ("all-gather", 32 * 3, True)
    assert starts_by_end(hlo.parse(text), "main") == {"done": gather.name}


def test_a_gpu_program_waits_for_some_and_not_for_others():
    gather, reduce, scatter, all_to_all = read(GPU, "h100", gpus(2, 4))
    assert gather[:4] == ("all-gather", ("fsdp",), 1, 32 * 3)
    assert reduce[:4] == ("all-reduce", ("data", "fsdp"), 1, 2 * 32 * 7 / 8)
    assert all_to_all[:4] == ("all-to-all", ("data",), 1, 32 / 2)
    assert scatter[:4] == ("reduce-scatter", ("fsdp",), 1, 32 * 3 / 4)
    assert [x.overlapped for x in (gather, reduce, scatter, all_to_all)] == [
        True,
        False,
        True,
        False,
    ]
    assert gather.seconds == pytest.approx(32 * 3 / CHIPS["h100"].link_bytes_per_second)
    assert all_to_all.seconds == pytest.approx(32 / 2 / CHIPS["h100"].network_bytes_per_second)


@pytest.mark.parametrize(
    ("chip", "sides", "directions"),
    [
        ("v5e", (1, 8), 1),  # a line: its ring comes back on the other direction
        ("v5e", (1, 16), 2),  # closed: a ring each way
        ("v5e", (1, 4, 4), 2),  # both sides of a plane
        ("v5p", (1, 4, 4), 4),
        ("v5p", (1, 2, 4), 3),
    ],
)
def test_a_ring_uses_the_wires_of_the_sides_it_runs_along(chip, sides, directions):
    mesh = tpu(*sides)
    operation = "f32[8] all-reduce(%a), replica_groups={}"
    expected = 2 * 32 * (1 - 1 / mesh.size) / (CHIPS[chip].link_bytes_per_second * directions)
    assert only(operation, chip, mesh).seconds == pytest.approx(expected)


def test_chips_across_a_corner_are_a_line():
    one = only("f32[8] all-reduce(%a), replica_groups={{0,3},{1,2}}", "v5e", tpu(1, 2, 2))
    assert one.seconds == pytest.approx(32 / 45e9)


def test_a_part_of_a_closed_side_is_a_line():
    one = only("f32[8] all-gather(%a), replica_groups=[2,8]<=[16]", "v5e", tpu(1, 16))
    assert one.seconds == pytest.approx(32 * 7 / 45e9)


@pytest.mark.parametrize(
    ("groups", "bytes_sent", "links"),
    [
        ("{{0,1},{2,3},{4,5}}", 32, 6),  # inside of a chip
        ("{{0,2,4},{1,3,5}}", 64, 0.5),  # two rings over the same links
        ("{{0,1,2,3,4,5}}", 160, 1),
    ],
)
def test_devices_of_a_chip_share_its_links(groups, bytes_sent, links):
    devices = [Chip(i, "tpu", (0, 0, i // 2)) for i in range(6)]
    operation = f"f32[8] all-gather(%a), replica_groups={groups}"
    one = only(operation, "tpu7x", mesh_of(devices, (1, 1, 6, 1)))
    assert one.seconds == pytest.approx(bytes_sent / links / 90e9)


@pytest.mark.parametrize(
    ("operation", "across"),
    [
        ("all-gather", 32),  # its part, to the like of it in the other slice
        ("reduce-scatter", 32 / 4 / 2),  # after the sum within the slice: a quarter, half of it
        ("all-reduce", 2 * 32 / 4 / 2),
        ("all-to-all", 32 / 2),  # half of everything
    ],
)
def test_between_slices_what_must_goes_through_the_network(operation, across):
    one = only(f"f32[8] {operation}(%a), replica_groups=[1,8]<=[8]", "v5e", tpu(1, 4, slices=2))
    chip = CHIPS["v5e"]
    assert one.axes == ("slice", "fsdp")
    assert one.seconds == pytest.approx(
        (one.bytes_sent - across) / chip.link_bytes_per_second
        + across / chip.network_bytes_per_second
    )


SLICES = """\
ENTRY %main (a: f32[8]) -> f32[8] {
  %a = f32[8]{0} parameter(0)
  %after-all = token[] after-all()
  %recv = (f32[8]{0}, u32[], token[]) recv(%after-all), channel_id=37, is_host_transfer=true, \
frontend_attributes={_xla_host_transfer_rendezvous="all-reduce.74_0",\
_xla_megascale_transfer_type="ALL_REDUCE"}
  %send = (f32[8]{0}, u32[], token[]) send(%a, %after-all), channel_id=38, \
is_host_transfer=true, frontend_attributes={_xla_host_transfer_rendezvous="all-reduce.74_0",\
_xla_megascale_target="{1,2}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}
  %send-done = token[] send-done(%send), channel_id=38, is_host_transfer=true
  ROOT %recv-done = (f32[8]{0}, token[]) recv-done(%recv), channel_id=37, is_host_transfer=true
}
"""


def test_hosts_send_between_slices_of_tpus():
    (one,) = read(SLICES, "v5e", tpu(2, 2, slices=2))
    assert one[:4] == ("all-reduce", ("slice",), 1, 2 * 32 / 2)
    assert one.seconds == pytest.approx(32 / CHIPS["v5e"].network_bytes_per_second)
    assert one.overlapped
    assert starts_by_end(hlo.parse(SLICES), "main") == {"recv-done": "send"}


def test_lines_that_wait_know_what_was_started():
    assert starts_by_end(hlo.parse(TPU), "body") == {
        "async-collective-done": "async-collective-start"
    }
    assert starts_by_end(hlo.parse(GPU), "main") == {
        "all-gather-done": "all-gather-start",
        "all-reduce-done": "all-reduce-start",
        "rs-done": "rs-start",
    }


def test_the_slowest_pair_of_a_permutation_counts():
    operation = "f32[8] collective-permute(%a), source_target_pairs={{0,1},{3,4}}"
    one = only(operation, "v5e", tpu(1, 4, slices=2))
    assert one.seconds == pytest.approx(32 / CHIPS["v5e"].network_bytes_per_second)


def test_totals_are_sums_over_what_is_alike_most_bytes_first():
    first = read(TPU, "v5e", tpu(2, 4))
    again = totals(first + first[2:3])
    assert [x.kind for x in again][:2] == ["all-gather", "reduce-scatter"]
    assert again[0].bytes_sent == 2 * first[2].bytes_sent
    assert again[0].seconds == pytest.approx(2 * first[2].seconds)
    assert again[0].calls == 6
    assert len(again) == 4


def test_a_fusion_that_computes_meanwhile_is_no_collective():
    module = hlo.parse(TPU)
    names = [x.name for x in module.computations["body"].values() if is_collective(x, module)]
    assert names == ["async-collective-start", "async-collective-done", "fusion.4"]
    gpu = hlo.parse(GPU)
    names = [x.name for x in gpu.computations["main"].values() if is_collective(x, gpu)]
    assert names == [
        "all-gather-start",
        "all-gather-done",
        "all-reduce-start",
        "all-reduce-done",
        "all-to-all.1",
    ]


ROWS = [[0, 1, 2, 3], [4, 5, 6, 7]]
COLUMNS = [[0, 4], [1, 5], [2, 6], [3, 7]]


def groups(attributes):
    return replica_groups(
        hlo.Instruction("x.1", "all-reduce", (), (), attributes), gpus(2, 4)
    ).tolist()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{{0,1,2,3},{4,5,6,7}}", ROWS),
        ("{}", [list(range(8))]),
        ("[2,4]<=[8]", ROWS),
        ("[4,2]<=[2,4]T(1,0)", COLUMNS),
        ("[1,8]<=[8]", [list(range(8))]),
        ("mesh['a'=2,'b'=4] {'b'}", ROWS),
        ("mesh['a'=2,'b'=4] {'a'}", COLUMNS),
        ("mesh['a'=8,'b'=1] {'a','b'}", [list(range(8))]),
        ("mesh['a'=4,'b'=1,'c'=2], device_ids=([2,4]T(1,0)) {'a'}", ROWS),
        ("mesh['a'=4,'b'=1,'c'=2], device_ids=([2,4]T(1,0)) {'c'}", COLUMNS),
        ("mesh['a'=2,'b'=2], device_ids=(3,1,2,0) {'b'}", [[3, 1], [2, 0]]),
        # parts of an axis of 8: the middle 2 of 2 x 2 x 2, then the first 2 of 2 x 4
        ("mesh['a'=8] {'a':(2)2}", [[0, 2], [1, 3], [4, 6], [5, 7]]),
        ("mesh['a'=8] {'a':(1)2}", COLUMNS),
    ],
)
def test_every_way_to_write_groups(text, expected):
    assert groups(f", channel_id=3, replica_groups={text}, use_global_device_ids=true") == expected


def test_a_permutation_has_pairs():
    assert groups(", channel_id=1, source_target_pairs={{0,1},{1,0}}") == [[0, 1], [1, 0]]


def test_other_ways_are_refused():
    with pytest.raises(hlo.HloError, match=r"not understood \(which devices x\.1 names\)"):
        groups(", replica_groups=by_some_other_rule")


@pytest.mark.parametrize(
    ("found", "axes"),
    [
        (ROWS, ("fsdp",)),
        (COLUMNS, ("data",)),
        ([list(range(8))], ("data", "fsdp")),
        ([[0, 1], [2, 3], [4, 5], [6, 7]], ("fsdp",)),  # a part of an axis
        ([[0, 0], [3, 7]], ("data",)),  # pairs, one of which stays where it is
    ],
)
def test_groups_extend_along_axes_of_the_mesh(found, axes):
    assert mesh_axes(np.array(found), gpus(2, 4)) == axes

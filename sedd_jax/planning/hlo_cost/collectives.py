"""What the chips of a compiled program send to each other, and how long that takes.

A collective over n chips counts as a ring (Patarasuk and Yuan 2009, "Bandwidth optimal all-reduce
algorithms for clusters of workstations"): every chip sends S (n - 1) / n bytes to gather an array
of S bytes or to reduce and scatter it, twice that to reduce it on all, and S to permute it. The
time is these bytes over the bandwidth of the links; latency is left out.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from sedd_jax.planning.hlo_cost import Chip
from sedd_jax.planning.hlo_cost.hlo import HloError, Instruction, Module

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_SCATTERED = "all-reduce-scatter"  # begins the name of a fusion that keeps a shard of the sum
# between slices of TPUs the hosts send, and every chip hands them its shard
_BETWEEN_SLICES = r'_xla_megascale_transfer_type="(\w+)"'
_RENDEZVOUS = r'_xla_host_transfer_rendezvous="([^"]+)"'

_BRACES = r"=\{((?:\{[\d,]*\},?)*)\}"
_PAIRS = re.compile("source_target_pairs" + _BRACES)
_LISTS = re.compile("replica_groups" + _BRACES)
_IOTA = r"\[([\d,]+)\](?:T\(([\d,]+)\))?"
_SHAPED = re.compile(r"replica_groups=\[([\d,]+)\]<=" + _IOTA)
_MESH = re.compile(
    r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\((?:" + _IOTA + r"|([\d,]+))\))? \{([^}]*)\}"
)
_AXIS = re.compile(r"'([^']+)'=(\d+)")
_SUBAXIS = re.compile(r"'([^']+)'(?::\((\d+)\)(\d+))?")  # 'a':(2)4, the 4 in 2 x 4 x ...


class Collective(NamedTuple):
    """A collective operation.

    Attributes:
      kind: one of KINDS.
      axes: of the mesh, that it runs along.
      calls: per run of the program.
      bytes_sent: by a chip, per run of the program.
      seconds: per run of the program, without anything beside it.
      overlapped: whether it is asynchronous, and the program computes beside it.
      computation: that it runs in.
      name: of the instruction there that starts it.
      source: the traced operation.
    """

    kind: str
    axes: tuple[str, ...]
    calls: float
    bytes_sent: float
    seconds: float
    overlapped: bool
    computation: str = ""
    name: str = ""
    source: str = ""


def collectives(
    module: Module, counts: dict[str, float], chip: Chip, mesh: Mesh
) -> tuple[Collective, ...]:
    """Returns every collective of a program once, in the order of its text.

    Those along axes of size 1 send nothing and are left out.

    Args:
      module: the program.
      counts: how often its computations run.
      chip: the chips of the mesh.
      mesh: that the program was compiled for.

    Raises:
      HloError: the text names devices in an unknown form.
    """
    found = []
    for computation, calls in counts.items():
        for name, kind, instruction, nbytes, overlapped in _started(module, computation):
            groups = replica_groups(instruction, mesh)
            axes = mesh_axes(groups, mesh)
            if not axes:
                continue
            sent = _sent(kind, nbytes, 2 if "permute" in kind else groups.shape[1])
            times = [_seconds(kind, nbytes, group, chip, mesh) for group in groups]
            figures = calls, calls * sent, calls * max(times)  # the slowest group counts
            place = computation, name, instruction.source
            found.append(Collective(kind, axes, *figures, overlapped, *place))
    return tuple(found)


def totals(found: tuple[Collective, ...]) -> list[Collective]:
    """Returns sums over equal kind, axes and overlap, most bytes first."""
    sums: dict[Any, Any] = {}
    for each in found:
        key = each.kind, each.axes, each.overlapped
        sums[key] = np.add(sums.get(key, 0.0), each[2:5])
    total = [Collective(*key[:2], *map(float, sums[key]), key[2]) for key in sums]
    return sorted(total, key=lambda each: -each.bytes_sent)


def is_collective(instruction: Instruction, module: Module) -> bool:
    """Returns whether an instruction is a collective, or starts, ends or wraps one.

    A fusion that computes something else, and sends a piece beside it, is not.
    """
    if instruction.opcode != "fusion":
        return re.sub("-(start|done)$", "", instruction.opcode) in KINDS
    (name,) = instruction.called
    return name.startswith(_SCATTERED) or _calls(module.computations[name], "AsyncCollective")


def starts_by_end(module: Module, computation: str) -> dict[str, str]:
    """Returns the instructions that wait for an asynchronous one, and by each the one it waits for.

    Args and result are names in `computation`.
    """
    lines = module.computations[computation]
    starts, ends = {}, {}
    for line in lines.values():
        if line.opcode == "send":
            starts[line.attribute(_RENDEZVOUS)] = line.name
        elif line.opcode == "recv-done":
            ends[line.name] = starts.get(lines[line.operands[0]].attribute(_RENDEZVOUS), "")
        elif line.opcode.endswith("-done") and line.opcode != "send-done":
            ends[line.name] = line.operands[0]
        elif line.opcode == "fusion":
            inside = module.computations[line.called[0]]
            if _calls(inside, "AsyncCollectiveStart"):
                starts[_channel(inside)] = line.name
            elif _calls(inside, "AsyncCollectiveDone"):
                ends[line.name] = starts.get(_channel(inside), "")
    return ends


def _calls(lines, target):
    return any(target in line.attributes for line in lines.values() if line.opcode == "custom-call")


def _channel(lines):
    """The number that the parts of one collective share."""
    (one,) = [line for line in lines.values() if line.opcode in KINDS]
    return one.attribute(r"channel_id=(\d+)")


def _started(module: Module, computation: str) -> Iterator[tuple[str, str, Instruction, int, bool]]:
    """Yields the collectives that a computation starts, also within fusions.

    Each: the name of the starting instruction, kind, the collective, bytes of its operands, and
    whether it is asynchronous.
    """
    lines = module.computations[computation]
    for line in lines.values():
        kind = line.opcode.removesuffix("-start")
        if kind in KINDS:
            overlapped = kind != line.opcode and '"is_sync":true' not in line.attributes
            yield line.name, kind, line, _operand_bytes(line, lines), overlapped
        elif line.opcode == "send" and (transfer := line.attribute(_BETWEEN_SLICES)):
            kind = transfer.lower().replace("_", "-")
            kind = kind if kind in KINDS else "collective-permute"
            yield line.name, kind, line, _operand_bytes(line, lines), True
        elif line.opcode in ("async-start", "call-start") or (  # the latter: on a SparseCore
            line.opcode == "fusion" and is_collective(line, module)
        ):
            (called,) = line.called
            inside = module.computations[called]
            if _calls(inside, "AsyncCollectiveDone"):
                continue  # it ends one
            scattered = called.startswith(_SCATTERED)
            for each in inside.values():
                if each.opcode in KINDS:
                    kind = "reduce-scatter" if scattered else each.opcode
                    overlapped = not scattered and '"is_sync":true' not in each.attributes
                    yield line.name, kind, each, _operand_bytes(each, inside), overlapped


def _operand_bytes(line, lines):
    return sum(lines[operand].nbytes for operand in line.operands)


def _sent(kind, nbytes, size):
    """The bytes that one of `size` chips sends, whose operands have `nbytes`."""
    if size == 1:
        return 0.0
    return nbytes * {
        "all-gather": size - 1,
        "all-reduce": 2 * (size - 1) / size,
        "collective-permute": 1,
    }.get(kind, (size - 1) / size)


def _seconds(kind, nbytes, group, chip, mesh):
    """The time of one group: what leaves a slice or node goes through the network.

    Between slices every chip exchanges its shard with its counterparts, the rest stays inside.
    """
    devices = mesh.devices.reshape(-1)[group]
    places = Counter(_place(device) for device in devices)
    size, inside = len(devices), max(places.values())
    reduced = kind in ("all-reduce", "reduce-scatter")
    across = _sent(kind, nbytes / (inside if reduced else 1), len(places))
    within = _sent(kind, nbytes, size) - across
    link = chip.link_bytes_per_second * _directions(devices, chip, mesh)
    return within / link + across / chip.network_bytes_per_second


def _place(device):
    """The slice of a TPU, the node of a GPU."""
    return getattr(device, "slice_index", 0) if device.platform == "tpu" else device.process_index


def _directions(devices, chip, mesh):
    """How many links, each in one direction, a device sends through at once.

    A line of chips is a ring that returns on the other direction of its links; a closed line is two
    rings; a plane has those of both sides. Other groups count as a line. Where the devices of a
    chip are in different groups, these share its links.
    """
    if chip.platform != "tpu" or not hasattr(devices[0], "coords"):
        return 1
    coords = np.unique([device.coords for device in devices], axis=0)
    sides = np.max([device.coords for device in mesh.devices.flat], axis=0) + 1
    spans = [len(set(along)) for along in coords.T]
    chips = {(_place(device), tuple(device.coords)) for device in devices}
    together = len(devices) / len(chips)
    if len(chips) == 1:
        return chip.inner_links
    share = together / chip.devices
    if math.prod(spans) != len(coords):
        return share
    lines = [
        1 + (span == side and span % chip.ring == 0)
        for span, side in zip(spans, sides, strict=True)
        if span > 1
    ]
    return share * (sum(lines) or 1)


def replica_groups(collective: Instruction, mesh: Mesh) -> np.ndarray:
    """Returns the groups of devices [groups, size] of a collective; of a permutation, its pairs.

    Devices are numbered by their place in the mesh.

    Raises:
      HloError: the text names them in an unknown form.
    """
    text = collective.attributes
    if collective.opcode == "send":
        slices = len({_place(device) for device in mesh.devices.flat})
        return np.arange(mesh.size).reshape(slices, -1).T
    if found := _PAIRS.search(text) or _LISTS.search(text):
        groups = [_numbers(group) for group in re.findall(r"\{([\d,]*)\}", found.group(1))]
        return np.array(groups) if groups else np.arange(mesh.size)[None]
    if found := _SHAPED.search(text):
        return _iota(found.group(2), found.group(3)).reshape(_numbers(found.group(1)))
    if found := _MESH.search(text):
        return _along_axes(*found.groups(), mesh.size)
    raise HloError(f"which devices {collective.name} names")


def mesh_axes(groups: np.ndarray, mesh: Mesh) -> tuple[str, ...]:
    """Returns the axes of the mesh that any of the groups [groups, size] extends along."""
    places = np.unravel_index(groups, mesh.devices.shape)
    return tuple(
        axis
        for axis, along in zip(mesh.axis_names, places, strict=True)
        if (along != along[:, :1]).any()
    )


def _along_axes(axes, shape, order, listed, chosen, devices):
    """Groups along axes, or parts of axes, of the compiler's own mesh."""
    ids = _iota(shape, order) if shape else np.array(_numbers(listed)) if listed else None
    ids = np.arange(devices) if ids is None else ids.reshape(-1)
    subaxes = {name: (before, size) for name, before, size in _SUBAXIS.findall(chosen)}
    sizes, along = [], []
    for name, size in _AXIS.findall(axes):
        before, middle = (int(x) if x else None for x in subaxes.get(name, ("", "")))
        parts = [int(size)] if middle is None else [before, middle, int(size) // before // middle]
        if name in subaxes:
            along.append(len(sizes) + len(parts) // 2)
        sizes += parts
    grid = np.moveaxis(ids.reshape(sizes), along, range(-len(along), 0))
    return grid.reshape(-1, math.prod(sizes[axis] for axis in along))


def _iota(shape, order):
    """The numbers from 0 on in a shape whose axes are then transposed."""
    shape = _numbers(shape)
    grid = np.arange(math.prod(shape)).reshape(shape)
    return grid.transpose(_numbers(order)) if order else grid


def _numbers(text):
    return [int(number) for number in text.split(",") if number]

"""What the chips of a compiled program send to each other, and how long that takes.

A collective over n chips is counted as a ring makes it: the bytes that every chip sends are
S (n - 1) / n for a whole array of S bytes that is gathered, or scattered after a sum, twice that
for a sum that all keep, and S for a permutation. The time is these bytes over the bandwidth of the
wires; how long a message is under way is left out.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from sedd_jax.planning.hlo_cost import hlo
from sedd_jax.planning.hlo_cost.chips import Chip
from sedd_jax.planning.hlo_cost.groups import axes_of, groups_of

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
# A side of a slice is a ring, both of whose directions carry a share, if it is a multiple of this.
_RING = {"v5e": 16, "v6e": 16, "v4": 4, "v5p": 4}
_SCATTERED = "all-reduce-scatter"  # begins the name of a fusion that keeps a part of the sum
# between slices of TPUs the hosts do it, and every chip sends them its part
_BETWEEN_SLICES = r'_xla_megascale_transfer_type="(\w+)"'
_MEETING = r'_xla_host_transfer_rendezvous="([^"]+)"'


class Collective(NamedTuple):
    """A collective operation.

    Attributes:
      kind: one of KINDS.
      axes: of the mesh, that it runs along.
      calls: per run of the program.
      nbytes: that a chip sends, per run of the program.
      seconds: per run of the program, if nothing else happens.
      hidden: whether the program goes on meanwhile.
      computation: that it runs in.
      name: of the line there that starts it.
      source: what of the traced function it comes from.
    """

    kind: str
    axes: tuple[str, ...]
    calls: float
    nbytes: float
    seconds: float
    hidden: bool
    computation: str
    name: str
    source: str


def collectives(
    module: hlo.Module, runs: dict[str, float], chip: Chip, mesh: Mesh
) -> tuple[Collective, ...]:
    """Returns every collective of a program once, in the order of its text.

    Not those of a chip with itself, along axes of size 1: nothing is sent.

    Args:
      module: the program.
      runs: how often its computations run.
      chip: what the mesh is made of.
      mesh: that the program was compiled for.

    Raises:
      BadInput: the text names devices in a way that is not known.
    """
    every = (
        _collective(found, name, line, calls, chip, mesh)
        for name, calls in runs.items()
        for line, found in _in_computation(module, name)
    )
    return tuple(each for each in every if each.axes)


def totals(found: tuple[Collective, ...]) -> tuple[Collective, ...]:
    """Returns sums over what is alike in kind, axes and being hidden, most bytes first."""
    sums: dict[Any, Collective] = {}
    for each in found:
        key = (each.kind, each.axes, each.hidden)
        before = sums.get(key)
        sums[key] = each if before is None else _sum(before, each)
    return tuple(sorted(sums.values(), key=lambda each: -each.nbytes))


def is_collective(instruction: hlo.Instruction, module: hlo.Module) -> bool:
    """Returns whether an instruction is a collective, or begins, ends or wraps one.

    A fusion that computes something else, and sends a piece meanwhile, is not.
    """
    if instruction.opcode != "fusion":
        return re.sub("-(start|done)$", "", instruction.opcode) in KINDS
    (name,) = instruction.called
    return name.startswith(_SCATTERED) or _has(module.computations[name], "AsyncCollective")


def awaited(module: hlo.Module, computation: str) -> dict[str, str]:
    """Returns, of the lines of a computation that wait for what was started, the lines that did."""
    lines = module.computations[computation]
    starts, ends = {}, {}
    for line in lines.values():
        if line.opcode == "send":
            starts[line.attribute(_MEETING)] = line.name
        elif line.opcode == "recv-done":
            ends[line.name] = starts.get(lines[line.operands[0]].attribute(_MEETING), "")
        elif line.opcode.endswith("-done") and line.opcode != "send-done":
            ends[line.name] = line.operands[0]
        elif line.opcode == "fusion":
            inside = module.computations[line.called[0]]
            if _has(inside, "AsyncCollectiveStart"):
                starts[_channel(inside)] = line.name
            elif _has(inside, "AsyncCollectiveDone"):
                ends[line.name] = starts.get(_channel(inside), "")
    return ends


def _has(lines, target):
    return any(target in line.attributes for line in lines.values() if line.opcode == "custom-call")


def _channel(lines):
    """The number that the parts of a collective have in common."""
    (one,) = [line for line in lines.values() if line.opcode in KINDS]
    return one.attribute(r"channel_id=(\d+)")


class _Found(NamedTuple):
    """A collective in the text: its kind, its line, the bytes it starts from, if it is hidden."""

    kind: str
    instruction: hlo.Instruction
    nbytes: int
    hidden: bool


def _in_computation(module: hlo.Module, name: str) -> Iterator[tuple[str, _Found]]:
    """Yields the collectives that a computation starts, also in its fusions, and in which line."""
    lines = module.computations[name]
    for line in lines.values():
        kind = line.opcode.removesuffix("-start")
        if kind in KINDS:
            yield line.name, _found(kind, line, lines, hidden=kind != line.opcode)
        elif line.opcode == "send" and (said := line.attribute(_BETWEEN_SLICES)):
            kind = said.lower().replace("_", "-")
            kind = kind if kind in KINDS else "collective-permute"
            yield line.name, _found(kind, line, lines, hidden=True)
        elif line.opcode == "async-start" or (
            line.opcode == "fusion" and is_collective(line, module)
        ):
            (called,) = line.called
            for found in _in_called(called, module.computations[called]):
                yield line.name, found


def _in_called(name, lines):
    """The collective that a fusion or an asynchronous call starts, not the one that it ends."""
    if _has(lines, "AsyncCollectiveDone"):
        return
    for line in lines.values():
        if line.opcode in KINDS:
            if name.startswith(_SCATTERED):
                yield _found("reduce-scatter", line, lines, hidden=False)
            else:
                yield _found(line.opcode, line, lines, hidden=True)


def _found(kind, line, lines, hidden):
    nbytes = sum(lines[operand].nbytes for operand in line.operands)
    return _Found(kind, line, nbytes, hidden and '"is_sync":true' not in line.attributes)


def _collective(found, computation, line, calls, chip, mesh):
    if found.instruction.opcode == "send":
        slices = len({_place(device) for device in mesh.devices.flat})
        groups = np.arange(mesh.size).reshape(slices, -1).T
    else:
        groups = groups_of(found.instruction, mesh.size)
    times = [_seconds(found, mesh.devices.reshape(-1)[group], chip, mesh) for group in groups]
    return Collective(
        found.kind,
        axes_of(groups, mesh),
        calls,
        calls * _sent(found.kind, found.nbytes, 2 if "permute" in found.kind else groups.shape[1]),
        calls * max(times),  # all wait for the slowest
        found.hidden,
        computation,
        line,
        found.instruction.source,
    )


def _sent(kind, nbytes, size):
    """The bytes that one of `size` chips sends, which starts from `nbytes`."""
    if size == 1:
        return 0.0
    return nbytes * {
        "all-gather": size - 1,
        "all-reduce": 2 * (size - 1) / size,
        "collective-permute": 1,
    }.get(kind, (size - 1) / size)


def _seconds(found, devices, chip, mesh):
    """The time of one group: what leaves a slice or node goes through the network.

    Between slices every chip exchanges its share with its likes, the rest stays inside.
    """
    places = Counter(_place(device) for device in devices)
    size, inside = len(devices), max(places.values())
    shared = found.kind in ("all-reduce", "reduce-scatter")
    across = _sent(found.kind, found.nbytes / (inside if shared else 1), len(places))
    within = _sent(found.kind, found.nbytes, size) - across
    return within / (chip.link * _directions(devices, chip, mesh)) + across / chip.network


def _place(device):
    """The slice of a TPU, the node of a GPU."""
    return getattr(device, "slice_index", 0) if device.platform == "tpu" else device.process_index


def _directions(devices, chip, mesh):
    """How many wires, each in one direction, a chip sends through at once.

    A line of chips is a ring that comes back on the other direction of its wires; a line that is
    closed is two rings; a plane has those of both sides. Other groups count as a line.
    """
    if chip.platform != "tpu" or not hasattr(devices[0], "coords"):
        return 1
    coords = np.unique([device.coords for device in devices], axis=0)
    sides = np.max([device.coords for device in mesh.devices.flat], axis=0) + 1
    spans = [len(set(along)) for along in coords.T]
    if math.prod(spans) != len(coords):
        return 1
    closed = [
        span == side and span % _RING[chip.name] == 0
        for span, side in zip(spans, sides, strict=True)
    ]
    return sum(1 + ring for ring, span in zip(closed, spans, strict=True) if span > 1) or 1


def _sum(one, other):
    return one._replace(
        calls=one.calls + other.calls,
        nbytes=one.nbytes + other.nbytes,
        seconds=one.seconds + other.seconds,
        computation="",
        name="",
        source="",
    )

"""What the chips of a compiled program send to each other, and how long that takes.

A collective over n chips is counted as a ring makes it: the bytes that every chip sends are
S (n - 1) / n for a whole array of S bytes that is gathered, or scattered after a sum, twice that
for a sum that all keep, and S for a permutation. The time is these bytes over the bandwidth of the
wires; how long a message is under way is left out.
"""

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from sedd_jax.planning import hlo
from sedd_jax.planning.chips import Chip
from sedd_jax.planning.groups import axes_of, groups_of

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
# A side of a slice is a ring, both of whose directions carry a share, if it is a multiple of this.
_RING = {"v5e": 16, "v6e": 16, "v4": 4, "v5p": 4}
_SCATTERED = "all-reduce-scatter"  # begins the name of a fusion that keeps a part of the sum


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
      source: what of the traced function it comes from.
    """

    kind: str
    axes: tuple[str, ...]
    calls: float
    nbytes: float
    seconds: float
    hidden: bool
    computation: str
    source: str


def collectives(
    module: hlo.Module, runs: dict[str, float], chip: Chip, mesh: Mesh
) -> tuple[Collective, ...]:
    """Returns every collective of a program once, in the order of its text.

    Args:
      module: the program.
      runs: how often its computations run.
      chip: what the mesh is made of.
      mesh: that the program was compiled for.

    Raises:
      BadInput: the text names devices in a way that is not known.
    """
    return tuple(
        _collective(found, name, calls, chip, mesh)
        for name, calls in runs.items()
        for found in _in_computation(module, name)
    )


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
    return name.startswith(_SCATTERED) or any(
        "AsyncCollective" in inner.attributes for inner in module.computations[name].values()
    )


class _Found(NamedTuple):
    """A collective in the text: its kind, its line, the bytes it starts from, if it is hidden."""

    kind: str
    instruction: hlo.Instruction
    nbytes: int
    hidden: bool


def _in_computation(module: hlo.Module, name: str) -> Iterator[_Found]:
    """Yields the collectives that a computation starts, also those within its fusions."""
    lines = module.computations[name]
    for line in lines.values():
        kind = line.opcode.removesuffix("-start")
        if kind in KINDS:
            yield _found(kind, line, lines, hidden=kind != line.opcode)
        elif line.opcode == "async-start" or (
            line.opcode == "fusion" and is_collective(line, module)
        ):
            (called,) = line.called
            yield from _in_called(called, module.computations[called])


def _in_called(name, lines):
    """The collective that a fusion or an asynchronous call starts, not the one that it ends."""
    if any('"AsyncCollectiveDone"' in line.attributes for line in lines.values()):
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


def _collective(found, name, calls, chip, mesh):
    groups = groups_of(found.instruction, mesh.size)
    times = [_seconds(found, mesh.devices.reshape(-1)[group], chip, mesh) for group in groups]
    return Collective(
        found.kind,
        axes_of(groups, mesh),
        calls,
        calls * _sent(found.kind, found.nbytes, 2 if "permute" in found.kind else groups.shape[1]),
        calls * max(times),  # all wait for the slowest
        found.hidden,
        name,
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
    closed is two rings; a plane has those of both sides.
    """
    if chip.platform != "tpu" or not hasattr(devices[0], "coords"):
        return 1
    coords = np.array([device.coords for device in devices])
    sides = np.array([device.coords for device in mesh.devices.flat]).max(axis=0) + 1
    spans = [len(set(along)) for along in coords.T]
    rings = [
        2 if span == side and span % _RING[chip.name] == 0 else 1
        for span, side in zip(spans, sides, strict=True)
        if span > 1
    ]
    return sum(rings) or 1


def _sum(one, other):
    return one._replace(
        calls=one.calls + other.calls,
        nbytes=one.nbytes + other.nbytes,
        seconds=one.seconds + other.seconds,
        computation="",
        source="",
    )

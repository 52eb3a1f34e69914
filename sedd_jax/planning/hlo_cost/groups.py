"""Which devices of a compiled program talk to each other, from the ways the text has to say it.

Devices are numbered as they follow each other in the mesh.
"""

import re

import numpy as np
from jax.sharding import Mesh

from sedd_jax.planning.hlo_cost import hlo

_BRACES = r"=\{((?:\{[\d,]*\},?)*)\}"
_PAIRS = re.compile("source_target_pairs" + _BRACES)
_LISTS = re.compile("replica_groups" + _BRACES)
_IOTA = r"\[([\d,]+)\](?:T\(([\d,]+)\))?"
_SHAPED = re.compile(r"replica_groups=\[([\d,]+)\]<=" + _IOTA)
_MESH = re.compile(
    r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\((?:" + _IOTA + r"|([\d,]+))\))? \{([^}]*)\}"
)
_AXIS = re.compile(r"'([^']+)'=(\d+)")
_PART = re.compile(
    r"'([^']+)'(?::\((\d+)\)(\d+))?"
)  # 'a':(2)4, the 4 in the middle of a 2 x 4 x ..


def groups_of(collective: hlo.Instruction, devices: int) -> np.ndarray:
    """Returns the groups of devices [groups, size] of a collective; of a permutation, its pairs.

    Raises:
      BadInput: the text says it in a way that is not known here.
    """
    text = collective.attributes
    if found := _PAIRS.search(text) or _LISTS.search(text):
        groups = [_numbers(group) for group in re.findall(r"\{([\d,]*)\}", found.group(1))]
        return np.array(groups) if groups else np.arange(devices)[None]
    if found := _SHAPED.search(text):
        return _iota(found.group(2), found.group(3)).reshape(_numbers(found.group(1)))
    if found := _MESH.search(text):
        return _along_axes(*found.groups(), devices)
    raise hlo.not_understood(f"which devices {collective.name} names")


def axes_of(groups: np.ndarray, mesh: Mesh) -> tuple[str, ...]:
    """Returns the axes of the mesh that any of the groups extends along."""
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
    parts = {name: (before, size) for name, before, size in _PART.findall(chosen)}
    sizes, along = [], []
    for name, size in _AXIS.findall(axes):
        before, middle = (int(x) if x else None for x in parts.get(name, ("", "")))
        whole = [int(size)] if middle is None else [before, middle, int(size) // before // middle]
        if name in parts:
            along.append(len(sizes) + len(whole) // 2)
        sizes += whole
    grid = np.moveaxis(ids.reshape(sizes), along, range(-len(along), 0))
    return grid.reshape(-1, int(np.prod([sizes[axis] for axis in along])))


def _iota(shape, order):
    """The numbers from 0 on in a shape whose axes are then put in another order."""
    shape = _numbers(shape)
    grid = np.arange(np.prod(shape)).reshape(shape)
    return grid.transpose(_numbers(order)) if order else grid


def _numbers(text):
    return [int(number) for number in text.split(",") if number]

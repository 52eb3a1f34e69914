"""Machines that are not here: what a program can be compiled for, as devices to build a mesh of."""

import math
import os
import re
from typing import NamedTuple

import jax
from jax.experimental import topologies

from sedd_jax.errors import BadInput
from sedd_jax.planning.hlo_cost.chips import CHIPS, Chip
from sedd_jax.planning.hlo_cost.gpus import target_config

_COUNTED = re.compile(r"([a-z]\w*)([-:])0*([1-9]\d{0,5})")  # v5litepod-64, v5p-128, h100:8
_TEXT = re.compile(r"(?:(\d+)\*)?([a-z]\w*):(\d+(?:x\d+)*)")
_NODE = 8  # GPUs, mostly
# by name of a TPU: the axes of its wiring, what its machines are called, and cores of a chip
_TPUS = {
    "v4": (3, "v4", 2),
    "v5e": (2, "v5litepod", 1),
    "v5p": (3, "v5p", 2),
    "v6e": (2, "v6e", 1),
}


class Target(NamedTuple):
    """A machine.

    Attributes:
      text: as it was named.
      chip: of which kind its devices are.
      shape: chips along each axis of a TPU slice; nodes, and GPUs in each.
      slices: of TPUs, joined by a slower network; 1 for GPUs.
    """

    text: str
    chip: Chip
    shape: tuple[int, ...]
    slices: int

    @property
    def devices_count(self) -> int:
        """Its devices, in all."""
        return self.slices * math.prod(self.shape)


def parse_target(text: str) -> Target:
    """Returns the machine that is meant: v5e:8x8, two such slices 2*v5e:8x8, nodes x GPUs h100:1x8.

    Capitals make no difference.

    Raises:
      BadInput: no such chip, or not that many axes.
    """
    text = text.lower()
    if found := _COUNTED.fullmatch(text):
        _refuse_count(text, found[1], int(found[3]))
    found = _TEXT.fullmatch(text)
    if not found or found[2] not in CHIPS:
        raise BadInput(
            f"{text!r} is no machine: it is CHIP:SHAPE, as in v5e:8x8, v5p:4x4x4, 2*v5e:8x8 (two "
            f"slices) or h100:1x8 (nodes x GPUs), with CHIP one of {', '.join(CHIPS)}."
        )
    chip, slices = CHIPS[found[2]], int(found[1] or 1)
    shape = tuple(map(int, found[3].split("x")))
    axes = _TPUS[chip.name][0] if chip.platform == "tpu" else 2
    if len(shape) != axes or 0 in (slices, *shape):
        raise BadInput(
            f"{text!r} is no machine: {chip.name} takes {axes} sizes of at least 1, as in "
            f"{chip.name}:{'x'.join('2' * axes)}"
            f"{', nodes x GPUs of a node' if chip.platform == 'gpu' else ''}."
        )
    if slices > 1 and chip.platform == "gpu":
        raise BadInput(f"{text!r}: GPUs come in nodes, not slices: give nodes x GPUs of a node.")
    return Target(text, chip, shape, slices)


def _refuse_count(text, name, count):
    """Raises BadInput for a known chip that comes with a number, with the shape that is meant."""
    for chip, (axes, machine, cores) in _TPUS.items():
        if name in (chip, machine):
            chips = max(1, count // cores) if "-" in text else count  # as Google counts them
            shape = _near_cube(chips, axes)
            raise BadInput(
                f"{text!r} is no machine: {chip} takes {axes} sizes, those of the slice: {chips} "
                f"chips are {chip}:{shape} as a rule."
            )
    if name in CHIPS:
        shape = f"{count // _NODE}x{_NODE}" if count % _NODE == 0 else f"1x{count}"
        raise BadInput(f"{text!r} is no machine: it is nodes x GPUs of a node: {name}:{shape}.")


def _near_cube(count, axes):
    """So many chips along axes as alike as can be; the sides of 1 come last."""
    sizes = []
    for left in range(axes, 0, -1):
        fitting = [n for n in range(1, count + 1) if count % n == 0 and n**left <= count]
        sizes.append(count if left == 1 else max(fitting))
        count //= sizes[-1]
    if axes == 3:
        sizes.sort(key=lambda size: size == 1)
    return "x".join(map(str, sizes))


def target_devices(target: Target) -> list[jax.Device]:
    """Returns the devices of a machine, which can be compiled for and not run on.

    Nothing of this process may have asked JAX for TPUs: they are not looked for.

    Raises:
      BadInput: the compiler for them is not installed, or knows no such machine.
    """
    devices = (_tpus if target.chip.platform == "tpu" else _gpus)(target)
    if len(devices) != target.devices_count:
        raise BadInput(
            f"The compiler takes {target.text} for {len(devices)} devices, where a run has "
            f"{target.devices_count}: there is no planning for {target.chip.name}."
        )
    return devices


def _tpus(target):
    _, machine, cores = _TPUS[target.chip.name]
    # what libtpu looks for and, on a machine without TPUs, waits for or complains of
    for name, value in {
        "TPU_ACCELERATOR_TYPE": f"{machine}-{cores * math.prod(target.shape)}",
        "TPU_LOG_DIR": "disabled",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # nothing runs, so processes do not disturb each other
    }.items():
        os.environ.setdefault(name, value)
    options = {"num_slices": target.slices}
    if target.chip.name == "v4":
        options["chip_config_name"] = "megacore"  # as runs have it: both cores are one device
    if math.prod(target.shape) < 4:  # a part of a host
        options["chips_per_host_bounds"] = (*target.shape, 1, 1)[:3]
    name = f"{target.chip.name}:{'x'.join(map(str, target.shape))}"
    try:
        return topologies.get_topology_desc(name, platform="tpu", **options).devices
    except jax.errors.JaxRuntimeError as error:
        raise BadInput(f"{target.text} cannot be planned for: {_first_line(error)}") from error
    except RuntimeError as error:  # a parent of the above
        raise BadInput('Planning for TPUs needs libtpu: pip install "sedd_jax[tpu]".') from error


def _gpus(target):
    nodes, gpus = target.shape
    try:
        return topologies.get_topology_desc(
            target.chip.name,
            platform="cuda",
            topology=f"1x{nodes}x{gpus}",
            target_config=target_config(target.chip),
        ).devices
    except NotImplementedError as error:
        raise BadInput(
            "Planning for NVIDIA GPUs needs JAX's CUDA plugin, no GPU: "
            'pip install "sedd_jax[cuda]".'
        ) from error


def _first_line(error):
    return str(error).splitlines()[0].partition(": ")[2]

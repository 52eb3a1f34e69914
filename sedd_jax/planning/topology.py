"""Machines to compile for: kinds of accelerators, topologies of them, and their devices.

None of the figures was measured by this project. Peaks and bandwidths are from the makers' data
sheets; prices are on-demand prices per hour in the makers' clouds or of common GPU hosts in 2025,
and change: `--price` gives another.

A TPU7x has two devices, as JAX counts, each with one half of the chip: its figures are halves of
those of https://docs.cloud.google.com/tpu/docs/tpu7x (2307 TFLOP/s, 192 GiB at 7380 GB/s, 1200 GB/s
in both directions of six links, which the devices share, and six times a link between the two).
"""

import math
import os
import re
from typing import NamedTuple

import jax
from jax.experimental import topologies

from sedd_jax.errors import BadInput, first_line
from sedd_jax.planning.hlo_cost import Chip
from sedd_jax.training.throughput import PEAK_FLOPS


def _chip(name, kind, gib, *figures):
    platform = "gpu" if kind.startswith("NVIDIA") else "tpu"
    return Chip(name, platform, kind, PEAK_FLOPS[kind], gib * 2**30, *figures)


# Memory of TPUs is the compiler's own limit; of GPUs what the driver leaves.
CHIPS = {
    chip.name: chip
    for chip in (
        _chip("v4", "TPU v4", 30.75, 1.2e12, 45e9, 6.25e9, 3.22, 2**18, 4),
        _chip("v5e", "TPU v5 lite", 15.75, 0.82e12, 45e9, 3.125e9, 1.20, 2**17, 16),
        _chip("v5p", "TPU v5", 95.74, 2.77e12, 90e9, 6.25e9, 4.20, 2**18, 4),
        _chip("v6e", "TPU v6 lite", 31.25, 1.64e12, 90e9, 12.5e9, 2.70, 2**19, 16),
        # no list price was found
        _chip("tpu7x", "TPU7x", 94.75, 3.69e12, 90e9, 6.25e9, math.nan, 2**19, 4, 2, 6),
        _chip("a100", "NVIDIA A100-SXM4-80GB", 79.2, 2.04e12, 300e9, 25e9, 1.80),
        _chip("h100", "NVIDIA H100 80GB HBM3", 79.1, 3.35e12, 450e9, 50e9, 3.00),
        _chip("h200", "NVIDIA H200", 139.8, 4.8e12, 450e9, 50e9, 3.50),
        _chip("b200", "NVIDIA B200", 178.0, 8.0e12, 900e9, 50e9, 5.50),
    )
}
# by name of a TPU: the axes of its network, the prefix of its accelerator types, cores of a chip
_TPUS = {
    "v4": (3, "v4", 2),
    "v5e": (2, "v5litepod", 1),
    "v5p": (3, "v5p", 2),
    "v6e": (2, "v6e", 1),
    "tpu7x": (3, "tpu7x", 2),
}
# by name of a GPU: major compute capability, multiprocessors, float32 units of each, KiB of shared
# memory of each, MiB of level-2 cache, boost clock in GHz, bytes of memory
_GPUS = {
    "a100": (8, 108, 64, 164, 40, 1.41, 85_100_068_864),
    "h100": (9, 132, 128, 228, 50, 1.98, 84_942_979_072),
    "h200": (9, 132, 128, 228, 50, 1.98, 151_397_597_184),
    "b200": (10, 148, 128, 228, 126, 1.965, 191_514_411_008),
}
_ACCELERATORS = {accelerator: name for name, (_, accelerator, _) in _TPUS.items()}
# or with a count, to be refused: v5litepod-64, v5p-128, h100:8
_TOPOLOGY = re.compile(r"(?:(\d+)\*)?([a-z]\w*)(:|-(?!.*x))(\d{1,6}(?:x\d{1,6})*)")


class Topology(NamedTuple):
    """A machine.

    Attributes:
      name: such as v5e:8x8.
      chip: the kind of its devices.
      shape: chips along each axis of a TPU slice; nodes, and GPUs in each.
      slices: of TPUs, joined by a slower network; 1 for GPUs.
    """

    name: str
    chip: Chip
    shape: tuple[int, ...]
    slices: int

    @property
    def num_devices(self) -> int:
        """Its devices, in all."""
        return self.slices * math.prod(self.shape) * self.chip.devices

    @property
    def devices_in_words(self) -> str:
        """How many devices of which kind."""
        several = f", {self.chip.devices} on a chip" if self.chip.devices > 1 else ""
        return f"{self.num_devices} {self.chip.device_kind}{several}"


def parse_topology(name: str) -> Topology:
    """Returns a topology by its name: v5e:8x8, two such slices 2*v5e:8x8, nodes x GPUs h100:1x8.

    Case does not matter.

    Raises:
      BadInput: an unknown chip or a wrong shape; for a count of chips it suggests the shape.
    """
    name = name.lower()
    found = _TOPOLOGY.fullmatch(name)
    chip = found and CHIPS.get(_ACCELERATORS.get(found[2], found[2]))
    if not chip:
        raise BadInput(
            f"{name!r} is not a topology: give CHIP:SHAPE, as in v5e:8x8, v5p:4x4x4, 2*v5e:8x8 "
            f"(two slices) or h100:1x8 (nodes x GPUs), with CHIP one of {', '.join(CHIPS)}."
        )
    gpu, slices = chip.platform == "gpu", int(found[1] or 1)
    shape = tuple(map(int, found[4].split("x")))
    axes, _, cores = (2, "", 1) if gpu else _TPUS[chip.name]
    if len(shape) != axes or 0 in (slices, *shape):
        example = "x".join("2" * axes)
        if len(shape) == 1 and shape[0]:  # accelerator types of TPUs, with "-", count cores
            chips = max(1, shape[0] // cores) if found[3] == "-" else shape[0]
            example = f"{_usual_shape(chips, 0 if gpu else axes)} for {chips} chips"
        raise BadInput(
            f"{name!r} is not a topology: {chip.name} takes {axes} sizes of at least 1"
            f"{', nodes x GPUs of a node' if gpu else ''}, as in {chip.name}:{example}."
        )
    if slices > 1 and gpu:
        raise BadInput(f"{name!r}: GPUs come in nodes, not slices: give nodes x GPUs of a node.")
    return Topology(name, chip, shape, slices)


def _usual_shape(count, axes):
    """Nodes of 8 GPUs if there are no axes; else sides as equal as possible, those of 1 last."""
    if not axes:
        return f"1x{count}" if count % 8 else f"{count // 8}x8"
    sizes = []
    for left in range(axes, 0, -1):
        fitting = [n for n in range(1, count + 1) if count % n == 0 and n**left <= count]
        sizes.append(count if left == 1 else max(fitting))
        count //= sizes[-1]
    if axes == 3:
        sizes.sort(key=lambda size: size == 1)
    return "x".join(map(str, sizes))


def topology_devices(topology: Topology) -> list[jax.Device]:
    """Returns the devices of a topology, to compile for and not to run on.

    Call it before JAX has looked for TPUs in this process, so that it does not.

    Raises:
      BadInput: the compiler for them is not installed, or does not know the topology.
    """
    devices = (_tpus if topology.chip.platform == "tpu" else _gpus)(topology)
    if len(devices) != topology.num_devices:
        raise BadInput(
            f"The compiler sees {len(devices)} devices in {topology.name}, where a run has "
            f"{topology.num_devices}: {topology.chip.name} cannot be planned for."
        )
    return devices


def _tpus(topology):
    _, accelerator, cores = _TPUS[topology.chip.name]
    # libtpu looks for these and, on a machine without TPUs, waits for them or complains
    for name, value in {
        "TPU_ACCELERATOR_TYPE": f"{accelerator}-{cores * math.prod(topology.shape)}",
        "TPU_LOG_DIR": "disabled",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # nothing runs, so processes do not disturb each other
    }.items():
        os.environ[name] = os.environ.get(name) or value  # an empty one says nothing
    options = {"num_slices": topology.slices}
    if topology.chip.name == "v4":
        options["chip_config_name"] = "megacore"  # as in a run: both cores are one device
    if math.prod(topology.shape) < 4:  # a part of a host
        options["chips_per_host_bounds"] = (*topology.shape, 1, 1)[:3]
    name = f"{topology.chip.name}:{'x'.join(map(str, topology.shape))}"
    try:
        return topologies.get_topology_desc(name, platform="tpu", **options).devices
    except jax.errors.JaxRuntimeError as error:
        why = first_line(error).partition(": ")[2]
        raise BadInput(f"{topology.name} cannot be planned for: {why}") from error
    except RuntimeError as error:  # a parent of the above
        raise BadInput('Planning for TPUs needs libtpu: pip install "sedd_jax[tpu]".') from error


def _gpus(topology):
    nodes, gpus = topology.shape
    try:
        return topologies.get_topology_desc(
            topology.chip.name,
            platform="cuda",
            topology=f"1x{nodes}x{gpus}",
            target_config=gpu_target_config(topology.chip),
        ).devices
    except NotImplementedError as error:
        raise BadInput(
            "Planning for NVIDIA GPUs needs JAX's CUDA plugin, no GPU: "
            'pip install "sedd_jax[cuda]".'
        ) from error


def gpu_target_config(chip: Chip) -> str:
    """Returns the `GpuTargetConfigProto`, as text, that XLA compiles for without a GPU to ask."""
    capability, cores, units, shared, cache, clock, memory = _GPUS[chip.name]
    features = "NONE" if capability < 9 else "ACCELERATED_FEATURES"
    return f"""
gpu_device_info {{
  cuda_compute_capability {{ major: {capability} feature_extension: {features} }}
  core_count: {cores} fpus_per_core: {units} clock_rate_ghz: {clock}
  device_memory_size: {memory} memory_bandwidth: {chip.hbm_bytes_per_second:.0f}
  l2_cache_size: {cache * 2**20}
  shared_memory_per_core: {shared * 2**10} shared_memory_per_block: {48 * 2**10}
  shared_memory_per_block_optin: {(shared - 1) * 2**10}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  threads_per_core_limit: 2048 threads_per_block_limit: 1024 threads_per_warp: 32
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  dnn_version: "9.10.0" runtime_version: "12.8.0"
  compile_time_toolkit_version: "12.8.0" driver_version: "12.8.0"
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
device_description_str: "{chip.device_kind}"
"""

"""What XLA's compiler for NVIDIA GPUs asks of a GPU, from the makers' public figures.

XLA has no list of GPUs by name: without a GPU to ask, it is given a description.
"""

from typing import NamedTuple

from sedd_jax.planning.hlo_cost.chips import Chip


class _Gpu(NamedTuple):
    """A GPU.

    Attributes:
      capability: the first part of its compute capability.
      cores: multiprocessors.
      units: float32 units of a multiprocessor.
      shared: bytes of shared memory of a multiprocessor.
      shared_of_block: bytes of them that a block of threads may have.
      cache: bytes, level 2.
      clock: GHz, boosted.
      memory: bytes.
    """

    capability: int
    cores: int
    units: int
    shared: int
    shared_of_block: int
    cache: int
    clock: float
    memory: int


_KIB, _MIB = 2**10, 2**20
_GPUS = {
    "a100": _Gpu(8, 108, 64, 164 * _KIB, 163 * _KIB, 40 * _MIB, 1.41, 85_100_068_864),
    "h100": _Gpu(9, 132, 128, 228 * _KIB, 227 * _KIB, 50 * _MIB, 1.98, 84_942_979_072),
    "h200": _Gpu(9, 132, 128, 228 * _KIB, 227 * _KIB, 50 * _MIB, 1.98, 151_397_597_184),
    "b200": _Gpu(10, 148, 128, 228 * _KIB, 227 * _KIB, 126 * _MIB, 1.965, 191_514_411_008),
}


def target_config(chip: Chip) -> str:
    """Returns the description, a `GpuTargetConfigProto` as text."""
    gpu = _GPUS[chip.name]
    features = "NONE" if gpu.capability < 9 else "ACCELERATED_FEATURES"
    return f"""
gpu_device_info {{
  cuda_compute_capability {{ major: {gpu.capability} feature_extension: {features} }}
  core_count: {gpu.cores}
  fpus_per_core: {gpu.units}
  clock_rate_ghz: {gpu.clock}
  device_memory_size: {gpu.memory}
  memory_bandwidth: {chip.bandwidth:.0f}
  l2_cache_size: {gpu.cache}
  shared_memory_per_core: {gpu.shared}
  shared_memory_per_block: {48 * _KIB}
  shared_memory_per_block_optin: {gpu.shared_of_block}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  threads_per_core_limit: 2048
  threads_per_block_limit: 1024
  threads_per_warp: 32
  thread_dim_limit_x: 1024
  thread_dim_limit_y: 1024
  thread_dim_limit_z: 64
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  dnn_version: "9.10.0"
  runtime_version: "12.8.0"
  compile_time_toolkit_version: "12.8.0"
  driver_version: "12.8.0"
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
device_description_str: "{chip.device_kind}"
"""

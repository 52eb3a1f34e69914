"""What is assumed of every kind of accelerator. None of it was measured by this project.

Peaks and bandwidths are the makers' data sheets; prices are what was asked on demand, by the hour,
in the makers' own clouds or by common GPU hosts in 2025, and change: `--price` gives another.
"""

from typing import NamedTuple

from sedd_jax.training.throughput import PEAK_FLOPS

_GIB = 2**30


class Chip(NamedTuple):
    """A kind of accelerator, as JAX counts devices.

    Attributes:
      name: as in a topology, such as v5e.
      platform: "tpu" or "gpu".
      device_kind: as JAX names it.
      memory: bytes that a program may use.
      bandwidth: bytes a second between the chip and its memory, read and written together.
      link: bytes a second that a chip sends to one neighbour: one direction of one wire of a TPU
        slice; of a GPU, all that it can send within its node.
      network: bytes a second that a chip sends out of its slice or node.
      price: US dollars an hour.
      flops_per_cycle: of dense bfloat16 products in the unit whose cycles the TPU's compiler
        counts; 0 for GPUs, whose compiler counts none.
    """

    name: str
    platform: str
    device_kind: str
    memory: float
    bandwidth: float
    link: float
    network: float
    price: float
    flops_per_cycle: int = 0

    @property
    def peak(self) -> float:
        """FLOPs a second of dense bfloat16 products at best."""
        return PEAK_FLOPS[self.device_kind]

    @property
    def clock(self) -> float:
        """Cycles a second, at which the peak is reached."""
        return self.peak / self.flops_per_cycle


def _tpu(name, kind, gib, bandwidth, link, network, price, flops_per_cycle):
    memory = gib * _GIB
    return Chip(name, "tpu", kind, memory, bandwidth, link, network, price, flops_per_cycle)


def _gpu(name, kind, gib, bandwidth, link, network, price):
    return Chip(name, "gpu", kind, gib * _GIB, bandwidth, link, network, price)


# Memory of TPUs: the compiler's own limit. Of GPUs: what the driver leaves.
CHIPS = {
    chip.name: chip
    for chip in (
        _tpu("v4", "TPU v4", 30.75, 1.2e12, 45e9, 6.25e9, 3.22, 2**18),
        _tpu("v5e", "TPU v5 lite", 15.75, 0.82e12, 45e9, 3.125e9, 1.20, 2**17),
        _tpu("v5p", "TPU v5", 95.74, 2.77e12, 90e9, 6.25e9, 4.20, 2**18),
        _tpu("v6e", "TPU v6 lite", 31.25, 1.64e12, 90e9, 12.5e9, 2.70, 2**19),
        _gpu("a100", "NVIDIA A100-SXM4-80GB", 79.2, 2.04e12, 300e9, 25e9, 1.80),
        _gpu("h100", "NVIDIA H100 80GB HBM3", 79.1, 3.35e12, 450e9, 50e9, 3.00),
        _gpu("h200", "NVIDIA H200", 139.8, 4.8e12, 450e9, 50e9, 3.50),
        _gpu("b200", "NVIDIA B200", 178.0, 8.0e12, 900e9, 50e9, 5.50),
    )
}

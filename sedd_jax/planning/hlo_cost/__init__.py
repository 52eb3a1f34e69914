"""A cost model of compiled programs: time, memory and communication, from their HLO text.

It knows no model and imports nothing of sedd_jax.
"""

from typing import NamedTuple


class Chip(NamedTuple):
    """A kind of accelerator, as JAX counts devices.

    Attributes:
      name: as in a topology, such as v5e.
      platform: "tpu" or "gpu".
      device_kind: as JAX names it.
      flops_per_second: peak of dense bfloat16 matrix products.
      hbm_bytes: memory that a program may use.
      hbm_bytes_per_second: of memory, reads and writes together.
      link_bytes_per_second: one direction of one link between neighbours of a TPU slice; of a GPU,
        all that it sends within its node.
      network_bytes_per_second: that a chip sends out of its slice or node.
      dollars_per_hour: price in US dollars.
      flops_per_cycle: dense bfloat16 FLOPs in a cycle as the TPU compiler counts them; 0 for GPUs.
      ring: a side of a TPU slice is a closed ring if its length is a multiple of this; 0 for GPUs.
      devices: that share the package which the maker calls a chip, and its links.
      inner_links: links between neighbours that are as fast as the one between those devices.
    """

    name: str
    platform: str
    device_kind: str
    flops_per_second: float
    hbm_bytes: float
    hbm_bytes_per_second: float
    link_bytes_per_second: float
    network_bytes_per_second: float
    dollars_per_hour: float
    flops_per_cycle: int = 0
    ring: int = 0
    devices: int = 1
    inner_links: int = 1

    @property
    def clock(self) -> float:
        """Cycles per second at which the chip reaches its peak."""
        return self.flops_per_second / self.flops_per_cycle

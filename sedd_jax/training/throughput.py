"""Speed of a run, its wait for data, and the utilisation of its devices."""

import contextlib
import time
from collections.abc import Iterator

import jax

from sedd_jax.display.table import duration
from sedd_jax.experiment.config import TrainConfig
from sedd_jax.inference.family import Family
from sedd_jax.model.config import ModelConfig

# Peak FLOP/s of dense bfloat16 products, from the data sheets, by the whole `device_kind`: a part
# of a card, or a card with another power limit, has another name and another peak.
PEAK_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "TPU7x": 1153.5e12,  # a device is half of a chip
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100-PCIE-40GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
}


class StepTimer:
    """Times the steps of a run, without its pauses."""

    def __init__(
        self,
        start: int,
        total: int,
        *,
        tokens_per_step: int,
        flops_per_step: float,
        step_memory_gib: float | None = None,
    ):
        """Starts a clock.

        Args:
          start: the number of the last step already done.
          total: the last step of the run.
          tokens_per_step: over all devices.
          flops_per_step: over all devices.
          step_memory_gib: of a device, see `step_memory_gib`.
        """
        self._total, self._tokens, self._flops = total, tokens_per_step, flops_per_step
        self._memory = step_memory_gib
        self._pauses = 0.0
        self.begin(start)

    def begin(self, step: int) -> None:
        """Starts the clock again: `step` is done."""
        self._first = self._mark = (step, self._clock())
        self._waited = 0.0

    def advance(self, step: int) -> tuple[dict[str, float], str]:
        """Returns a row on the steps since the last call, and the time left at the mean speed.

        The row: tokens_per_second; step_seconds, the mean; waiting_for_data, the share of the time
        spent inside `waiting`; flops_utilization, `step_flops` as a share of the devices' peak,
        where the peak is known; peak_memory_gib, the most that a device of this process has held
        since it started, where devices report it; step_memory_gib, as given. Empty if there were no
        steps.
        """
        (last, last_time), (first, first_time) = self._mark, self._first
        if step == last:
            return {}, ""
        self._mark = (step, now) = (step, self._clock())
        seconds = max(now - last_time, 1e-9)
        steps_per_second = (step - last) / seconds
        row = {
            "tokens_per_second": steps_per_second * self._tokens,
            "step_seconds": seconds / (step - last),
            "waiting_for_data": min(self._waited / seconds, 1.0),
        }
        self._waited = 0.0
        peak = peak_flops()
        if peak is not None:
            row["flops_utilization"] = steps_per_second * self._flops / peak
        memory = peak_memory_gib()
        if memory is not None:
            row["peak_memory_gib"] = memory
        if self._memory is not None:
            row["step_memory_gib"] = self._memory
        left = (self._total - step) * (now - first_time) / (step - first)
        return row, duration(left)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves the time inside out of the speed; decorates functions too."""
        began = time.monotonic()
        yield
        self._pauses += time.monotonic() - began

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time inside as waiting for data; not inside `paused`."""
        began = time.monotonic()
        yield
        self._waited += time.monotonic() - began

    def _clock(self):
        return time.monotonic() - self._pauses


def step_flops(family: Family, model: ModelConfig, train: TrainConfig) -> float:
    """Returns the model FLOPs of a training step, over all devices.

    Three forward passes: the gradients by inputs and by weights cost one each. Recomputation in the
    backward pass saves memory and is not work of the model: it is not counted.

    Args:
      family: the model.
      model: its sizes.
      train: batch size, and how times are drawn.
    """
    return 3 * family.forward_flops(model, family.training_share(train)) * train.batch_size


def peak_flops() -> float | None:
    """Returns the peak FLOP/s of all devices together; None if unknown for one of them."""
    peaks = [PEAK_FLOPS.get(device.device_kind) for device in jax.devices()]
    return None if None in peaks else sum(peaks)


def step_memory_gib(program: jax.stages.Compiled) -> float:
    """Returns what a compiled step holds on a device at once, GiB, by the compiler's own figures.

    State and batch, the results that do not replace them, and the temporaries in between.
    """
    found = program.memory_analysis()
    results = found.output_size_in_bytes - found.alias_size_in_bytes
    return (found.argument_size_in_bytes + results + found.temp_size_in_bytes) / 2**30


def peak_memory_gib() -> float | None:
    """Returns the most that a device of this process has held, GiB; None if one does not report."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [each.get("peak_bytes_in_use") for each in stats]
    return None if None in peaks else max(peaks) / 2**30

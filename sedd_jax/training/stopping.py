"""What a run does when it is told to stop: it saves if there is time, and says what is saved."""

import os
import time
import uuid
from pathlib import Path

import jax

from sedd_jax.errors import Halted, warn
from sedd_jax.experiment.checkpoint import Checkpoints
from sedd_jax.experiment.state import TrainState
from sedd_jax.system import bucket, mirror
from sedd_jax.system.files import atomic_write
from sedd_jax.system.processes import StopSignal, broadcast_from_primary, on_primary
from sedd_jax.training.hooks import Hook
from sedd_jax.training.step import Metrics

_PROBE = 8 * 2**20  # bytes
_AT_LEAST = 1.0  # seconds of a save: files are made, and processes wait for each other
_SAFETY = 1.5  # the next save may take so much longer than the last one


class Saves:
    """The hook that saves, and how long that takes: by a probe at first, then by the last save."""

    def __init__(self, run: Path, save: Hook, checkpoints: Checkpoints):
        """Prepares for saves.

        Args:
          run: the run folder.
          save: starts to save the state.
          checkpoints: that it is saved to.
        """
        self._run, self._save, self.checkpoints = run, save, checkpoints
        self.seconds = _AT_LEAST
        self._began: float | None = None

    def measure(self, state: TrainState, grace_seconds: float) -> None:
        """Writes some bytes to the run folder, and prints on process 0 how long a save takes.

        Args:
          state: that is saved.
          grace_seconds: from SIGTERM to the end of the machine.
        """
        arrays = jax.tree.leaves(state)
        shards = [shard for array in arrays for shard in array.addressable_shards]
        here = sum(shard.data.nbytes for shard in shards if shard.replica_id == 0)
        speed = on_primary(lambda: write_speed(self._run, min(here, _PROBE)))
        if speed is None:  # process 0 knows it
            return
        self.seconds = max(_AT_LEAST, here / speed)
        total = sum(array.nbytes for array in arrays)
        print(
            f"A save of {size_in_words(total)} takes about {self.seconds:.0f} s, at "
            f"{size_in_words(speed)}/s.",
            flush=True,
        )
        if grace_seconds < _SAFETY * self.seconds:
            warn(
                f"config.train.grace_seconds is {grace_seconds:g}, which may be too short for a "
                "save: a SIGTERM then loses the steps since the last one, see "
                "config.checkpoint.every"
            )

    def __call__(self, step: int, state: TrainState, metrics: Metrics) -> None:
        """A hook: starts a save."""
        self._save(step, state, metrics)
        self._began = time.monotonic() if self.checkpoints.saving == step else None

    def check(self, step: int, state: TrainState, metrics: Metrics) -> None:
        """A hook: ends the run if a save has failed, and takes the time of one that has ended.

        Args:
          step: the number of the step.
          state: after it; not read.
          metrics: of it; not read.
        """
        self.checkpoints.check()
        if self._began is not None and self.checkpoints.saving is None:
            self.seconds = max(_AT_LEAST, time.monotonic() - self._began)
            self._began = None

    def fit(self, seconds: float) -> bool:
        """Returns whether another save, and one that is under way, will have ended by then."""
        under_way = 0.0
        if self._began is not None:
            under_way = max(0.0, self.seconds - (time.monotonic() - self._began))
        return _SAFETY * (under_way + self.seconds) <= seconds


def stop_at_signal(signals: StopSignal, saves: Saves) -> Hook:
    """Returns a hook that saves, if there is time, and raises Halted when a signal asks to stop.

    Args:
      signals: the signals received.
      saves: the saves of the run.
    """

    def stop(step, state, metrics):
        if not (signal := signals.after(step)):
            return
        left = signals.seconds_left()
        if broadcast_from_primary(saves.fit(left)):
            saves(step, state, metrics)
        last = saves.checkpoints.latest  # waits for a save
        said = f"Stopped by {signal.name} after step {step}"
        if last == step:
            said += ", which is saved; the same command continues from there."
        else:
            age, again = "There is no save yet", "starts again"
            if last is not None:
                age, again = (
                    f"The last save is {step - last} steps old",
                    f"continues from step {last}",
                )
            said += (
                f". {age}, since another takes about {saves.seconds:.0f} s, and "
                f"{max(0, left):.0f} s were left; the same command {again}."
            )
        raise Halted(said, exit_code=128 + signal)

    return stop


def write_speed(folder: Path, size: int) -> float:
    """Returns the bytes per second at which a file or an object of this size is written there."""
    name, content = f".probe-{uuid.uuid4().hex}", os.urandom(size)
    address = mirror.address_of(folder)
    began = time.perf_counter()
    if address:
        bucket.write(address / name, content)
    else:
        atomic_write(folder / name, content)
    seconds = time.perf_counter() - began
    if address:
        bucket.delete(address / name)
    else:
        (folder / name).unlink()
    return size / seconds


def size_in_words(count: int | float) -> str:
    """Returns a number of bytes in words."""
    unit = "GiB" if count >= 2**30 else "MiB"
    return f"{count / (2**30 if unit == 'GiB' else 2**20):.3g} {unit}"

"""What a run reports: JSON lines always, TensorBoard files if tensorboardX is installed."""

import contextlib
import json
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path

import jax

FILE = "metrics.jsonl"


class MetricWriter:
    """Appends rows to `metrics.jsonl` in the run folder, and scalars to TensorBoard files.

    On resume, rows after the restored step are dropped: those steps will be done again, with the
    same results.
    """

    def __init__(self, run: Path, last_step: int):
        """Opens the files of `run`, keeping what was written up to `last_step`."""
        path = run / FILE
        kept = []
        if path.exists():
            kept = [line for line in path.read_text().splitlines() if _step(line) <= last_step]
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(line + "\n" for line in kept))
        os.replace(temporary, path)
        self._file = path.open("a")
        self._board = _tensorboard(run, last_step)

    def __enter__(self) -> "MetricWriter":
        return self

    def __exit__(self, *exception) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Writes one row {"step": step, **values}."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)

    def text(self, step: int, name: str, value: str) -> None:
        """Writes one row with a text, such as a sample."""
        self._file.write(json.dumps({"step": step, name: value}) + "\n")
        self._file.flush()
        if self._board is not None:
            self._board.add_text(name, value, step)


def _step(line):
    try:
        return json.loads(line)["step"]
    except ValueError:  # the torn last line of a killed run
        return float("inf")


def _tensorboard(run, last_step):
    try:
        from tensorboardX import SummaryWriter
    except ModuleNotFoundError:
        return None
    return SummaryWriter(str(run / "tensorboard"), purge_step=last_step + 1)


class PendingLosses:
    """Losses of the steps since the last row, read one step late so that the device never waits."""

    def __init__(self):
        self._pending = None
        self._losses = []

    def add(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Takes the metrics of the step just started, and reads those of the step before."""
        pending, self._pending = self._pending, (step, metrics)
        self._read(pending)

    def take(self) -> dict[str, float]:
        """Returns the mean loss since the last call, and the other metrics of the last step."""
        pending, self._pending = self._pending, None
        row = self._read(pending)
        row["loss"] = sum(self._losses) / len(self._losses)
        self._losses = []
        return row

    def _read(self, pending):
        if pending is None:
            return None
        step, metrics = pending
        row = {name: float(value) for name, value in metrics.items()}
        for name in ("loss", "grad_norm"):
            if not math.isfinite(row[name]):
                raise FloatingPointError(
                    f"The {name} of step {step} is {row[name]}: training has diverged; start "
                    "another run with a lower learning rate."
                )
        self._losses.append(row["loss"])
        return row


class Progress:
    """Speed and time left of a loop over steps, leaving out pauses."""

    def __init__(self, start: int, total: int, tokens_per_step: int):
        self._total, self._tokens = total, tokens_per_step
        self._pauses = 0.0
        self.begin(start)

    def begin(self, step: int) -> None:
        """Counts from here: `step` is done."""
        self._first = self._mark = (step, self._clock())

    def advance(self, step: int) -> tuple[float, str]:
        """Returns tokens/s since the last call, and as text the time left at the mean speed."""
        (last, last_time), (first, first_time) = self._mark, self._first
        self._mark = (step, now) = (step, self._clock())
        speed = (step - last) * self._tokens / max(now - last_time, 1e-9)
        left = (self._total - step) * (now - first_time) / max(step - first, 1)
        return speed, duration(left)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves what happens inside out of the speed."""
        began = time.monotonic()
        yield
        self._pauses += time.monotonic() - began

    def _clock(self):
        return time.monotonic() - self._pauses


def duration(seconds: float) -> str:
    """Returns seconds as "42 s", "3 min 05 s" or "7 h 12 min"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes_left = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes_left:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"

"""What a run reports: JSON lines always, TensorBoard files if tensorboardX is installed."""

import contextlib
import json
import math
from pathlib import Path
from typing import Any

import jax

from sedd_jax.errors import Halted
from sedd_jax.system.files import atomic_write
from sedd_jax.system.processes import is_primary, print_on_primary

FILE = "metrics.jsonl"

Row = dict[str, float | int]


class MetricWriter:
    """Appends rows to `metrics.jsonl` in the run folder, and scalars to TensorBoard files.

    On resume, rows after the restored step are dropped: those steps will be done again, with the
    same results. A value that is not finite is left out of its row: JSON has no word for it. A row
    that cannot be written, on a full disk say, raises Halted.
    """

    def __init__(self, run: Path, last_step: int):
        """Opens the files of `run`, keeping what was written up to `last_step`."""
        path = run / FILE
        lines = path.read_text().splitlines() if path.exists() else []
        kept = [line for line in lines if _step(line) <= last_step]
        if kept != lines:
            print_on_primary(
                f"{path}: {len(lines) - len(kept)} rows after step {last_step} will be made again."
            )
        atomic_write(path, "".join(line + "\n" for line in kept))
        self._file = path.open("a")
        self._board = _tensorboard(run, last_step)

    def __enter__(self) -> "MetricWriter":
        return self

    def __exit__(self, *exception) -> None:
        with contextlib.suppress(OSError):  # what is left to write was reported by `_write`
            self._file.close()
        if self._board is not None and _writes(self._board):
            self._board.close()

    def scalars(self, step: int, values: Row) -> None:
        """Writes one row {"step": step, **values}."""
        values = _finite(values)
        self._write({"step": step, **values})
        if self._board is not None:
            self._check_board()
            for name, value in values.items():
                self._board.add_scalar(name, value, step)

    def text(self, step: int, name: str, value: str) -> None:
        """Writes one row with a text, such as a sample."""
        self._write({"step": step, name: value})
        if self._board is not None:
            self._check_board()
            self._board.add_text(name, value, step)

    def _write(self, row):
        try:
            self._file.write(json.dumps(row, allow_nan=False) + "\n")
            self._file.flush()
        except OSError as error:
            raise self._halted(self._file.name, error.strerror) from error

    def _check_board(self):
        if not _writes(self._board):
            raise self._halted(self._board.logdir, "the thread that writes has ended")

    def _halted(self, path, reason):
        return Halted(
            f"{path} cannot be written: {reason}. Mend the cause and run the same command again."
        )


class SilentWriter:
    """Takes what `MetricWriter` takes, and writes nothing."""

    def __enter__(self) -> "SilentWriter":
        return self

    def __exit__(self, *exception) -> None:
        pass

    def scalars(self, step: int, values: Row) -> None:
        pass

    def text(self, step: int, name: str, value: str) -> None:
        pass


def metric_writer(run: Path, last_step: int) -> MetricWriter | SilentWriter:
    """Returns the writer of `run` on the lead process, and one that writes nothing elsewhere."""
    return MetricWriter(run, last_step) if is_primary() else SilentWriter()


def read_rows(path: Path, last_step: int) -> list[dict[str, Any]]:
    """Returns the rows up to `last_step` of a file that `MetricWriter` wrote."""
    # a torn character does not cost the rest
    lines = path.read_text(errors="replace").splitlines()
    return [json.loads(line) for line in lines if _step(line) <= last_step]


def _finite(values):
    return {name: value for name, value in values.items() if math.isfinite(value)}


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


def _writes(board):
    """Whether tensorboardX still takes rows: without its thread the next ones would block."""
    return board.file_writer.event_writer._worker.is_alive()


class NotFinite(ArithmeticError):
    """Too many steps in a row were skipped, since their loss or gradient was not finite.

    Attributes:
      step: the last of them.
      in_row: how many.
      name: of the metric that was not finite at that step.
      value: of that metric.
    """

    def __init__(self, step: int, in_row: int, name: str, value: float):
        super().__init__(
            f"{in_row} steps in a row made no update; the {name} of step {step} is {value}"
        )
        self.step, self.in_row, self.name, self.value = step, in_row, name, value


class PendingLosses:
    """Losses of the steps since the last row, read one step late so that the device never waits.

    A step that was skipped, see `build_train_step`, is printed and left out of the mean.
    """

    def __init__(self, max_skipped: int):
        """Gives up, with NotFinite, at `max_skipped` skipped steps in a row."""
        self._max_skipped = max_skipped
        self._pending = None
        self._losses = []

    def add(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Takes the metrics of the step just started, and reads those of the step before."""
        pending, self._pending = self._pending, (step, metrics)
        if pending is not None:
            self._read(*pending)

    def take(self) -> Row:
        """Returns the mean loss since the last call, and the other metrics of the last step.

        Called after an `add`. What is not finite is missing: the loss, if no step's was.
        """
        pending, self._pending = self._pending, None
        row = self._read(*pending)
        del row["skipped_in_row"]
        losses, self._losses = self._losses, []
        row["loss"] = sum(losses) / len(losses) if losses else math.nan
        return _finite(row)

    def _read(self, step, metrics):
        row = {name: value.item() for name, value in jax.device_get(metrics).items()}
        in_row = row["skipped_in_row"]
        if not in_row:
            self._losses.append(row["loss"])
            return row
        name = "grad_norm" if math.isfinite(row["loss"]) else "loss"
        print_on_primary(
            f"step {step}: the {name} is {row[name]}; the update was skipped "
            f"({row['skipped']} so far)"
        )
        if in_row >= self._max_skipped:
            raise NotFinite(step, in_row, name, row[name])
        return row

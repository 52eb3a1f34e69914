"""Metrics of a run: JSON lines in its folder, and the trackers that it names."""

import contextlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sedd_jax.errors import Halted
from sedd_jax.experiment.trackers.background import InBackground
from sedd_jax.experiment.trackers.tracker import Tracker
from sedd_jax.system import mirror
from sedd_jax.system.files import atomic_write
from sedd_jax.system.processes import is_primary, print_on_primary, warn_on_primary

FILE = "metrics.jsonl"

Row = dict[str, float | int]


class MetricWriter:
    """Appends rows to `metrics.jsonl` in the run folder, and passes them on to trackers.

    On resume, rows after the restored step are dropped: those steps run again, with the same
    results. A value that is not finite is left out of its row: JSON cannot express it. A row that
    cannot be written, on a full disk say, raises Halted; what a tracker does stops nothing, see
    `InBackground`. Only process 0 writes.
    """

    def __init__(
        self,
        run: Path,
        last_step: int,
        trackers: Mapping[str, Tracker] | None = None,
        settings: Mapping[str, Any] | None = None,
    ):
        """Opens the files of `run`, keeping what was written up to `last_step`.

        Args:
          run: the folder.
          last_step: the step that the run continues after.
          trackers: by name, see `build_trackers`.
          settings: of the run, for them.
        """
        self._lines, self._trackers = None, []
        if is_primary():
            self._lines = _JsonLines(run / FILE, last_step)
            self._trackers = [
                InBackground(name, tracker, run, settings or {}, last_step)
                for name, tracker in (trackers or {}).items()
            ]

    def __enter__(self) -> "MetricWriter":
        return self

    def __exit__(self, *exception) -> None:
        if self._lines:
            with contextlib.suppress(OSError):  # `_write` has reported it
                self._lines.close()
        for tracker in self._trackers:
            tracker.close()

    def scalars(self, step: int, values: Row) -> None:
        """Writes one row {"step": step, **values}."""
        values = finite_values(values)
        self._write(step, values)
        for tracker in self._trackers:
            tracker.scalars(step, values)

    def text(self, step: int, name: str, value: str) -> None:
        """Writes one row with a text.

        Args:
          step: the step.
          name: of the text, for instance "sample_0".
          value: the text.
        """
        self._write(step, {name: value})
        for tracker in self._trackers:
            tracker.text(step, name, value)

    def _write(self, step, values):
        if self._lines:
            try:
                self._lines.write(step, values)
            except OSError as error:
                raise Halted(
                    f"{self._lines.path} cannot be written: {error.strerror}. Fix the cause and "
                    "run the same command again."
                ) from error


class _JsonLines:
    """One JSON object a line."""

    def __init__(self, path, last_step):
        self.path = path
        # errors: one torn character must not lose the rest
        lines = path.read_text(errors="replace").splitlines() if path.exists() else []
        steps = [_step(line) for line in lines]
        kept = [line for line, step in zip(lines, steps, strict=True) if step <= last_step]
        # of a run that was killed only the last row is torn
        if damaged := steps[:-1].count(math.inf):
            warn_on_primary(f"{damaged} rows of {mirror.shown(path)} are damaged and left out")
        if again := len(lines) - len(kept) - damaged:
            shown = mirror.shown(path)
            print_on_primary(f"{shown}: {again} rows after step {last_step} will be written again.")
        atomic_write(path, "".join(line + "\n" for line in kept))
        self._file = path.open("a")
        self.close = self._file.close

    def write(self, step, values):
        self._file.write(json.dumps({"step": step, **values}, allow_nan=False) + "\n")
        self._file.flush()


def read_rows(path: Path, last_step: int) -> list[dict[str, Any]]:
    """Returns the rows up to `last_step` of a file that `MetricWriter` wrote."""
    lines = path.read_text(errors="replace").splitlines()
    return [json.loads(line) for line in lines if _step(line) <= last_step]


def finite_values(values: Row) -> Row:
    """Returns the values that are finite."""
    return {name: value for name, value in values.items() if math.isfinite(value)}


def _step(line):
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):  # the torn last line of a killed run, or damage
        return math.inf

"""TensorBoard: event files in the folder of the run."""

import time
from pathlib import Path
from typing import Any

from sedd_jax.system.packages import check_installed


class TensorBoard:
    """Writes event files to `tensorboard/`. When a run resumes, TensorBoard drops later steps."""

    def __init__(self):
        check_installed("tensorboardX", '"sedd_jax[tensorboard]"', "The tracker tensorboard")

    def start(self, run: Path, settings: dict[str, Any], last_step: int) -> None:
        # no SummaryWriter: its thread hides a full disk
        from tensorboardX import event_file_writer, summary
        from tensorboardX.proto import event_pb2

        self._event, self._summary = event_pb2, summary
        folder = run / "tensorboard"
        folder.mkdir(parents=True, exist_ok=True)
        self._file = event_file_writer.EventsWriter(str(folder / "events"))
        # TensorBoard then drops events of later steps in earlier files
        start = self._event.SessionLog(status=self._event.SessionLog.START)
        self._add(step=last_step + 1, session_log=start)
        self._file.flush()

    def scalars(self, step: int, values: dict[str, float | int]) -> None:
        for name, value in values.items():
            self._add(step=step, summary=self._summary.scalar(name, value))
        self._file.flush()

    def text(self, step: int, name: str, value: str) -> None:
        self._add(step=step, summary=self._summary.text(name, value))
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def _add(self, **event):
        self._file.write_event(self._event.Event(wall_time=time.time(), **event))

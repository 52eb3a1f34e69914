"""What a tracker is, and the trackers that a setting can name."""

import importlib.util
import re
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from sedd_jax.errors import BadInput
from sedd_jax.experiment.trackers.mlflow import MLflow
from sedd_jax.experiment.trackers.tensorboard import TensorBoard
from sedd_jax.experiment.trackers.wandb import WandB
from sedd_jax.system.registry import Registry

SETTING = "config.train.trackers"
AUTO = "auto"  # TensorBoard where its package is installed
_COMMA = re.compile(r",(?![^(]*\))")  # outside of options


@runtime_checkable
class Tracker(Protocol):
    """Where the rows of a run go, beside `metrics.jsonl`.

    It is made before anything is computed, which raises BadInput if its package is missing. Its
    methods are called in a thread of its own, one after the other; the first exception ends it.
    """

    def start(self, run: Path, settings: dict[str, Any], last_step: int) -> None:
        """Opens the tracker, or continues in what it wrote of the run before.

        Args:
          run: the folder of the run.
          settings: of the run, in groups.
          last_step: the step that the run continues after; later rows of before will come again.
        """

    def scalars(self, step: int, values: dict[str, float | int]) -> None:
        """Takes finite numbers of a step; a step may have several such rows."""

    def text(self, step: int, name: str, value: str) -> None:
        """Takes a text of a step.

        Args:
          step: the step.
          name: of the text, for instance "sample_0".
          value: the text.
        """

    def close(self) -> None:
        """Ends the tracker: everything it was given is kept."""


TRACKERS: Registry[type[Tracker]] = Registry(
    SETTING,
    {"tensorboard": TensorBoard, "wandb": WandB, "mlflow": MLflow},
    methods=("start", "scalars", "text", "close"),
)


def build_trackers(text: str) -> dict[str, Tracker]:
    """Returns the trackers of a setting by their names.

    Args:
      text: names or dotted paths, NAME,..., with options or without; `auto` is tensorboard where
        tensorboardX is installed. Empty: none.

    Raises:
      BadInput: there is no such tracker, it is named twice, or its package is missing.
    """
    names = [name.strip() for name in _COMMA.split(text) if name.strip()]
    if AUTO in names:
        found = ["tensorboard"] if importlib.util.find_spec("tensorboardX") else []
        names = [name for name in names if name != AUTO] + found
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise BadInput(f"{SETTING}={text} names {twice} twice.")
    return {name: TRACKERS.build(name) for name in names}

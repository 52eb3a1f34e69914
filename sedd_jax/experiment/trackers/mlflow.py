"""MLflow: a database in the folder of the run unless MLFLOW_TRACKING_URI names a server."""

import logging
import os
import time
from pathlib import Path
from typing import Any

from sedd_jax.errors import BadInput
from sedd_jax.system.files import atomic_write
from sedd_jax.system.packages import check_installed
from sedd_jax.system.settings import flatten

_MOST = 100  # parameters of one call
_SERVER = "MLFLOW_TRACKING_URI"


class MLflow:
    """Writes a run of MLflow to `mlflow/mlflow.db`, or to the server of MLFLOW_TRACKING_URI.

    The id of the run is kept in `mlflow/`, so a resumed run is the same one. Steps that come again
    are in its history twice, with the same values.
    """

    def __init__(self, experiment: str = "sedd_jax"):
        """Names the experiment; MLFLOW_EXPERIMENT_NAME has precedence."""
        for package in ("mlflow", *([] if _SERVER in os.environ else ["sqlalchemy", "alembic"])):
            check_installed(package, '"sedd_jax[mlflow]"', "The tracker mlflow")
        self._experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", experiment)

    def start(self, run: Path, settings: dict[str, Any], last_step: int) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # it reports to its makers
        from mlflow.entities import Metric, Param
        from mlflow.tracking import MlflowClient

        logging.getLogger("mlflow").setLevel(logging.WARNING)  # two lines for a new database
        folder = (run / "mlflow").resolve()
        folder.mkdir(parents=True, exist_ok=True)
        self._metric = Metric
        server = os.environ.get(_SERVER)
        self._client = MlflowClient(server or f"sqlite:///{folder / 'mlflow.db'}")
        identity = folder / "run_id"
        if identity.exists():
            self._id = identity.read_text()
            self._client.update_run(self._id, status="RUNNING")
        else:
            self._id = self._new_run(folder.parent.name, None if server else folder.as_uri())
            given = [Param(name, str(it)) for name, it in flatten(settings).items()]
            for first in range(0, len(given), _MOST):
                self._client.log_batch(self._id, params=given[first : first + _MOST])
            atomic_write(identity, self._id)
        place = self._client.get_run(self._id).info.artifact_uri
        if not server and not place.startswith(folder.as_uri()):
            raise BadInput(f"the folder of the run was moved, and its database still names {place}")

    def _new_run(self, name, place):
        known = self._client.get_experiment_by_name(self._experiment)
        experiment = (
            known.experiment_id
            if known
            else self._client.create_experiment(self._experiment, artifact_location=place)
        )
        return self._client.create_run(experiment, run_name=name).info.run_id

    def scalars(self, step: int, values: dict[str, float | int]) -> None:
        now = int(1000 * time.time())
        row = [self._metric(name, value, now, step) for name, value in values.items()]
        self._client.log_batch(self._id, metrics=row)

    def text(self, step: int, name: str, value: str) -> None:
        self._client.log_text(self._id, value, f"{name}/step_{step}.txt")

    def close(self) -> None:
        self._client.set_terminated(self._id)

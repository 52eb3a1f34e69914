"""Scores one run of a comparison, in a process of its own; every row by the same protocol.

    python -m sedd_jax.comparison.score REQUEST

REQUEST is the JSON of a `Request`. Figures are the records of `sedd_jax.evaluate`, in the folder
of the run, and those that exist are kept; `FILE` lists them once all are there.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sedd_jax.comparison.settings import ComparisonSettings
from sedd_jax.evaluation import likelihood, quality
from sedd_jax.evaluation.catalog import DatasetCatalog
from sedd_jax.evaluation.record import FOLDER, Record, read_record
from sedd_jax.experiment import cli
from sedd_jax.experiment import mesh as meshes
from sedd_jax.experiment.config import MeshConfig
from sedd_jax.inference.load import load
from sedd_jax.model.settings_file import read_json
from sedd_jax.system.files import atomic_write_json

FILE = "comparison.json"


@dataclasses.dataclass(frozen=True)
class DataSets:
    """Data sets to score beside the held-out text, see `sedd_jax.evaluate`.

    Attributes:
      suites: their names.
      folder: searched for their files; None for no folder.
      sources: files of single ones.
      download: whether to fetch what is missing.
    """

    suites: tuple[str, ...] = ()
    folder: str | None = None
    sources: Mapping[str, str] = dataclasses.field(default_factory=dict)
    download: bool = False

    def resolve(self) -> tuple[DatasetCatalog, list[str], dict[str, list[str]]]:
        """Returns the catalog, the names of the sets, and for each suite what is missing.

        Raises:
          BadInput: no such suite, or no data for one.
        """
        folder = None if self.folder is None else Path(self.folder)
        catalog = DatasetCatalog(folder, dict(self.sources), self.download)
        return catalog, *likelihood.resolve_suites(self.suites, catalog, "sedd")


@dataclasses.dataclass(frozen=True)
class Request:
    """What to score.

    Attributes:
      run: the folder.
      step: of its last checkpoint.
      settings: of the comparison.
      judge: the model that scores samples; None for none.
      own_judge: whether that is a run of the comparison.
      data: sets to score beside the held-out text.
    """

    run: str
    step: int
    settings: ComparisonSettings
    judge: str | None
    own_judge: bool
    data: DataSets

    def to_json(self) -> str:
        """Returns the argument of this module."""
        return json.dumps(dataclasses.asdict(self))

    @property
    def facts(self) -> dict[str, Any]:
        """All that the figures depend on; not where the comparison is."""
        values = json.loads(self.to_json())
        return {**values, "run": None, "judge": None if self.own_judge else self.judge}

    @classmethod
    def from_json(cls, text: str) -> "Request":
        """Returns the request of an argument."""
        values = json.loads(text)
        data = values["data"] | {"suites": tuple(values["data"]["suites"])}
        groups = {"settings": ComparisonSettings(**values["settings"]), "data": DataSets(**data)}
        return cls(**values | groups)


def scored(request: Request) -> list[Record] | None:
    """Returns the records that a request asks for; None if they are not all there."""
    folder = Path(request.run) / FOLDER
    if not (folder / FILE).is_file():
        return None
    found = read_json(folder / FILE)
    paths = [folder / name for name in found["records"]]
    if found["request"] != request.facts or not all(path.is_file() for path in paths):
        return None
    return list(map(read_record, paths))


def score(request: Request) -> None:
    """Makes the records of a run, and then the list of them."""
    run, settings = Path(request.run), request.settings
    folder = run / FOLDER
    mesh = meshes.build_mesh(MeshConfig())
    checkpoint = load(run, step=request.step, mesh=mesh, trust_code=True)  # the user's own
    catalog, names, _ = request.data.resolve()
    choices = settings.choices
    names = dict.fromkeys((likelihood.HELDOUT, *names))
    sets = likelihood.load_sets(checkpoint, names, catalog, choices)
    records = likelihood.measure(checkpoint, sets, choices, folder)
    if settings.samples:
        scorer = request.judge and load(request.judge, mesh=mesh, trust_code=True)
        length = checkpoint.config.model.length
        for each in settings.qualities(checkpoint.family, length):
            planned = quality.plan(checkpoint, each, scorer=scorer, reference=likelihood.HELDOUT)
            records += quality.run(planned, folder)
    files = list(dict.fromkeys(record.file for record in records))
    atomic_write_json(folder / FILE, {"request": request.facts, "records": files}, indent=1)


def main(arguments: list[str]) -> None:
    """Scores as the argument says."""
    score(Request.from_json(arguments[0]))


if __name__ == "__main__":
    cli.run(main, takes_names=True)

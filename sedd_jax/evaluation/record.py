"""What an evaluation leaves behind: one JSON file for each thing that was measured.

A record is known by what its figures depend on: the same question is answered from the file, so
that a stopped evaluation goes on where it was, and another one never takes its place.
"""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from sedd_jax.display.table import to_json
from sedd_jax.errors import BadInput
from sedd_jax.inference.load import Checkpoint
from sedd_jax.model.score_model import count_params
from sedd_jax.runtime.checksum import checksums
from sedd_jax.runtime.files import write_whole

FOLDER = "evaluations"  # in the folder of a run


@dataclasses.dataclass(frozen=True)
class Record:
    """One answer.

    Attributes:
      kind: likelihood: of a data set; quality: of samples.
      name: of the data set, or of the way to sample, as in "tweedie-128".
      model: what `identity` returns.
      protocol: all else that the figures depend on.
      figures: what was found.
    """

    kind: Literal["likelihood", "quality"]
    name: str
    model: dict[str, Any]
    protocol: dict[str, Any]
    figures: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def file(self) -> str:
        """The name of its file, by the question alone."""
        asked = {"model": self.model, "protocol": self.protocol}
        digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
        return f"{self.kind}-{self.name}-{digest[:8]}.json"


def identity(checkpoint: Checkpoint, *, averaged: bool) -> dict[str, Any]:
    """Returns what tells a model from others: name, step, size and a checksum of the weights."""
    config, weights = checkpoint.config, checksums(checkpoint.params)
    digest = hashlib.sha256(json.dumps(weights, sort_keys=True).encode()).hexdigest()
    return {
        "name": None if checkpoint.folder is None else checkpoint.folder.name,
        "family": config.family,
        "graph": config.graph if config.family == "diffusion" else None,
        "step": checkpoint.step,
        "averaged": averaged,
        "parameters": count_params(checkpoint.params),
        "weights": digest[:16],
        "length": config.model.length,
        "tokenizer": None if checkpoint.tokenizer is None else checkpoint.tokenizer.kind,
        "dtype": config.model.dtype,
    }


def answered(folder: Path, question: Record) -> Record | None:
    """Returns the record in `folder` that answers the same question, if there is one.

    Raises:
      BadInput: what bears its name is no record, or answers another question.
    """
    path = folder / question.file
    if not path.exists():
        return None
    known = _read(path)
    if known.file != question.file or not known.figures:
        raise BadInput(
            f"{path} is not a record of an evaluation (it answers another question, or none); "
            "move it away."
        )
    return known


def save(folder: Path, record: Record) -> Path:
    """Writes the record into `folder`, at once or not at all, and returns where."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / record.file
    write_whole(path, to_json(dataclasses.asdict(record)).encode())
    return path


def read_records(folder: Path) -> list[Record]:
    """Returns all records in `folder`, by the names of their files; none if there is no folder."""
    return [_read(path) for path in sorted(folder.glob("*-*-????????.json"))]


def _read(path):
    try:
        return Record(**json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise BadInput(
            f"{path} is not a record of an evaluation ({error}); move it away."
        ) from error

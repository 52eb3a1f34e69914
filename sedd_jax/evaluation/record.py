"""What an evaluation leaves behind: one JSON file for each thing that was measured.

A record is known by what its figures depend on: the same question is answered from the file, so
that a stopped evaluation goes on where it was, and another one never takes its place.
"""

import dataclasses
import hashlib
import json
import sys
from pathlib import Path
from typing import Any, Literal

import jax

from sedd_jax.display.table import to_json
from sedd_jax.errors import BadInput
from sedd_jax.experiment.build import compute_dtype
from sedd_jax.experiment.card import noise_in_words
from sedd_jax.experiment.integrity import fingerprint, not_finite
from sedd_jax.inference.model import TrainedModel
from sedd_jax.model.score_model import count_params
from sedd_jax.system.files import atomic_write

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
        """The name of its file, by the question alone; what models and texts are called is none."""
        asked = _nameless({"model": self.model, "protocol": self.protocol})
        digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
        return f"{self.kind}-{self.name}-{digest[:8]}.json"


def identity(checkpoint: TrainedModel, *, averaged: bool) -> dict[str, Any]:
    """Returns what tells a model from others: name, step, size and a checksum of the weights.

    Raises:
      FloatingPointError: weights that are not finite.
    """
    config, tokenizer = checkpoint.config, checkpoint.tokenizer
    if broken := not_finite(checkpoint.params):
        raise FloatingPointError(
            f"The weights of {checkpoint.name or 'the model'} are not finite in "
            f"{', '.join(broken[:3])}: they are of no use, try another checkpoint."
        )
    platform = next(iter(jax.tree.leaves(checkpoint.params)[0].devices())).platform
    return {
        "name": checkpoint.name,
        "family": config.family,
        "graph": config.graph if config.uses_noise else None,
        "noise": noise_in_words(config.noise) if config.uses_noise else None,
        "step": checkpoint.step,
        "averaged": averaged,
        "parameters": count_params(checkpoint.params),
        "weights": fingerprint(checkpoint.params),
        "length": config.model.length,
        "tokenizer": None if tokenizer is None else tokenizer.kind,
        "fingerprint": None if tokenizer is None else tokenizer.fingerprint()[:16],
        "dtype": compute_dtype(config.model.dtype, platform).name,
    }


def _nameless(value):
    if not isinstance(value, dict):
        return value
    return {key: _nameless(each) for key, each in value.items() if key != "name"}


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
    atomic_write(path, to_json(dataclasses.asdict(record)))
    return path


def read_records(folder: Path) -> list[Record]:
    """Returns all records in `folder`, by the names of their files; none if there is no folder.

    What is no record is named on stderr and left out.
    """
    records = []
    for path in sorted(folder.glob("*-*-????????.json")):
        try:
            records.append(_read(path))
        except BadInput as error:
            print(f"Left out: {error}", file=sys.stderr, flush=True)
    return records


def _read(path):
    try:
        record = Record(**json.loads(path.read_text()))
        if not all(isinstance(it, dict) for it in (record.model, record.protocol, record.figures)):
            raise TypeError("its model, protocol and figures are not all objects")
    except (ValueError, TypeError, OSError) as error:
        raise BadInput(
            f"{path} is not a record of an evaluation ({error}); move it away."
        ) from error
    # a text may be the word alone
    figures = {
        name: value if name == "texts" else _numbers(value)
        for name, value in record.figures.items()
    }
    return dataclasses.replace(record, figures=figures)


def _numbers(value):
    """Undoes what `to_json` makes of numbers that JSON lacks."""
    if isinstance(value, list):
        return [_numbers(entry) for entry in value]
    return float(value) if value in ("nan", "inf", "-inf") else value

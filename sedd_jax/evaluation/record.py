"""Records of evaluations, one JSON file each, and the names of models and rows in tables.

A record is identified by all that its figures depend on. A repeated command therefore finds what
was measured before, and no evaluation overwrites another one.
"""

import dataclasses
import hashlib
import json
import re
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from sedd_jax.display.table import to_json
from sedd_jax.errors import BadInput
from sedd_jax.experiment.card import describe_noise
from sedd_jax.experiment.integrity import nonfinite_paths
from sedd_jax.inference.model import TrainedModel
from sedd_jax.model.score_model import count_params
from sedd_jax.system import mirror
from sedd_jax.system.files import atomic_write
from sedd_jax.system.processes import broadcast_from_primary, is_primary, on_primary

FOLDER = "evaluations"  # in the folder of a run
# never part of a name, nor is the reference, which changes MAUVE alone
_UNNAMED = ("sampler", "steps", "samples", "final_step", "mauve")


@dataclasses.dataclass(frozen=True)
class Record:
    """One evaluation; without figures, the query for it.

    Attributes:
      kind: "likelihood" of a data set, the "interval" that it lies in, or "quality" of samples.
      name: of the data set, or of the sampler setting, as in "tweedie-128".
      model: what `describe_model` returns.
      protocol: all else that the figures depend on.
      figures: the results.
    """

    kind: Literal["likelihood", "interval", "quality"]
    name: str
    model: dict[str, Any]
    protocol: dict[str, Any]
    figures: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def file(self) -> str:
        """The name of its file, by model and protocol without the names of models and texts."""
        query = _nameless({"model": self.model, "protocol": self.protocol})
        digest = hashlib.sha256(json.dumps(query, sort_keys=True).encode()).hexdigest()
        name = re.sub(r"[^\w.:=]+", "-", self.name)  # a sampler may have options in brackets
        return f"{self.kind}-{name}-{digest[:8]}.json"

    @property
    def is_real(self) -> bool:
        """Whether the samples are real text, which takes no network evaluation."""
        return self.kind == "quality" and self.figures.get("evaluations") == 0

    @property
    def settings(self) -> dict[str, str]:
        """All that the figures depend on beside the model, as far as it applies, as text."""
        return dict(_flat(self.protocol))


def _nameless(value):
    if not isinstance(value, dict):
        return value
    return {key: _nameless(each) for key, each in value.items() if key != "name"}


def describe_model(checkpoint: TrainedModel, *, averaged: bool) -> dict[str, Any]:
    """Returns what distinguishes a model from others: name, step, size, checksum of the weights.

    Raises:
      FloatingPointError: weights that are not finite.
    """
    config, tokenizer = checkpoint.config, checkpoint.tokenizer
    if broken := nonfinite_paths(checkpoint.params):
        raise FloatingPointError(
            f"The weights of {checkpoint.name or 'the model'} are not finite in "
            f"{', '.join(broken[:3])}: try another checkpoint."
        )
    identity = checkpoint.identity
    output = config.model.output
    return {
        "name": checkpoint.name,
        "family": config.family,
        "graph": config.graph if config.uses_noise else None,
        "noise": describe_noise(config.noise) if config.uses_noise else None,
        **({} if output == "ratio" else {"output": output}),  # as in records of before
        "step": checkpoint.step,
        "averaged": averaged,
        "parameters": count_params(checkpoint.params),
        "weights": identity.weights,
        "length": config.model.length,
        "tokenizer": tokenizer and tokenizer.kind,
        "fingerprint": identity.tokenizer and identity.tokenizer[:16],
        "dtype": identity.dtype,
    }


def find_cached(folder: Path, query: Record) -> Record | None:
    """Returns the record of the same model and protocol in `folder`, if there is one.

    Raises:
      BadInput: the file of that name is not a record, or belongs to another query.
    """
    path = folder / query.file
    if not path.exists():
        return None
    known = read_record(path)
    if known.file != query.file or not known.figures:
        raise BadInput(
            f"{path} is not a record of an evaluation (it has another protocol, or no figures); "
            "move it away."
        )
    return known


def find_or_measure(folder: Path, query: Record, measure: Callable[[], dict[str, Any]]) -> Record:
    """Returns the record of a query, read from `folder` or else measured and saved there.

    All processes of a job call this and measure; process 0 reads and writes.

    Args:
      folder: of records.
      query: a record without figures.
      measure: returns the figures, to which the seconds that it took are added.

    Raises:
      BadInput: the file of that name is not a record, or belongs to another query.
    """
    known = on_primary(lambda: find_cached(folder, query))
    if broadcast_from_primary(known is not None):
        log_on_primary(f"{query.name}: known from {query.file}")
        return known or query
    started = time.monotonic()
    figures = measure() | {"seconds": time.monotonic() - started}
    record = dataclasses.replace(query, figures=figures)
    on_primary(lambda: save(folder, record))
    return record


def save(folder: Path, record: Record) -> Path:
    """Writes the record into `folder` atomically, and returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / record.file
    atomic_write(path, to_json(dataclasses.asdict(record)))
    mirror.push(path)  # a bucket has it too, however the evaluation ends
    return path


def read_records(folder: Path) -> list[Record]:
    """Returns all records in `folder`, in the order of their files; none if there is no folder.

    A file that is not a record is named on stderr and left out.
    """
    records = []
    for path in sorted(folder.glob("*-*-????????.json")):
        try:
            records.append(read_record(path))
        except BadInput as error:
            print(f"Left out: {error}", file=sys.stderr, flush=True)
    return records


def read_record(path: Path) -> Record:
    """Returns the record in a file; raises BadInput where it is none."""
    try:
        record = Record(**json.loads(path.read_text()))
        if not all(isinstance(it, dict) for it in (record.model, record.protocol, record.figures)):
            raise TypeError("its model, protocol and figures are not all objects")
    except (ValueError, TypeError, OSError) as error:
        raise BadInput(
            f"{path} is not a record of an evaluation ({error}); move it away."
        ) from error
    figures = {  # a text may consist of the word "nan"
        name: value if name == "texts" else _numbers(value)
        for name, value in record.figures.items()
    }
    return dataclasses.replace(record, figures=figures)


def _numbers(value):
    """Inverts what `to_json` makes of numbers that JSON lacks."""
    if isinstance(value, list):
        return [_numbers(entry) for entry in value]
    return float(value) if value in ("nan", "inf", "-inf") else value


def log_on_primary(text: str) -> None:
    """Prints a line on stderr, on process 0 only."""
    if is_primary():
        print(text, file=sys.stderr, flush=True)


Label = Callable[[Record], str]


def labels(records: Iterable[Record]) -> Label:
    """Returns the function from a record to the unique name of its model."""
    weights = defaultdict(set)
    for record in records:
        weights[_model_name(record)].add(_weights(record))

    def label(record):
        name = _model_name(record)
        return f"{name} ({_weights(record)[:8]})" if len(weights[name]) > 1 else name

    return label


def _model_name(record):
    name = record.model.get("name") or record.model.get("family") or "unnamed"
    step = record.model.get("step")
    return name if step is None else f"{name}, step {step:,}"


def _weights(record):
    return str(record.model.get("weights"))


def real_names(records: Sequence[Record]) -> list[str]:
    """Returns unique names of real texts; each may be tokenised in its own way."""
    sources = [(record.protocol.get("reference") or {}).get("name") for record in records]
    names = [f"real text: {source}" if source else "real text" for source in sources]
    each = [_naming(it.settings) | {"tokenizer": it.model.get("tokenizer")} for it in records]
    return _with_counts(distinguish(names, each), records)


def sampler_names(records: Sequence[Record], label: Label) -> list[str]:
    """Returns names of sampler settings; records of one name differ in steps only."""
    names = distinguish(_plain_names(records, label), _differing_models(records, label))
    return _with_counts(names, records)


def sample_titles(records: Sequence[Record], label: Label) -> list[str]:
    """Returns unique titles for the texts of samples: how they were drawn, in full."""
    reals = iter(real_names([record for record in records if record.is_real]))
    names = [
        next(reals) if record.is_real else ", ".join([name, *_counts(record)])
        for name, record in zip(_plain_names(records, label), records, strict=True)
    ]
    return distinguish(names, _differing_models(records, label))


def _plain_names(records, label):
    """The samplers, after the labels of the models if there are several."""
    several = len({label(record) for record in records}) > 1
    samplers = [str(record.protocol.get("sampler")) for record in records]
    if not several:
        return samplers
    return [f"{label(it)}, {name}" for it, name in zip(records, samplers, strict=True)]


def _counts(record):
    counts = {"steps": record.protocol.get("steps"), "samples": record.figures.get("samples")}
    yield from (f"{count:,} {name}" for name, count in counts.items() if count)
    if (seed := record.protocol.get("seed")) is not None:
        yield f"seed {seed}"


def model_settings(records: Sequence[Record], label: Label) -> list[dict[str, str]]:
    """Returns for each record the facts in which models of one label differ, as text."""
    each = [{f"model {key}": value for key, value in _flat(it.model)} for it in records]
    alike = defaultdict(list)
    for record, model in zip(records, each, strict=True):
        alike[label(record)].append(model)
    differing = {name: differing_keys(models) for name, models in alike.items()}
    return [
        {key: value for key, value in model.items() if key in differing[label(record)]}
        for record, model in zip(records, each, strict=True)
    ]


def distinguish(names: list[str], each: list[dict[str, str]]) -> list[str]:
    """Returns the names, equal ones followed by key=value for the settings that differ.

    Args:
      names: of the rows.
      each: the settings of every row.
    """
    alike = defaultdict(list)
    for name, values in zip(names, each, strict=True):
        alike[name].append(values)
    keys = {name: differing_keys(values) for name, values in alike.items()}
    return [
        ", ".join([name, *(f"{key}={values[key]}" for key in keys[name] if key in values)])
        for name, values in zip(names, each, strict=True)
    ]


def differing_keys(each: Sequence[Mapping[str, str]]) -> list[str]:
    """Returns the keys with more than one value; an absent key has none."""
    found: dict[str, set] = defaultdict(set)
    for values in each:
        for key, value in values.items():
            found[key].add(value)
    return [key for key, values in found.items() if len(values) > 1]


def _differing_models(records, label):
    models = model_settings(records, label)
    return [_naming(it.settings) | model for it, model in zip(records, models, strict=True)]


def _with_counts(names, records):
    """Adds the number of samples where one number of steps would have two points."""
    points = [(name, it.protocol.get("steps")) for name, it in zip(names, records, strict=True)]
    counts = Counter(points)
    twice = {name for name, steps in points if counts[name, steps] > 1}
    each = [
        {"samples": str(record.figures.get("samples"))} if name in twice else {}
        for name, record in zip(names, records, strict=True)
    ]
    return distinguish(names, each)


def _naming(settings):
    """The settings that may be part of a name; of a scoring model its name alone."""
    return {
        key.removesuffix(" name"): value
        for key, value in settings.items()
        if key == "judge name" or not (key in _UNNAMED or key.startswith(("reference", "judge")))
    }


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key} ")
        elif key == "sha256":
            yield f"{prefix}{key}", str(value)[:12]
        elif value is not None:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value)

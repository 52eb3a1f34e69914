"""What models and rows are called where records stand side by side: no two of them alike."""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from sedd_jax.evaluation.record import Record

Label = Callable[[Record], str]
# a judge is told by its name, and real text changes nothing but MAUVE
_NEVER_IN_NAMES = ("sampler", "steps", "samples", "final_step", "mauve")


def labels(records: Iterable[Record]) -> Label:
    """Returns what tells the name of a record's model, unlike that of other weights."""
    weights = defaultdict(set)
    for record in records:
        weights[model_name(record)].add(_weights(record))

    def label(record):
        name = model_name(record)
        return f"{name} ({_weights(record)[:8]})" if len(weights[name]) > 1 else name

    return label


def model_name(record: Record) -> str:
    """Returns the name of the model, and which of its steps."""
    model = record.model
    name, step = model.get("name") or model.get("family") or "unnamed", model.get("step")
    return name if step is None else f"{name}, step {step:,}"


def is_real(record: Record) -> bool:
    """Says whether the samples of a record are real text, for which no network was called."""
    return record.kind == "quality" and record.figures.get("evaluations") == 0


def real_names(records: Sequence[Record]) -> list[str]:
    """Returns what real texts are called, of which each may be cut into tokens in its own way."""
    sources = [(record.protocol.get("reference") or {}).get("name") for record in records]
    names = [f"real text: {source}" if source else "real text" for source in sources]
    each = [_named(settings(it)) | {"tokenizer": it.model.get("tokenizer")} for it in records]
    return _by_samples(told_apart(names, each), records)


def settings(record: Record) -> dict[str, str]:
    """Returns all that the figures depend on beside the model, as far as it applies, as text."""
    return dict(_flat(record.protocol))


def model_settings(records: Sequence[Record], label: Label) -> list[dict[str, str]]:
    """Returns for each record what its model is, where one label stands for several models."""
    each = [{f"model {key}": value for key, value in _flat(it.model)} for it in records]
    alike = defaultdict(list)
    for record, model in zip(records, each, strict=True):
        alike[label(record)].append(model)
    differing = {name: differing_keys(models) for name, models in alike.items()}
    return [
        {key: value for key, value in model.items() if key in differing[label(record)]}
        for record, model in zip(records, each, strict=True)
    ]


def way_names(records: Sequence[Record], label: Label) -> list[str]:
    """Returns names of the ways in which samples were made: of one name, they differ in steps.

    What else tells records of one way from others is named with its value.
    """
    several = len({label(record) for record in records}) > 1
    keys = ("sampler",)
    names = []
    for record in records:
        words = [label(record)] if several else []
        names.append(", ".join([*words, *(str(record.protocol.get(key)) for key in keys)]))
    models = model_settings(records, label)
    each = [_named(settings(it)) | model for it, model in zip(records, models, strict=True)]
    return _by_samples(told_apart(names, each), records)


def sample_titles(records: Sequence[Record], label: Label) -> list[str]:
    """Returns what samples are called where they are read: how they were made, in full."""
    several = len({label(record) for record in records}) > 1
    real = [record for record in records if is_real(record)]
    reals = iter(real_names(real))
    names = [next(reals) if is_real(it) else ", ".join(_way(it, several, label)) for it in records]
    models = model_settings(records, label)
    each = [_named(settings(it)) | model for it, model in zip(records, models, strict=True)]
    return told_apart(names, each)


def _way(record, several, label):
    asked = record.protocol
    words = [label(record) if several else None, asked.get("sampler")]
    counts = {"steps": asked.get("steps"), "samples": record.figures.get("samples")}
    yield from (str(word) for word in words if word)
    yield from (f"{count:,} {name}" for name, count in counts.items() if count)
    if asked.get("seed") is not None:
        yield f"seed {asked['seed']}"


def told_apart(names: list[str], each: list[dict[str, str]]) -> list[str]:
    """Returns the names, with those settings as key=value in which others of the name differ."""
    alike = defaultdict(list)
    for name, values in zip(names, each, strict=True):
        alike[name].append(values)
    keys = {name: differing_keys(values) for name, values in alike.items()}
    return [
        ", ".join([name, *(f"{key}={values[key]}" for key in keys[name] if key in values)])
        for name, values in zip(names, each, strict=True)
    ]


def differing_keys(each: Sequence[Mapping[str, str]]) -> list[str]:
    """Returns the keys of which there is more than one value; a key that is absent has none."""
    found: dict[str, set] = defaultdict(set)
    for values in each:
        for key, value in values.items():
            found[key].add(value)
    return [key for key, values in found.items() if len(values) > 1]


def _by_samples(names, records):
    """More samples are another point only where there would be two for one number of steps."""
    asked = [(name, it.protocol.get("steps")) for name, it in zip(names, records, strict=True)]
    counts = Counter(asked)
    twice = {name for name, steps in asked if counts[name, steps] > 1}
    each = [
        {"samples": str(record.figures.get("samples"))} if name in twice else {}
        for name, record in zip(names, records, strict=True)
    ]
    return told_apart(names, each)


def _named(values):
    """The settings that may be part of a name."""
    kept = {
        key: value
        for key, value in values.items()
        if key not in _NEVER_IN_NAMES and not key.startswith(("reference", "judge"))
    }
    return kept | ({"judge": values["judge name"]} if "judge name" in values else {})


def _weights(record):
    return str(record.model.get("weights"))


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key} ")
        elif key == "sha256":
            yield f"{prefix}{key}", str(value)[:12]
        elif value is not None:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value)

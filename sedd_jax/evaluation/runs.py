"""Run folders as a report takes them: settings, versions, training and evaluations."""

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import jax

from sedd_jax.data.account import Fact
from sedd_jax.data.conditions import find_conditions
from sedd_jax.data.tokenizer import find_tokenizer
from sedd_jax.errors import BadInput
from sedd_jax.evaluation.record import FOLDER, Record, read_records
from sedd_jax.experiment import card, metrics
from sedd_jax.experiment.run import CONFIG_FILE, DATA_FOLDER, read_settings
from sedd_jax.inference.build import build_family, dotted_paths
from sedd_jax.model.score_model import count_params
from sedd_jax.system import mirror
from sedd_jax.system.registry import is_dotted
from sedd_jax.system.settings import flatten
from sedd_jax.training.evaluator import training_sampling

# that a report reads
FILES = ("*.json", metrics.FILE, card.FILE, f"{DATA_FOLDER}/*")


class Run(NamedTuple):
    """A run folder, or a folder of evaluations.

    Attributes:
      label: its unique name.
      folder: as it was given.
      facts: its settings and training; None where there are only evaluations.
      records: its evaluations; those of a run are under its label.
      versions: of the packages that trained it, as far as they are known.
      drawing: how the samples of its training were drawn, in words; "" if unknown.
    """

    label: str
    folder: Path
    facts: card.RunFacts | None
    records: list[Record]
    versions: dict[str, str] = {}  # noqa: RUF012 - never changed
    drawing: str = ""

    @property
    def settings(self) -> dict[str, str]:
        """The settings as text, folders left out; empty without a training."""
        return as_text(self.facts.config) if self.facts else {}


def as_text(config: Any) -> dict[str, str]:
    """Returns settings by their dotted names, as text, without the folders of this machine."""
    values = card.without_folders(flatten(dataclasses.asdict(config)))
    return {
        key: value if isinstance(value, str) else json.dumps(value) for key, value in values.items()
    }


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Returns the runs in these folders, finished or not; duplicates are dropped.

    A folder may hold the records of evaluations alone, as `evaluate --output` writes them.

    Raises:
      BadInput: a folder is missing, or holds neither a run nor evaluations.
    """
    given = {folder.resolve(): folder for folder in reversed(folders)}
    real = list(dict.fromkeys(folder.resolve() for folder in folders))
    return [_read(it, given[it], label) for it, label in zip(real, _labels(real), strict=True)]


def _labels(folders):
    """The shortest ending of each path or address that no other has."""
    places = [PurePath(mirror.shown(folder)) for folder in folders]

    def last(folder, count):
        return "/".join(folder.parts[-count:])

    def label(folder):
        counts = range(1, len(folder.parts))
        others = [other for other in places if other != folder]
        unique = (n for n in counts if last(folder, n) not in {last(it, n) for it in others})
        return last(folder, next(unique, len(folder.parts)))

    return [label(place) for place in places]


def _read(folder, given, label):
    if not folder.is_dir():
        raise BadInput(f"There is no folder {folder}; name the folders of runs.")
    records = [*read_records(folder / FOLDER), *read_records(folder)]
    found = _trained(folder)
    if found is None:
        if not records:
            raise BadInput(
                f"{folder} is no run: it holds neither {CONFIG_FILE} of a training nor records of "
                f"evaluations, in {FOLDER}/ or itself."
            )
        return Run(label, given, None, records)  # which may be of several models
    facts, drawing = found
    records = [
        dataclasses.replace(record, model=record.model | {"name": label}) for record in records
    ]
    return Run(label, given, facts, records, card.read_versions(folder), drawing)


def _trained(folder):
    """The facts of a training, and how its samples were drawn; None if there was none."""
    settings, tokens = folder / CONFIG_FILE, folder / DATA_FOLDER
    if not settings.is_file() or not tokens.exists():
        return None  # the config.json of a published model has another layout
    config, tokenizer = read_settings(settings), find_tokenizer(tokens / "tokenizer")
    vocab_size = tokenizer.vocab_size if tokenizer else config.data.vocab_size
    if not vocab_size:
        raise BadInput(f"{folder} lacks its {DATA_FOLDER}/tokenizer; copy it there.")
    history = card.read_history(card.find_records(folder), sys.maxsize)
    rows = history["rows"]
    parameters, drawing = None, ""
    if not dotted_paths(config):  # a report runs no code that a folder names
        family = _family(config, vocab_size, find_conditions(tokens))
        parameters = count_params(jax.eval_shape(family.model.init, jax.random.key(0)))
        drawing = _drawing(config, family)
    return card.RunFacts(
        config=config,
        parameters=parameters,
        tokenizer=tokenizer,
        **history | {"step": rows[-1]["step"] if rows else None},
    ), drawing


def _family(config, vocab_size, conditions):
    # the run may have been trained on another kind of device
    here = dataclasses.replace(config, model=dataclasses.replace(config.model, attention="auto"))
    return build_family(here, vocab_size, conditions=conditions)


def _drawing(config, family):
    if config.family == "classifier" or is_dotted(config.eval.sampler):
        return ""
    sampling = training_sampling(family, config.eval)
    sampler = getattr(sampling, "sampler", config.family)
    evaluations = family.max_nfe(sampling, config.model.length)
    return f"{sampler}, at most {evaluations:,} network evaluations, seed {config.seed}"


def origins(run: Run) -> list[Fact]:
    """Returns what else than its settings a run depends on: data and versions of packages."""
    manifest = card.without_folders((run.facts and run.facts.manifest) or {})
    parts = [(f" {it['folder']}", it["manifest"]) for it in manifest.get("prepared", [])]
    return [
        *(
            (f"sha256 of{folder} {name}", str(content.get("sha256", ""))[:12])
            for folder, part in parts or [("", manifest)]
            for name, content in part.get("contents", {}).items()
        ),
        *((f"version of {name}", version) for name, version in run.versions.items()),
    ]

"""Writing a loaded model to a new folder, in the published layout or as a run folder."""

import dataclasses
import json
import shutil
from pathlib import Path

from sedd_jax.experiment.card import (
    RECORDS,
    RunFacts,
    find_records,
    read_history,
    without_folders,
    write_card,
)
from sedd_jax.experiment.checkpoint import Checkpoints
from sedd_jax.experiment.published_config import to_published
from sedd_jax.experiment.run import CONFIG_FILE, DATA_FOLDER
from sedd_jax.inference.load import TOKENIZER_FOLDER
from sedd_jax.inference.model import TrainedModel
from sedd_jax.model import pretrained
from sedd_jax.model.score_model import count_params
from sedd_jax.system.files import atomic_move, check_output_path
from sedd_jax.system.staging import staged


def save_published(model: TrainedModel, folder: Path) -> None:
    """Writes config.json, model.safetensors and tokenizer/ of the published layout.

    Raises:
      BadInput: the published code has no such model.
    """
    published = to_published(model.config)
    published = dataclasses.replace(published, tokens=model.graph.num_tokens)
    num_states = model.graph.num_states
    pretrained.write_published(folder, published, model.params, num_states)
    if model.tokenizer is not None:
        model.tokenizer.save(folder / TOKENIZER_FOLDER)


def save_run(model: TrainedModel, folder: Path) -> None:
    """Writes config.json, data/tokenizer/ and the one checkpoint of a run folder to load from."""
    config, place = model.config, f"{DATA_FOLDER}/{TOKENIZER_FOLDER}"
    # of a model that was not trained here only some settings are known
    settings = dataclasses.asdict(config) if model.step else _known(model, place)
    (folder / CONFIG_FILE).write_text(json.dumps(settings, indent=2) + "\n")
    if model.tokenizer is not None:
        model.tokenizer.save(folder / place)
    if model.conditions:
        model.conditions.save(folder / DATA_FOLDER)
    with Checkpoints(folder, config.checkpoint) as saved:
        saved.save_weights(model.step or 0, model.params, config)


def _known(model, place):
    config, tokenizer = model.config, model.tokenizer
    data = {"vocab_size": model.family.num_tokens}
    if tokenizer is not None:
        data |= {"tokenizer": tokenizer.kind, "tokenizer_path": place}
    groups = ("family", "model", *(("graph", "noise") if config.uses_noise else ()))
    settings = dataclasses.asdict(config)
    return {name: settings[name] for name in groups} | {"data": data}


LAYOUTS = {"published": save_published, "run": save_run}


def export(model: TrainedModel, output: Path, layout: str, *, weights: str, name: str) -> None:
    """Writes a model to a new folder, atomically, with its records and its card.

    Args:
      model: the model.
      output: the folder to make.
      layout: one of `LAYOUTS`.
      weights: which weights these are, in the words of the card.
      name: that the card gives for loading it.

    Raises:
      BadInput: `output` exists, or the layout has no such model.
    """
    records = find_records(model.folder) if model.folder else {}
    # a copy may travel: it names no folders of this machine
    config = model.config
    data = dataclasses.replace(config.data, **without_folders(dataclasses.asdict(config.data)))
    train = dataclasses.replace(config.train, initial=without_folders(config.train.initial))
    config = dataclasses.replace(config, data=data, train=train)
    model = dataclasses.replace(model, config=config)
    facts = RunFacts(
        config=model.config,
        parameters=count_params(model.params),
        tokenizer=model.tokenizer,
        weights=weights,
        **read_history(records, model.step),
    )
    with staged(output, {}) as staging:
        check_output_path(output)
        folder = staging / "model"
        shutil.rmtree(folder, ignore_errors=True)  # of an export that was killed
        folder.mkdir()
        LAYOUTS[layout](model, folder)
        manifest, rows = RECORDS
        if manifest in records:
            text = json.dumps(without_folders(facts.manifest), indent=1)
            (folder / manifest).write_text(text + "\n")
        if rows in records:
            shutil.copyfile(records[rows], folder / rows)
        write_card(folder, facts, name)
        atomic_move(folder, output)

"""A loaded model written to a folder of its own, in the published layout or as a run folder."""

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


def save_published(checkpoint: TrainedModel, folder: Path) -> None:
    """Writes config.json, model.safetensors and tokenizer/ of the published layout.

    Raises:
      BadInput: the published code has no such model.
    """
    published = to_published(checkpoint.config)
    published = dataclasses.replace(published, tokens=checkpoint.graph.num_tokens)
    num_states = checkpoint.graph.num_states
    pretrained.write_published(folder, published, checkpoint.params, num_states)
    if checkpoint.tokenizer is not None:
        checkpoint.tokenizer.save(folder / TOKENIZER_FOLDER)


def save_run(checkpoint: TrainedModel, folder: Path) -> None:
    """Writes config.json, data/tokenizer/ and the one checkpoint of a run folder to load from."""
    config, place = checkpoint.config, f"{DATA_FOLDER}/{TOKENIZER_FOLDER}"
    # of what was not trained here only some settings are known
    settings = dataclasses.asdict(config) if checkpoint.step else _known(checkpoint, place)
    (folder / CONFIG_FILE).write_text(json.dumps(settings, indent=2) + "\n")
    if checkpoint.tokenizer is not None:
        checkpoint.tokenizer.save(folder / place)
    with Checkpoints(folder, config.checkpoint) as saved:
        saved.save_weights(checkpoint.step or 0, checkpoint.params, config)


def _known(checkpoint, place):
    config, tokenizer = checkpoint.config, checkpoint.tokenizer
    data = {"vocab_size": checkpoint.family.num_tokens}
    if tokenizer is not None:
        data |= {"tokenizer": tokenizer.kind, "tokenizer_path": place}
    groups = ("family", "model", *(("graph", "noise") if config.uses_noise else ()))
    settings = dataclasses.asdict(config)
    return {name: settings[name] for name in groups} | {"data": data}


LAYOUTS = {"published": save_published, "run": save_run}


def export(checkpoint: TrainedModel, output: Path, layout: str, *, weights: str, name: str) -> None:
    """Writes a model to a new folder, whole or not at all, with what is known of it and its card.

    Args:
      checkpoint: the model.
      output: the folder to make.
      layout: one of `LAYOUTS`.
      weights: which weights these are, in the words of the card.
      name: by which the card says it is loaded.

    Raises:
      BadInput: `output` exists, or the layout has no such model.
    """
    records = find_records(checkpoint.folder) if checkpoint.folder else {}
    # a copy may travel: it names no folders of this machine
    config = checkpoint.config
    data = dataclasses.replace(config.data, **without_folders(dataclasses.asdict(config.data)))
    train = dataclasses.replace(config.train, initial=without_folders(config.train.initial))
    config = dataclasses.replace(config, data=data, train=train)
    checkpoint = dataclasses.replace(checkpoint, config=config)
    facts = RunFacts(
        config=checkpoint.config,
        parameters=count_params(checkpoint.params),
        tokenizer=checkpoint.tokenizer,
        weights=weights,
        **read_history(records, checkpoint.step),
    )
    with staged(output, {}) as staging:
        check_output_path(output)
        folder = staging / "model"
        shutil.rmtree(folder, ignore_errors=True)  # of an export that was killed
        folder.mkdir()
        LAYOUTS[layout](checkpoint, folder)
        manifest, rows = RECORDS
        if manifest in records:
            text = json.dumps(without_folders(facts.manifest), indent=1)
            (folder / manifest).write_text(text + "\n")
        if rows in records:
            shutil.copyfile(records[rows], folder / rows)
        write_card(folder, facts, name)
        atomic_move(folder, output)

"""The run folder: its data and its settings, made once, checked ever after."""

import os
from pathlib import Path

from sedd_jax.data.blocks import Dataset, prepare_blocks
from sedd_jax.errors import BadInput
from sedd_jax.runtime import config as configs
from sedd_jax.runtime.config import Config

CONFIG_FILE = "config.json"

# settings that may change between the parts of a run: they do not alter what was trained so far
_FREE = ("train.steps", "train.log_every", "eval.", "checkpoint.")


def open_run(run: Path, config: Config) -> None:
    """Writes the settings into a new run folder, or checks them against those of the old run.

    Raises:
      BadInput: the folder holds something else, or a run with other settings.
    """
    path = run / CONFIG_FILE
    if path.exists():
        old = configs.from_json(path.read_text())
        changes = [line for line in configs.differences(old, config) if not _is_free(line, config)]
        if changes:
            raise BadInput(
                f"{run} holds a run with other settings ({'; '.join(changes)}); choose another "
                "--workdir or go back to those settings."
            )
    temporary = path.with_suffix(".tmp")
    temporary.write_text(configs.to_json(config) + "\n")
    os.replace(temporary, path)


def _is_free(line, config):
    # a cosine schedule is laid out over train.steps, so there the number is part of the past too
    if line.startswith("train.steps") and config.optim.decay != "constant":
        return False
    return line.startswith(_FREE)


def open_data(run: Path, config: Config) -> Dataset:
    """Prepares the token blocks of `config` in the run folder, or opens those that are there.

    Raises:
      BadInput: the folder holds something else than a run, the text cannot be used, or the
        tokenizer has another size than the config says.
    """
    if run.exists() and (not run.is_dir() or (any(run.iterdir()) and not _is_run(run))):
        raise BadInput(f"{run} exists and is not a run folder; choose another --workdir.")
    data = config.data
    dataset = prepare_blocks(
        run / "data",
        corpus=data.corpus,
        separator=data.separator,
        heldout_fraction=data.heldout_fraction,
        tokenizer_kind=data.tokenizer,
        vocab_size=data.vocab_size,
        tokenizer_path=data.tokenizer_path,
        length=config.model.length,
    )
    size = dataset.tokenizer.vocab_size
    if data.vocab_size not in (0, size):
        raise BadInput(
            f"config.data.vocab_size is {data.vocab_size}, but the {data.tokenizer} tokenizer of "
            f"{run / 'data'} has {size} tokens; set it to {size}, or to 0 for any."
        )
    if len(dataset.heldout) < config.eval.batch_size:
        raise BadInput(
            f"config.eval.batch_size is {config.eval.batch_size}, but there are only "
            f"{len(dataset.heldout)} held-out blocks of {config.model.length} tokens; lower it, or "
            "raise config.data.heldout_fraction."
        )
    return dataset


def _is_run(run):
    return (run / CONFIG_FILE).is_file() or (run / "data").is_dir()

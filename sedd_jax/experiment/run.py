"""The run folder: its data and its settings, written once and checked whenever the run resumes."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from sedd_jax.data.preparation import check_vocab_size, prepare_blocks
from sedd_jax.data.prepared import Dataset, link_prepared, open_data
from sedd_jax.errors import BadInput
from sedd_jax.experiment import config as configs
from sedd_jax.experiment.checkpoint_folder import last_saved
from sedd_jax.experiment.config import Config
from sedd_jax.model.settings_file import read_json
from sedd_jax.system import lease, lease_follower, mirror
from sedd_jax.system.files import atomic_write, check_local
from sedd_jax.system.lock import exclusive
from sedd_jax.system.settings import marked
from sedd_jax.system.staging import staging_folder

CONFIG_FILE = "config.json"
DATA_FOLDER = "data"
LOCK_FILE = "lock"


def open_run(run: Path, config: Config) -> Dataset:
    """Makes the folder of a new run, or checks that it holds this run, and returns its data.

    The data are prepared once, here or in advance, and do not change: to resume, the corpus is not
    needed. Data prepared in advance may have moved, if `config.data.prepared` names their new
    place. A preparation that was killed is resumed. Of several processes one alone does this, under
    the lock of the folder; the others `read_run`.

    Raises:
      BadInput: the folder holds something else or a run with other settings, the text cannot be
        used, or the data do not fit the settings. Nothing that exists is overwritten.
    """
    old = check_resumes(run, config)
    settings, data = run / CONFIG_FILE, run / DATA_FOLDER
    is_new = not data.exists()
    if config.data.prepared and (not old or old.data.prepared != config.data.prepared):
        link_prepared(data, config.data.prepared, config.data, config.model.length)
    elif not old:
        prepare_blocks(data, config.data, config.model.length)
    try:
        dataset = open_data(data, config.model.length)
        check_vocab_size(dataset.tokenizer, config.data)
    except BadInput:
        if is_new and config.data.prepared:
            shutil.rmtree(data)  # only links to the data
        raise
    if old != config:
        atomic_write(settings, configs.to_json(config) + "\n")
    mirror.push(run)  # for the other processes
    return dataset


def read_run(run: Path, config: Config) -> Dataset:
    """Returns the data of a run that another process has opened; changes nothing.

    Raises:
      BadInput: this process does not find the run, it has other settings than `config`, or its
        data are damaged.
    """
    mirror.pull(run)
    check_folder(run)
    settings = run / CONFIG_FILE
    if not settings.is_file():
        raise BadInput(
            f"This process finds no run in {run}, which another process has opened: --workdir must "
            "be on a file system that all processes share."
        )
    differing = configs.differences(read_settings(settings), config)
    if differing:
        raise BadInput(
            f"This process and the one that opened {run} have different settings "
            f"({'; '.join(differing)}); start every process with the same flags."
        )
    dataset = open_data(run / DATA_FOLDER, config.model.length)
    check_vocab_size(dataset.tokenizer, config.data)
    return dataset


def read_settings(path: Path) -> Config:
    """Returns the settings in the `CONFIG_FILE` of a run.

    Raises:
      BadInput: it is damaged.
    """
    values = read_json(path)
    if not isinstance(values, dict):
        raise BadInput(f"{path} is damaged: it holds no settings.")
    return configs.from_saved(values)


@contextlib.contextmanager
def locked(run: Path) -> Iterator[None]:
    """Keeps every other process out of the run folder, which is created if it does not exist.

    Raises:
      BadInput: another process has the folder, or it is something else than a run folder.
    """
    advice = "choose another --workdir"
    if address := mirror.address_of(run):
        with lease.exclusive(address / LOCK_FILE, advice, address), mirror.synced(run):
            yield
        return
    check_folder(run)
    with exclusive(run / LOCK_FILE, advice):
        yield


@contextlib.contextmanager
def followed(run: Path) -> Iterator[None]:
    """Ends this process with the lease that another of its job has on a run folder in a bucket."""
    if address := mirror.address_of(run):
        with lease_follower.followed(address / LOCK_FILE, address):
            yield
    else:
        yield


def check_folder(run: Path) -> None:
    """Raises BadInput unless `run` is a run folder, an empty one or absent; changes nothing."""
    check_local(run, "--workdir")
    if not run.exists():
        return
    if run.is_dir():
        if (run / CONFIG_FILE).is_file():
            return
        # the files of a run that was killed just after its start
        data = run / DATA_FOLDER
        if set(run.iterdir()) <= {run / LOCK_FILE, data, run / staging_folder(data).name}:
            return
    raise BadInput(f"{run} exists and is not a run folder; choose another --workdir.")


def check_resumes(run: Path, config: Config) -> Config | None:
    """Returns the settings of the run in a folder; None if it is to begin there.

    Raises:
      BadInput: the folder holds something else, or a run that these settings do not continue.
    """
    check_folder(run)
    settings = run / CONFIG_FILE
    if not settings.exists():
        return None
    old = read_settings(settings)
    _check_settings(run, old, config)
    return old


def _check_settings(run, old, new):
    changes = [line for line in configs.differences(old, new) if not _may_change(line, old, new)]
    if changes:
        raise BadInput(
            f"{run} holds a run with other settings ({'; '.join(changes)}); go back to those "
            f"settings, or choose another --workdir, which config.train.initial={run} starts from "
            "these weights if they fit."
        )
    made, steps = last_saved(run) or 0, new.train.steps
    if made > steps:
        raise BadInput(
            f"The run in {run} has made {made} steps, more than config.train.steps={steps}; give "
            f"at least {made}, or another --workdir."
        )


def _may_change(line, old, new):
    key = line.partition(":")[0]
    # prepared data may be moved; a run never changes to or from data of its own
    if key == "data.prepared":
        return bool(old.data.prepared and new.data.prepared)
    # a cosine schedule depends on train.steps: so do the steps already taken
    if key == "train.steps" and new.optim.decay != "constant":
        return False
    return key in marked(Config, "may_change")

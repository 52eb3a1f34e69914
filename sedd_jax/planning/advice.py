"""What to do with what is foreseen: the command that trains so, and what would suit a chip more."""

import dataclasses
import shlex
from collections.abc import Mapping
from typing import Any

from sedd_jax.experiment.config import Config
from sedd_jax.model.sharding import num_batch_shards
from sedd_jax.planning.estimate import Outlook, gib
from sedd_jax.planning.search import MOST_FSDP, divisors
from sedd_jax.system.settings import flatten

_FILLED = 0.9  # of the HBM, at most, by what is recommended
_IDLE = 0.5  # of the HBM, from which on more is recommended


def train_command(file: str, config: Config, own: Mapping[str, Any]) -> str:
    """Returns the command that trains with a config.

    Args:
      file: the config file, as it is given to `--config`.
      config: the settings.
      own: those that the file has itself, by their dotted keys.
    """
    settings = flatten(dataclasses.asdict(config))
    changed = [
        f"--config.{key}={value}"
        for key, value in settings.items()
        if key not in own or value != own[key]
    ]
    line = ["python", "-m", "sedd_jax.train", f"--config={file}", *changed, "--workdir=FOLDER"]
    return shlex.join(line)


def to_fit(config: Config, outlook: Outlook, *, training: bool) -> str:
    """Returns what would make a program smaller, the way that divides the larger part first."""
    kept = sum(size for name, size in outlook.program.kept.items() if name != "batch")
    ways = [_of_state(outlook, kept), _of_activations(config, outlook, training)]
    if outlook.memory.parts["temporaries"] > kept:
        ways.reverse()
    return "; ".join([*ways[0], *ways[1], *["--search tries them"] * training]) + "."


def _of_state(outlook, kept):
    mesh = outlook.program.mesh
    data, fsdp = mesh.shape["data"], mesh.shape["fsdp"]
    more = max(n for n in divisors(data) if n * fsdp <= max(fsdp, MOST_FSDP))
    if more > 1:
        yield (
            f"--config.mesh.data={data // more} --config.mesh.fsdp={fsdp * more} divides the "
            f"{gib(kept)} GiB of state that a chip keeps by {more}"
        )


def _of_activations(config, outlook, training):
    if not training:
        yield "--per_chip takes fewer sequences"
        return
    fewest = _fewest_microbatches(config, outlook)
    if fewest > config.train.microbatches:
        yield _held_by(fewest, config, outlook)
    if config.model.remat != "blocks":
        yield "--config.model.remat=blocks keeps less of a block"


def for_idle_memory(config: Config, outlook: Outlook) -> str | None:
    """Returns what would use the HBM that a training step leaves; None if it leaves little."""
    memory = outlook.memory
    fewest = _fewest_microbatches(config, outlook)
    if memory.needed > _IDLE * memory.capacity or fewest >= config.train.microbatches:
        return None
    free = 1 - memory.needed / memory.capacity
    return f"{free:.0%} of the HBM is free: {_held_by(fewest, config, outlook)}: try it."


def _fewest_microbatches(config, outlook):
    """So few that what the program makes, in proportion to its sequences, should fit."""
    memory, train = outlook.memory, config.train
    made = memory.parts["temporaries"] * train.microbatches
    spare = _FILLED * memory.capacity - (memory.needed - memory.parts["temporaries"])
    share = train.batch_size // num_batch_shards(outlook.program.mesh)
    return next((number for number in divisors(share) if made / number <= spare), share)


def _held_by(microbatches, config, outlook):
    rows = config.train.batch_size // microbatches // num_batch_shards(outlook.program.mesh)
    held = "1 sequence" if rows == 1 else f"{rows} sequences"
    return f"--config.train.microbatches={microbatches} would hold {held} of a chip at a time"

"""What a run is at a step: all that training changes, and the random keys of its purposes."""

from typing import NamedTuple

import jax
import optax
from jaxtyping import Array, Int, Key

from sedd_jax.model.score_model import Params


class Skipped(NamedTuple):
    """Steps that changed nothing, because their loss or gradient was not finite."""

    total: Int[Array, ""]
    in_row: Int[Array, ""]  # up to now


class TrainState(NamedTuple):
    """All that training changes; with the seed and the data, all that is needed to go on."""

    step: Int[Array, ""]  # batches seen; `step - skipped.total` of them made an update
    params: Params
    opt_state: optax.OptState
    ema_params: Params
    skipped: Skipped


class RunKeys(NamedTuple):
    """The random keys of a run, one for each purpose."""

    init: Key[Array, ""]
    train: Key[Array, ""]
    evaluate: Key[Array, ""]
    sample: Key[Array, ""]


def run_keys(seed: int) -> RunKeys:
    """Returns the keys that belong to a seed."""
    return RunKeys(*jax.random.split(jax.random.key(seed), len(RunKeys._fields)))

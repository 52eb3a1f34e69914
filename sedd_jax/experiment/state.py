"""The state of a run after a step, and its random keys."""

from typing import Any, NamedTuple

import jax
import optax
from jaxtyping import Array, Int, Key

from sedd_jax.model.score_model import Params


class Skipped(NamedTuple):
    """Counts of steps without an update, because their loss or gradient was not finite."""

    total: Int[Array, ""]
    in_row: Int[Array, ""]  # of the latest steps


class TrainState(NamedTuple):
    """All that training changes; with the seed and the data, all that is needed to continue."""

    step: Int[Array, ""]  # batches seen; `step - skipped.total` of them made an update
    params: Params
    opt_state: optax.OptState
    ema_params: Params
    skipped: Skipped
    times: Any = ()  # what `diffusion.time_sampling.Learned` has learned; else empty


class RunKeys(NamedTuple):
    """The random keys of a run, one for each purpose.

    Attributes:
      init: of the initial weights.
      train: step i folds in i, and splits into keys of times, noised tokens, dropout, and rounding.
      evaluate: of the held-out bound; split into times, noised tokens and final step, then draw n
        folds in n and row i folds in i.
      sample: of the samples shown; row i folds in i, see `inference.batches.RowKeys`.
    """

    init: Key[Array, ""]
    train: Key[Array, ""]
    evaluate: Key[Array, ""]
    sample: Key[Array, ""]


def run_keys(seed: int) -> RunKeys:
    """Returns the keys of a seed."""
    return RunKeys(*jax.random.split(jax.random.key(seed), len(RunKeys._fields)))

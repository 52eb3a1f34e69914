"""The interface of a family of models to training, likelihoods and sampling."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, UInt32

from sedd_jax.diffusion.categorical import BELOW_ONE
from sedd_jax.diffusion.times import quadrature_quantiles, sample_quantiles
from sedd_jax.errors import BadInput
from sedd_jax.experiment.config import TrainConfig
from sedd_jax.inference.batches import row_keys
from sedd_jax.inference.generator import Generator
from sedd_jax.inference.prompt import Prompt
from sedd_jax.model.config import ModelConfig

STRATIFIED = "stratified"  # how several low-discrepancy draws are spread, see `draw_quantiles`

# (params, keys [B], quantiles of t [B], x0 [B, L], lengths=None, context=NOTHING) -> nats [B]; the
# context of families that take one: given tokens are held, and have no loss
RowLoss = Callable[..., Float[Array, "B"]]


class BatchLoss(NamedTuple):
    """A loss over a batch of clean tokens.

    Attributes:
      draw: draw(time_key, noise_key, x0 [B, L]) -> the random inputs of the loss, drawn for the
        whole batch: a tree of arrays with a leading axis of B, or an empty one.
      loss: loss(params, draw, x0, dropout_key) -> mean nats per sequence of these rows. Of rows
        with conditions this and `draw` are called with `condition=` a tree of arrays [B, ...] too.
      learned: how the distribution that `draw` draws from follows the losses; None: it does not.
      per_token: whether its metric is divided by the tokens of a sequence.
    """

    draw: Callable[..., Any]
    loss: Callable[..., Float[Array, ""]]
    learned: "LearnedDraw | None" = None
    per_token: bool = True


class LearnedDraw(NamedTuple):
    """How `BatchLoss.draw` learns from the losses of rows.

    Attributes:
      state: of the first step; `draw` takes it as its last argument.
      loss: as that of `BatchLoss`, with a further argument: factors [B] of the rows' losses, in
        which it is linear.
      update: update(state, draw, losses [B]) -> the state after a step. The losses are the
        gradient in the factors, times B.
    """

    state: Any
    loss: Callable[..., Float[Array, ""]]
    update: Callable[..., Any]


class Control(NamedTuple):
    """A control variate of a row's loss: the loss of a guess at the same (t, x_t), of known mean.

    Attributes:
      guess: guess(params, x0 [B, L], lengths=None) -> the guess, a dict of arrays; of x0 it takes
        the shape.
      loss: loss(guess, keys, quantiles, low [B], high [B], x0, ...) -> nats [B, 3] of the guess: at
        the (t, x_t) that `row_loss` draws; their mean over x_t given t; and their sum over the
        times from the quantile `low` to `high`, of all times.
    """

    guess: Callable[..., Any]
    loss: Callable[..., Float[Array, "B 3"]]


class DrawnTimes(NamedTuple):
    """The times of D draws of N rows.

    Attributes:
      quantiles: of t under its proposal distribution.
      t: the times themselves.
      weights: of the draws, with mean 1.
    """

    quantiles: Float[np.ndarray, "D N"]
    t: Float[np.ndarray, "D N"]
    weights: Float[np.ndarray, "D"]


@runtime_checkable
class Family(Protocol):
    """A kind of model, chosen once where the config is read: no other code branches on it.

    Hashable, since it is a key of the cache of compiled programs.

    Attributes:
      model: the network, as pure functions; `model.init(key)` gives its parameters.
      num_tokens: tokens of the tokenizer.
      num_states: V, columns of the network's output.
      max_length: the longest sequence that the network takes; None for any.
      summary: number and kind of states in a few words, for the first line of a run.
      exact_likelihood: whether `row_loss` is the negative log-likelihood itself.
      complete_bound: whether `row_loss` has all terms of the bound: its mean over quantiles is the
        bound, `prior_nll` and `reconstruction_loss` are not used, and no time is cut off.
      infills: whether tokens may be given anywhere in a row; then longer rows are sampled in
        windows, and the steps of a row can be shown.
    """

    model: Any

    @property
    def num_tokens(self) -> int: ...
    @property
    def num_states(self) -> int: ...
    @property
    def max_length(self) -> int | None: ...
    @property
    def summary(self) -> str: ...
    @property
    def exact_likelihood(self) -> bool: ...
    @property
    def complete_bound(self) -> bool: ...
    @property
    def infills(self) -> bool: ...

    def objective(self, config: TrainConfig) -> BatchLoss:
        """Returns the training loss."""

    def row_loss(self, t_min: float, times: str) -> RowLoss:
        """Returns the loss of every row as a function of its own key, time and tokens alone.

        Args:
          t_min: the smallest time.
          times: how times are spread, see `draw_quantiles`.
        """

    def control(self, t_min: float) -> Control | None:
        """Returns the control variate of `row_loss` at stratified times, None if it has none."""

    def reconstruction_loss(self, t_min: float) -> Callable[..., Float[Array, "B"]]:
        """Returns f(params, keys [B], x0 [B, L], lengths=None) -> nats [B] of the final step."""

    def draw_times(
        self, key: Key[Array, ""], times: str, t_min: float, draws: int, rows: int
    ) -> DrawnTimes:
        """Draws the times of an estimate.

        Args:
          key: random key, used once.
          times: how they are spread, see `draw_quantiles`.
          t_min: the smallest time.
          draws: D.
          rows: N.
        """

    def prior_nll(self) -> float:
        """Returns the prior term of the bound, nats per token."""

    def sampling(self, **settings: Any) -> Any:
        """Returns the checked settings of a generator: a frozen dataclass.

        Raises:
          BadInput: a setting out of range, or one that the family does not have.
        """

    def generator(self, sampling: Any, *, t_min: float, trace: bool = False) -> Generator:
        """Returns generate(params, keys, prompt) -> (tokens, diagnostics).

        Args:
          sampling: from `sampling`.
          t_min: the smallest time of training.
          trace: keep the tokens after every step.
        """

    def check_prompt(self, prompt: Prompt) -> None:
        """Raises BadInput if tokens are given at positions that the family cannot hold."""

    def max_nfe(self, sampling: Any, length: int) -> int:
        """Returns the most network evaluations of a row of `length` tokens."""

    def training_share(self, config: TrainConfig) -> float:
        """Returns the mean share of positions that have a loss in training."""

    def forward_flops(self, config: ModelConfig, share: float = 1.0) -> float:
        """Returns the FLOPs of a forward pass over a sequence of the trained length.

        Args:
          config: of the network.
          share: of the positions that pass through the head.
        """


def sampling_settings(kind: type, family: str, settings: dict[str, Any]) -> Any:
    """Returns settings of sampling as a dataclass.

    Args:
      kind: the dataclass.
      family: name of the family, for the message.
      settings: by name.

    Raises:
      BadInput: a setting that the family does not have.
    """
    for name in settings:
        if name not in kind.__dataclass_fields__:
            raise BadInput(f"{name} means nothing to {family} models: leave it out.")
    return kind(**settings)


def sampling_names(family: Family) -> set[str]:
    """Returns the names of the settings that `Family.sampling` takes."""
    return {field.name for field in dataclasses.fields(family.sampling())}


def draw_quantiles(
    key: Key[Array, ""], times: str, draws: int, rows: int
) -> tuple[Float[np.ndarray, "D N"], Float[np.ndarray, "D"]]:
    """Draws quantiles of times, and the weights of the draws, which have mean 1.

    Args:
      key: random key, used once.
      times: "quadrature": nodes, the same for all rows. "low-discrepancy": one draw, spread evenly
        over the rows. "stratified": draw d has the quantiles in [d / D, (d + 1) / D), and is spread
        evenly over the rows there, independently of the other draws.
      draws: D.
      rows: N.
    """
    if times == "quadrature":
        nodes, weights = quadrature_quantiles(draws)
        return np.float32(np.repeat(nodes[:, None], rows, axis=1)), draws * weights
    return np.asarray(_even_quantiles(key, draws, rows)), np.ones(draws)


def draw_times_by_number(
    family: Family,
    key: Key[Array, ""],
    times: str,
    t_min: float,
    draws: int,
    numbers: UInt32[np.ndarray, "N"],
) -> DrawnTimes:
    """Draws the times of rows as functions of their numbers.

    Args:
      family: the model.
      key: random key, used once.
      times: how they are spread, see `draw_quantiles`; the nodes of a quadrature have no number.
      t_min: the smallest time.
      draws: D.
      numbers: of the rows.
    """
    if times == "quadrature":
        return family.draw_times(key, times, t_min, draws, len(numbers))
    distinct, which = np.unique(numbers, return_inverse=True)
    each = [family.draw_times(own, times, t_min, draws, 1) for own in row_keys(key, distinct)]
    quantiles, t = (np.concatenate(column, axis=1) for column in list(zip(*each, strict=True))[:2])
    return DrawnTimes(quantiles[:, which], t[:, which], np.ones(draws))


@functools.partial(jax.jit, static_argnums=(1, 2))
def _even_quantiles(key, draws, rows) -> Float[Array, "D N"]:
    keys = row_keys(key, jnp.arange(draws))
    within = jax.vmap(lambda draw_key: sample_quantiles(draw_key, rows))(keys)
    return jnp.minimum((jnp.arange(draws)[:, None] + within) / draws, BELOW_ONE)

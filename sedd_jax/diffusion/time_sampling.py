"""How training draws its times: uniformly, in the middle of the noise, or where the loss is large.

Every way is a `Proposal`, whose weights keep the expectation of the loss and of its gradient; only
their variance differs. Positions move as in Algorithm 1.

References:
  Hong et al., Understanding and Accelerating the Training of Masked Diffusion Language Models, 2026
    (arXiv 2605.13026): bell-shaped times for language.
  Esser et al., Scaling Rectified Flow Transformers for High-Resolution Image Synthesis, 2024 (arXiv
    2403.03206), Section 3.1: logit-normal times.
  Chen et al., Diffusion Forcing: Next-token Prediction Meets Full-Sequence Diffusion, 2024 (arXiv
    2407.01392): noise of its own for every position.
  Nichol and Dhariwal, Improved Denoising Diffusion Probabilistic Models, 2021 (arXiv 2102.09672),
    Section 3.3: times in proportion to the root mean square of the loss.
"""

import abc
import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtr
from jaxtyping import Array, Float, Key

from sedd_jax.diffusion.importance import CELLS, FLOOR, Proposal, plain_proposal
from sedd_jax.diffusion.noise import Noise
from sedd_jax.diffusion.times import sample_quantiles
from sedd_jax.errors import BadInput
from sedd_jax.system.registry import Registry

PRIOR_DRAWS = 10.0  # draws of the mean loss that every cell starts with


class Times(abc.ABC):
    """A way to draw the times of training.

    Attributes:
      learns: whether it follows the losses; then it has a state, which is saved with a run.
      per_position: whether every position has a time of its own.
    """

    learns: ClassVar[bool] = False
    per_position: ClassVar[bool] = False

    @abc.abstractmethod
    def proposal(self, noise: Noise, t_min: float, state: Any = ()) -> Proposal:
        """Returns the distribution of the times.

        Args:
          noise: the schedule.
          t_min: the smallest time.
          state: what was learned; () where nothing was.
        """

    def quantiles(
        self, key: Key[Array, ""], shape: tuple[int, int], low_discrepancy: bool
    ) -> Float[Array, "B *L"]:
        """Draws the quantiles of the times, of rows or of positions.

        Args:
          key: random key, used once.
          shape: [B, L] of the tokens.
          low_discrepancy: spread evenly over the batch, see `sample_quantiles`.
        """
        return sample_quantiles(key, shape[0], low_discrepancy)

    def init(self) -> Any:
        """Returns the state before training."""
        return ()

    def update(
        self, state: Any, t_min: float, t: Float[Array, "B"], loss: Float[Array, "B"]
    ) -> Any:
        """Returns the state after a step.

        Args:
          state: before the step.
          t_min: the smallest time.
          t: times of the rows.
          loss: of the rows at these times, not weighted.
        """
        del t_min, t, loss
        return state


@dataclasses.dataclass(frozen=True)
class Uniform(Times):
    """Times are uniform on [t_min, 1]: Algorithm 1."""

    def proposal(self, noise: Noise, t_min: float, state: Any = ()) -> Proposal:
        del noise, state
        return plain_proposal(t_min)


@dataclasses.dataclass(frozen=True)
class Bell(Times):
    """The logit of the share of moved positions, p = 1 - exp(-sigma), is normal.

    It is log(expm1(sigma)), which is minus the logarithm of the ratio of what is left to what has
    moved. With log-linear noise t itself is logit-normal, up to eps. A share of 5 % of the times is
    uniform, so that no weight exceeds 20.

    Attributes:
      mean: of the logit; 0: half of the positions have moved.
      std: its standard deviation.
    """

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self):
        if not 0 < self.std < np.inf:
            raise BadInput(f"std must be positive, got {self.std}.")

    def proposal(self, noise: Noise, t_min: float, state: Any = ()) -> Proposal:
        del state
        edges = np.linspace(t_min, 1, CELLS + 1)
        with jax.ensure_compile_time_eval():
            logit = jnp.log(jnp.expm1(noise.sigma(jnp.asarray(edges, jnp.float32))))
            z = np.float64((logit - self.mean) / self.std)
            # from the nearer tail, where a difference of two probabilities keeps its digits
            below, above = np.float64(ndtr(z)), np.float64(ndtr(-z))
        mass = np.where(z[:-1] > 0, above[:-1] - above[1:], below[1:] - below[:-1])
        if not mass.sum() > 0:
            raise BadInput(
                f"config.train.times=bell(mean={self.mean}, std={self.std}): it leaves no time in "
                f"[{t_min}, 1], where config.train.t_min is the smallest."
            )
        return _by_cells(edges, mass)


class Squares(NamedTuple):
    """Sums of the squared losses of every cell of time, and of their draws; old ones fade."""

    total: Float[Array, "C"]
    draws: Float[Array, "C"]


@dataclasses.dataclass(frozen=True)
class Learned(Times):
    """The density of a cell of time is in proportion to the root mean square of its losses.

    That has the least variance of all densities of times. A cell starts with 10 draws of the mean
    of all cells, and a share of 5 % of the times is uniform.

    Attributes:
      cells: intervals of equal length, within which times are uniform.
      decay: what is left of the sums after a step.
    """

    cells: int = 64
    decay: float = 0.99

    learns: ClassVar[bool] = True

    def __post_init__(self):
        if self.cells < 1:
            raise BadInput(f"cells must be positive, got {self.cells}.")
        if not 0 < self.decay < 1:
            raise BadInput(f"decay must be between 0 and 1, got {self.decay}.")

    def init(self) -> Squares:
        return Squares(jnp.zeros(self.cells), jnp.zeros(self.cells))

    def proposal(self, noise: Noise, t_min: float, state: Squares | tuple[()] = ()) -> Proposal:
        del noise
        total, draws = state or self.init()
        mean = total.sum() / jnp.maximum(draws.sum(), 1)
        square = (total + PRIOR_DRAWS * mean) / (draws + PRIOR_DRAWS)
        square = jnp.where(mean > 0, square, 1)
        return _by_cells(np.linspace(t_min, 1, self.cells + 1), jnp.sqrt(square))

    def update(
        self, state: Squares, t_min: float, t: Float[Array, "B"], loss: Float[Array, "B"]
    ) -> Squares:
        cell = jnp.int32((t - t_min) / (1 - t_min) * self.cells).clip(0, self.cells - 1)
        total, draws = (self.decay * x for x in state)
        return Squares(total.at[cell].add(loss**2), draws.at[cell].add(1.0))


@dataclasses.dataclass(frozen=True)
class Positions(Times):
    """Every position has a time of its own, uniform on [t_min, 1]: diffusion forcing.

    The network is told the noise of every position, and learns the ratios of any tokens, each
    noised by its own amount: one network for rows denoised at once, in an order, or in windows.

    Attributes:
      order: "independent", or "monotone": the times of a row are sorted, so that every token is
        noisier than those before it. Then the first token has small times more often than the
        last, and no weight undoes this: the minimum is the same, the true ratios at every noise.
    """

    order: str = "independent"

    per_position: ClassVar[bool] = True

    def __post_init__(self):
        if self.order not in ("independent", "monotone"):
            raise BadInput(f"order must be independent or monotone, got {self.order!r}.")

    def proposal(self, noise: Noise, t_min: float, state: Any = ()) -> Proposal:
        del noise, state
        return plain_proposal(t_min)

    def quantiles(
        self, key: Key[Array, ""], shape: tuple[int, int], low_discrepancy: bool
    ) -> Float[Array, "B L"]:
        rows, length = shape
        keys = jax.random.split(key, length)
        u = jax.vmap(lambda key: sample_quantiles(key, rows, low_discrepancy))(keys).T
        return jnp.sort(u, axis=-1) if self.order == "monotone" else u


TIMES: Registry[type[Times]] = Registry(
    "config.train.times",
    {"uniform": Uniform, "bell": Bell, "learned": Learned, "positions": Positions},
    methods=("init", "proposal", "quantiles", "update", "learns", "per_position"),
)


def times_named(text: str) -> Times:
    """Returns the way to draw times of a name with options, such as "bell(std=0.5)".

    Raises:
      BadInput: there is no such name or option.
    """
    return TIMES.build(text)


def _by_cells(edges, mass):
    """Cells of equal length with given masses, and a share of uniform times."""
    density = (1 - FLOOR) * mass / mass.mean() + FLOOR
    ones = np.ones(len(edges) - 1)
    return Proposal(edges, density, ones, ones)

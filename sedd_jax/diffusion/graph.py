"""Token graphs: the rate matrix Q of the forward process and everything that follows from it.

Both graphs of the paper (Section 3.3, Eqs. 15 and 16) have one form. With pi the limiting
distribution, as a column, and 1 a row of ones,

    Q = pi 1 - I,    exp(sigma Q) = exp(-sigma) I + (1 - exp(-sigma)) pi 1,

since (pi 1)^2 = pi 1: a token stays with probability exp(-sigma), else it is redrawn from pi.
Uniform: pi = 1/V. Absorbing: pi is all on the mask. Hybrid: a part is on the mask, the rest is
uniform over the tokens. So every formula is written once, here, in terms of pi, and a graph is no
more than its pi.

Conventions: Q[y, x] is the rate from x to y, so columns of Q sum to 0 and columns of exp(sigma Q)
to 1. `sigma` has the shape of the leading axes of x (a scalar, or [B] for x of shape [B, L]).

References:
  Haxholli et al., Efficient Perplexity Bound and Ratio Matching in Discrete Diffusion Language
    Models, 2025 (arXiv 2507.04341): the hybrid graph, called roulette diffusion;
  von Rütte et al., Generalized Interpolating Discrete Diffusion, 2025 (arXiv 2503.04482): the same
    with a mixture that changes in time, see docs/maths.md.
"""

import abc
import dataclasses
import functools
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from sedd_jax.diffusion import categorical
from sedd_jax.errors import BadInput


def align(sigma: Float[Array, "..."], ndim: int) -> Float[Array, "..."]:
    """Appends axes of size 1 until sigma has `ndim` axes."""
    return jnp.reshape(sigma, sigma.shape + (1,) * (ndim - sigma.ndim))


def over_positions(x: Float[Array, "B *L"]) -> Float[Array, "B _"]:
    """Returns numbers of rows [B] with an axis for positions; those of positions as they are."""
    return x[:, None] if x.ndim == 1 else x


@dataclasses.dataclass(frozen=True)
class Graph(abc.ABC):
    """A graph over `num_states` = V states with Q = pi 1 - I. A subclass need only give `limit`.

    Attributes:
      num_states: V. Includes the mask, if there is one.
    """

    num_states: int

    @property
    @abc.abstractmethod
    def limit(self) -> Float[Array, "V"]:
        """The limiting distribution pi."""

    @property
    def mask_id(self) -> int | None:
        """The mask state, the last one, which no clean row has; None if the graph has none."""
        return None

    @property
    def num_tokens(self) -> int:
        """Number of states that are real tokens, [0, num_tokens)."""
        return self.num_states - (self.mask_id is not None)

    @functools.cached_property
    def equal_limit(self) -> float | None:
        """The limiting probability of all states that moves between tokens or off the mask lead to.

        It is 1/V under the uniform graph and 0 under the absorbing one, which tokens leave for the
        mask alone. None if the states differ, or the mask is one of several: then formulas are
        `ByLimit`.
        """
        limit = self._concrete_limit()
        if np.count_nonzero(limit) == 1:
            return 0.0
        return float(limit[0]) if self.mask_id is None and np.ptp(limit) == 0 else None

    @property
    def limit_of_token(self) -> float:
        """Deprecated: now `equal_limit`. Raises BadInput where that is None."""
        warnings.warn("limit_of_token is now equal_limit.", DeprecationWarning, stacklevel=2)
        if self.equal_limit is None:
            raise BadInput(
                f"limit_of_token has no value for {type(self).__name__}, whose states differ in "
                "the limit: use equal_limit, which may be None, and times_limit."
            )
        return self.equal_limit

    @property
    def absorbs(self) -> bool:
        """Whether all moves lead to the mask, so that positions leave it once in reverse."""
        return self.mask_id is not None and self.equal_limit == 0

    def sample_limit(self, key: Key[Array, ""], shape: tuple[int, ...]) -> Int[Array, "..."]:
        """Draws states from pi."""
        return self._alias_table.draw(key, shape)

    def rate(self, x: Int[Array, "*s"]) -> Float[Array, "*s V"]:
        """Column of Q at x: the rates of leaving x for every state, pi - delta_x."""
        return self._limit_per_row(x) - self._one_hot(x)

    def transposed_rate(self, x: Int[Array, "*s"]) -> Float[Array, "*s V"]:
        """Row of Q at x: the rates of entering x from every state, pi_x 1 - delta_x."""
        return self.limit[x][..., None] - self._one_hot(x)

    def transition(self, x: Int[Array, "*s"], sigma: Float[Array, "..."]) -> Float[Array, "*s V"]:
        """Column of exp(sigma Q) at x: the distribution p(. | x) after total noise sigma."""
        sigma = align(sigma, x.ndim + 1)
        moved = -jnp.expm1(-sigma)
        return jnp.exp(-sigma) * self._one_hot(x) + moved * self._limit_per_row(x)

    def transposed_transition(
        self, x: Int[Array, "*s"], sigma: Float[Array, "..."]
    ) -> Float[Array, "*s V"]:
        """Row of exp(sigma Q) at x: the likelihoods p(x | .) of x from every state."""
        sigma = align(sigma, x.ndim + 1)
        moved = -jnp.expm1(-sigma)
        return jnp.exp(-sigma) * self._one_hot(x) + moved * self.limit[x][..., None]

    def noised_guess(self, sigma: Float[Array, ""]) -> Float[Array, "V"]:
        """The distribution of a uniformly drawn token after total noise sigma."""
        token = jnp.arange(self.num_states) < self.num_tokens
        return jnp.exp(-sigma) * token / self.num_tokens - jnp.expm1(-sigma) * self.limit

    def inverse_transition(
        self, score: Float[Array, "*s V"], sigma: Float[Array, "..."]
    ) -> Float[Array, "*s V"]:
        """The product exp(-sigma Q) score = exp(sigma) score + (1 - exp(sigma)) pi sum(score)."""
        sigma = align(sigma, score.ndim)
        total = score.sum(-1)
        redrawn = total[..., None] * self._limit_per_row(total)
        return jnp.exp(sigma) * score - jnp.expm1(sigma) * redrawn

    def sample_transition(
        self, key: Key[Array, ""], x0: Int[Array, "*s"], sigma: Float[Array, "..."]
    ) -> Int[Array, "*s"]:
        """Draws x_t given x0: each position moves to a draw from pi with prob. 1 - exp(-sigma).

        Args:
          key: random key, used once.
          x0: clean tokens.
          sigma: total noise, of the shape of the leading axes of x0.
        """
        move_key, limit_key = jax.random.split(key)
        prob = jnp.broadcast_to(-jnp.expm1(-align(sigma, x0.ndim)), x0.shape)
        moves = categorical.bernoulli(move_key, prob)
        return jnp.where(moves, self.sample_limit(limit_key, x0.shape), x0)

    @functools.cached_property
    def _alias_table(self):
        return categorical.alias_table(self._concrete_limit())

    def _concrete_limit(self):
        with jax.ensure_compile_time_eval():  # also while a program is traced
            return np.asarray(self.limit, np.float64)

    def _one_hot(self, x):
        return jax.nn.one_hot(x, self.num_states)

    def _limit_per_row(self, x):
        return jnp.broadcast_to(self.limit, (*x.shape, self.num_states))


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("amount", "more_at_mask"),
    meta_fields=("graph",),
)
@dataclasses.dataclass(frozen=True)
class ByLimit:
    """Numbers amount * pi_y for all states y, without an array over positions and states.

    Attributes:
      amount: of every position, [*s].
      graph: of pi; no array, so that this is a tree of arrays over positions.
      more_at_mask: added at the mask, [*s]; None for nothing.
    """

    amount: Any  # not Float[Array, "*s"]: a tree may hold something else, such as shardings
    graph: Graph
    more_at_mask: Any = None

    def at(self, states: Int[Array, "..."], ndim: int) -> Float[Array, "..."]:
        """Returns the numbers of states; see `at_states`."""
        limit = leading(self.graph.limit[states], ndim)
        values = align(self.amount, ndim) * limit
        if self.more_at_mask is None:
            return values
        at_mask = leading(states, ndim) == self.graph.mask_id
        return values + jnp.where(at_mask, align(self.more_at_mask, ndim), 0)

    def log_at(self, states: Int[Array, "..."], ndim: int) -> Float[Array, "..."]:
        """Returns the log of amount * pi_y, that of amount where pi_y is 0; see `at_states`."""
        limit = self.graph.limit[states]
        log_limit = jnp.log(jnp.where(limit > 0, limit, 1))
        return align(jnp.log(self.amount), ndim) + leading(log_limit, ndim)

    def without_mask(self, where: Bool[Array, "*s"]) -> "ByLimit":
        """Returns the same with the largest number at the mask: cut by it, no weight is left."""
        if self.graph.mask_id is None:
            return self
        most = jnp.where(where, jnp.finfo(jnp.float32).max, 0)
        return dataclasses.replace(self, more_at_mask=most)


PerState = Float[Array, "*s"] | ByLimit  # one number for all states, or one that depends on them


def at_states(values: PerState, states: Int[Array, "..."], ndim: int) -> Float[Array, "..."]:
    """Returns the numbers of some states, of `ndim` axes.

    Args:
      values: of every position.
      states: one for every position; or the same for all positions, [C], where `ndim` has an axis
        more than the positions. Numbers that do not depend on it have size 1 there.
      ndim: number of axes of the result.
    """
    return values.at(states, ndim) if isinstance(values, ByLimit) else align(values, ndim)


def times_limit(
    graph: Graph, amount: Float[Array, "..."], factor: Float[Array, "..."] | float = 1.0
) -> PerState:
    """Returns amount * pi_y * factor for all states y that count at a position.

    Args:
      graph: of pi.
      amount: of every row or position.
      factor: of every position.
    """
    if graph.equal_limit is None:
        return ByLimit(amount * factor, graph)
    return amount * graph.equal_limit * factor


def leading(x: Array, ndim: int) -> Array:
    """Prepends axes of size 1 until x has `ndim` axes."""
    return jnp.reshape(x, (1,) * (ndim - x.ndim) + x.shape)


@dataclasses.dataclass(frozen=True)
class Uniform(Graph):
    """Moves go to a uniformly drawn state (Eq. 15, normalised by V)."""

    @property
    def limit(self) -> Float[Array, "V"]:
        return jnp.full(self.num_states, self.equal_limit)

    @property
    def equal_limit(self) -> float:
        return 1 / self.num_states

    def sample_limit(self, key: Key[Array, ""], shape: tuple[int, ...]) -> Int[Array, "..."]:
        return jax.random.randint(key, shape, 0, self.num_states)


@dataclasses.dataclass(frozen=True)
class Absorbing(Graph):
    """Moves go to the mask, the last state, and nothing leaves it (Eq. 16)."""

    @property
    def mask_id(self) -> int:
        return self.num_states - 1

    @property
    def limit(self) -> Float[Array, "V"]:
        return jax.nn.one_hot(self.mask_id, self.num_states)

    @property
    def equal_limit(self) -> float:
        return 0.0

    def sample_limit(self, key: Key[Array, ""], shape: tuple[int, ...]) -> Int[Array, "..."]:
        del key  # the limit is a single state
        return jnp.full(shape, self.mask_id, jnp.int32)


@dataclasses.dataclass(frozen=True)
class Hybrid(Graph):
    """Moves go to the mask, the last state, or else to a uniformly drawn token.

    Attributes:
      mask: the probability of the mask.
    """

    mask: float

    def __post_init__(self):
        if not 1e-12 <= self.mask < 1:  # its products with the noise must not underflow
            raise BadInput(
                f"mask must be at least 1e-12 and below 1, got {self.mask}; for 1 take absorb, for "
                "0 uniform."
            )

    @property
    def mask_id(self) -> int:
        return self.num_states - 1

    @property
    def limit(self) -> Float[Array, "V"]:
        is_mask = jnp.arange(self.num_states) == self.mask_id
        return jnp.where(is_mask, self.mask, (1 - self.mask) / self.num_tokens)

    @property
    def equal_limit(self) -> None:
        return None

    def sample_limit(self, key: Key[Array, ""], shape: tuple[int, ...]) -> Int[Array, "..."]:
        mask_key, token_key = jax.random.split(key)
        masked = categorical.bernoulli(mask_key, jnp.full(shape, self.mask))
        return jnp.where(
            masked, self.mask_id, jax.random.randint(token_key, shape, 0, self.num_tokens)
        )


def uniform(vocab_size: int) -> Graph:
    """The uniform graph over `vocab_size` tokens: V = vocab_size, no mask."""
    return Uniform(vocab_size)


def absorbing(vocab_size: int) -> Graph:
    """The absorbing graph over `vocab_size` tokens: V = vocab_size + 1, the mask is the last id."""
    return Absorbing(vocab_size + 1)


def hybrid(vocab_size: int, mask: float = 0.9) -> Graph:
    """The hybrid graph over `vocab_size` tokens: V = vocab_size + 1, the mask is the last id.

    Args:
      vocab_size: number of tokens.
      mask: the probability that a move goes to the mask, in [1e-12, 1); else it goes to any
        token.
    """
    return Hybrid(vocab_size + 1, mask)


GRAPHS = {"absorb": absorbing, "uniform": uniform, "hybrid": hybrid}

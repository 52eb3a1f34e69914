"""Token graphs: the rate matrix Q of the forward process and everything that follows from it.

Both graphs of the paper (Section 3.3, Eqs. 15 and 16) have one form. With pi the limiting
distribution, as a column, and 1 a row of ones,

    Q = pi 1 - I,    exp(sigma Q) = exp(-sigma) I + (1 - exp(-sigma)) pi 1,

since (pi 1)^2 = pi 1: a token stays with probability exp(-sigma), else it is redrawn from pi.
Uniform: pi = 1/V. Absorbing: pi is all on the mask. So every formula is written once, here, in
terms of pi, and a graph is no more than its pi.

Conventions: Q[y, x] is the rate from x to y, so columns of Q sum to 0 and columns of exp(sigma Q)
to 1. `sigma` has the shape of the leading axes of x (a scalar, or [B] for x of shape [B, L]).
"""

import abc
import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from sedd_jax.diffusion import categorical


def align(sigma: Float[Array, "..."], ndim: int) -> Float[Array, "..."]:
    """Appends axes of size 1 until sigma has `ndim` axes."""
    return jnp.reshape(sigma, sigma.shape + (1,) * (ndim - sigma.ndim))


@dataclasses.dataclass(frozen=True)
class Graph(abc.ABC):
    """A graph over `num_states` = V states with Q = pi 1 - I.

    Attributes:
      num_states: V. Includes the mask under the absorbing graph.
    """

    num_states: int

    @property
    @abc.abstractmethod
    def num_tokens(self) -> int:
        """Number of states that are real tokens, [0, num_tokens)."""

    @property
    @abc.abstractmethod
    def mask_id(self) -> int | None:
        """The mask state, the last one; None if the graph has none."""

    @property
    @abc.abstractmethod
    def limit(self) -> Float[Array, "V"]:
        """The limiting distribution pi."""

    @property
    @abc.abstractmethod
    def limit_of_token(self) -> float:
        """The limiting probability of a real token, the same for all."""

    @abc.abstractmethod
    def sample_limit(self, key: Key[Array, ""], shape: tuple[int, ...]) -> Int[Array, "..."]:
        """Draws states from pi."""

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

    def _one_hot(self, x):
        return jax.nn.one_hot(x, self.num_states)

    def _limit_per_row(self, x):
        return jnp.broadcast_to(self.limit, (*x.shape, self.num_states))


@dataclasses.dataclass(frozen=True)
class Uniform(Graph):
    """Moves go to a uniformly drawn state (Eq. 15, normalised by V)."""

    @property
    def num_tokens(self) -> int:
        return self.num_states

    @property
    def mask_id(self) -> None:
        return None

    @property
    def limit(self) -> Float[Array, "V"]:
        return jnp.full(self.num_states, self.limit_of_token)

    @property
    def limit_of_token(self) -> float:
        return 1 / self.num_states

    def sample_limit(self, key: Key[Array, ""], shape: tuple[int, ...]) -> Int[Array, "..."]:
        return jax.random.randint(key, shape, 0, self.num_states)


@dataclasses.dataclass(frozen=True)
class Absorbing(Graph):
    """Moves go to the mask, the last state, and nothing leaves it (Eq. 16)."""

    @property
    def num_tokens(self) -> int:
        return self.num_states - 1

    @property
    def mask_id(self) -> int:
        return self.num_states - 1

    @property
    def limit(self) -> Float[Array, "V"]:
        return jax.nn.one_hot(self.mask_id, self.num_states)

    @property
    def limit_of_token(self) -> float:
        return 0.0

    def sample_limit(self, key: Key[Array, ""], shape: tuple[int, ...]) -> Int[Array, "..."]:
        del key  # the limit is a single state
        return jnp.full(shape, self.mask_id, jnp.int32)


def uniform(vocab_size: int) -> Graph:
    """The uniform graph over `vocab_size` tokens: V = vocab_size, no mask."""
    return Uniform(vocab_size)


def absorbing(vocab_size: int) -> Graph:
    """The absorbing graph over `vocab_size` tokens: V = vocab_size + 1, the mask is the last id."""
    return Absorbing(vocab_size + 1)


GRAPHS = {"absorb": absorbing, "uniform": uniform}

"""Which tokens of a row are given while it trains: they are clean at every time and have no loss.

The network then learns the scores of the noised rest given these. Under the absorbing graph every
unmasked token is a clean one, and any network has learned that. Under other graphs it must be told
which tokens are given.

Shapes: B batch, L length.

References:
  Tashiro et al., CSDI: Conditional Score-based Diffusion Models for Probabilistic Time Series
    Imputation, 2021 (arXiv 2107.03502): training with given values in random patterns.
"""

import abc
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from sedd_jax.diffusion import categorical
from sedd_jax.errors import BadInput
from sedd_jax.system.registry import Registry

NONE = "none"  # `config.train.hold` of a run without given tokens


class Hold(abc.ABC):
    """A distribution of the given tokens of a row, whatever the tokens are."""

    @abc.abstractmethod
    def draw(self, key: Key[Array, ""], shape: tuple[int, int]) -> Bool[Array, "B L"]:
        """Draws where tokens are given.

        Args:
          key: random key, used once.
          shape: [B, L] of the rows.
        """


@dataclasses.dataclass(frozen=True)
class HoldInSomeRows(Hold):
    """Given tokens in some rows; nothing is given in the others.

    Attributes:
      probability: that a row has given tokens.
    """

    probability: float = 0.5

    def __post_init__(self):
        if not 0 < self.probability <= 1:
            raise BadInput(f"probability must be above 0 and at most 1, got {self.probability}.")

    def draw(self, key: Key[Array, ""], shape: tuple[int, int]) -> Bool[Array, "B L"]:
        rows_key, pattern_key = jax.random.split(key)
        rows = categorical.bernoulli(rows_key, jnp.full(shape[:1], self.probability))
        return rows[:, None] & self.pattern(pattern_key, shape)

    @abc.abstractmethod
    def pattern(self, key: Key[Array, ""], shape: tuple[int, int]) -> Bool[Array, "B L"]:
        """Draws where tokens are given in rows that have some.

        Args:
          key: random key, used once.
          shape: [B, L] of the rows.
        """


@dataclasses.dataclass(frozen=True)
class Prefix(HoldInSomeRows):
    """The first n tokens are given, n uniform on 0 ... L - 1."""

    def pattern(self, key: Key[Array, ""], shape: tuple[int, int]) -> Bool[Array, "B L"]:
        rows, length = shape
        return jnp.arange(length)[None] < jax.random.randint(key, (rows, 1), 0, length)


@dataclasses.dataclass(frozen=True)
class Suffix(Prefix):
    """The last n tokens are given, n uniform on 0 ... L - 1."""

    def pattern(self, key: Key[Array, ""], shape: tuple[int, int]) -> Bool[Array, "B L"]:
        return super().pattern(key, shape)[:, ::-1]


@dataclasses.dataclass(frozen=True)
class Tokens(HoldInSomeRows):
    """Every token is given with probability q, which is uniform on [0, 1] for every row.

    So all numbers of given tokens are equally likely, and with a number all patterns.
    """

    def pattern(self, key: Key[Array, ""], shape: tuple[int, int]) -> Bool[Array, "B L"]:
        share_key, token_key = jax.random.split(key)
        share = jax.random.uniform(share_key, (shape[0], 1))
        return jax.random.uniform(token_key, shape) < jnp.broadcast_to(share, shape)


@dataclasses.dataclass(frozen=True)
class Spans(HoldInSomeRows):
    """Up to `count` spans are given, as many as not, between borders drawn uniformly in the row.

    With n spans, n uniform on 1 ... count, 2 n borders are uniform on 0 ... L, and tokens after an
    odd number of them are given: a span has a mean length of L / (2 n + 1).

    Attributes:
      count: the most spans of a row.
    """

    count: int = 3

    def __post_init__(self):
        super().__post_init__()
        if not 1 <= self.count <= 64:
            raise BadInput(f"count must be from 1 to 64, got {self.count}.")

    def pattern(self, key: Key[Array, ""], shape: tuple[int, int]) -> Bool[Array, "B L"]:
        (rows, length), (count_key, border_key) = shape, jax.random.split(key)
        spans = jax.random.randint(count_key, (rows, 1), 1, self.count + 1)
        borders = jax.random.randint(border_key, (rows, 2 * self.count), 0, length + 1)
        borders = jnp.where(jnp.arange(2 * self.count)[None] < 2 * spans, borders, length)
        passed = borders[:, None] <= jnp.arange(length)[None, :, None]
        return passed.sum(-1) % 2 == 1


@dataclasses.dataclass(frozen=True)
class Mixed(HoldInSomeRows):
    """Rows have prefixes, suffixes, spans and single tokens as above, each kind equally often."""

    def pattern(self, key: Key[Array, ""], shape: tuple[int, int]) -> Bool[Array, "B L"]:
        kind_key, *keys = jax.random.split(key, 5)
        kinds = (Prefix(), Suffix(), Spans(), Tokens())
        each = [kind.pattern(k, shape) for kind, k in zip(kinds, keys, strict=True)]
        kind = jax.random.randint(kind_key, (1, shape[0], 1), 0, len(kinds))
        return jnp.take_along_axis(jnp.stack(each), kind, axis=0)[0]


HOLDS: Registry[type[Hold]] = Registry(
    "config.train.hold",
    {"prefix": Prefix, "suffix": Suffix, "tokens": Tokens, "spans": Spans, "mixed": Mixed},
    methods=("draw",),
)


def free_shares(hold: Hold | None, length: int, rows: int = 1024) -> Float[np.ndarray, "N"]:
    """Returns the share of the tokens that are not given in each of some drawn rows.

    Args:
      hold: their distribution; None: no token is given.
      length: L.
      rows: N, or one row where no token is given.
    """
    if hold is None:
        return np.ones(1)
    return 1 - np.asarray(hold.draw(jax.random.key(0), (rows, length))).mean(1)


def hold_named(text: str) -> Hold | None:
    """Returns the distribution of a name with options, such as "spans(count=2)"; None for "none".

    Raises:
      BadInput: there is no such name or option.
    """
    return None if text == NONE else HOLDS.build(text)

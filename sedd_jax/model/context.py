"""What a network is told besides noised tokens and noise: which tokens are given, and conditions.

Shapes: B batch, L length.
"""

from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Bool


class Context(NamedTuple):
    """What a network is told of every row besides its noised tokens and their noise.

    Attributes:
      given: tokens that are clean at every time; None: none is.
      condition: encoded conditions, a tree of arrays [B, ...]. NaN, or -1 in whole numbers: the row
        is not told this one. None: no row is told any.
    """

    given: Bool[Array, "B L"] | None = None
    condition: Any = None

    @property
    def empty(self) -> bool:
        """Whether it holds no arrays."""
        return not jax.tree.leaves(self)


NOTHING = Context()

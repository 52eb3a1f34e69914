"""Evaluation of functions of single rows, over all rows and devices."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Key

from sedd_jax.experiment.mesh import shard_batch
from sedd_jax.inference.batches import one_ahead, row_keys
from sedd_jax.inference.family import Family
from sedd_jax.inference.model import compiled
from sedd_jax.model.score_model import Params


@dataclasses.dataclass
class RowPasses:
    """Evaluates functions of a model's parameters and rows, over all rows, on all its devices.

    Attributes:
      family: the model's.
      mesh: of the devices; None for one.
      params: the weights.
      rows: the rows of each batch, see `batch_rows`.
      placed: maps the rows of a batch to its tokens, and to what else the loss takes of them by
        name: `lengths` (None: full rows), `context` if there is one; on the devices.
      progress: called as progress(done, total) after every batch.
      total: passes over a batch in all.
      done: passes so far.
    """

    family: Family
    mesh: Mesh | None
    params: Params
    rows: Sequence[np.ndarray]
    placed: Callable[[np.ndarray], tuple[Array, dict[str, Any]]]
    progress: Callable[[int, int], None] | None = None
    total: int = 0
    done: int = 0

    def __call__(
        self,
        build: Callable[..., Any],
        static: tuple[Any, ...],
        key: Key[Array, ""],
        *columns: Float[np.ndarray, "N"],
        may_be_infinite: bool = False,
    ) -> Float[np.ndarray, "N"]:
        """Returns loss(params, row keys, *columns, tokens, **known) of every row, float64.

        Args:
          build: build(family, *static) gives the loss; its program is kept for the next call.
          static: hashable settings of the loss.
          key: random key, from which each row has its own.
          *columns: further arguments, one value for each row.
          may_be_infinite: whether an infinite loss is a result and not an error.

        Raises:
          FloatingPointError: the loss of a row is not finite.
        """
        program = compiled(self.family, self.mesh, build, *static)

        def compute(rows):
            tokens, known = self.placed(rows)
            sharded = [shard_batch(column[rows], self.mesh) for column in columns]
            keys = row_keys(key, rows)
            return program(self.params, keys, *sharded, tokens, **known)

        found = np.zeros(1 + self.rows[-1][-1])
        for rows, nats in one_ahead(self.rows, compute):
            found[rows] = nats
            wrong = np.isnan(nats) if may_be_infinite else ~np.isfinite(nats)
            if wrong.any():
                shown = ", ".join(map(str, np.unique(rows[wrong])[:5]))
                raise FloatingPointError(
                    f"The network gave a loss that is not finite in rows {shown}"
                    f"{', ...' if wrong.sum() > 5 else ''}: its weights are NaN or Inf, or produce "
                    "them; try another checkpoint."
                )
            self.done += 1
            if self.progress is not None:
                self.progress(self.done, self.total)
        return found

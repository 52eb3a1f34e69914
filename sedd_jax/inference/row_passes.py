"""Evaluation of functions of single rows, over all rows and devices."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key, Shaped, UInt32
from numpy.typing import ArrayLike

from sedd_jax.errors import BadInput, check_positive
from sedd_jax.experiment.mesh import shard_batch
from sedd_jax.inference.batches import batch_rows, one_ahead, row_keys, row_numbers
from sedd_jax.inference.conditions import context_of
from sedd_jax.inference.family import Family
from sedd_jax.inference.model import TrainedModel, compiled
from sedd_jax.inference.prompt import Prompt
from sedd_jax.model.context import NOTHING
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
      numbers: of the rows, which their random keys are made of; None: their indices.
      total: passes over a batch in all.
      done: passes so far.
    """

    family: Family
    mesh: Mesh | None
    params: Params
    rows: Sequence[np.ndarray]
    placed: Callable[[np.ndarray], tuple[Array, dict[str, Any]]]
    progress: Callable[[int, int], None] | None = None
    numbers: UInt32[np.ndarray, "N"] | None = None
    total: int = 0
    done: int = 0

    def __call__(
        self,
        build: Callable[..., Any],
        static: tuple[Any, ...],
        key: Key[Array, ""],
        *columns: Shaped[np.ndarray, "N"],
        may_be_infinite: bool = False,
    ) -> Float[np.ndarray, "N *n"]:
        """Returns loss(params, row keys, *columns, tokens, **known) of every row, float64 [N, ...].

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
            keys = row_keys(key, rows if self.numbers is None else self.numbers[rows])
            return program(self.params, keys, *sharded, tokens, **known)

        found = None
        for rows, nats in one_ahead(self.rows, compute):
            found = np.zeros((1 + self.rows[-1][-1], *nats.shape[1:])) if found is None else found
            found[rows] = nats
            wrong = np.isnan(nats) if may_be_infinite else ~np.isfinite(nats)
            wrong = wrong.reshape(len(rows), -1).any(-1)
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


def passes_over(
    model: TrainedModel,
    tokens: ArrayLike,
    *,
    lengths: ArrayLike | None = None,
    condition: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
    held: ArrayLike | None = None,
    rows: ArrayLike | None = None,
    batch_size: int = 32,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[RowPasses, Int[np.ndarray, "N"]]:
    """Returns the passes over rows of tokens, and how many tokens of each row are scored.

    Args:
      model: the model.
      tokens: token ids, [N, L].
      lengths: number of tokens of every row, [N]; the rest is padding. None for full rows.
      condition: what the model is told, of all rows or of each.
      held: tokens that are given, [N, L], and not scored; None: none is.
      rows: numbers of the rows, see `nll_bound`; None: 0 to N - 1.
      batch_size: rows at a time, rounded up to a multiple of what the devices divide.
      progress: called as progress(done, total) after every batch.

    Raises:
      BadInput: no such array, ids or conditions that the model does not have, more positions than
        it has, or tokens given to a model of another family.
    """
    check_positive(batch_size=batch_size)
    family = model.family
    tokens, lengths = _checked(family, np.asarray(tokens), lengths)
    count = np.full(len(tokens), tokens.shape[1]) if lengths is None else lengths
    if held is not None:
        held = _checked_held(family, np.asarray(held), tokens, lengths)
        count = count - held.sum(1)
    numbers = None if rows is None else row_numbers(rows, len(tokens))
    batches = batch_rows(len(tokens), min(batch_size, len(tokens)), model.num_batch_shards)

    known = {"lengths": lengths, **context_of(model, condition, len(tokens))}
    if held is not None:
        known["context"] = known.get("context", NOTHING)._replace(given=held)
        if numbers is not None and family.infills:
            known["start"] = held.argmin(1).astype(np.int32)  # the first token that is not held

    def placed(batch):
        place = functools.partial(_placed, model, batch)
        return place(tokens), jax.tree.map(place, known)

    return RowPasses(family, model.mesh, model.params, batches, placed, progress, numbers), count


def _placed(model, batch, rows):
    return model.shard_batch(rows[batch])


def _checked(family, tokens, lengths):
    """Tokens with 0 in the padding, and lengths, None where there is no padding."""
    if tokens.ndim != 2 or tokens.size == 0 or not np.issubdtype(tokens.dtype, np.integer):
        raise BadInput(
            "A likelihood needs integers [N, L], at least one sequence of at least one token; got "
            f"{tokens.dtype} {list(tokens.shape)}."
        )
    rows, longest = tokens.shape
    if lengths is not None:
        lengths = np.asarray(lengths)
        fits = lengths.shape == (rows,) and np.issubdtype(lengths.dtype, np.integer)
        if not fits or not 1 <= lengths.min() <= lengths.max() <= longest:
            raise BadInput(
                f"A likelihood needs one length from 1 to {longest} for each of the {rows} rows."
            )
        tokens = np.where(np.arange(longest) < lengths[:, None], tokens, 0)
        lengths = None if (lengths == longest).all() else lengths.astype(np.int32)
    if not 0 <= tokens.min() <= tokens.max() < family.num_tokens:
        raise BadInput(f"A likelihood needs ids in [0, {family.num_tokens}), the model's tokens.")
    if family.max_length is not None and longest > family.max_length:
        raise BadInput(
            f"A likelihood needs sequences of at most {family.max_length} tokens, the positions "
            f"that the model has learned; got {longest}."
        )
    return tokens.astype(np.int32), lengths


def _checked_held(family, held, tokens, lengths):
    """Where tokens are given, False in the padding."""
    shape = tokens.shape
    if held.shape != shape or held.dtype != np.bool_:
        raise BadInput(
            f"held must be booleans {list(shape)}, one for each token; got {held.dtype} "
            f"{list(held.shape)}."
        )
    if lengths is not None:
        held = held & (np.arange(shape[1]) < lengths[:, None])
    family.check_prompt(Prompt(tokens, held))
    real = np.full(shape[0], shape[1]) if lengths is None else lengths
    if (held.sum(1) == real).all():
        raise BadInput("held leaves no token to score: every token of every row is given.")
    return held

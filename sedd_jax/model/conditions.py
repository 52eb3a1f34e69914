"""How a network is told conditions: an embedding of each column, added to that of the noise.

The sum modulates every block (adaLN; Peebles and Xie 2022, arXiv 2212.09748), so a condition costs
products of one row and none of a position. All embeddings start at zero: a conditional network
starts as the unconditional one.

Shapes: B batch, C condition, K classes, N numbers.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from sedd_jax.data.column_statistics import ColumnSize
from sedd_jax.model.config import TransformerConfig
from sedd_jax.model.transformer import Dense


class ClassEmbedding(nnx.Module):
    """A row for each class, and a last one for a class that is not told."""

    def __init__(self, size: ColumnSize, config: TransformerConfig, *, rngs: nnx.Rngs):
        del rngs  # nothing is random
        self.table = nnx.Param(jnp.zeros((size.classes + 1, config.model.cond_dim)))

    def __call__(self, classes: Int[Array, "B"]) -> Float[Array, "B C"]:
        last = self.table.shape[0] - 1
        return self.table[...][jnp.where(classes < 0, last, classes)]


class NumberEmbedding(nnx.Module):
    """Linear, SiLU, Linear of standardised numbers, and whether they are told."""

    def __init__(self, size: ColumnSize, config: TransformerConfig, *, rngs: nnx.Rngs):
        width = config.model.cond_dim
        # tiny, as that of sigma
        config = dataclasses.replace(config, dtype=jnp.dtype("float32"))
        self.inner = Dense((size.width + 1,), (width,), config, rngs=rngs)
        self.outer = Dense((width,), (width,), config, rngs=rngs, zero=True)

    def __call__(self, numbers: Float[Array, "B N"]) -> Float[Array, "B C"]:
        told = ~jnp.isnan(numbers).any(-1, keepdims=True)
        inputs = jnp.concatenate([jnp.where(told, numbers, 0), told], axis=-1)
        return self.outer(nnx.silu(self.inner(inputs)))


class ConditionEmbedding(nnx.Module):
    """The sum of the embeddings of all columns."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        self.sizes = config.conditions
        for number, size in enumerate(config.conditions):
            kind = ClassEmbedding if size.classes else NumberEmbedding
            setattr(self, _attribute(number), kind(size, config, rngs=rngs))

    def __call__(self, condition: dict[str, Array] | None, rows: int) -> Float[Array, "B C"]:
        """Returns what is added to the embedding of the noise.

        Args:
          condition: of every row, by column, see `data.conditions`; None: nothing is told, as where
            a column is absent.
          rows: B.
        """
        told = untold(condition_shapes(self.sizes, rows)) | (condition or {})
        columns = [getattr(self, _attribute(number)) for number in range(len(self.sizes))]
        embedded = [
            column(told[size.name]) for column, size in zip(columns, self.sizes, strict=True)
        ]
        return sum(embedded[1:], embedded[0])


def _attribute(number):
    return f"column_{number}"  # the name of a column may be no path of a parameter


def condition_shapes(
    sizes: Sequence[ColumnSize], rows: int, sharding: Any = None
) -> dict[str, Any]:
    """Returns the shapes of a tree of conditions.

    Args:
      sizes: of the columns.
      rows: B.
      sharding: of every array.
    """
    return {
        size.name: jax.ShapeDtypeStruct(
            (rows,) if size.classes else (rows, size.width),
            jnp.int32 if size.classes else jnp.float32,
            sharding=sharding,
        )
        for size in sizes
    }


def untold(condition: Any) -> Any:
    """Returns conditions that are not told, see `Context`.

    Args:
      condition: a tree of arrays, or of their shapes.
    """

    def nothing(values: Any) -> Array:
        is_class = jnp.issubdtype(values.dtype, jnp.integer)
        return jnp.full(values.shape, -1 if is_class else jnp.nan, values.dtype)

    return jax.tree.map(nothing, condition)


def dropped(key: Key[Array, ""], condition: Any, rate: float) -> Any:
    """Returns conditions of which some are not told, so that the network learns to do without.

    With probability `rate` a row is told nothing, which is what classifier-free guidance needs (Ho
    and Salimans 2022, arXiv 2207.12598); of several columns each is left out by itself with the
    same probability.

    Args:
      key: random key, used once.
      condition: of every row, by column.
      rate: a probability.
    """
    rows_key, *keys = jax.random.split(key, 1 + len(condition))
    rows = jax.tree.leaves(condition)[0].shape[0]
    none = jax.random.uniform(rows_key, rows) < rate

    def left_out(key: Key[Array, ""], values: Array) -> Array:
        drop = none if len(condition) == 1 else none | (jax.random.uniform(key, rows) < rate)
        drop = drop.reshape(-1, *[1] * (values.ndim - 1))
        return jnp.where(drop, untold(values), values)

    return {
        name: left_out(each, values)
        for (name, values), each in zip(sorted(condition.items()), keys, strict=True)
    }

"""Blocks of active rows: the positions for which the streamed vocabulary head computes something.

Only rows that are active are gathered, and only their blocks are computed, so an inactive position
costs nothing, exactly.

Shapes: B L positions, compacted to N rows.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Key

from sedd_jax.system.rounding import ceil_div, round_up

BLOCKS_OF = "blocks_of_"  # begins the names of loops over blocks of rows, in compiled programs


class RowBlock(NamedTuple):
    """Rows [start, start + size) of arrays [N, ...]."""

    start: Int[Array, ""]
    size: int

    def take(self, tree: Any) -> Any:
        """Returns these rows of every array."""
        return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, self.start, self.size), tree)

    def write(self, x: Array, rows: Array, first_column: Int[Array, ""] | int = 0) -> Array:
        """Returns x with these rows written.

        Args:
          x: [N, ...].
          rows: [size, ...].
          first_column: where to write along the second axis.
        """
        starts = (self.start, first_column)[: x.ndim]
        return jax.lax.dynamic_update_slice(x, rows, starts)

    def add(self, x: Array, rows: Array) -> Array:
        """Returns x [N, ...] with `rows` added to these rows."""
        return self.write(x, self.take(x) + rows)


class ActiveRows(NamedTuple):
    """The active positions, compacted to rows and padded to whole blocks.

    Attributes:
      order: the flat position in [B, L] of every row; B L in the padding, from `count` on.
      count: number of active rows.
      sizes: of blocks, as in `Tiling`.
    """

    order: Int[Array, "N"]
    count: Int[Array, ""]
    sizes: tuple[int, ...]

    @classmethod
    def of(cls, active: Bool[Array, "B L"], sizes: tuple[int, ...]) -> "ActiveRows":
        """Finds the active positions.

        Args:
          active: which positions.
          sizes: of blocks, as in `Tiling`.

        Raises:
          ValueError: the smallest size does not divide the others.
        """
        if any(size % sizes[-1] for size in sizes):
            raise ValueError(f"Sizes of blocks must be multiples of the last, got {sizes}.")
        sizes = tuple(size for size in sizes if size <= active.size) or sizes[-1:]
        flat = active.reshape(-1)
        rows = round_up(flat.size, sizes[-1])
        order = jnp.flatnonzero(flat, size=rows, fill_value=flat.size)
        return cls(order, flat.sum(), sizes)

    def gather(self, tree: Any) -> Any:
        """Returns arrays [B, L, ...] as rows [N, ...], zeros in the padding."""

        def rows(x):
            return x.reshape(-1, *x.shape[2:]).at[self.order].get(mode="fill", fill_value=0)

        return jax.tree.map(rows, tree)

    def scatter(self, x: Array, shape: tuple[int, int]) -> Array:
        """Returns rows [N, ...] as an array [B, L, ...] of `shape` B, L; zeros elsewhere."""
        places = jnp.zeros((shape[0] * shape[1], *x.shape[1:]), x.dtype)
        return places.at[self.order].set(x, mode="drop").reshape(*shape, *x.shape[1:])

    def position_keys(self, keys: Key[Array, "B"], block: RowBlock, length: int) -> Key[Array, "N"]:
        """Returns a key for every position of a block, folded from the key of its sequence.

        Args:
          keys: of the sequences.
          block: of these rows.
          length: L.
        """
        sequence, position = jnp.divmod(block.take(self.order), length)
        return jax.vmap(jax.random.fold_in)(keys[sequence], position)

    def fold(self, body: Callable[[RowBlock, Any], Any], carry: Any) -> Any:
        """Folds carry = body(block, carry) over the blocks that hold an active row."""
        done = 0
        for size in self.sizes:
            left = self.count - done
            blocks = left // size if size != self.sizes[-1] else ceil_div(left, size)

            def step(index, carry, size=size, done=done):
                return body(RowBlock(done + index * size, size), carry)

            with jax.named_scope(f"{BLOCKS_OF}{size}"):  # the trip count is known at run time only
                carry = jax.lax.fori_loop(0, blocks, step, carry)
            done = done + blocks * size
        return carry


def map_blocks(function: Callable[[Any], Any], rows: Any, size: int) -> Any:
    """Returns `function` of arrays [N, ...], computed for `size` rows at a time.

    The backward pass recomputes each block, so that its arrays exist for one block at a time.

    Args:
      function: of a tree of arrays [size, ...] to such a tree, row by row.
      rows: the arrays.
      size: rows of a block, the last of which is filled up.
    """
    (count,) = {len(x) for x in jax.tree.leaves(rows)}
    size = min(size, count)
    parts = ceil_div(count, size)

    def split(x):
        padded = jnp.pad(x, [(0, parts * size - count)] + [(0, 0)] * (x.ndim - 1))
        return padded.reshape(parts, size, *x.shape[1:])

    blocks = jax.lax.map(jax.checkpoint(function), jax.tree.map(split, rows))
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:count], blocks)

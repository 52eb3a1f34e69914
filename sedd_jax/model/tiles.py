"""How the vocabulary head is passed through: tiles of outputs, only where a position counts.

A tile is some positions (rows) times some columns of the table. Only rows that count are gathered,
and only their blocks are computed, so what does not count costs nothing, exactly.

Shapes: B L positions, as N rows in order; D hidden; V columns of the table (on this device).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from sedd_jax.model.config import COLUMN_GROUP, padded
from sedd_jax.system.rounding import ceil_div, round_up

BLOCKS_OF = "blocks_of_"  # begins the names of loops over blocks of rows, in compiled programs


class Tiling(NamedTuple):
    """Sizes of tiles.

    Attributes:
      columns: about as many, equal tiles of multiples of 128.
      rows: in decreasing order, the last one for the remainder, which divides all.
      jumps: positions whose own 128 columns are gathered at a time, 128 D numbers each.
    """

    columns: int
    rows: tuple[int, ...]
    jumps: int


# a tile should stay in the cache of a CPU; accelerators want large products
CPU = Tiling(columns=2048, rows=(128, 32), jumps=32)
ACCELERATOR = Tiling(columns=8192, rows=(4096, 2048, 1024, 512), jumps=256)


def tiling_for(platform: str) -> Tiling:
    """Returns the sizes of tiles for a kind of device."""
    return CPU if platform == "cpu" else ACCELERATOR


class RowBlock(NamedTuple):
    """Rows [start, start + size) of arrays [N, ...]."""

    start: Int[Array, ""]
    size: int

    def take(self, tree: Any) -> Any:
        """Returns these rows of every array."""
        return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, self.start, self.size), tree)

    def write(self, x: Array, rows: Array, first_column: Int[Array, ""] | int = 0) -> Array:
        """Returns x [N, ...] with these rows written, from a column on."""
        starts = (self.start, first_column)[: x.ndim]
        return jax.lax.dynamic_update_slice(x, rows, starts)

    def add(self, x: Array, rows: Array) -> Array:
        """Returns x [N, ...] with something added to these rows."""
        return self.write(x, self.take(x) + rows)


class Front(NamedTuple):
    """The rows that count, in order, filled up to whole blocks.

    Attributes:
      order: where in [B, L] every row comes from; B L where it is filled up, from `count` on.
      count: of the rows that count.
      sizes: of blocks, as in `Tiling`.
    """

    order: Int[Array, "N"]
    count: Int[Array, ""]
    sizes: tuple[int, ...]

    @classmethod
    def of(cls, counts: Bool[Array, "B L"], sizes: tuple[int, ...]) -> "Front":
        """Finds the positions that count; sizes as in `Tiling`.

        Raises:
          ValueError: the smallest size does not divide the others.
        """
        if any(size % sizes[-1] for size in sizes):
            raise ValueError(f"Sizes of blocks must be multiples of the last, got {sizes}.")
        sizes = tuple(size for size in sizes if size <= counts.size) or sizes[-1:]
        flat = counts.reshape(-1)
        whole = round_up(flat.size, sizes[-1])
        order = jnp.flatnonzero(flat, size=whole, fill_value=flat.size)
        return cls(order, flat.sum(), sizes)

    def take(self, tree: Any) -> Any:
        """Returns arrays [B, L, ...] as rows [N, ...], zeros where it is filled up."""

        def rows(x):
            return x.reshape(-1, *x.shape[2:]).at[self.order].get(mode="fill", fill_value=0)

        return jax.tree.map(rows, tree)

    def put_back(self, x: Array, shape: tuple[int, int]) -> Array:
        """Returns rows [N, ...] as an array [B, L, ...], in their places; zeros elsewhere."""
        places = jnp.zeros((shape[0] * shape[1], *x.shape[1:]), x.dtype)
        return places.at[self.order].set(x, mode="drop").reshape(*shape, *x.shape[1:])

    def fold(self, body: Callable[[RowBlock, Any], Any], carry: Any) -> Any:
        """Folds carry = body(block, carry) over the blocks that hold a row that counts."""
        done = 0
        for size in self.sizes:
            left = self.count - done
            blocks = left // size if size != self.sizes[-1] else ceil_div(left, size)

            def step(index, carry, size=size, done=done):
                return body(RowBlock(done + index * size, size), carry)

            with jax.named_scope(f"{BLOCKS_OF}{size}"):  # how often is known only while it runs
                carry = jax.lax.fori_loop(0, blocks, step, carry)
            done = done + blocks * size
        return carry


class Chunk(NamedTuple):
    """Columns of the table, from `start` on.

    Attributes:
      start: the first column.
      kernel: of these columns, in the type of the products.
      bias: of these columns.
      states: the graph's state of every column.
      real: whether a column is a state, not padding.
      fresh: whether it is real and in no chunk before: the last chunk may reach back.
    """

    start: Int[Array, ""]
    kernel: Float[Array, "D C"]
    bias: Float[Array, "C"]
    states: Int[Array, "C"]
    real: Bool[Array, "C"]
    fresh: Bool[Array, "C"]

    def log_score(
        self, hidden: Float[Array, "N D"], shift: Float[Array, "N"]
    ) -> Float[Array, "N C"]:
        """Returns the outputs minus `shift`, float32; 0 in padding."""
        out = jnp.dot(hidden, self.kernel, preferred_element_type=jnp.float32)
        return jnp.where(self.real[None], out + self.bias[None] - shift[:, None], 0)

    def add(self, x: Float[Array, "*D V"], columns: Float[Array, "*D C"]) -> Float[Array, "*D V"]:
        """Returns x with something added to these columns."""
        old = jax.lax.dynamic_slice_in_dim(x, self.start, columns.shape[-1], axis=-1)
        return jax.lax.dynamic_update_slice_in_dim(x, old + columns, self.start, axis=-1)


class Table(NamedTuple):
    """The projection to outputs, hidden @ kernel + bias, or a device's part of its columns.

    Attributes:
      kernel: [D, V].
      bias: [V].
    """

    kernel: Float[Array, "D V"]
    bias: Float[Array, "V"]

    def filled(self) -> "Table":
        """Returns the table with zeros up to a multiple of 128 columns."""
        more = padded(self.bias.size) - self.bias.size
        return jax.tree.map(lambda x: jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, more)]), self)

    def cut(self, columns: int) -> "Table":
        """Returns the first columns."""
        return jax.tree.map(lambda x: x[..., :columns], self)


class Span(NamedTuple):
    """What the columns of a table, or of a device's part of it, stand for.

    Attributes:
      first_state: the state of the first column.
      columns: of the table; further ones fill it up.
      num_states: of the graph; columns of higher states are padding.
      dtype: that the products are made in.
    """

    first_state: Int[Array, ""] | int
    columns: int
    num_states: int
    dtype: jnp.dtype

    def chunk(
        self, table: Table, start: Int[Array, ""] | int, width: int, turn: Int[Array, ""] | int = 0
    ) -> Chunk:
        """Returns the columns from `start` on; columns before `turn` are not fresh."""
        column = start + jnp.arange(width)
        states = self.first_state + column
        real = (states < self.num_states) & (column < self.columns)
        return Chunk(
            start,
            jax.lax.dynamic_slice_in_dim(table.kernel, start, width, axis=1).astype(self.dtype),
            jax.lax.dynamic_slice_in_dim(table.bias, start, width),
            states,
            real,
            real & (column >= turn),
        )

    def fold(self, table: Table, width: int, body: Callable[[Chunk, Any], Any], carry: Any) -> Any:
        """Folds carry = body(chunk, carry) over the table, in equal chunks of about `width`."""
        columns = table.bias.size
        chunks = max(1, round(columns / width))
        width = ceil_div(columns, chunks * COLUMN_GROUP) * COLUMN_GROUP

        def step(carry, index):
            turn = index * width
            start = jnp.minimum(turn, columns - width)
            return body(self.chunk(table, start, width, turn), carry), None

        return jax.lax.scan(step, carry, jnp.arange(chunks))[0]

"""Tiles of the streamed vocabulary head: blocks of active rows times chunks of columns.

The blocks are in `rows`; here are the columns.

Shapes: B L positions, compacted to N rows; D hidden; V columns of the unembedding (on this device).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from sedd_jax.diffusion.graph import PerState, at_states
from sedd_jax.model.config import COLUMN_GROUP, padded
from sedd_jax.model.head_inputs import HeadInputs, scaled
from sedd_jax.model.rows import ActiveRows
from sedd_jax.model.sharding import Placement
from sedd_jax.system.rounding import ceil_div


class Tiling(NamedTuple):
    """Sizes of tiles.

    Attributes:
      columns: of a chunk, approximately: chunks are equal, and multiples of 128.
      rows: of blocks, in decreasing order; the last divides the others and takes the remainder.
      jumps: positions whose own 128 columns are gathered at a time, 128 D numbers each.
      kept: number of logits that are kept at a time, where all of a position are needed.
    """

    columns: int
    rows: tuple[int, ...]
    jumps: int
    kept: int = 2**24

    def kept_rows(self, columns: int) -> tuple[int, ...]:
        """Returns the sizes of blocks of rows whose logits of all columns are kept."""
        sizes = [2 * self.rows[-1]]
        while 4 * sizes[-1] * columns <= self.kept:
            sizes.append(4 * sizes[-1])
        return tuple(reversed(sizes))


# a tile should stay in the cache of a CPU; accelerators want large products
CPU = Tiling(columns=2048, rows=(128, 32), jumps=32)
ACCELERATOR = Tiling(columns=8192, rows=(4096, 2048, 1024, 512), jumps=256, kept=2**27)


def tiling_for(platform: str) -> Tiling:
    """Returns the sizes of tiles for a kind of device."""
    return CPU if platform == "cpu" else ACCELERATOR


class Chunk(NamedTuple):
    """Columns of the unembedding, from `start` on.

    Attributes:
      start: the first column.
      kernel: of these columns, in the type of the products.
      bias: of these columns.
      states: the graph's state of every column.
      real: whether a column is a state, not padding.
      unvisited: whether it is real and in no chunk before: the last chunk may overlap the previous.
      temperature: that divides the log-scores.
    """

    start: Int[Array, ""]
    kernel: Float[Array, "D C"]
    bias: Float[Array, "C"]
    states: Int[Array, "C"]
    real: Bool[Array, "C"]
    unvisited: Bool[Array, "C"]
    temperature: float

    def logits(self, hidden: Float[Array, "N D"]) -> Float[Array, "N C"]:
        """Returns the logits, float32; 0 in padding."""
        out = jnp.dot(hidden, self.kernel, preferred_element_type=jnp.float32) + self.bias[None]
        return jnp.where(self.real[None], out, 0)

    def log_score(self, inputs: HeadInputs) -> Float[Array, "N C"]:
        """Returns the log-scores, by the temperature; of no use at x_t, 0 in padding."""
        out = scaled(self._unscaled(inputs), self.temperature)
        return jnp.where(self.real[None], out, 0)

    def _unscaled(self, inputs):
        out = self.logits(inputs.hidden) - inputs.shift[:, None]
        if inputs.added is not None:
            out = inputs.added.to(out, self.states)
        if inputs.guide is not None:
            out = inputs.guide.average(out, self._unscaled(inputs.guide.inputs))
        return out

    def log_ratios(self, inputs: HeadInputs) -> Float[Array, "N C"]:
        """Returns the log-scores, 0 at x_t and -inf in padding."""
        log_score = self.log_score(inputs)
        log_score = jnp.where(self.states[None] == inputs.xt[:, None], 0, log_score)
        return jnp.where(self.real[None], log_score, -jnp.inf)

    def weights(self, inputs: HeadInputs, cut: PerState | None) -> Float[Array, "N C"]:
        """Returns max(0, score - cut), 0 at x_t and in padding."""
        if inputs.second is None:
            log_score = self.log_score(inputs)
            score = jnp.exp(log_score)
            if inputs.floor is not None:
                score = jnp.where(log_score >= inputs.floor[:, None], score, 0)
        else:
            first = inputs._replace(xt=inputs.second.first_xt)
            both = map(self.log_ratios, (first, inputs.second.inputs))
            score = inputs.second.blend(*map(jnp.exp, both), self.states)
        if cut is not None:
            score = jnp.maximum(score - at_states(cut, self.states, 2), 0)
        allowed = self.real[None] & (self.states[None] != inputs.xt[:, None])
        return jnp.where(allowed, score, 0)

    def add(self, x: Float[Array, "*D V"], columns: Float[Array, "*D C"]) -> Float[Array, "*D V"]:
        """Returns x with `columns` added to these columns."""
        old = jax.lax.dynamic_slice_in_dim(x, self.start, columns.shape[-1], axis=-1)
        return jax.lax.dynamic_update_slice_in_dim(x, old + columns, self.start, axis=-1)


class Unembedding(NamedTuple):
    """The projection to logits, hidden @ kernel + bias, or a device's shard of its columns."""

    kernel: Float[Array, "D V"]
    bias: Float[Array, "V"]

    def padded(self) -> "Unembedding":
        """Returns the unembedding with zeros up to a multiple of 128 columns."""
        more = padded(self.bias.size) - self.bias.size
        return jax.tree.map(lambda x: jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, more)]), self)

    def first(self, columns: int) -> "Unembedding":
        """Returns the first columns."""
        return jax.tree.map(lambda x: x[..., :columns], self)


class VocabShard(NamedTuple):
    """The states of the columns of an unembedding, or of a device's shard of it.

    Attributes:
      first_state: the state of the first column.
      columns: of the unembedding, before it is padded to a multiple of 128.
      num_states: of the graph; columns of higher states are padding.
      dtype: of the products.
      temperature: that divides the log-scores.
    """

    first_state: Int[Array, ""] | int
    columns: int
    num_states: int
    dtype: jnp.dtype
    temperature: float

    def chunk(
        self,
        unembedding: Unembedding,
        start: Int[Array, ""] | int,
        width: int,
        first_unvisited: Int[Array, ""] | int = 0,
    ) -> Chunk:
        """Returns some columns.

        Args:
          unembedding: padded to a multiple of 128 columns.
          start: the first column.
          width: number of columns.
          first_unvisited: columns before it have been in a chunk.
        """
        kernel, bias = unembedding
        column = start + jnp.arange(width)
        states = self.first_state + column
        real = (states < self.num_states) & (column < self.columns)
        return Chunk(
            start,
            jax.lax.dynamic_slice_in_dim(kernel, start, width, axis=1).astype(self.dtype),
            jax.lax.dynamic_slice_in_dim(bias, start, width),
            states,
            real,
            real & (column >= first_unvisited),
            self.temperature,
        )

    def scan(
        self,
        unembedding: Unembedding,
        width: int,
        body: Callable[[Chunk, Any, Any], tuple[Any, Any]],
        carry: Any,
        given: Any = None,
    ) -> tuple[Any, Any]:
        """Scans (carry, result) = body(chunk, carry, given) over the unembedding, in equal chunks.

        Args:
          unembedding: padded to a multiple of 128 columns.
          width: of a chunk, approximately.
          body: of the scan.
          carry: its initial value.
          given: one for each chunk, stacked as the results are.
        """
        columns = unembedding.bias.size
        chunks = max(1, round(columns / width))
        width = ceil_div(columns, chunks * COLUMN_GROUP) * COLUMN_GROUP

        def step(carry, each):
            index, given = each
            first_unvisited = index * width
            start = jnp.minimum(first_unvisited, columns - width)
            return body(self.chunk(unembedding, start, width, first_unvisited), carry, given)

        return jax.lax.scan(step, carry, (jnp.arange(chunks), given))


class StreamedHead(NamedTuple):
    """How an unembedding is streamed. Methods are what one device does, with its own shards.

    Attributes:
      num_states: of the graph; further columns of the unembedding are padding.
      tiling: sizes of tiles.
      placement: of positions and unembedding. A device groups its own columns: where they are no
        multiple of 128, the same keys draw other states of the same distribution.
      temperature: that divides the log-scores.
    """

    num_states: int
    tiling: Tiling
    placement: Placement
    temperature: float = 1.0

    def active_rows(
        self,
        active: Bool[Array, "B L"],
        sizes: tuple[int, ...] | None = None,
        gathers: bool = False,
    ) -> ActiveRows:
        """Returns the active positions in blocks.

        Args:
          active: which positions.
          sizes: of blocks; those of the tiling by default.
          gathers: what is done with a block gathers the columns of all devices.
        """
        rows = ActiveRows.of(active, sizes or self.tiling.rows)
        if gathers and self.placement.tensor and self.placement.batch:
            # the same trip count for all that all-gather
            rows = rows._replace(count=jax.lax.pmax(rows.count, self.placement.batch))
        return rows

    def fold(
        self,
        body: Callable[[Chunk, Any], Any],
        carry: Any,
        unembedding: Unembedding,
        inputs: HeadInputs,
    ) -> Any:
        """Folds carry = body(chunk, carry) over this device's columns.

        Args:
          body: of the fold.
          carry: its initial value.
          unembedding: the projection to logits.
          inputs: for the type of the products.
        """
        shard, columns = self.shard(unembedding, inputs), self.tiling.columns

        def step(chunk, carry, _):
            return body(chunk, carry), None

        return shard.scan(unembedding.padded(), columns, step, carry)[0]

    def shard(self, unembedding: Unembedding, inputs: HeadInputs) -> VocabShard:
        """Returns the states of this device's columns."""
        columns, dtype = unembedding.bias.size, inputs.hidden.dtype
        first_state = self.shard_index() * columns
        return VocabShard(first_state, columns, self.num_states, dtype, self.temperature)

    def shard_index(self) -> Int[Array, ""] | int:
        """Returns the number of this device's shard of the columns."""
        axis = self.placement.tensor
        return 0 if axis is None else jax.lax.axis_index(axis)

    def all_columns(self, x: Float[Array, "N C"]) -> Float[Array, "N V"]:
        """Returns the columns of all devices."""
        axis = self.placement.tensor
        return x if axis is None else jax.lax.all_gather(x, axis, axis=1, tiled=True)

    def largest(self, x: Float[Array, "*s"]) -> Float[Array, "*s"]:
        """Returns the largest over the shards of the columns."""
        axis = self.placement.tensor
        return x if axis is None else jax.lax.pmax(x, axis)

    def log_sum_over_shards(self, x: Float[Array, "*s"]) -> Float[Array, "*s"]:
        """Returns the log of the sum of exp(x) over the shards of the columns."""
        if self.placement.tensor is None:
            return x
        largest = self.largest(x)
        return largest + jnp.log(self.sum_over_shards(jnp.exp(x - largest)))

    def sum_over_shards(self, x: Any) -> Any:
        """Returns arrays summed over the shards of the columns."""
        axis = self.placement.tensor
        return x if axis is None else jax.lax.psum(x, axis)

    def sum_over_batch(
        self, total: Float[Array, ""], d_unembedding: Unembedding
    ) -> tuple[Float[Array, ""], Unembedding]:
        """Sums over the batch; of the kernel's gradient a device keeps its own "fsdp" shard."""
        axes, fsdp = self.placement.batch, self.placement.fsdp
        if not axes:
            return total, d_unembedding
        total, d_bias = jax.lax.psum((total, d_unembedding.bias), axes)
        d_kernel = d_unembedding.kernel
        if fsdp is not None:
            d_kernel = jax.lax.psum_scatter(d_kernel, fsdp, scatter_dimension=0, tiled=True)
        others = tuple(axis for axis in axes if axis != fsdp)
        d_kernel = jax.lax.psum(d_kernel, others) if others else d_kernel
        return total, Unembedding(d_kernel, d_bias)

"""The vocabulary head, streamed: sums over all tokens and draws from them, never B L V numbers.

On a mesh every device streams the rows of its own part of the batch; where the table is split as
well, the devices add up their parts. Padding of the table ends here.

Shapes: B batch, L length, D hidden, V columns of the padded table, G = V / 128 groups of columns.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int, Key

from sedd_jax.diffusion import categorical
from sedd_jax.diffusion.score import Drawn, Score, StepWeightsFn
from sedd_jax.diffusion.score_entropy import Target, entropy_terms
from sedd_jax.diffusion.temperature import NO_FILTER, TokenFilter
from sedd_jax.model.config import COLUMN_GROUP, padded
from sedd_jax.model.placement import Placement
from sedd_jax.model.tiles import Front, Span, Table, Tiling


class Rows(NamedTuple):
    """What the log-scores of a position are made of: its outputs minus `shift`, but for x_t."""

    hidden: Float[Array, "*s D"]
    shift: Float[Array, "*s"]
    xt: Int[Array, "*s"]


@dataclasses.dataclass(frozen=True)
class Stream:
    """How the table is passed through. Methods are what every device does, with its own part.

    Attributes:
      num_states: of the graph; columns of the table from there on are padding.
      tiling: sizes of tiles.
      placement: where rows and table lie. A device's columns are put in groups of their own: where
        they are no multiple of 128, the same keys draw other states of the same law.
    """

    num_states: int
    tiling: Tiling
    placement: Placement

    def entropy(self, table: Table, rows: Rows, target: Target) -> Float[Array, "B L"]:
        """Returns the score entropy of every position."""
        front = self._front(target.weight > 0)
        shape = target.xt.shape
        rows, target = front.take((rows, target))

        def chunk_step(chunk, total):
            def block_step(block, total):
                part = block.take(rows)
                log_score = chunk.log_score(part.hidden, part.shift)
                terms = entropy_terms(block.take(target), chunk.states, log_score)
                return block.add(total, jnp.where(chunk.fresh[None], terms, 0).sum(-1))

            return front.fold(block_step, total)

        total = self._scan(chunk_step, jnp.zeros(target.weight.shape), table, rows)
        return front.put_back(self._over_table(total) * target.weight, shape)

    def entropy_and_gradient(
        self, table: Table, rows: Rows, target: Target, weight: Float[Array, "B"]
    ) -> tuple[Float[Array, ""], tuple[Float[Array, "B L D"], Table]]:
        """Returns the weighted sum of the score entropy; its float32 gradient by hidden and table.

        While a tile is at hand its gradient is made too: three products in all, where a backward
        pass that makes the outputs anew would take four.
        """
        weight = weight[:, None] * target.weight
        front = self._front(weight != 0)
        shape = target.xt.shape
        rows, target, weight = front.take((rows, target, weight))
        dtype = rows.hidden.dtype

        def product(x, y):
            return jnp.dot(x, y, preferred_element_type=jnp.float32)

        def chunk_step(chunk, carry):
            def block_step(block, carry):
                total, d_hidden, d_chunk = carry
                part, part_target, part_weight = block.take((rows, target, weight))

                def weighted(log_score):
                    terms = entropy_terms(part_target, chunk.states, log_score)
                    return jnp.where(chunk.fresh[None], part_weight[:, None] * terms, 0).sum()

                log_score = chunk.log_score(part.hidden, part.shift)
                value, d_out = jax.value_and_grad(weighted)(log_score)
                # read by all three sums, so that nothing of float32 is written
                low = jax.lax.optimization_barrier(d_out.astype(dtype))
                return (
                    total + value,
                    block.add(d_hidden, product(low, chunk.kernel.T)),
                    Table(
                        d_chunk.kernel + product(part.hidden.T, low),
                        d_chunk.bias + low.astype(jnp.float32).sum(0),
                    ),
                )

            total, d_hidden, d_table = carry
            zero = Table(jnp.zeros(chunk.kernel.shape), jnp.zeros(chunk.bias.shape))
            total, d_hidden, d_chunk = front.fold(block_step, (total, d_hidden, zero))
            return total, d_hidden, Table(*map(chunk.add, d_table, d_chunk))

        zero = jax.tree.map(lambda x: jnp.zeros(x.shape), (rows.hidden, table.filled()))
        total, d_hidden, d_table = self._scan(chunk_step, (jnp.zeros(()), *zero), table, rows)
        total, d_hidden = self._over_table((total, d_hidden))
        total, d_table = self._over_batch(total, d_table.cut(table.bias.size))
        return total, (front.put_back(d_hidden, shape), d_table)

    def masses(
        self, table: Table, rows: Rows, active: Bool[Array, "B L"], cut: Float[Array, "B L"] | None
    ) -> Float[Array, "B L G"]:
        """Returns the sum of max(0, score_y - cut) over y != x_t in groups of columns.

        0 where not active.
        """
        front = self._front(active)
        rows, cut = front.take((rows, cut))

        def chunk_step(chunk, masses):
            def block_step(block, masses):
                weights = _weights(chunk, *block.take((rows, cut)))
                grouped = weights.reshape(block.size, -1, COLUMN_GROUP).sum(-1)
                return block.write(masses, grouped, chunk.start // COLUMN_GROUP)

            return front.fold(block_step, masses)

        zero = jnp.zeros((front.order.size, padded(table.bias.size) // COLUMN_GROUP))
        return front.put_back(self._scan(chunk_step, zero, table, rows), active.shape)

    def pick(
        self,
        table: Table,
        rows: Rows,
        keys: Key[Array, "B"],
        jumps: Bool[Array, "B L"],
        cut: Float[Array, "B L"] | None,
        masses: Float[Array, "B L G"],
    ) -> Int[Array, "B L"]:
        """Returns a state y != x_t drawn by max(0, score_y - cut) where a position jumps, else 0.

        First a group by its mass, then a state of the group, whose outputs are made again.
        """
        front = Front.of(jumps, (self.tiling.jumps,))
        length = jumps.shape[1]
        span, table = self._span(table, rows.hidden.dtype), table.filled()
        groups = table.bias.size // COLUMN_GROUP  # of this device
        first_group = self._number_in_table() * groups
        rows, cut, masses = front.take((rows, cut, masses))

        def group_weights(start, row, cut):
            chunk = span.chunk(table, start, COLUMN_GROUP)
            return _weights(chunk, *jax.tree.map(lambda x: x[None], (row, cut)))[0]

        def block_step(block, states):
            part, part_cut, part_masses = block.take((rows, cut, masses))
            position_keys = _position_keys(keys, block.take(front.order), length)
            group_keys, state_keys = jax.vmap(jax.random.split, out_axes=1)(position_keys)
            group = jax.vmap(categorical.categorical)(group_keys, part_masses)
            # the table may be another device's: then what is made here is dropped
            mine = (group >= first_group) & (group < first_group + groups)
            start = jnp.where(mine, group - first_group, 0) * COLUMN_GROUP
            weights = jax.vmap(group_weights)(start, part, part_cut)
            column = jax.vmap(categorical.categorical)(state_keys, weights)
            # made anew by another product, a weight next to the cut may round to none: then stay
            state = span.first_state + start + column
            state = jnp.where(weights.sum(-1) > 0, state, part.xt)
            return block.write(states, jnp.where(mine, state, 0))

        states = front.fold(block_step, jnp.zeros(front.order.shape, jnp.int32))
        return self._over_table(front.put_back(states, jumps.shape))

    def pick_filtered(
        self,
        token_filter: TokenFilter,
        table: Table,
        rows: Rows,
        keys: Key[Array, "B"],
        jumps: Bool[Array, "B L"],
        cut: Float[Array, "B L"] | None,
    ) -> Int[Array, "B L"]:
        """Returns the same drawn more sharply, else 0.

        The largest weights must be known before any is drawn by: those of a few positions at a
        time (`Tiling.jumps`) are written out.
        """
        front = Front.of(jumps, (self.tiling.jumps,))
        if self.placement.tensor and self.placement.batch:  # as many turns of what is gathered
            front = front._replace(count=jax.lax.pmax(front.count, self.placement.batch))
        length = jumps.shape[1]
        whole = self._span(table, rows.hidden.dtype).chunk(table, 0, table.bias.size)
        rows, cut = front.take((rows, cut))

        def block_step(block, states):
            part, part_cut = block.take((rows, cut))
            weights = _weights(whole, part, part_cut)
            if self.placement.tensor:
                weights = jax.lax.all_gather(weights, self.placement.tensor, axis=1, tiled=True)
            position_keys = _position_keys(keys, block.take(front.order), length)
            state = jax.vmap(categorical.categorical)(position_keys, token_filter(jnp.log(weights)))
            return block.write(states, jnp.where(weights.sum(-1) > 0, state, part.xt))

        states = front.fold(block_step, jnp.zeros(front.order.shape, jnp.int32))
        return front.put_back(states, jumps.shape)

    def log_score_at(
        self, table: Table, rows: Rows, states: Int[Array, "B L"]
    ) -> Float[Array, "B L"]:
        """Returns the log-score of one state of every position, any but x_t."""
        columns, dtype = table.bias.size, rows.hidden.dtype
        column = states - self._span(table, dtype).first_state
        mine = (column >= 0) & (column < columns)
        column = jnp.where(mine, column, 0)
        out = jnp.einsum(
            "bld,dbl->bl",
            rows.hidden,
            table.kernel[:, column].astype(dtype),
            preferred_element_type=jnp.float32,
        )
        return self._over_table(jnp.where(mine, out + table.bias[column], 0)) - rows.shift

    def _front(self, counts):
        return Front.of(counts, self.tiling.rows)

    def _scan(self, body, carry, table, rows):
        span = self._span(table, rows.hidden.dtype)
        return span.fold(table.filled(), self.tiling.columns, body, carry)

    def _span(self, table, dtype):
        columns = table.bias.size
        return Span(self._number_in_table() * columns, columns, self.num_states, dtype)

    def _number_in_table(self):
        """Which part of the table this device has."""
        axis = self.placement.tensor
        return 0 if axis is None else jax.lax.axis_index(axis)

    def _over_table(self, x):
        axis = self.placement.tensor
        return x if axis is None else jax.lax.psum(x, axis)

    def _over_batch(self, total, d_table):
        """Sums over the batch, of which a device keeps the part of the table that it keeps."""
        axes, fsdp = self.placement.batch, self.placement.fsdp
        if not axes:
            return total, d_table
        total, d_bias = jax.lax.psum((total, d_table.bias), axes)
        d_kernel = d_table.kernel
        if fsdp is not None:
            d_kernel = jax.lax.psum_scatter(d_kernel, fsdp, scatter_dimension=0, tiled=True)
        others = tuple(axis for axis in axes if axis != fsdp)
        d_kernel = jax.lax.psum(d_kernel, others) if others else d_kernel
        return total, Table(d_kernel, d_bias)


def _weights(chunk, rows, cut):
    """max(0, score - cut), 0 at x_t and in padding, [n, C]."""
    score = jnp.exp(chunk.log_score(rows.hidden, rows.shift))
    if cut is not None:
        score = jnp.maximum(score - cut[:, None], 0)
    allowed = chunk.real[None] & (chunk.states[None] != rows.xt[:, None])
    return jnp.where(allowed, score, 0)


def _position_keys(keys, order, length):
    """A key for every position, from that of its row."""
    row, position = jnp.divmod(order, length)
    return jax.vmap(jax.random.fold_in)(keys[row], position)


def _on_devices(stream, method, in_axes, out_axes, *settings):
    """A method of `Stream` over all devices; how arrays lie is one of the names below.

    Its first arguments are `settings`, which are no arrays.
    """
    batch, tensor = stream.placement.batch or None, stream.placement.tensor
    specs = {
        "all": PartitionSpec(),
        "rows": PartitionSpec(batch),
        "table": Table(PartitionSpec(None, tensor), PartitionSpec(tensor)),
        "gradient": Table(PartitionSpec(stream.placement.fsdp, tensor), PartitionSpec(tensor)),
        "masses": PartitionSpec(batch, None, tensor),
    }
    in_specs, out_specs = jax.tree.map(specs.__getitem__, (in_axes, out_axes))
    function = functools.partial(getattr(stream, method), *settings)
    return stream.placement.per_device(function, in_specs, out_specs)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _weighted_entropy(stream, hidden, table, shift, target, weight):
    entropy = StreamedScore(stream, table, Rows(hidden, shift, target.xt)).entropy(target)
    return jnp.sum(weight * entropy.sum(-1))


def _forward(stream, hidden, table, shift, target, weight):
    both = _on_devices(
        stream,
        "entropy_and_gradient",
        ("table", "rows", "rows", "rows"),
        ("all", ("rows", "gradient")),
    )
    total, gradient = both(table, Rows(hidden, shift, target.xt), target, weight)
    return total, (gradient, jnp.zeros(0, hidden.dtype))


def _backward(stream, residual, cotangent):
    gradient, like_hidden = residual
    d_hidden, d_table = jax.tree.map(lambda x: x * cotangent, gradient)
    return d_hidden.astype(like_hidden.dtype), d_table, None, None, None


_weighted_entropy.defvjp(_forward, _backward)


@dataclasses.dataclass(frozen=True)
class StreamedScore(Score):
    """A network's answer before the projection to the vocabulary, which is never written out.

    Attributes:
      stream: how the table is passed through.
      table: the projection, padded to a multiple of 128 columns.
      rows: what it is applied to.
    """

    stream: Stream
    table: Table
    rows: Rows

    def entropy(self, target: Target) -> Float[Array, "B L"]:
        entropy = _on_devices(self.stream, "entropy", ("table", "rows", "rows"), "rows")
        return entropy(self.table, self.rows, target)

    def weighted_entropy(self, target: Target, weight: Float[Array, "B"]) -> Float[Array, ""]:
        return _weighted_entropy(
            self.stream, self.rows.hidden, self.table, self.rows.shift, target, weight
        )

    def draw(
        self,
        keys: Key[Array, "B"],
        law: StepWeightsFn,
        active: Bool[Array, "B L"],
        token_filter: TokenFilter = NO_FILTER,
    ) -> Drawn:
        total, step, masses = self._weigh(law, active)
        jump_keys, target_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
        length = active.shape[1]
        u = jax.vmap(lambda key: categorical.uniform_by_position(key, (length,)))(jump_keys)
        jumps = active & categorical.leaves(u, step.scale * masses.sum(-1), step.stay)
        of_jumps = (self.table, self.rows, target_keys, jumps, step.cut)
        axes = ("table", *["rows"] * 4)
        if token_filter == NO_FILTER:
            pick = _on_devices(self.stream, "pick", (*axes, "rows"), "rows")
            drawn = pick(*of_jumps, masses)
        else:
            pick = _on_devices(self.stream, "pick_filtered", axes, "rows", token_filter)
            drawn = pick(*of_jumps)
        return Drawn(jnp.where(jumps, drawn, self.rows.xt), total)

    def log_prob(
        self, law: StepWeightsFn, active: Bool[Array, "B L"], states: Int[Array, "B L"]
    ) -> Float[Array, "B L"]:
        _, step, masses = self._weigh(law, active)
        at = _on_devices(self.stream, "log_score_at", ("table", "rows", "rows"), "rows")
        log_weight = at(self.table, self.rows, states)
        if step.cut is not None:
            log_weight = jnp.log(jnp.maximum(jnp.exp(log_weight) - step.cut, 0))
        stay, stays = jnp.maximum(step.stay, 0), states == self.rows.xt
        log_weight = jnp.where(stays, jnp.log(stay), jnp.log(step.scale) + log_weight)
        log_prob = log_weight - jnp.log(stay + step.scale * masses.sum(-1))
        return jnp.where(active, log_prob, jnp.where(stays, 0, -jnp.inf))

    def _weigh(self, law, active):
        """The total of the ratios, the law, and the masses of groups under it, before its scale."""
        masses = self._masses(active, None)
        total = masses.sum(-1)
        step = law(total)
        if step.cut is not None:  # it depends on the total, so the table is passed through again
            masses = self._masses(active, step.cut)
        return total, step, masses

    def _masses(self, active, cut):
        masses = _on_devices(self.stream, "masses", ("table", "rows", "rows", "rows"), "masses")
        return masses(self.table, self.rows, active, cut)

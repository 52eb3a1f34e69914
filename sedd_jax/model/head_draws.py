"""Draws of the streamed vocabulary head: sums of the ratios by groups of columns, and states.

They are what one device computes of its shards; `vocab_head` says how these are placed. The names
of shapes are those of `vocab_head`.

References:
  Holtzman et al., The Curious Case of Neural Text Degeneration, 2019 (arXiv 1904.09751): the
    filter by top-p.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from sedd_jax.diffusion import categorical
from sedd_jax.diffusion.graph import PerState
from sedd_jax.diffusion.temperature import Bounds, TokenFilter, conditional_bounds
from sedd_jax.model.config import COLUMN_GROUP, padded
from sedd_jax.model.head_inputs import HeadInputs, scaled
from sedd_jax.model.rows import ActiveRows
from sedd_jax.model.tiles import StreamedHead, Unembedding


def masses(
    head: StreamedHead,
    unembedding: Unembedding,
    inputs: HeadInputs,
    active: Bool[Array, "B L"],
    cut: PerState | None,
) -> Float[Array, "B L G"]:
    """Returns the sum of max(0, score_y - cut) over y != x_t in groups of columns; 0 elsewhere.

    Args:
      head: how the unembedding is streamed.
      unembedding: this device's shard of the projection to logits.
      inputs: of the positions.
      active: positions to compute.
      cut: subtracted from every ratio; None for 0.
    """
    rows = head.active_rows(active)
    inputs, cut = rows.gather((inputs, cut))

    def chunk_step(chunk, masses):
        def block_step(block, masses):
            weights = chunk.weights(*block.take((inputs, cut)))
            grouped = weights.reshape(block.size, -1, COLUMN_GROUP).sum(-1)
            return block.write(masses, grouped, chunk.start // COLUMN_GROUP)

        return rows.fold(block_step, masses)

    zero = jnp.zeros((rows.order.size, padded(unembedding.bias.size) // COLUMN_GROUP))
    return rows.scatter(head.fold(chunk_step, zero, unembedding, inputs), active.shape)


def pick(
    head: StreamedHead,
    unembedding: Unembedding,
    inputs: HeadInputs,
    keys: Key[Array, "B"],
    jumps: Bool[Array, "B L"],
    cut: PerState | None,
    masses: Float[Array, "B L G"],
) -> Int[Array, "B L"]:
    """Returns a state y != x_t drawn by max(0, score_y - cut) where a position jumps, else 0.

    First a group by its mass, then a state of the group, whose logits are recomputed.

    Args:
      head: how the unembedding is streamed.
      unembedding: this device's shard of the projection to logits.
      inputs: of the positions.
      keys: of the sequences.
      jumps: positions that leave x_t.
      cut: subtracted from every ratio; None for 0.
      masses: of the groups of all devices.
    """
    rows = ActiveRows.of(jumps, (head.tiling.jumps,))
    shard, unembedding = head.shard(unembedding, inputs), unembedding.padded()
    groups = unembedding.bias.size // COLUMN_GROUP  # of this device
    first_group = head.shard_index() * groups
    inputs, cut, masses = rows.gather((inputs, cut, masses))

    def group_weights(start, row, cut):
        chunk = shard.chunk(unembedding, start, COLUMN_GROUP)
        return chunk.weights(*jax.tree.map(lambda x: x[None], (row, cut)))[0]

    def block_step(block, states):
        part, part_cut, part_masses = block.take((inputs, cut, masses))
        position_keys = rows.position_keys(keys, block, jumps.shape[1])
        group_keys, state_keys = jax.vmap(jax.random.split, out_axes=1)(position_keys)
        group = jax.vmap(categorical.categorical)(group_keys, part_masses)
        # a group of another device: what is computed here is dropped
        mine = (group >= first_group) & (group < first_group + groups)
        start = jnp.where(mine, group - first_group, 0) * COLUMN_GROUP
        weights = jax.vmap(group_weights)(start, part, part_cut)
        state = shard.first_state + start
        state = state + jax.vmap(categorical.categorical)(state_keys, weights)
        # recomputed by another product, all weights next to the cut may round to 0: then stay
        state = jnp.where(weights.sum(-1) > 0, state, part.xt)
        return block.write(states, jnp.where(mine, state, 0))

    states = rows.fold(block_step, jnp.zeros(rows.order.shape, jnp.int32))
    return head.sum_over_shards(rows.scatter(states, jumps.shape))


def pick_filtered(
    head: StreamedHead,
    token_filter: TokenFilter,
    unembedding: Unembedding,
    inputs: HeadInputs,
    keys: Key[Array, "B"],
    jumps: Bool[Array, "B L"],
    cut: PerState | None,
) -> Int[Array, "B L"]:
    """Returns the same as `pick`, drawn from filtered weights.

    The filter needs all weights of a position: those of a few positions at a time (`Tiling.jumps`)
    are materialised.

    Args:
      head: how the unembedding is streamed.
      token_filter: temperature and top-p.
      unembedding: this device's shard of the projection to logits.
      inputs: of the positions.
      keys: of the sequences.
      jumps: positions that leave x_t.
      cut: subtracted from every ratio; None for 0.
    """
    rows, shard = _whole_rows(head, unembedding, inputs, jumps)
    inputs, cut = rows.gather((inputs, cut))

    def block_step(block, states):
        part, part_cut = block.take((inputs, cut))
        weights = head.all_columns(shard.weights(part, part_cut))
        position_keys = rows.position_keys(keys, block, jumps.shape[1])
        state = jax.vmap(categorical.categorical)(position_keys, token_filter(jnp.log(weights)))
        return block.write(states, jnp.where(weights.sum(-1) > 0, state, part.xt))

    states = rows.fold(block_step, jnp.zeros(rows.order.shape, jnp.int32))
    return rows.scatter(states, jumps.shape)


def _whole_rows(head, unembedding, inputs, active):
    """A few positions at a time, and a device's columns, to be gathered from all devices."""
    rows = head.active_rows(active, (head.tiling.jumps,), gathers=True)
    return rows, head.shard(unembedding, inputs).chunk(unembedding, 0, unembedding.bias.size)


def bounds(
    head: StreamedHead,
    top_p: float,
    unembedding: Unembedding,
    inputs: HeadInputs,
    active: Bool[Array, "B L"],
) -> Bounds:
    """Returns the bounds of the tempered ratios, from all ratios of a few positions at a time.

    Args:
      head: how the unembedding is streamed.
      top_p: of the conditional of every token.
      unembedding: this device's shard of the projection to logits.
      inputs: of the positions.
      active: positions to compute.
    """
    rows, shard = _whole_rows(head, unembedding, inputs, active)
    inputs = rows.gather(inputs)

    def block_step(block, found):
        log_ratios = head.all_columns(shard.log_ratios(block.take(inputs)))
        return Bounds(*map(block.write, found, conditional_bounds(log_ratios, top_p)))

    zero = jnp.zeros(rows.order.shape)
    found = rows.fold(block_step, Bounds(zero, zero))
    return Bounds(*(rows.scatter(x, active.shape) for x in found))


def log_score_at(
    head: StreamedHead, unembedding: Unembedding, inputs: HeadInputs, states: Int[Array, "B L"]
) -> Float[Array, "B L"]:
    """Returns the log-score of one state of every position.

    Args:
      head: how the unembedding is streamed.
      unembedding: this device's shard of the projection to logits.
      inputs: of the positions.
      states: one of every position.
    """
    shard = head.shard(unembedding, inputs)
    column = states - shard.first_state
    mine = (column >= 0) & (column < shard.columns)
    column = jnp.where(mine, column, 0)
    kernel = unembedding.kernel[:, column].astype(shard.dtype)

    def unscaled(inputs):
        out = jnp.einsum("bld,dbl->bl", inputs.hidden, kernel, preferred_element_type=jnp.float32)
        out = jnp.where(mine, out + unembedding.bias[column], 0)
        log_score = head.sum_over_shards(out) - inputs.shift
        if inputs.added is not None:
            log_score = inputs.added.to(log_score, states)
        if inputs.guide is not None:
            log_score = inputs.guide.average(log_score, unscaled(inputs.guide.inputs))
        return log_score

    log_score = scaled(unscaled(inputs), head.temperature)
    if inputs.floor is None:
        return log_score
    return jnp.where(log_score >= inputs.floor, log_score, -jnp.inf)

"""The vocabulary head, streamed: sums over all states and draws from them, never B L V numbers.

On a mesh every device streams the positions of its shard of the batch; where the unembedding is
split too, the devices add up their sums. Padding of the vocabulary ends here.

Shapes: B batch, L length, D hidden, V columns of the padded unembedding, G = V / 128 groups.
`unembedding` is the projection to logits, `inputs` what it is applied to.

References:
  Holtzman et al., The Curious Case of Neural Text Degeneration, 2019 (arXiv 1904.09751): the
    filter by top-p.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int, Key

from sedd_jax.diffusion import categorical
from sedd_jax.diffusion.score import Blend, Drawn, Score, StepWeightsFn
from sedd_jax.diffusion.score_entropy import Target
from sedd_jax.diffusion.temperature import NO_FILTER, Bounds, TokenFilter, conditional_bounds
from sedd_jax.model.config import COLUMN_GROUP, padded
from sedd_jax.model.head_entropy import entropy, entropy_and_gradient, shannon_entropy
from sedd_jax.model.rows import ActiveRows
from sedd_jax.model.tiles import HeadInputs, Second, StreamedHead, Unembedding, scaled

# True ratios are at most about V / sigma(t_min), 5e7 as a rule: their square is far from overflow.
LEAST_UNBOUNDED = 0.5


def _masses(
    head: StreamedHead,
    unembedding: Unembedding,
    inputs: HeadInputs,
    active: Bool[Array, "B L"],
    cut: Float[Array, "B L"] | None,
) -> Float[Array, "B L G"]:
    """Returns the sum of max(0, score_y - cut) over y != x_t in groups of columns; 0 elsewhere."""
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


def _pick(
    head: StreamedHead,
    unembedding: Unembedding,
    inputs: HeadInputs,
    keys: Key[Array, "B"],
    jumps: Bool[Array, "B L"],
    cut: Float[Array, "B L"] | None,
    masses: Float[Array, "B L G"],
) -> Int[Array, "B L"]:
    """Returns a state y != x_t drawn by max(0, score_y - cut) where a position jumps, else 0.

    First a group by its mass, then a state of the group, whose logits are recomputed.
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


def _pick_filtered(
    head: StreamedHead,
    token_filter: TokenFilter,
    unembedding: Unembedding,
    inputs: HeadInputs,
    keys: Key[Array, "B"],
    jumps: Bool[Array, "B L"],
    cut: Float[Array, "B L"] | None,
) -> Int[Array, "B L"]:
    """Returns the same as `_pick`, drawn from filtered weights.

    The filter needs all weights of a position: those of a few positions at a time (`Tiling.jumps`)
    are materialised.
    """
    rows, shard, all_columns = _whole_rows(head, unembedding, inputs, jumps)
    inputs, cut = rows.gather((inputs, cut))

    def block_step(block, states):
        part, part_cut = block.take((inputs, cut))
        weights = all_columns(shard.weights(part, part_cut))
        position_keys = rows.position_keys(keys, block, jumps.shape[1])
        state = jax.vmap(categorical.categorical)(position_keys, token_filter(jnp.log(weights)))
        return block.write(states, jnp.where(weights.sum(-1) > 0, state, part.xt))

    states = rows.fold(block_step, jnp.zeros(rows.order.shape, jnp.int32))
    return rows.scatter(states, jumps.shape)


def _whole_rows(head, unembedding, inputs, active):
    """A few positions at a time, a device's columns, and what gathers those of all devices."""
    rows, placement = ActiveRows.of(active, (head.tiling.jumps,)), head.placement
    if placement.tensor and placement.batch:  # the same trip count for all that all-gather
        rows = rows._replace(count=jax.lax.pmax(rows.count, placement.batch))
    shard = head.shard(unembedding, inputs).chunk(unembedding, 0, unembedding.bias.size)

    def all_columns(x):
        if placement.tensor is None:
            return x
        return jax.lax.all_gather(x, placement.tensor, axis=1, tiled=True)

    return rows, shard, all_columns


def _bounds(
    head: StreamedHead,
    top_p: float,
    unembedding: Unembedding,
    inputs: HeadInputs,
    active: Bool[Array, "B L"],
) -> Bounds:
    """Returns the bounds of the tempered ratios, from all ratios of a few positions at a time."""
    rows, shard, all_columns = _whole_rows(head, unembedding, inputs, active)
    inputs = rows.gather(inputs)

    def block_step(block, found):
        log_ratios = all_columns(shard.log_ratios(block.take(inputs)))
        return Bounds(*map(block.write, found, conditional_bounds(log_ratios, top_p)))

    zero = jnp.zeros(rows.order.shape)
    found = rows.fold(block_step, Bounds(zero, zero))
    return Bounds(*(rows.scatter(x, active.shape) for x in found))


def _log_score_at(
    head: StreamedHead, unembedding: Unembedding, inputs: HeadInputs, states: Int[Array, "B L"]
) -> Float[Array, "B L"]:
    """Returns the log-score of one state of every position."""
    shard = head.shard(unembedding, inputs)
    column = states - shard.first_state
    mine = (column >= 0) & (column < shard.columns)
    column = jnp.where(mine, column, 0)
    kernel = unembedding.kernel[:, column].astype(shard.dtype)
    out = jnp.einsum("bld,dbl->bl", inputs.hidden, kernel, preferred_element_type=jnp.float32)
    out = jnp.where(mine, out + unembedding.bias[column], 0)
    log_score = scaled(head.sum_over_shards(out) - inputs.shift, head.temperature)
    if inputs.floor is None:
        return log_score
    return jnp.where(log_score >= inputs.floor, log_score, -jnp.inf)


# How arguments (after the head and settings) and results are sharded: names of `_per_device`.
_SHARDING = {
    entropy: (("unembedding", "rows", "rows"), "rows"),
    entropy_and_gradient: (("unembedding", *["rows"] * 3), ("all", ("rows", "gradient"))),
    _masses: (("unembedding", *["rows"] * 3), "masses"),
    shannon_entropy: (("unembedding", *["rows"] * 2), "rows"),
    _pick: (("unembedding", *["rows"] * 5), "rows"),
    _pick_filtered: (("unembedding", *["rows"] * 4), "rows"),
    _bounds: (("unembedding", *["rows"] * 2), "rows"),
    _log_score_at: (("unembedding", *["rows"] * 2), "rows"),
}


def _per_device(head, function, *settings):
    """One of the functions above on all devices, each with its own shards."""
    batch, tensor = head.placement.batch or None, head.placement.tensor
    specs = {
        "all": PartitionSpec(),
        "rows": PartitionSpec(batch),
        "unembedding": Unembedding(PartitionSpec(None, tensor), PartitionSpec(tensor)),
        "gradient": Unembedding(PartitionSpec(head.placement.fsdp, tensor), PartitionSpec(tensor)),
        "masses": PartitionSpec(batch, None, tensor),
    }
    in_specs, out_specs = jax.tree.map(specs.__getitem__, _SHARDING[function])
    bound = functools.partial(function, head, *settings)
    return head.placement.per_device(bound, in_specs, out_specs)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _weighted_entropy(head, unembedding, hidden, shift, target, weight):
    inputs = HeadInputs(hidden, shift, target.xt)
    return jnp.sum(weight * _per_device(head, entropy)(unembedding, inputs, target).sum(-1))


def _forward(head, unembedding, hidden, shift, target, weight):
    inputs = HeadInputs(hidden, shift, target.xt)
    total, gradient = _per_device(head, entropy_and_gradient)(unembedding, inputs, target, weight)
    return total, (gradient, jnp.zeros(0, hidden.dtype))


def _backward(head, residual, cotangent):
    gradient, like_hidden = residual
    d_hidden, d_unembedding = jax.tree.map(lambda x: x * cotangent, gradient)
    return d_unembedding, d_hidden.astype(like_hidden.dtype), None, None, None


_weighted_entropy.defvjp(_forward, _backward)


@dataclasses.dataclass(frozen=True)
class StreamedScore(Score):
    """A network's output, never materialised: the inputs of the projection to the vocabulary.

    Attributes:
      head: how the unembedding is streamed.
      unembedding: the projection, padded to a multiple of 128 columns.
      inputs: what it is applied to.
      top_p: of the conditional of every token, see `tempered`.
    """

    head: StreamedHead
    unembedding: Unembedding
    inputs: HeadInputs
    top_p: float = 1.0

    def entropy(self, target: Target) -> Float[Array, "B L"]:
        self._refuse_blended()
        return self._on_devices(entropy, target)

    def weighted_entropy(self, target: Target, weight: Float[Array, "B"]) -> Float[Array, ""]:
        self._refuse_blended()
        hidden, shift = self.inputs[:2]
        return _weighted_entropy(self.head, self.unembedding, hidden, shift, target, weight)

    def tempered(self, token_filter: TokenFilter) -> "StreamedScore":
        """As `Score.tempered`; a temperature from 0.5 on costs nothing.

        A lower one and top-p cost one more product of the head at every position that is drawn.
        """
        head = self.head._replace(temperature=token_filter.temperature)
        return dataclasses.replace(self, head=head, top_p=token_filter.top_p)

    def draw(
        self,
        keys: Key[Array, "B"],
        step_weights: StepWeightsFn,
        active: Bool[Array, "B L"],
        token_filter: TokenFilter = NO_FILTER,
    ) -> Drawn:
        self = self._bounded(active)
        total, step, masses = self._weigh(step_weights, active)
        jump_keys, target_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
        length = active.shape[1]
        u = jax.vmap(lambda key: categorical.uniform_by_position(key, (length,)))(jump_keys)
        jumps = active & categorical.leaves(u, step.scale * masses.sum(-1), step.stay)
        if token_filter == NO_FILTER:
            drawn = self._on_devices(_pick, target_keys, jumps, step.cut, masses)
        else:
            pick = _per_device(self.head, _pick_filtered, token_filter)
            drawn = pick(self.unembedding, self.inputs, target_keys, jumps, step.cut)
        return Drawn(jnp.where(jumps, drawn, self.inputs.xt), total)

    def log_prob(
        self, step_weights: StepWeightsFn, active: Bool[Array, "B L"], states: Int[Array, "B L"]
    ) -> Float[Array, "B L"]:
        self = self._bounded(active)
        _, step, masses = self._weigh(step_weights, active)
        log_weight = self._log_score_at(states)
        if step.cut is not None:
            log_weight = jnp.log(jnp.maximum(jnp.exp(log_weight) - step.cut, 0))
        stay, stays = jnp.maximum(step.stay, 0), states == self.inputs.xt
        log_weight = jnp.where(stays, jnp.log(stay), jnp.log(step.scale) + log_weight)
        log_prob = log_weight - jnp.log(stay + step.scale * masses.sum(-1))
        return jnp.where(active, log_prob, jnp.where(stays, 0, -jnp.inf))

    def shannon_entropy(self, active: Bool[Array, "B L"]) -> Float[Array, "B L"]:
        return self._bounded(active)._on_devices(shannon_entropy, active)

    def _bounded(self, active):
        """The same score with the bounds of its tempered ratios, where it needs them."""
        if self.top_p == 1 and self.head.temperature >= LEAST_UNBOUNDED:
            return self
        bounds = _per_device(self.head, _bounds, self.top_p)
        excess, floor = bounds(self.unembedding, self.inputs, active)
        shift = self.inputs.shift + self.head.temperature * excess
        inputs = self.inputs._replace(shift=shift, floor=floor - excess)
        return dataclasses.replace(self, inputs=inputs)

    def at(self, states: Int[Array, "B L"]) -> Float[Array, "B L"]:
        return jnp.where(states == self.inputs.xt, 1, jnp.exp(self._log_score_at(states)))

    def blended(
        self, other: "StreamedScore", blend: Blend, xt: Int[Array, "B L"]
    ) -> "StreamedScore":
        if (self.top_p, self.head.temperature) != (1, 1):
            raise TypeError("Tempered outputs are not blended.")
        second = Second(self.inputs.xt, other.inputs, blend)
        return dataclasses.replace(self, inputs=self.inputs._replace(xt=xt, second=second))

    def _log_score_at(self, states):
        second = self.inputs.second
        if second is None:
            return self._on_devices(_log_score_at, states)
        both = self.inputs._replace(xt=second.first_xt, second=None), second.inputs
        ratios = (dataclasses.replace(self, inputs=inputs).at(states) for inputs in both)
        return jnp.log(second.blend(*ratios))

    def _refuse_blended(self):
        if self.inputs.second is not None:
            raise TypeError("A blend of two outputs has no score entropy.")

    def _weigh(self, step_weights, active):
        """The total of the ratios, the step's weights, and by them the unscaled group masses."""
        masses = self._on_devices(_masses, active, None)
        total = masses.sum(-1)
        step = step_weights(total)
        if step.cut is not None:  # it depends on the total, so the head is streamed once more
            again = functools.partial(self._on_devices, _masses, active, step.cut)
            masses = jax.lax.cond(jnp.any(step.cut > 0), again, lambda: masses)
        return total, step, masses

    def _on_devices(self, function, *arguments):
        return _per_device(self.head, function)(self.unembedding, self.inputs, *arguments)

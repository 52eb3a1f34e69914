"""Any loss of the streamed vocabulary head, from whole rows of logits: those of a few positions.

Score entropy is a sum over the vocabulary, which `head_entropy` folds over chunks of columns. A
softmax depends on all logits of a position. So the logits of a block of positions are computed,
`Tiling.logits` numbers at a time, and from them the loss with its gradient: three products too. The
names of shapes are those of `vocab_head`.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from sedd_jax.diffusion.output import Output
from sedd_jax.diffusion.score import PositionLoss
from sedd_jax.model.head_inputs import HeadInputs
from sedd_jax.model.tiles import StreamedHead, Unembedding


def weighted_and_gradient(
    head: StreamedHead,
    output: Output | None,
    loss: PositionLoss,
    unembedding: Unembedding,
    inputs: HeadInputs,
    sigma: Float[Array, "B L"],
    arguments: Sequence[Any],
    weight: Float[Array, "B L"],
) -> tuple[Float[Array, ""], tuple[Float[Array, "B L D"], Unembedding], Float[Array, "B L"]]:
    """Returns the weighted sum of a loss over the positions, its float32 gradient, and the losses.

    Args:
      head: how the unembedding is streamed.
      output: what the logits stand for; None for log-scores.
      loss: see `Score.weighted`.
      unembedding: this device's shard of the projection to logits.
      inputs: of the positions.
      sigma: total noise of the positions.
      arguments: of the loss.
      weight: of the positions.
    """
    sizes = head.tiling.whole_rows(head.num_states)
    rows, shape = head.active_rows(weight != 0, sizes, gathers=True), weight.shape
    given = rows.gather((inputs, sigma, tuple(arguments), weight))
    columns = unembedding.bias.size
    chunk = head.shard(unembedding, inputs).chunk(unembedding, 0, columns)
    product = functools.partial(jnp.dot, preferred_element_type=jnp.float32)

    def block_step(block, carry):
        total, losses, d_hidden, d_unembedding = carry
        part, part_sigma, part_arguments, part_weight = block.take(given)
        active = part_weight != 0

        def weighted(logits):
            logits = logits[:, : head.num_states]
            if output is None:
                at_xt = jax.nn.one_hot(part.xt, head.num_states, dtype=bool)
                rows = jnp.where(at_xt, 0, logits - part.shift[:, None]), None
            else:
                rows = output.score(part_sigma, part.xt, logits)
            each = loss(*rows, *part_arguments)
            return jnp.where(active, part_weight * each, 0).sum(), each

        logits = head.all_columns(chunk.logits(part.hidden))
        (value, each), d_logits = jax.value_and_grad(weighted, has_aux=True)(logits)
        losses = block.write(losses, jnp.where(active, each, 0))
        d_logits = jnp.where(active[:, None], head.own_columns(d_logits, columns), 0)
        low = jax.lax.optimization_barrier(d_logits.astype(part.hidden.dtype))
        d_hidden = block.add(d_hidden, product(low, chunk.kernel.T))
        d_kernel = d_unembedding.kernel + product(part.hidden.T, low)
        d_bias = d_unembedding.bias + low.astype(jnp.float32).sum(0)
        return total + value, losses, d_hidden, Unembedding(d_kernel, d_bias)

    of_positions = given[0].shift, given[0].hidden, unembedding
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape), of_positions)
    total, losses, d_hidden, d_unembedding = rows.fold(block_step, (jnp.zeros(()), *zero))
    total, d_unembedding = head.sum_over_batch(total, d_unembedding)
    gradient = rows.scatter(head.sum_over_shards(d_hidden), shape), d_unembedding
    return total, gradient, rows.scatter(losses, shape)


def log_rest(
    head: StreamedHead,
    num_tokens: int,
    unembedding: Unembedding,
    inputs: HeadInputs,
    active: Bool[Array, "B L"],
) -> Float[Array, "B L"]:
    """Returns the log of the sum of exp(logit) over all tokens but x_t; 0 where not active.

    Args:
      head: how the unembedding is streamed.
      num_tokens: the mask, if any, comes after them.
      unembedding: this device's shard of the projection to logits.
      inputs: of the positions.
      active: positions to compute.
    """
    rows = head.active_rows(active)
    inputs = rows.gather(inputs)

    def chunk_step(chunk, total):
        def block_step(block, total):
            part = block.take(inputs)
            counts = (chunk.unvisited & (chunk.states < num_tokens))[None]
            counts &= chunk.states[None] != part.xt[:, None]
            logits = jnp.where(counts, chunk.logits(part.hidden), -jnp.inf)
            more = jax.nn.logsumexp(logits, axis=-1)
            return block.write(total, jnp.logaddexp(block.take(total), more))

        return rows.fold(block_step, total)

    total = head.fold(chunk_step, jnp.full(rows.order.shape, -jnp.inf), unembedding, inputs)
    return rows.scatter(head.log_sum_over_shards(total), active.shape)

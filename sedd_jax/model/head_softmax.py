"""Losses of the streamed vocabulary head whose logits are a softmax, with their gradient.

A softmax needs the sum over all tokens before its first term, so the logits of a block of positions
are kept, `Tiling.kept` numbers at a time: three products, as without a softmax. Over the chunks of
columns of a block go three scans: the first computes the logits and their sum, the second how the
loss depends on the sum, and the third the gradient. The names of shapes are those of `vocab_head`.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from sedd_jax.diffusion.output import Output, Softmax
from sedd_jax.diffusion.score import Terms
from sedd_jax.model.head_inputs import HeadInputs
from sedd_jax.model.tiles import Chunk, StreamedHead, Unembedding


def softmax_loss_and_gradient(
    head: StreamedHead,
    output: Output,
    terms: Terms,
    unembedding: Unembedding,
    inputs: HeadInputs,
    sigma: Float[Array, "B L"],
    arguments: Sequence[Any],
    weight: Float[Array, "B L"],
) -> tuple[Float[Array, ""], tuple[Float[Array, "B L D"], Unembedding], Float[Array, "B L"]]:
    """Returns the weighted sum of the losses, its float32 gradient, and the losses.

    Args:
      head: how the unembedding is streamed.
      output: what the logits stand for.
      terms: of the loss by state, see `Score.weighted`.
      unembedding: this device's shard of the projection to logits.
      inputs: of the positions.
      sigma: total noise of the positions.
      arguments: of the loss.
      weight: of every position.
    """
    num_tokens, table = output.graph.num_tokens, unembedding.padded()
    shard = head.shard(unembedding, inputs)
    product = functools.partial(jnp.dot, preferred_element_type=jnp.float32)
    sizes, shape = head.tiling.kept_rows(table.bias.size), weight.shape
    rows = head.active_rows(weight != 0, sizes, gathers=True)
    given = rows.gather((inputs, sigma, tuple(arguments), weight))

    def block_step(block, carry):
        total, losses, d_hidden, d_table = carry
        part, noise, part_arguments, part_weight = block.take(given)
        active = part_weight != 0
        scan = functools.partial(shard.scan, table, head.tiling.columns)

        def weighted(chunk, logits, softmax):
            of_states = output.of_states(noise, part.xt, softmax, logits, chunk.states)
            each = jnp.where(chunk.unvisited[None], terms(of_states, *part_arguments), 0).sum(-1)
            return jnp.where(active, part_weight * each, 0).sum(), each

        def first(chunk, softmax, _):
            logits = chunk.logits(part.hidden)
            return _with_chunk(softmax, chunk, logits, part.xt, num_tokens), logits

        def second(chunk, d_softmax, logits):
            more, _ = jax.grad(weighted, 2, has_aux=True)(chunk, logits, softmax)
            return jax.tree.map(jnp.add, d_softmax, more), None

        def third(chunk, carry, logits):
            losses, d_hidden, d_table = carry
            d_logits, each = jax.grad(weighted, 1, has_aux=True)(chunk, logits, softmax)
            at_xt, rest = _kinds(chunk, part.xt, num_tokens)
            share = jnp.where(rest, jnp.exp(logits - softmax.log_rest[:, None]), 0)
            d_logits += d_softmax.log_rest[:, None] * share
            d_logits += jnp.where(at_xt, d_softmax.logit[:, None], 0)
            d_logits = jnp.where(active[:, None], d_logits, 0).astype(part.hidden.dtype)
            low = jax.lax.optimization_barrier(d_logits)
            d_chunk = product(part.hidden.T, low), low.astype(jnp.float32).sum(0)
            d_table = Unembedding(*map(chunk.add, d_table, d_chunk))
            return (losses + each, d_hidden + product(low, chunk.kernel.T), d_table), None

        none = jnp.full(block.size, -jnp.inf)
        softmax, logits = scan(first, Softmax(none, none))
        softmax = Softmax(head.log_sum_over_shards(softmax.log_rest), head.largest(softmax.logit))
        zero = jax.tree.map(jnp.zeros_like, softmax)
        d_softmax = head.sum_over_shards(scan(second, zero, logits)[0])
        zero = jnp.zeros(block.size), jnp.zeros(part.hidden.shape)
        (each, more, d_table), _ = scan(third, (*zero, d_table), logits)
        total += jnp.where(active, part_weight * each, 0).sum()
        losses = block.write(losses, jnp.where(active, each, 0))
        return total, losses, block.write(d_hidden, more), d_table

    of_positions = given[0].shift, given[0].hidden, table
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape), of_positions)
    total, losses, d_hidden, d_table = rows.fold(block_step, (jnp.zeros(()), *zero))
    total, losses, d_hidden = head.sum_over_shards((total, losses, d_hidden))
    total, d_table = head.sum_over_batch(total, d_table.first(unembedding.bias.size))
    return total, (rows.scatter(d_hidden, shape), d_table), rows.scatter(losses, shape)


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
            part, before = block.take((inputs, total))
            softmax = Softmax(before, jnp.full(block.size, -jnp.inf))
            logits = chunk.logits(part.hidden)
            after = _with_chunk(softmax, chunk, logits, part.xt, num_tokens)
            return block.write(total, after.log_rest)

        return rows.fold(block_step, total)

    total = head.fold(chunk_step, jnp.full(rows.order.shape, -jnp.inf), unembedding, inputs)
    return rows.scatter(head.log_sum_over_shards(total), active.shape)


def _kinds(chunk: Chunk, xt: Int[Array, "N"], num_tokens: int) -> tuple[Bool[Array, "N C"], ...]:
    """Which columns are x_t, and which are any other token, each in one chunk alone."""
    counts = (chunk.unvisited & (chunk.states < num_tokens))[None]
    at_xt = chunk.states[None] == xt[:, None]
    return counts & at_xt, counts & ~at_xt


def _with_chunk(softmax, chunk, logits, xt, num_tokens):
    """What is known of the logits, with those of one more chunk."""
    at_xt, rest = _kinds(chunk, xt, num_tokens)
    more = jax.nn.logsumexp(jnp.where(rest, logits, -jnp.inf), axis=-1)
    logit = jnp.where(at_xt, logits, -jnp.inf).max(-1)
    return Softmax(jnp.logaddexp(softmax.log_rest, more), jnp.maximum(softmax.logit, logit))

"""Losses of the streamed vocabulary head with their gradient, and the entropy of the ratios.

They are what one device computes of its shards; `vocab_head` says how these are placed. The names
of shapes are those of `vocab_head`.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from sedd_jax.diffusion.score import OfStates, Terms, entropy_of_ratios
from sedd_jax.model.head_inputs import HeadInputs
from sedd_jax.model.tiles import StreamedHead, Unembedding


def losses(
    head: StreamedHead,
    terms: Terms,
    unembedding: Unembedding,
    inputs: HeadInputs,
    arguments: Sequence[Any],
    active: Bool[Array, "B L"],
) -> Float[Array, "B L"]:
    """Returns the loss of every position; 0 where not active.

    Args:
      head: how the unembedding is streamed.
      terms: of the loss by state, see `Score.weighted`.
      unembedding: this device's shard of the projection to logits.
      inputs: of the positions.
      arguments: of the loss.
      active: positions to compute.
    """
    rows = head.active_rows(active)
    inputs, arguments = rows.gather((inputs, tuple(arguments)))

    def chunk_step(chunk, total):
        def block_step(block, total):
            log_score = chunk.log_score(block.take(inputs))
            each = terms(OfStates(chunk.states, log_score), *block.take(arguments))
            return block.add(total, jnp.where(chunk.unvisited[None], each, 0).sum(-1))

        return rows.fold(block_step, total)

    total = head.fold(chunk_step, jnp.zeros(rows.order.shape), unembedding, inputs)
    return rows.scatter(head.sum_over_shards(total), active.shape)


def loss_and_gradient(
    head: StreamedHead,
    terms: Terms,
    unembedding: Unembedding,
    inputs: HeadInputs,
    arguments: Sequence[Any],
    weight: Float[Array, "B L"],
) -> tuple[Float[Array, ""], tuple[Float[Array, "B L D"], Unembedding]]:
    """Returns the weighted sum of the losses, and its float32 gradient.

    A tile's gradient is computed with its value: three products in all, where a backward pass that
    recomputes the logits would take four.

    Args:
      head: how the unembedding is streamed.
      terms: of the loss by state, see `Score.weighted`.
      unembedding: this device's shard of the projection to logits.
      inputs: of the positions.
      arguments: of the loss.
      weight: of every position.
    """
    rows, shape = head.active_rows(weight != 0), weight.shape
    inputs, arguments, weight = rows.gather((inputs, tuple(arguments), weight))
    product = functools.partial(jnp.dot, preferred_element_type=jnp.float32)

    def chunk_step(chunk, carry):
        def block_step(block, carry):
            total, d_hidden, d_chunk = carry
            part, part_arguments, part_weight = block.take((inputs, arguments, weight))
            counts = chunk.unvisited[None] & (part_weight != 0)[:, None]

            def weighted(log_score):
                each = terms(OfStates(chunk.states, log_score), *part_arguments)
                return jnp.where(counts, part_weight[:, None] * each, 0).sum()

            log_score = chunk.log_score(part)
            value, d_logits = jax.value_and_grad(weighted)(log_score)
            # the barrier: all three sums read it, so that no float32 copy is written
            d_logits = jnp.where(counts, d_logits, 0).astype(part.hidden.dtype)
            low = jax.lax.optimization_barrier(d_logits)
            d_kernel = d_chunk.kernel + product(part.hidden.T, low)
            d_bias = d_chunk.bias + low.astype(jnp.float32).sum(0)
            d_hidden = block.add(d_hidden, product(low, chunk.kernel.T))
            return total + value, d_hidden, Unembedding(d_kernel, d_bias)

        total, d_hidden, d_unembedding = carry
        zero = Unembedding(jnp.zeros(chunk.kernel.shape), jnp.zeros(chunk.bias.shape))
        total, d_hidden, d_chunk = rows.fold(block_step, (total, d_hidden, zero))
        return total, d_hidden, Unembedding(*map(chunk.add, d_unembedding, d_chunk))

    zero = jax.tree.map(lambda x: jnp.zeros(x.shape), (inputs.hidden, unembedding.padded()))
    carry = head.fold(chunk_step, (jnp.zeros(()), *zero), unembedding, inputs)
    total, d_hidden = head.sum_over_shards(carry[:2])
    d_unembedding = carry[2].first(unembedding.bias.size)
    total, d_unembedding = head.sum_over_batch(total, d_unembedding)
    return total, (rows.scatter(d_hidden, shape), d_unembedding)


def shannon_entropy(
    head: StreamedHead, unembedding: Unembedding, inputs: HeadInputs, active: Bool[Array, "B L"]
) -> Float[Array, "B L"]:
    """Returns the Shannon entropy of the ratios over y != x_t; 0 where not active.

    Args:
      head: how the unembedding is streamed.
      unembedding: this device's shard of the projection to logits.
      inputs: of the positions.
      active: positions to compute.
    """
    rows = head.active_rows(active)
    inputs = rows.gather(inputs)

    def chunk_step(chunk, sums):
        def block_step(block, sums):
            part = block.take(inputs)
            score = jnp.where(chunk.unvisited[None], chunk.weights(part, None), 0)
            terms = score, jnp.where(score > 0, score * jnp.log(score), 0)
            return jax.tree.map(lambda x, term: block.add(x, term.sum(-1)), sums, terms)

        return rows.fold(block_step, sums)

    zero = jnp.zeros(rows.order.shape)
    sums = head.sum_over_shards(head.fold(chunk_step, (zero, zero), unembedding, inputs))
    return rows.scatter(entropy_of_ratios(*sums), active.shape)

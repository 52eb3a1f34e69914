"""Probabilities of sequences by enumeration of the orders in which their tokens are drawn."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from sedd_jax.model.score_model import ScoreModel, dense_model
from sedd_jax.verification.exact.space import Space


def inconsistent_logits(space: Space, spread: float, seed: int) -> Float[np.ndarray, "S L V"]:
    """Returns random logits of every token at every position of every sequence.

    They are conditionals of no one distribution, so orders have different probabilities.

    Args:
      space: with the absorbing graph.
      spread: their standard deviation, nats.
      seed: random seed.
    """
    shape = (len(space.states), space.length, space.graph.num_states)
    return np.random.default_rng(seed).normal(0, spread, shape)


def logits_model(space: Space, logits: Float[np.ndarray, "S L V"]) -> ScoreModel:
    """Returns the network that answers with these logits at all noise."""

    def apply(params, xt, sigma, key=None):
        del params, sigma, key
        return jnp.asarray(logits, jnp.float32)[space.index(xt)]

    return dense_model(dict, apply)


def log_order_probs(
    space: Space, logits: Float[np.ndarray, "S L V"], block: int
) -> Float[np.ndarray, "C O"]:
    """Returns the log-probability of every clean sequence in every order through the blocks.

    -log p of first hitting is minus the log of their mean over the O orders.

    Args:
      space: with the absorbing graph.
      logits: of the token of a masked position, by the sequence that the network sees.
      block: positions of a block; blocks are drawn from left to right.
    """
    graph, clean = space.graph, space.states[space.clean]
    log_probs = jax.nn.log_softmax(np.float32(logits[..., : graph.num_tokens]), axis=-1)
    log_probs, found = np.float64(log_probs), []
    for order in orders_of(space.length, block):
        xt, total = np.full_like(clean, graph.mask_id), np.zeros(len(clean))
        for position in order:
            total += log_probs[space.index(xt), position, clean[:, position]]
            xt[:, position] = clean[:, position]
        found.append(total)
    return np.array(found).T


def orders_of(length: int, block: int) -> list[tuple[int, ...]]:
    """Returns all orders of the positions that go through the blocks from left to right."""
    parts = [range(start, min(start + block, length)) for start in range(0, length, block)]
    every = itertools.product(*map(itertools.permutations, parts))
    return [tuple(itertools.chain(*order)) for order in every]

"""Constraints on clean sequences as `guidance.Evidence`: log P(constraint | x_t) in closed form.

The ratios of the sequences that satisfy a constraint A are the ratios of all, times h(y) / h(x) of
h(x) = P(A | x_t = x): Bayes' rule, or Doob's h-transform of the reverse process. h is known here if
the clean tokens are independent, and then the samples are exact. For other data it is still 0 where
x_t rules A out, but the sequences of A have another distribution than theirs.

Ratios that are merely set to 0 where y rules A out, and scaled to their sum, are exact under the
absorbing graph where h is the same for all y that are left: no token that may be drawn makes A more
likely than another does. It is so for the last masked position, and for a Gibbs move of a position,
which therefore leaves the distribution of the data given A as it is. See docs/maths.md.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sedd_jax.diffusion.graph import Graph
from sedd_jax.diffusion.guidance import Evidence
from sedd_jax.errors import BadInput


def count(
    graph: Graph,
    tokens: Sequence[Any] = (),
    at_least: int = 0,
    at_most: int = 2**31 - 1,
    frequencies: Sequence[Any] = (),
) -> Evidence:
    """The number of positions with one of some tokens is in a range, as the GC content of DNA is.

    Args:
      graph: the token graph.
      tokens: ids that count.
      at_least: the smallest number.
      at_most: the largest number.
      frequencies: of all tokens in the data; equal by default.

    Raises:
      BadInput: ids that are no tokens, an empty range, or frequencies of another number of tokens.
    """
    counts, frequency = _indicator(graph, tokens), _frequency(graph, frequencies)
    if not 0 <= at_least <= at_most:
        raise BadInput(f"at_least={at_least} must be in [0, at_most], which is {at_most}")

    def evidence(xt, sigma):
        one, none = (_share(graph, frequency, xt, sigma, each) for each in (counts, 1 - counts))
        length = xt.shape[1]
        if at_least > length:
            raise BadInput(
                f"constraint=count: at_least={at_least} can be no number of {length} positions; "
                f"give at most {length}, or longer rows."
            )
        start = jnp.zeros((len(xt), length + 1)).at[:, 0].set(1)

        def add(probs, share):
            one, none = share[..., None]
            return none * probs + one * jnp.pad(probs[:, :-1], ((0, 0), (1, 0))), None

        probs, _ = jax.lax.scan(add, start, jnp.stack([one.T, none.T], axis=1))
        number = jnp.arange(length + 1)
        inside = (number >= at_least) & (number <= at_most)
        return jnp.log(jnp.where(inside[None], probs, 0).sum(-1))

    return evidence


def forbid(graph: Graph, tokens: Sequence[Any] = (), frequencies: Sequence[Any] = ()) -> Evidence:
    """No position has one of some tokens.

    Args:
      graph: the token graph.
      tokens: ids that are forbidden.
      frequencies: of all tokens in the data; equal by default.

    Raises:
      BadInput: ids that are no tokens, all of them, or frequencies of another number of tokens.
    """
    allowed, frequency = 1 - _indicator(graph, tokens), _frequency(graph, frequencies)
    if not allowed.any():
        raise BadInput(f"tokens forbids all {graph.num_tokens} tokens")

    def evidence(xt, sigma):
        return jnp.log(_share(graph, frequency, xt, sigma, allowed)).sum(-1)

    return evidence


def _share(graph, frequency, xt, sigma, which):
    """P(x0 is one of some tokens | x_t) of independent tokens, [N, L]; exactly 0 where it is."""
    joint = graph.transposed_transition(xt, sigma)[..., : graph.num_tokens] * frequency[None, None]
    return (joint * which[None, None]).sum(-1) / joint.sum(-1)


def _indicator(graph, tokens):
    """1 at these tokens, 0 at the others."""
    ids = np.asarray(tokens, object).reshape(-1)
    whole = all(isinstance(each, int | np.integer) for each in ids)
    if not ids.size or not whole or not 0 <= ids.min() <= ids.max() < graph.num_tokens:
        raise BadInput(f"tokens must be ids in [0, {graph.num_tokens}), got {tokens!r}")
    return jnp.zeros(graph.num_tokens).at[ids.astype(int)].set(1)


def _frequency(graph, frequencies):
    try:
        values = np.asarray(frequencies or np.ones(graph.num_tokens), np.float64)
    except (ValueError, TypeError):
        values = np.zeros(0)
    if values.shape != (graph.num_tokens,) or not values.min() > 0:
        raise BadInput(
            f"frequencies must be {graph.num_tokens} positive numbers, got {frequencies}"
        )
    return jnp.asarray(values / values.sum(), float)

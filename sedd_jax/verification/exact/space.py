"""All sequences of V^L, and distributions over them as vectors.

A distribution is a float64 vector [S] over the S = V^L sequences in lexicographic order; a data
distribution is 0 at sequences with a mask. Kernels are [S, S], [from, to]; generators, like Q, are
[to, from].
"""

import dataclasses
import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from scipy.special import rel_entr
from scipy.stats import chisquare

from sedd_jax.diffusion.graph import Graph

Distribution = Float[np.ndarray, "S"]


def sequences(num_states: int, length: int) -> Int[np.ndarray, "S L"]:
    """Returns all sequences in lexicographic order."""
    return np.indices((num_states,) * length).reshape(length, -1).T.astype(np.int32)


@dataclasses.dataclass(frozen=True)
class Space:
    """The sequences of `length` states of `graph`: V^L of them, so V and L must be small."""

    graph: Graph
    length: int

    @functools.cached_property
    def states(self) -> Int[np.ndarray, "S L"]:
        """Every sequence, masks included."""
        return sequences(self.graph.num_states, self.length)

    @functools.cached_property
    def clean(self) -> Int[np.ndarray, "C"]:
        """Rows of `states` that hold sequences of real tokens."""
        return np.flatnonzero((self.states < self.graph.num_tokens).all(-1))

    def index(self, xt: Int[Array | np.ndarray, "*s L"]) -> Int[Array | np.ndarray, "*s"]:
        """Returns the row of `states` that holds each sequence."""
        return xt @ self._place_values

    @functools.cached_property
    def neighbours(self) -> Int[np.ndarray, "S L V"]:
        """Rows of the sequences that differ from row s by token y at position i."""
        change = np.arange(self.graph.num_states, dtype=np.int32) - self.states[..., None]
        return self.index(self.states)[:, None, None] + change * self._place_values[:, None]

    def generator(self, rates: Float[np.ndarray, "S L V"]) -> Float[np.ndarray, "S S"]:
        """Returns the matrix [to, from] of a process that changes one position at a time.

        Args:
          rates: rate of going from sequence s to token y at position i; rows sum to 0.
        """
        matrix = np.zeros((len(self.states),) * 2)
        start = np.arange(len(self.states))[:, None, None]
        np.add.at(matrix, (self.neighbours, np.broadcast_to(start, rates.shape)), rates)
        return matrix

    def forward_generator(self) -> Float[np.ndarray, "S S"]:
        """Returns Q of sequences (Section 3.3): the sum of the token Q over positions."""
        rates = np.float64(self.graph.rate(jnp.arange(self.graph.num_states)))
        return self.generator(rates[self.states])

    def transition(self, sigma: float) -> Float[np.ndarray, "S S"]:
        """Returns exp(sigma Q) of sequences, [from, to]: the product over positions (Eq. 14)."""
        with jax.enable_x64(True):
            tokens = jnp.arange(self.graph.num_states)
            kernel = np.asarray(self.graph.transition(tokens, jnp.float64(sigma)))
        return product_distribution(kernel[self.states])

    def extend(self, clean: Float[np.ndarray, "C"]) -> Distribution:
        """Returns a distribution over the clean sequences as one over all sequences."""
        extended = np.zeros(len(self.states))
        extended[self.clean] = clean
        return extended

    def limit(self) -> Distribution:
        """Returns the distribution that samplers start from: pi at every position."""
        with jax.enable_x64(True):
            probs = np.tile(np.asarray(self.graph.limit), (1, self.length, 1))
        return product_distribution(probs)[0]

    def uniform_data(self) -> Distribution:
        """Returns the distribution of uniformly drawn real tokens."""
        return self.extend(np.full(len(self.clean), 1 / len(self.clean)))

    def conditional(self, distribution: Distribution, given: Mapping[int, int]) -> Distribution:
        """Returns the distribution given tokens by position, by Bayes' rule.

        Args:
          distribution: over all sequences.
          given: tokens by position; at least one sequence with these tokens must be possible.
        """
        agrees = np.all([self.states[:, i] == token for i, token in given.items()], axis=0)
        return distribution * agrees / (distribution * agrees).sum()

    def random_data(self, seed: int, support: float = 1.0) -> Distribution:
        """Returns a random data distribution, uniform on the simplex over a random support.

        Args:
          seed: random seed.
          support: the share of the clean sequences that have a probability above 0.
        """
        rng = np.random.default_rng(seed)
        count = max(1, round(support * len(self.clean)))
        data = np.zeros(len(self.states))
        data[rng.choice(self.clean, count, replace=False)] = rng.dirichlet(np.ones(count))
        return data

    @functools.cached_property
    def _place_values(self):
        return np.int32(self.graph.num_states) ** np.arange(self.length, dtype=np.int32)[::-1]


def product_distribution(
    probs: Float[Array | np.ndarray, "S L N"],
) -> Float[Array | np.ndarray, "S M"]:
    """Returns the distribution of N^L sequences whose positions are independent.

    Args:
      probs: distribution of position i in row s.
    """
    joint = probs[:, 0]
    for position in range(1, probs.shape[1]):
        joint = (joint[:, :, None] * probs[:, None, position]).reshape(len(probs), -1)
    return joint


def total_variation(p: Distribution, q: Distribution) -> float:
    """Returns half the sum of |p - q|: the largest difference of the probability of any event."""
    return float(np.abs(p - q).sum() / 2)


def kl_divergence(p: Distribution, q: Distribution) -> float:
    """Returns KL(p | q) in nats; infinite where p is positive and q is 0."""
    return float(rel_entr(p, q).sum())


def goodness_of_fit(
    frequencies: Distribution, distribution: Distribution, num_samples: int
) -> float:
    """Returns the p-value of Pearson's chi-square test.

    States with fewer than 5 expected samples are pooled; a sample of an impossible state gives 0.

    Args:
      frequencies: shares of the samples.
      distribution: what they are tested against; sums to 1 up to the rounding of float32 steps,
        else the result is NaN.
      num_samples: the number of samples.
    """
    if not abs(distribution.sum() - 1) < 1e-3:
        return float("nan")
    counts, expected = frequencies * num_samples, distribution * num_samples
    if counts[expected == 0].sum() > 0:
        return 0.0
    rare = (expected < 5) & (expected > 0)
    counts = np.append(counts[expected >= 5], counts[rare].sum())
    expected = np.append(expected[expected >= 5], expected[rare].sum())
    if expected[-1] == 0:
        counts, expected = counts[:-1], expected[:-1]
    return float(chisquare(counts, expected * counts.sum() / expected.sum()).pvalue)

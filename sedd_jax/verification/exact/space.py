"""All sequences of V^L, and laws over them as vectors.

A law is a float64 vector [S] over the S = V^L sequences in lexicographic order; a law of data has
nothing on sequences with a mask. Kernels are [S, S], [from, to]; generators, like Q, [to, from].
"""

import contextlib
import dataclasses
import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from sedd_jax.diffusion.graph import Graph

Law = Float[np.ndarray, "S"]


@contextlib.contextmanager
def float64():
    """Makes JAX compute in float64, and at once, even while some function is being traced."""
    with jax.enable_x64(True), jax.ensure_compile_time_eval():
        yield


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

    def index(self, xt: Int[np.ndarray, "*s L"]) -> Int[np.ndarray, "*s"]:
        """Returns the row of `states` that holds each sequence."""
        return xt @ self._place_values

    @functools.cached_property
    def neighbours(self) -> Int[np.ndarray, "S L V"]:
        """Rows of the sequences that differ from row s by token y at position i."""
        change = np.arange(self.graph.num_states) - self.states[..., None]
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
        return self.generator(np.float64(self.graph.rate(jnp.asarray(self.states))))

    def transition(self, sigma: float) -> Float[np.ndarray, "S S"]:
        """Returns exp(sigma Q) of sequences, [from, to]: the product over positions (Eq. 14)."""
        with float64():
            states = jnp.asarray(self.states)
            return product_law(np.asarray(self.graph.transition(states, jnp.float64(sigma))))

    def embedded(self, law: Float[np.ndarray, "C"]) -> Law:
        """Returns a law over the clean sequences alone as one over all."""
        whole = np.zeros(len(self.states))
        whole[self.clean] = law
        return whole

    def limit(self) -> Law:
        """Returns the law that samplers start from: pi at every position."""
        with float64():
            probs = np.tile(np.asarray(self.graph.limit), (1, self.length, 1))
        return product_law(probs)[0]

    def guess(self) -> Law:
        """Returns the law of uniformly drawn real tokens."""
        return self.embedded(np.full(len(self.clean), 1 / len(self.clean)))

    def conditional(self, law: Law, given: Mapping[int, int]) -> Law:
        """Returns the law given tokens by position: Bayes' rule. They must be possible."""
        agrees = np.all([self.states[:, i] == token for i, token in given.items()], axis=0)
        return law * agrees / (law * agrees).sum()

    def random_data(self, seed: int, support: float = 1.0) -> Law:
        """Returns a random law of data, drawn uniformly from those on a random support.

        Args:
          seed: of the draw.
          support: the share of the clean sequences that have a probability above 0.
        """
        rng = np.random.default_rng(seed)
        count = max(1, round(support * len(self.clean)))
        law = np.zeros(len(self.states))
        law[rng.choice(self.clean, count, replace=False)] = rng.dirichlet(np.ones(count))
        return law

    @functools.cached_property
    def _place_values(self):
        return self.graph.num_states ** np.arange(self.length)[::-1]


def product_law(probs: Float[Array | np.ndarray, "S L N"]) -> Float[Array | np.ndarray, "S M"]:
    """Returns the law of N^L sequences with position i drawn from probs[s, i], independently."""
    law = probs[:, 0]
    for position in range(1, probs.shape[1]):
        law = (law[:, :, None] * probs[:, None, position]).reshape(len(probs), -1)
    return law


def total_variation(p: Law, q: Law) -> float:
    """Returns half the sum of |p - q|: the largest difference of the probability of any event."""
    return float(np.abs(p - q).sum() / 2)


def kl_divergence(p: Law, q: Law) -> float:
    """Returns KL(p | q) in nats; infinite where q lacks what p has."""
    held = p > 0
    if np.any(q[held] <= 0):
        return float("inf")
    return float(np.sum(p[held] * np.log(p[held] / q[held])))

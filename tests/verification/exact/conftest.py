import dataclasses
import functools
import itertools

import numpy as np
import pytest
from scipy.linalg import expm

from sedd_jax.diffusion import graph as graphs
from sedd_jax.verification.exact.space import Space


@dataclasses.dataclass(frozen=True, eq=False)
class Brute:
    """A space, and the same space by loops: the token Q from the paper, the rest from it."""

    name: str
    num_states: int
    length: int

    @functools.cached_property
    def space(self):
        tokens = self.num_states - (self.name == "absorb")
        return Space(graphs.GRAPHS[self.name](tokens), self.length)

    @functools.cached_property
    def Q(self):
        """Q[y, x] is the rate from x to y: Eq. 15, over V, and Eq. 16."""
        V = self.num_states
        if self.name == "uniform":
            return np.full((V, V), 1 / V) - np.eye(V)
        Q = -np.eye(V)
        Q[-1] = [1.0] * (V - 1) + [0.0]
        return Q

    @functools.cached_property
    def states(self):
        return list(itertools.product(range(self.num_states), repeat=self.length))

    @functools.cached_property
    def clean(self):
        """Rows of the sequences without a mask."""
        mask = self.num_states - 1 if self.name == "absorb" else None
        return [row for row, state in enumerate(self.states) if mask not in state]

    def change(self, row, position, token):
        """The row of the sequence that has `token` at `position`."""
        state = list(self.states[row])
        state[position] = token
        return self.states.index(tuple(state))

    @functools.cached_property
    def changes(self):
        """All (row, position, token, row of the changed sequence) that change something."""
        entries = np.ndindex(len(self.states), self.length, self.num_states)
        return [(s, i, y, self.change(s, i, y)) for s, i, y in entries if y != self.states[s][i]]

    @functools.cached_property
    def generator(self):
        """Q of sequences, [to, from], entry by entry."""
        matrix = np.zeros((len(self.states),) * 2)
        for s, i, y, to in self.changes:
            matrix[to, s] += self.Q[y, self.states[s][i]]
        for s, state in enumerate(self.states):
            matrix[s, s] = sum(self.Q[x, x] for x in state)
        return matrix

    def transition(self, sigma):
        """exp(sigma Q) of sequences, [to, from]; keeps the small entries at large sigma."""
        return functools.reduce(np.kron, [expm(sigma * self.Q)] * self.length)

    def marginal(self, data, sigma):
        return self.transition(sigma) @ data

    def ratios(self, marginal):
        """p(y) / p(x) for every sequence x and one-token change y; NaN where p(x) is 0."""
        ratios = np.full((len(self.states), self.length, self.num_states), np.nan)
        for s, i, y in np.ndindex(ratios.shape):
            if marginal[s] > 0:
                ratios[s, i, y] = marginal[self.change(s, i, y)] / marginal[s]
        return ratios


@functools.cache
def _named(name):
    graph, num_states, length = name.split("-")
    return Brute(graph, int(num_states), int(length))


@pytest.fixture(params=["absorb-4-2", "absorb-3-3", "uniform-4-2", "uniform-3-3"])
def brute(request):
    """A space and its description by loops; a test may ask for others by name, GRAPH-V-L."""
    return _named(request.param)

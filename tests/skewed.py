"""A graph of the user's own: any limiting distribution, which is all that it gives."""

import dataclasses

import jax.numpy as jnp

from sedd_jax.diffusion.graph import Graph


@dataclasses.dataclass(frozen=True)
class Skewed(Graph):
    """Moves go to a state with its own probability."""

    probs: tuple[float, ...]
    mask: bool = False

    @property
    def limit(self):
        return jnp.array(self.probs)

    @property
    def mask_id(self):
        return self.num_states - 1 if self.mask else None


def skewed(*probs, mask=False):
    """The graph with these limiting probabilities."""
    return Skewed(len(probs), probs, mask)

"""Samplers of the absorbing graph that draw every masked position once, in some order."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from sedd_jax.diffusion.graph import Graph
from sedd_jax.diffusion.sampler import Process, Sampler, SamplerInfo


class Unmasking(Sampler):
    """Samplers whose rows proceed at their own pace, with at most one evaluation per position."""

    default_steps = None  # one position per evaluation
    rows_differ = True
    needs = "the absorbing graph, whose positions leave the mask once"

    def serves(self, graph: Graph) -> bool:
        return graph.mask_id is not None and not graph.limit_of_token

    def max_nfe(self, steps: int | None, length: int) -> int:
        return length if steps is None else min(steps + 1, length)

    def final(self, keys: Key[Array, "B"], process: Process, state: Any) -> tuple[Any, SamplerInfo]:
        return self.step(keys, process, state)


def info_of(
    before: Int[Array, "B L"],
    after: Int[Array, "B L"],
    sums: Float[Array, "B L"],
    sigma: Float[Array, "B"],
    evaluated: Bool[Array, "B"],
) -> SamplerInfo:
    """Returns what a step did.

    Args:
      before: tokens before the step.
      after: tokens after it.
      sums: what must be finite.
      sigma: total noise that the network was given.
      evaluated: the rows that needed the evaluation.
    """
    return SamplerInfo(
        changed=jnp.sum(after != before, axis=-1),
        finite=jnp.all(jnp.isfinite(sums), axis=-1),
        sigma=sigma,
        evaluations=evaluated.astype(jnp.int32),
    )

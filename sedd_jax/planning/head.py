"""How often the loops of the vocabulary head run, which only running tells: the mean by law.

Only positions that count pass through the head, in blocks. Which count is drawn: in training and
for a bound with t, in a sampler from call to call.
"""

import re
from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Float

from sedd_jax.diffusion.graph import Graph
from sedd_jax.diffusion.importance import Proposal
from sedd_jax.diffusion.noise import Noise
from sedd_jax.errors import BadInput
from sedd_jax.inference.sampling import Sampling
from sedd_jax.model.tiles import BLOCKS_OF
from sedd_jax.planning.hlo_cost.hlo import Instruction

_DRAWS = 4096  # of the times of a device's sequences


def counts_with_loss(
    graph: Graph, noise: Noise, proposal: Proposal, rows: int, length: int
) -> Float[np.ndarray, "N"]:
    """Returns how many positions of a device's sequences have a loss, in draws of their times.

    Times are drawn apart, where `config.train.low_discrepancy` spreads those of all devices.

    Args:
      graph: under the uniform one all positions have.
      noise: the schedule.
      proposal: the law of the times.
      rows: sequences of a device.
      length: L.
    """
    if graph.mask_id is None:
        return np.full(1, float(rows * length))
    unit = np.random.default_rng(0).random((_DRAWS, rows))
    sigma = noise.sigma(np.interp(unit, proposal.quantiles, proposal.edges))
    return length * -np.expm1(-np.asarray(sigma)).sum(1)


def shares_by_call(
    graph: Graph, noise: Noise, sampling: Sampling, t_min: float, length: int
) -> tuple[Float[np.ndarray, "S"], Float[np.ndarray, "S"]]:
    """Returns of every call of the network which share of the positions is active, and which jumps.

    A jump under the uniform graph is one of the forward process, run backward: as many.
    """
    calls = sampling.max_nfe(length)
    if sampling.method.draws_times:
        return (np.full(calls, 1 / calls),) * 2
    sigma = np.asarray(noise.sigma(np.linspace(1.0, t_min, calls)), float)
    after = np.append(sigma[1:], 0.0)
    if graph.mask_id is None:
        share = 1 - 1 / graph.num_states
        return np.ones(calls), -np.expm1(after - sigma) * share
    return -np.expm1(-sigma), np.exp(-after) - np.exp(-sigma)


def block_trips(
    counts: Float[np.ndarray, "N"], positions: int, sizes: tuple[int, ...]
) -> dict[int, float]:
    """Returns the mean trips of the loop over blocks of each size, as `tiles.ActiveRows` runs them.

    Args:
      counts: of positions that count, in draws.
      positions: all of a device.
      sizes: of blocks, as in `Tiling`.
    """
    *large, last = [size for size in sizes if size <= positions] or sizes[-1:]
    trips = {}
    for size in large:
        trips[size] = float((counts // size).mean())
        counts = counts % size
    return trips | {last: float(np.ceil(counts / last).mean())}


def dynamic_trips(
    trips: Mapping[int, float], otherwise: float | None = None
) -> Callable[[Instruction], float]:
    """Returns a function that gives the mean trips of a loop whose count is not in the program.

    Args:
      trips: of the loops over blocks, by their size.
      otherwise: of the one other such loop that the program has, None if it has none.
    """

    def of(loop):
        found = re.search(rf"{BLOCKS_OF}(\d+)/while$", loop.source)
        if found:
            return trips[int(found[1])]
        if otherwise is None:
            raise BadInput(
                f"The compiled program has a loop whose trips are not known: {loop.name} "
                f"({loop.source or 'of the compiler'})."
            )
        return otherwise

    return of

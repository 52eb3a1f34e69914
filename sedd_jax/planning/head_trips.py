"""How many positions pass through the vocabulary head: known in the mean, not in the program."""

import numpy as np
from jaxtyping import Float

from sedd_jax.diffusion.adaptive import Confidence, EntropyBounded
from sedd_jax.diffusion.gibbs import Gibbs
from sedd_jax.diffusion.graph import Graph
from sedd_jax.diffusion.hold import Hold, free_shares
from sedd_jax.diffusion.importance import Proposal
from sedd_jax.diffusion.noise import Noise
from sedd_jax.inference.sampling import Sampling

_DRAWS = 4096  # of the times of a device's sequences


def counts_with_loss(
    graph: Graph,
    noise: Noise,
    proposal: Proposal,
    rows: int,
    length: int,
    hold: Hold | None = None,
    per_position: bool = False,
) -> Float[np.ndarray, "N"]:
    """Returns draws of the expected number of positions with a loss, given the sequences' times.

    Times are independent here, while `config.train.low_discrepancy` stratifies those of all
    devices.

    Args:
      graph: under the uniform graph all positions have a loss.
      noise: the schedule.
      proposal: the distribution of the times.
      rows: sequences of a device.
      length: L.
      hold: which tokens are given, and have no loss; None: none.
      per_position: every position has a time of its own.
    """
    rng, share = np.random.default_rng(0), np.ones((1, rows))
    if graph.absorbs:
        unit = rng.random((_DRAWS, rows))
        sigma = noise.sigma(np.interp(unit, proposal.quantiles, proposal.edges))
        share = -np.expm1(-np.asarray(sigma))
        share = np.full((1, rows), share.mean()) if per_position else share
    if hold is not None:
        share = share * rng.choice(free_shares(hold, length), (_DRAWS, rows))
    return length * share.sum(1)


def shares_by_call(
    graph: Graph, noise: Noise, sampling: Sampling, t_min: float, length: int
) -> tuple[Float[np.ndarray, "S"], Float[np.ndarray, "S"]]:
    """Returns the share of active positions in every network evaluation, and of those that jump.

    Rows have no given tokens. Of samplers whose rows differ, those that read all masked positions
    are assumed to draw equally many at every evaluation, others to read those that they draw. All
    others are assumed to go through an even grid of times, as Tweedie does (that of forward noise
    under the uniform graph), and Gibbs moves to read what they draw.

    Args:
      graph: under the uniform graph all positions are active, but in Gibbs moves.
      noise: the schedule.
      sampling: the sampler and its steps.
      t_min: time of the last step, in (0, 1).
      length: L.
    """
    method, calls = sampling.method, sampling.max_nfe(length)
    if method.rows_differ:
        drawn = np.full(calls, 1 / calls)
        reads_all = isinstance(method, EntropyBounded | Confidence)
        return np.arange(calls, 0, -1) / calls if reads_all else drawn, drawn
    moves = int(method.share * (calls - 1)) if isinstance(method, Gibbs) else 0
    sigma = np.asarray(noise.sigma(np.linspace(1.0, t_min, calls - moves)), float)
    after = np.append(sigma[1:], 0.0)
    if not graph.absorbs:
        active = np.ones(len(sigma))
        jumps = -np.expm1(after - sigma) * (1 - float(np.sum(np.square(graph.limit))))
    else:
        active, jumps = -np.expm1(-sigma), np.exp(-after) - np.exp(-sigma)
    of_moves = np.full(moves, 1 / method.spacing) if moves else np.zeros(0)
    return tuple(np.insert(shares, -1, of_moves) for shares in (active, jumps))


def block_trips(
    counts: Float[np.ndarray, "N"], positions: int, sizes: tuple[int, ...]
) -> dict[int, float]:
    """Returns the mean trips of the loop over blocks of each size, as `rows.ActiveRows` runs them.

    Args:
      counts: draws of the number of positions that count.
      positions: all positions of a device.
      sizes: of blocks, as in `Tiling`.
    """
    *large, last = [size for size in sizes if size <= positions] or sizes[-1:]
    trips = {}
    for size in large:
        trips[size] = float((counts // size).mean())
        counts = counts % size
    return trips | {last: float(np.ceil(counts / last).mean())}

"""Control variates of the bound: the loss of a guess at the same (t, x_t), whose mean is known.

The loss of a draw varies with which tokens have moved, since some are harder than others. Much of
that is known of every token, from how often the model expects it where it knows nothing else. So
the loss of this guess, less its mean over x_t, is subtracted: the mean of the rest is the same, and
its variance a part of it.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from sedd_jax.diffusion.graph import Graph
from sedd_jax.diffusion.importance import Proposal, propose_rows
from sedd_jax.diffusion.noise import Noise
from sedd_jax.diffusion.padding import zero_padding
from sedd_jax.diffusion.token_guess import guess_entropy, guess_kl, guess_of
from sedd_jax.inference.family import Control
from sedd_jax.model.context import NOTHING
from sedd_jax.model.score_model import ScoreModel

SIGMA = -math.log(0.2)  # noise at which the network guesses: more would amplify its errors
POSITIONS = 128  # at most, that it guesses at: their mean counts
OWN = 1.0  # the scale of a row starts at 1, and counts as many draws


def guess_control(graph: Graph, noise: Noise, model: ScoreModel, proposal: Proposal) -> Control:
    """Returns the control variate of `sequence_loss`.

    Args:
      graph: the token graph.
      noise: the schedule.
      model: the network.
      proposal: the distribution that the loss draws from.
    """

    def guess(params, x0, lengths=None):
        # a row of noise; a token does not depend on the padding, nor do those before it
        width = min(x0.shape[1], POSITIONS)
        xt = graph.sample_limit(jax.random.key(0), (width,))[None]
        sigma = jnp.minimum(SIGMA, noise.sigma(jnp.float32(1)))[None]
        known = {} if lengths is None else {"lengths": jnp.minimum(lengths[:1], width)}
        counts = zero_padding(jnp.ones(xt.shape), known.get("lengths"))
        score = model.apply(params, xt, sigma, **known)
        return {"token": guess_of(graph, sigma, score, counts / counts.sum())}

    def loss(guess, keys, quantiles, low, high, x0, lengths=None, context=NOTHING, start=None):
        of_rows = quantiles, x0, lengths, context.given, start
        batch = propose_rows(keys, proposal, graph, noise, *of_rows)
        token = guess["token"]
        entropy = guess_entropy(graph, token, noise.sigma(batch.t), batch.xt, x0)
        first, last = (noise.sigma(proposal.times(border)) for border in (low, high))
        falls = guess_kl(graph, token, first, x0) - guess_kl(graph, token, last, x0)
        of_part = falls / (proposal.edges[-1] - proposal.edges[0])
        drawn, at_t, mean = (
            zero_padding(batch.free(each), lengths).sum(-1) for each in (*entropy, of_part)
        )
        rate = noise.dsigma(batch.t)
        time_weight = proposal.time_weight(quantiles)
        return jnp.stack([rate * batch.weight * drawn, rate * time_weight * at_t, mean], axis=-1)

    return Control(guess, loss)


def controlled(
    nats: Float[np.ndarray, "D N"], guess: Float[np.ndarray, "D N 3"]
) -> tuple[Float[np.ndarray, "D N"], Float[np.ndarray, "D N"]]:
    """Returns the nats of draws less the deviations of a guess from its mean, scaled by row.

    The scale of a draw is the nats of the row's other draws over what the guess has at their
    times, so it is independent of the draw, and the mean of the result is that of the nats.

    Args:
      nats: of every draw and row.
      guess: the nats of a guess, see `Control`.

    Returns:
      The nats of draws whose parts make up [t_min, 1], each moved to an estimate of the whole by
      how the guess differs between its part and all, which adds up to 0; and those less the
      deviations from the mean at the time of the draw alone.
    """
    drawn, at_t, mean = np.moveaxis(guess, -1, 0)
    mean = mean * len(nats)  # a part has the share 1 / D of the draws
    whole = mean.mean(0)
    all_nats, all_guess = OWN * whole + nats.sum(0), OWN * whole + at_t.sum(0)
    scored = whole > 0
    scale = (all_nats - nats) / np.where(scored, all_guess - at_t, 1)
    moved = all_nats / np.where(scored, all_guess, 1) * (mean - whole)
    return nats - scale * (drawn - mean) - moved, nats - scale * (drawn - at_t)

"""Rare tokens: neither lost nor inflated, however many steps (`diffusion/categorical.py`).

A token of probability p is drawn by T steps with true scores, so each step gives it about p / T.
Events that rare are measured by drawing the uniforms that decide them from the small interval in
which they can happen, and scaling by its length. The published rule, all outcomes of a step in one
float32 race, is measured in the same way: its noise, on a grid of 2^-24, cannot make them.
"""

import jax.numpy as jnp
import numpy as np

from sedd_jax.diffusion import graph as graphs
from sedd_jax.diffusion.categorical import jump_from_uniforms, uniform_from_bits
from sedd_jax.diffusion.denoiser import tweedie_probs
from sedd_jax.diffusion.noise import loglinear
from sedd_jax.display.plot import Plot
from sedd_jax.display.table import Table
from sedd_jax.verification.published_race import GRID, race
from sedd_jax.verification.report import Claim, Section

RARE, COMMON, MASK = range(3)
REACH = 16  # the race is decided within 16 times its mean, but for a share of exp(-16)


def check_rare_tokens(
    probabilities: tuple[float, ...] = (1e-4, 1e-6, 1e-8),
    steps: tuple[int, ...] = (1, 16, 256, 4096),
    num_draws: int = 2**20,
    seed: int = 0,
) -> Section:
    """Returns the share of its probability that a rare token keeps, by our rule and the published.

    Args:
      probabilities: of the rare token; the other token has the rest.
      steps: numbers T of reverse steps, absorbing graph, log-linear noise.
      num_draws: conditional draws for every figure.
      seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    rows, curves, errors = [], {}, []
    for prob in probabilities:
        kept = {"ours": [], "published race": []}
        for count in steps:
            masked, weights = _chain(prob, count)
            share, stderr = _ours(rng, prob, masked, weights, num_draws)
            errors.append(abs(share - 1) / stderr)
            kept["ours"].append(share)
            kept["published race"].append(_joint_race(rng, prob, masked, weights, num_draws)[0])
        rows += [(prob, rule, *shares) for rule, shares in kept.items()]
        curves |= {f"{rule}, p = {prob:g}": (steps, shares) for rule, shares in kept.items()}
    ours = [share for row in rows if row[1] == "ours" for share in row[2:]]
    race = [row[-1] for row in rows if row[1] != "ours"]
    claims = [
        Claim("ours: |share kept - 1| in standard errors, at worst", np.max(errors), "<=", 4.5),
        Claim("ours: |share kept - 1|, at worst", np.max(np.abs(np.array(ours) - 1)), "<=", 0.05),
        Claim(
            f"published float32 race, {steps[-1]} steps: |share kept - 1|, at best",
            np.min(np.abs(np.array(race) - 1)),
            ">=",
            0.25,
        ),
    ]
    table = Table(
        "Share of its probability p that a token keeps, by number of steps",
        ("p", "rule", *map(str, steps)),
        rows,
    )
    plot = Plot(
        "rare", "reverse steps", "share of its probability that a token keeps", curves, log_y=False
    )
    return Section("Rare tokens", claims, [table], [plot])


def _chain(prob, count):
    """P(masked before step k), and the step's weights given that, with true scores."""
    graph, noise = graphs.absorbing(2), loglinear()
    times = jnp.linspace(1.0, 0.0, count + 1)
    sigma, sigma_next = noise.sigma(times[:-1]), noise.sigma(times[1:])
    tokens = jnp.array([[prob, 1 - prob]]) / jnp.expm1(sigma)[:, None]
    score = jnp.concatenate([tokens, jnp.ones((count, 1))], axis=1)[:, None]
    xt = jnp.full((count, 1), MASK)
    weights = np.asarray(tweedie_probs(graph, xt, score, sigma - sigma_next))[:, 0]
    masked = 1 - np.arange(count) / count
    return masked, np.maximum(weights, 0)


def _ours(rng, prob, masked, weights, num_draws):
    """The share kept by `jump`, over draws at random steps, and its standard error."""
    step = rng.integers(len(masked), size=num_draws)
    probs = weights[step]
    leave = probs[:, :MASK].sum(-1) / probs.sum(-1)
    u_jump, jump_interval = _small_uniforms(rng, leave)
    u_rare, rare_interval = _small_uniforms(rng, np.full(num_draws, REACH * prob))
    u_others, _ = _small_uniforms(rng, np.ones((num_draws, 2)))
    u_target = np.concatenate([u_rare[:, None], u_others], axis=1)
    xt = jnp.full(num_draws, MASK)
    drawn = jump_from_uniforms(u_jump, jnp.asarray(u_target), xt, jnp.asarray(probs))
    hits = (np.asarray(drawn) == RARE) * jump_interval * rare_interval
    return _share(prob, masked, step, hits)


def _joint_race(rng, prob, masked, weights, num_draws):
    """The same where {both tokens, stay} race at once: argmax of weight / exponential."""
    step = rng.integers(len(masked), size=num_draws)
    probs = np.float32(weights[step] / weights[step].sum(-1, keepdims=True))
    # only the largest u make the small exponentials with which the rare token can win
    cells = np.clip(np.ceil(REACH * np.float64(probs[:, RARE]) / GRID), 1, 1 / GRID)
    u_rare = np.float32(1 - (1 + np.floor(rng.random(num_draws) * cells)) * GRID)
    u_others = np.float32(rng.integers(1 / GRID, size=(num_draws, 2)) * GRID)
    u = np.concatenate([u_rare[:, None], u_others], axis=1)
    hits = (np.asarray(race(jnp.asarray(u), jnp.asarray(probs))) == RARE) * cells * GRID
    return _share(prob, masked, step, hits)


def _share(prob, masked, step, hits):
    """The share of `prob` that all steps make up, and its standard error."""
    shares = len(masked) * masked[step] * hits / prob
    return float(shares.mean()), float(shares.std() / np.sqrt(len(shares)))


def _small_uniforms(rng, bound):
    """Draws of `uniform` given that they lie below a power of 2 that is at least `bound`."""
    bits = 64 + np.clip(np.ceil(np.log2(bound)), -63, 0).astype(np.int64)
    draws = rng.integers(0, 2**64, np.shape(bound), np.uint64) >> (64 - bits).astype(np.uint64)
    high = (draws >> np.uint64(32)).astype(np.uint32)
    low = (draws & np.uint64(2**32 - 1)).astype(np.uint32)
    return uniform_from_bits(jnp.asarray(high), jnp.asarray(low)), 2.0 ** (bits - 64)

"""Rare tokens: neither lost nor inflated, however many steps (`diffusion/categorical.py`).

A token of probability p is drawn by T steps with true scores, so each step gives it about p / T;
with a corrector it is masked and drawn again.
Events that rare are measured by drawing the uniforms that decide them from the small interval in
which they can happen, and scaling by its length.

Published codes draw all outcomes of a step, {stay, V tokens}, in one race of float32 exponentials,
made from uniforms on a grid of 2^-24. No exponential is smaller than about that, so with
a = 2^-24 T / p the token keeps only the share a / (exp(a) - 1) of its probability. Measured in the
same way, to show what it does; the library draws nothing with it.

References:
  Zheng, Chen, Mao, Liu, Zhu, Zhang, "Masked Diffusion Models are Secretly Time-Agnostic Masked
  Models and Exploit Inaccurate Categorical Sampling", 2024, arXiv 2409.02908.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from sedd_jax.diffusion import graph as graphs
from sedd_jax.diffusion.categorical import jump_from_uniforms, uniform_from_bits
from sedd_jax.diffusion.denoiser import denoise_weights, tweedie_weights
from sedd_jax.diffusion.noise import loglinear
from sedd_jax.diffusion.renoising import Renoising
from sedd_jax.diffusion.sampler import Clamp, Process
from sedd_jax.diffusion.score import DenseScore, total_away
from sedd_jax.diffusion.second_order import Evaluation
from sedd_jax.display.plot import Plot
from sedd_jax.display.table import Table
from sedd_jax.inference.sampling import sampler_named
from sedd_jax.verification.report import Claim, Section

GRID = 2.0**-24  # of torch.rand in float32
RARE, COMMON, MASK = range(3)
CORRECTORS = "gibbs", "forward_backward", "psi(kappa=0)", "remdm_cap", "remdm_rescale", "remdm_loop"
TWO_PARTS = "theta_trapezoidal"
REACH = 16  # the race is decided within 16 times its mean, except for a share of exp(-16)


def race(u: Float[Array, "*s V"], weights: Float[Array, "*s V"]) -> Int[Array, "*s"]:
    """Returns the index with the largest weight / exponential, in float32, as published codes draw.

    Args:
      u: uniforms on the grid, in [0, 1).
      weights: of the outcomes; a negative weight loses to any other.
    """
    exponential = 1e-10 - jnp.log(u + 1e-10)
    return jnp.argmax(weights / exponential, axis=-1).astype(jnp.int32)


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
      seed: random seed.
    """
    rng = np.random.default_rng(seed)
    rows, curves, errors = [], {}, []
    for prob in probabilities:
        kept = {"ours": [], "published race": []} | {name: [] for name in (*CORRECTORS, TWO_PARTS)}
        for count in steps:
            for name in ("tweedie", *CORRECTORS, TWO_PARTS):
                last, weights = _steps(name, prob, count)
                share, standard_error = _jump(rng, prob, last, weights, num_draws)
                errors.append(abs(share - 1) / standard_error)
                kept["ours" if name == "tweedie" else name].append(share)
                if name == "tweedie":
                    race_share, _ = _race(rng, prob, last, weights, num_draws)
                    kept["published race"].append(race_share)
        rows += [(prob, rule, *shares) for rule, shares in kept.items()]
        shown = {rule: kept[rule] for rule in ("ours", "published race")}
        curves |= {f"{rule}, p = {prob:g}": (steps, shares) for rule, shares in shown.items()}
    ours = np.array([row[2:] for row in rows if row[1] != "published race"])
    published = np.array([row[-1] for row in rows if row[1] == "published race"])
    statement = f"published float32 race, {steps[-1]} steps: |share kept - 1|, at best"
    claims = [
        Claim(
            "ours, second order, every corrector: |share kept - 1| in standard errors",
            np.max(errors),
            "<=",
            4.5,
        ),
        Claim(
            "ours, second order, every corrector: |share kept - 1|, at worst",
            np.max(np.abs(ours - 1)),
            "<=",
            0.05,
        ),
        Claim(statement, np.min(np.abs(published - 1)), ">=", 0.25),
    ]
    title = "Share of its probability p that a token keeps, by number of steps"
    table = Table(title, ("p", "rule", *map(str, steps)), rows)
    label = "share of its probability that a token keeps"
    plot = Plot("rare", "reverse steps", label, curves, log_y=False)
    return Section("Rare tokens", claims, [table], [plot])


def _steps(name, prob, count):
    """Every step: the chance that it makes the last draw of the position, and its weights there.

    Returns:
      P(masked at the draw and never again after it) [count], and the weights at a mask [count, 3].
    """
    moves = _parts if name == TWO_PARTS else _moves
    weights, before, after = map(np.asarray, moves(name, prob, count))
    leaves = weights[:, :MASK].sum(-1) / weights.sum(-1)
    masked, at_draw = 1.0, np.empty(len(leaves))
    for step, leave in enumerate(leaves):
        at_draw[step] = masked + (1 - masked) * before[step]
        token = 1 - at_draw[step] * (1 - leave)
        masked = 1 - token * (1 - after[step])
    stays = (1 - np.append(before[1:], 0)) * (1 - after)
    return at_draw * np.cumprod(stays[::-1])[::-1], weights


@functools.partial(jax.jit, static_argnums=(0, 2))
def _moves(name, prob, count):
    """What every step of a sampler does to the first position, with true scores.

    Returns:
      The weights at a mask [count, 3], and the probabilities that a token is masked before and
      after the draw [count].
    """
    sampler, graph = sampler_named(name), graphs.absorbing(2)
    nothing = Clamp(jnp.zeros((1, 1), jnp.int32), jnp.zeros((1, 1), bool))
    process = Process(graph, loglinear(), None, nothing, 0.0, count)

    def of_step(step):
        def move_from(state):
            xt = jnp.full((1, 1), state)
            if isinstance(sampler, Renoising):
                return sampler.far_move(process, xt, step, jnp.ones((1, 1), bool))
            return sampler.move(process, xt, step), jnp.zeros((1, 1))

        (of_token, _), (of_mask, added) = map(move_from, (RARE, MASK))
        tokens = jnp.array([prob, 1 - prob]) / jnp.expm1(of_mask.sigma)
        score = jnp.append(tokens, 1.0)[None, None]
        weights = of_mask.weights(total_away(of_mask.xt, score)).weights(of_mask.xt, score)
        before = of_token.xt[0, 0] == MASK
        return jnp.maximum(weights[0, 0], 0), before.astype(float), -jnp.expm1(-added[0, 0])

    return jax.lax.map(of_step, jnp.arange(count))


@functools.partial(jax.jit, static_argnums=(0, 2))
def _parts(name, prob, count):
    """The same of a sampler of two evaluations a step: both parts of each, and the final step."""
    sampler, graph, noise = sampler_named(name), graphs.absorbing(2), loglinear()
    xt, times = jnp.full((1, 1), MASK), jnp.linspace(1.0, 0.0, count + 1)

    def evaluation(sigma):
        tokens = jnp.array([prob, 1 - prob]) / jnp.expm1(sigma)
        return Evaluation(xt, DenseScore(xt, jnp.log(jnp.append(tokens, 1.0))[None, None]))

    def weigh(score, weights):
        ratios = jnp.exp(score.log_score)
        return weights(total_away(xt, ratios)).weights(xt, ratios)[0, 0]

    def of_step(t_and_next):
        sigmas = sampler.sigmas(noise, *t_and_next)[:, None]
        before, after = map(evaluation, sigmas[:2])
        total = total_away(xt, jnp.exp(before.score.log_score))
        first = functools.partial(tweedie_weights, graph, xt, delta_sigma=sigmas[0] - sigmas[1])
        _, score, second = sampler.second(graph, sigmas, before, total, after)
        return jnp.stack([weigh(before.score, first), weigh(score, second)])

    parts = jax.lax.map(of_step, (times[:-2], times[1:-1])).reshape(-1, 3)
    sigma = noise.sigma(times[-2:-1])
    final = functools.partial(denoise_weights, graph, xt, sigma=sigma)
    weights = jnp.append(parts, weigh(evaluation(sigma).score, final)[None], axis=0)
    never = jnp.zeros(len(weights))
    return jnp.maximum(weights, 0), never, never


def _jump(rng, prob, last, weights, num_draws):
    """The share kept by `jump`, over draws at random steps, by `last`, and its standard error."""
    step = rng.choice(len(last), num_draws, p=last / last.sum())
    probs = weights[step]
    leave = probs[:, :MASK].sum(-1) / probs.sum(-1)
    u_jump, jump_interval = _small_uniforms(rng, leave)
    u_rare, rare_interval = _small_uniforms(rng, np.full(num_draws, REACH * prob))
    u_others, _ = _small_uniforms(rng, np.ones((num_draws, 2)))
    u_target = np.concatenate([u_rare[:, None], u_others], axis=1)
    xt = np.full(num_draws, MASK, np.int32)
    drawn = jax.jit(jump_from_uniforms)(u_jump, u_target, xt, probs)
    hits = (np.asarray(drawn) == RARE) * jump_interval * rare_interval
    return _share(prob, last, hits)


def _race(rng, prob, last, weights, num_draws):
    """The same by the published `race` of {both tokens, stay}."""
    step = rng.choice(len(last), num_draws, p=last / last.sum())
    probs = np.float32(weights[step] / weights[step].sum(-1, keepdims=True))
    # the rare token can win only with a small exponential, of one of the largest u
    cells = np.clip(np.ceil(REACH * np.float64(probs[:, RARE]) / GRID), 1, 1 / GRID)
    u_rare = np.float32(1 - (1 + np.floor(rng.random(num_draws) * cells)) * GRID)
    u_others = np.float32(rng.integers(1 / GRID, size=(num_draws, 2)) * GRID)
    u = np.concatenate([u_rare[:, None], u_others], axis=1)
    hits = (np.asarray(jax.jit(race)(u, probs)) == RARE) * cells * GRID
    return _share(prob, last, hits)


def _share(prob, last, hits):
    """The share of `prob` summed over all steps, and its standard error."""
    shares = last.sum() * hits / prob
    return float(shares.mean()), float(shares.std() / np.sqrt(len(shares)))


def _small_uniforms(rng, bound):
    """Draws of `uniform` given that they are below a power of 2 that is at least `bound`."""
    bits = 64 + np.clip(np.ceil(np.log2(bound)), -63, 0).astype(np.int64)
    draws = rng.integers(0, 2**64, np.shape(bound), np.uint64) >> (64 - bits).astype(np.uint64)
    high = (draws >> np.uint64(32)).astype(np.uint32)
    low = (draws & np.uint64(2**32 - 1)).astype(np.uint32)
    return jax.jit(uniform_from_bits)(high, low), 2.0 ** (bits - 64)

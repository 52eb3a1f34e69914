"""Samplers that choose the order of positions, with true scores: what they draw."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from scipy.special import rel_entr

from sedd_jax.diffusion.adaptive import within_bound
from sedd_jax.diffusion.noise import Noise
from sedd_jax.diffusion.score import DenseScore
from sedd_jax.diffusion.spaced import turns
from sedd_jax.diffusion.unmasking import smallest
from sedd_jax.display.table import Table
from sedd_jax.verification.exact.reverse_process import exact_process
from sedd_jax.verification.exact.scores import exact_model, exact_params
from sedd_jax.verification.exact.space import (
    Distribution,
    Space,
    goodness_of_fit,
    kl_divergence,
    product_distribution,
    total_variation,
)
from sedd_jax.verification.report import Claim, Section
from sedd_jax.verification.samplers import SIGNIFICANCE, sample_frequencies

BOUNDS = (0.0, 0.1, 0.5, 1.0, 2.0)  # nats

Kernel = Float[np.ndarray, "S S"]


def check_adaptive(
    space: Space, noise: Noise, data: Distribution, *, t_min: float, num_samples: int
) -> Section:
    """Returns how far samplers with at most one evaluation per position are from the data.

    Args:
      space: all sequences, with masks.
      noise: the schedule; true normalised ratios are the same at all noise.
      data: distribution of the data.
      t_min: the smallest time of training.
      num_samples: drawn samples that are compared with the computed distributions.
    """
    masked = space.states == space.graph.mask_id
    token, choices = _answers(space, data, masked)
    kernels, errors, needed = {}, {}, {}
    for bound in BOUNDS:
        kernel = _together(space, token, choices[bound])
        kernels[f"entropy_bounded(bound={bound:g})"] = kernel
        true = _true_kernel(space, data, kernel)
        errors[bound] = rel_entr(true, kernel).sum(-1).max()
        needed[bound] = _run(space, true, masked)[1]
    kernels["spaced"] = _together(space, token, choices["spaced"])
    kernels["confidence"] = _surest(space, token, masked)
    rows, drawn = [], {}
    for name, kernel in kernels.items():
        drawn[name], nfe = _run(space, kernel, masked)
        distances = total_variation(drawn[name], data), kl_divergence(data, drawn[name])
        rows.append((name, nfe, *distances))
    bounded = dict(zip(BOUNDS, rows, strict=False))
    over = [kl - bound * needed[bound] for bound, (*_, kl) in bounded.items()]
    name = "entropy bound"
    claims = [
        Claim("spaced: TV to the data", total_variation(drawn["spaced"], data), "<=", 1e-12),
        Claim(f"{name} 0: TV to the data", bounded[0.0][2], "<=", 1e-12),
        Claim(
            f"{name}: KL of the positions of an evaluation, less the bound",
            max(error - bound for bound, error in errors.items()),
            "<=",
            1e-12,
        ),
        Claim(
            f"{name}: KL(data | samples) less bound x evaluations of the data, worst",
            max(over),
            "<=",
            1e-12,
        ),
    ]
    process = exact_process(space, noise, data)
    for name in (f"entropy_bounded(bound={BOUNDS[3]:g})", "confidence"):
        settings = {"sampler": name, "t_min": t_min, "num_samples": num_samples}
        p_value = goodness_of_fit(sample_frequencies(process, **settings), drawn[name], num_samples)
        statement = f"{name}: {num_samples} drawn samples: chi-square p-value"
        claims.append(Claim(statement, p_value, ">=", SIGNIFICANCE))
    title = "Distance to the data, with at most one evaluation per position"
    table = Table(title, ("sampler", "mean evaluations", "TV", "KL(data | samples)"), rows)
    return Section("Orders of positions with true scores", claims, [table])


def _answers(space, data, masked):
    """Distributions of clean tokens [S, L, N], and the positions of an evaluation by order."""
    with jax.enable_x64(True):
        states, masked = jnp.asarray(space.states), jnp.asarray(masked)
        sigma = jnp.ones(len(states), float)
        log_score = exact_model(space).apply(exact_params(data), states, sigma)
        token = np.exp(np.asarray(log_score)[..., : space.graph.num_tokens])
        entropy = DenseScore(states, log_score).shannon_entropy(masked)
        choices = {
            bound: np.asarray(smallest(entropy, masked, within_bound(entropy, masked, bound)))
            for bound in BOUNDS
        }
        order = turns(jnp.ones(masked.shape, bool))
        one = jnp.ones(len(states), int)
        choices["spaced"] = np.asarray(smallest(order, masked, one))
    return token / token.sum(-1, keepdims=True), choices


def _together(space, token, chosen) -> Kernel:
    """The kernel that draws chosen positions as if they were independent."""
    probs = np.pad(token, ((0, 0), (0, 0), (0, 1)))
    return product_distribution(np.where(chosen[..., None], probs, _own(space)))


def _surest(space, token, masked) -> Kernel:
    """The kernel that draws all masked positions and keeps the likeliest token."""
    own, clean = _own(space)[..., : token.shape[-1]], space.states[space.clean]
    weights = product_distribution(np.where(masked[..., None], token, own))  # [S, C]
    prob = np.stack([token[:, i, clean[:, i]] for i in range(space.length)], -1)  # [S, C, L]
    surest = np.where(masked[:, None], prob, -1).argmax(-1)[..., None] == np.arange(space.length)
    kept = surest & masked[:, None]
    after = space.index(np.where(kept, clean, space.states[:, None]))
    kernel = np.zeros((len(token),) * 2)
    np.add.at(kernel, (np.arange(len(token))[:, None], after), weights)
    return kernel


def _true_kernel(space, data, kernel) -> Kernel:
    """The true distribution after an evaluation that reveals what the kernel reveals."""
    agrees = (space.states[:, None] == space.states[space.clean]) | (
        space.states[:, None] == space.graph.mask_id
    )
    revealed = agrees.all(-1) @ data[space.clean]  # the probability of the revealed tokens
    return np.where(kernel > 0, revealed / np.maximum(revealed, 1e-300)[:, None], 0)


def _run(space, kernel, masked) -> tuple[Distribution, float]:
    """The distribution of the samples, and their mean evaluations."""
    current, nfe = space.limit(), 0.0
    for _ in range(space.length):
        nfe += current[masked.any(-1)].sum()
        current = current @ kernel
    return current, float(nfe)


def _own(space) -> Float[np.ndarray, "S L V"]:
    return np.eye(space.graph.num_states)[space.states]

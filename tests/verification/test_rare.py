"""Rare tokens are drawn at their rate; the published race loses them as its formula says."""

import jax.numpy as jnp
import numpy as np
import pytest

from sedd_jax.diffusion.categorical import jump_from_uniforms
from sedd_jax.verification.exact.space import goodness_of_fit
from sedd_jax.verification.rare import GRID, check_rare_tokens, race

RARE, STAY = 0, 1


def test_the_largest_weight_over_exponential_wins():
    u = jnp.array([[np.exp(-1), np.exp(-2), np.exp(-4)]] * 3, jnp.float32)
    weights = jnp.array([[1, 1.9, 3.9], [1, 2.1, 4.1], [1, -9, 0]], jnp.float32)
    np.testing.assert_array_equal(race(u, weights), [0, 1, 0])


@pytest.mark.parametrize("mass", [1e-7, 3e-8, 1e-8])
def test_a_rare_outcome_keeps_the_share_of_the_formula(mass):
    """Over all uniforms of the rare outcome with which it can win, and evenly spaced others."""
    weights = jnp.array([mass, 1 - mass], jnp.float32)
    others = (np.arange(2**14) + 0.5) / 2**14
    cells = np.arange(1, 1 + max(1, round(16 * mass / GRID)))
    u = np.stack(np.broadcast_arrays(1 - cells[:, None] * GRID, others), axis=-1)
    wins = race(jnp.asarray(u, jnp.float32), jnp.broadcast_to(weights, u.shape)) == RARE
    published = GRID * np.asarray(wins).mean(1).sum() / mass
    a = GRID / mass
    assert published == pytest.approx(a / np.expm1(a), rel=0.03)

    u_jump = jnp.asarray(2 * mass * others, jnp.float32)  # the half of these below the mass jumps
    u_target = jnp.full((len(others), 2), 0.5)
    xt, probs = jnp.full(len(others), STAY), jnp.broadcast_to(weights, (len(others), 2))
    hits = jump_from_uniforms(u_jump, u_target, xt, probs) == RARE
    assert 2 * float(jnp.mean(hits)) == pytest.approx(1, rel=1e-3)


def test_the_race_draws_common_outcomes_by_their_weights():
    weights, rows = np.float32([0.2, 0.5, 0.05, 0.25]), 5000
    u = np.random.default_rng(0).integers(0, 2**24, (rows, 4)) * GRID
    drawn = race(jnp.asarray(u, jnp.float32), jnp.broadcast_to(weights, u.shape))
    frequencies = np.bincount(drawn, minlength=4) / rows
    assert goodness_of_fit(frequencies, np.float64(weights), rows) > 1e-4


@pytest.mark.slow
def test_claims_on_rare_tokens():
    section = check_rare_tokens((1e-5, 1e-7), (1, 1024), num_draws=2**16)
    assert len(section.claims) == 3 and all(claim.holds for claim in section.claims)

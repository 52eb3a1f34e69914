"""The published race loses rare tokens as its formula says, and draws common ones rightly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chisquare

import sedd_jax as sedd
from sedd_jax.diffusion.categorical import jump_from_uniforms, jump_probs
from sedd_jax.diffusion.denoiser import tweedie_weights
from sedd_jax.verification.published_race import GRID, RacedScore, grid_uniform, race

KEY = jax.random.key(0)
RARE, STAY = 0, 1


def test_the_largest_weight_over_exponential_wins():
    u = jnp.array([[np.exp(-1), np.exp(-2), np.exp(-4)]] * 3, jnp.float32)
    weights = jnp.array([[1, 1.9, 3.9], [1, 2.1, 4.1], [1, -9, 0]], jnp.float32)
    np.testing.assert_array_equal(race(u, weights), [0, 1, 0])


def test_uniforms_lie_on_the_grid():
    u = np.asarray(grid_uniform(KEY, (2**16,)), np.float64) / GRID
    assert (u == np.round(u)).all() and u.min() >= 0 and u.max() < 2**24
    np.testing.assert_allclose(np.quantile(u, [0.1, 0.5, 0.9]) * GRID, [0.1, 0.5, 0.9], atol=0.01)


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


def test_common_states_have_the_law_of_the_weights():
    graph, copies = sedd.graph.absorbing(4), 5_000
    xt = jnp.tile(jnp.array([[4, 4, 2]], jnp.int32), copies)
    log_score = jnp.broadcast_to(jnp.log(jnp.array([0.1, 0.3, 0.05, 0.2, 1.0])), (*xt.shape, 5))
    active = jnp.tile(jnp.array([[True, False, True]]), copies)

    def law(total):
        return tweedie_weights(graph, xt, total, jnp.array([0.7]))

    keys = jax.random.split(KEY, 1)
    drawn = RacedScore(xt, log_score).draw(keys, law, active)
    np.testing.assert_allclose(drawn.total[0, :3], [0.65, 0, 1.6], rtol=1e-5)
    masked, held, token = drawn.xt.reshape(-1, 3).T
    assert (held == 4).all()  # not active
    assert (token == 2).all()  # has nowhere to go
    weights = law(drawn.total).weights(xt, jnp.exp(log_score))[0, 0]
    counts = np.bincount(masked, minlength=5)
    expected = np.float64(jump_probs(weights))  # the float32 numbers add up to 1 but for rounding
    assert chisquare(counts, copies * expected / expected.sum()).pvalue > 1e-4

"""Ways to draw times: what they draw, and that no mean depends on it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import kstest, norm

from sedd_jax.diffusion import graph as graphs
from sedd_jax.diffusion import noise as noises
from sedd_jax.diffusion.importance import FLOOR, on_grid, propose, propose_by_position
from sedd_jax.diffusion.time_sampling import (
    Bell,
    Learned,
    Positions,
    Squares,
    Uniform,
    times_named,
)
from sedd_jax.errors import BadInput

T_MIN, DRAWS, CELLS = 0.01, 20_000, 8
NOISES = {"loglinear": noises.loglinear(1e-3), "geometric": noises.geometric(1e-2, 20.0)}


def falling():
    """What is learned from losses that fall with t: all cells are seen."""
    t = jnp.linspace(T_MIN, 1, 4001)
    return Learned(CELLS).update(Learned(CELLS).init(), T_MIN, t, 1 / t)


WAYS = {
    "uniform": (Uniform(), ()),
    "bell": (Bell(), ()),
    "narrow bell": (Bell(mean=1.0, std=0.3), ()),
    "learned, at first": (Learned(CELLS), Learned(CELLS).init()),
    "learned": (Learned(CELLS), falling()),
}


def drawn(proposal, noise=NOISES["loglinear"], draws=DRAWS):
    """Draws at quantiles spread evenly, one row each."""
    unit = (jnp.arange(draws) + 0.5) / draws
    x0 = jnp.zeros((draws, 1), jnp.int32)
    call = jax.jit(lambda key: propose(key, proposal, graphs.absorbing(3), noise, unit, x0))
    return jax.tree.map(np.asarray, call(jax.random.key(0)))


@pytest.mark.parametrize(
    ("way", "schedule"), [*((way, "loglinear") for way in WAYS), ("bell", "geometric")]
)
def test_weighted_means_are_those_of_uniform_times(way, schedule):
    """By quadrature: at evenly spread quantiles the mean is an integral over the density."""
    times, state = WAYS[way]
    batch = drawn(times.proposal(NOISES[schedule], T_MIN, state), NOISES[schedule])
    assert batch.t.min() >= np.float32(T_MIN) and batch.t.max() <= 1
    assert batch.weight.max() <= 1 / FLOOR * 1.001
    for f in (lambda t: 1 + 0 * t, lambda t: 1 / t, lambda t: np.cos(9 * t)):
        exact = quad(f, T_MIN, 1)[0] / (1 - T_MIN)
        assert np.mean(batch.weight * f(np.float64(batch.t))) == pytest.approx(
            exact, rel=2e-3, abs=1e-3
        )


@pytest.mark.parametrize("way", WAYS)
def test_weighted_means_on_a_grid_are_those_of_equally_likely_times(way):
    times, state = WAYS[way]
    batch = drawn(on_grid(times.proposal(NOISES["loglinear"], T_MIN, state), 20))
    for i in range(1, 21):
        mean = np.mean(batch.weight * (np.round(20 * batch.t) == i))
        assert mean == pytest.approx(1 / 20, rel=0.05)  # each is drawn some 50 times or more


@pytest.mark.parametrize("schedule", NOISES)
def test_bell_shaped_times_are_normal_in_the_logit_of_the_share_that_moved(schedule):
    noise = NOISES[schedule]
    t = np.float64(drawn(Bell(mean=-0.5, std=0.7).proposal(noise, T_MIN), noise).t)
    sigma = np.float64(noise.sigma(jnp.asarray(t, jnp.float32)))
    moved = -np.expm1(-sigma)
    np.testing.assert_allclose(np.log(moved / (1 - moved)), np.log(np.expm1(sigma)), atol=1e-3)
    edges = np.array([-2.0, -1.0, -0.5, 0.0, 1.0])
    fine = np.linspace(T_MIN, 1, 100_001)
    logits = np.log(np.expm1(np.float64(noise.sigma(jnp.asarray(fine, jnp.float32)))))
    normal = norm(-0.5, 0.7)
    low, high = normal.cdf([logits[0], logits[-1]])
    for edge in edges:
        bell = np.clip((normal.cdf(edge) - low) / (high - low), 0, 1)
        expected = (1 - FLOOR) * bell + FLOOR * np.mean(logits < edge)
        # a cell is uniform inside, and holds at most a few percent
        assert np.mean(np.log(np.expm1(sigma)) < edge) == pytest.approx(expected, abs=0.02)


def test_a_bell_with_log_linear_noise_is_logit_normal_in_t():
    noise = noises.loglinear(1e-6)
    t = np.float64(drawn(Bell().proposal(noise, 1e-4), noise).t)
    assert kstest(np.log(t / (1 - t)), norm.cdf).statistic < FLOOR / 2 + 0.01


def test_learned_times_follow_the_root_mean_square_of_the_losses():
    times, rng = Learned(CELLS, decay=0.9), np.random.default_rng(0)
    scale = np.linspace(4, 1, CELLS)
    state, update = times.init(), jax.jit(times.update, static_argnums=1)
    for _ in range(60):
        t = rng.uniform(T_MIN, 1, 512)
        cell = np.int32((t - T_MIN) / (1 - T_MIN) * CELLS)
        # half of the losses are 0: the mean is half of the scale, the root mean square is 0.71
        loss = scale[cell] * rng.integers(0, 2, 512)
        state = update(state, T_MIN, t, loss)
    np.testing.assert_allclose(state.draws, 640, rtol=0.1)
    density = np.asarray(times.proposal(NOISES["loglinear"], T_MIN, state).density)
    np.testing.assert_allclose(density, 0.95 * scale / scale.mean() + 0.05, rtol=0.06)


def test_learned_times_are_uniform_at_first_and_forget():
    times, noise = Learned(CELLS, decay=0.5), NOISES["loglinear"]
    state = times.init()
    np.testing.assert_array_equal(times.proposal(noise, T_MIN, state).density, 1)
    one = jnp.full(1, 0.5), jnp.full(1, 3.0)
    state = times.update(state, T_MIN, *one)
    np.testing.assert_allclose(times.proposal(noise, T_MIN, state).density, 1)
    t = jnp.linspace(T_MIN, 1, 101)
    for loss in (t, 1 - t):
        for _ in range(30):
            state = times.update(state, T_MIN, t, loss)
    density = times.proposal(noise, T_MIN, state).density
    assert density[0] > 2 * density[-1]  # as the latest losses, not those before


def test_losses_of_zero_leave_times_uniform():
    times = Learned(CELLS)
    t = jnp.linspace(T_MIN, 1, 101)
    state = times.update(times.init(), T_MIN, t, jnp.zeros(101))
    np.testing.assert_array_equal(times.proposal(NOISES["loglinear"], T_MIN, state).density, 1)


def test_the_borders_belong_to_cells():
    state = Learned(CELLS).update(
        Learned(CELLS).init(), T_MIN, jnp.array([T_MIN, 1.0]), jnp.array([2.0, 3.0])
    )
    assert state == Squares(*state) and (state.total[0], state.total[-1]) == (4.0, 9.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Bell(std=0.0), "std must be positive"),
        (lambda: Learned(cells=0), "cells must be positive"),
        (lambda: Learned(decay=1.0), "decay must be between 0 and 1"),
        (
            lambda: Bell(mean=1e4).proposal(NOISES["loglinear"], T_MIN),
            r"config.train.times=bell\(mean=10000.0, std=1.0\): it leaves no time in \[0.01, 1\]",
        ),
    ],
)
def test_settings_that_draw_nothing_are_refused(make, message):
    with pytest.raises(BadInput, match=message):
        make()


def test_every_position_has_a_time_of_its_own():
    rows, length = 64, 5
    times = Positions().quantiles(jax.random.key(0), (rows, length), True)
    low = np.arange(rows)[:, None] / rows  # evenly spread at every position
    spread = np.sort(times, axis=0)
    assert (spread >= low - 1e-6).all() and (spread <= low + 1 / rows + 1e-6).all()
    assert np.abs(np.corrcoef(np.asarray(times).T)[np.triu_indices(length, 1)]).max() < 0.5
    monotone = Positions("monotone").quantiles(jax.random.key(0), (rows, length), True)
    np.testing.assert_array_equal(monotone, np.sort(times, axis=1))
    with pytest.raises(BadInput, match="order must be independent or monotone, got 'rising'"):
        times_named("positions(order='rising')")


def test_positions_move_by_their_own_time():
    graph, noise = graphs.absorbing(3), NOISES["loglinear"]
    shape = DRAWS, 3
    unit = Positions().quantiles(jax.random.key(0), shape, False)
    held = jnp.broadcast_to(jnp.arange(3)[None] == 1, shape)
    proposal = Positions().proposal(noise, T_MIN)
    x0 = jnp.zeros(shape, jnp.int32)
    batch = propose_by_position(jax.random.key(1), proposal, graph, noise, unit, x0, held)
    assert (batch.weight == 1).all() and not batch.xt[:, 1].any()
    moved, chance = np.asarray(batch.xt == graph.mask_id), -np.expm1(-noise.sigma(batch.t))
    for low in np.arange(0, 1, 0.25):
        inside = np.asarray((batch.t >= low) & (batch.t < low + 0.25) & ~held)
        off = (moved - chance)[inside]
        assert abs(off.mean()) < 5 * off.std() / np.sqrt(inside.sum())

"""When positions leave the mask, by loops; and the kernel of one call."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sedd_jax.diffusion import graph as graphs
from sedd_jax.diffusion import noise as noises
from sedd_jax.diffusion.first_hitting import FirstHitting, hits_from_uniforms
from sedd_jax.diffusion.sampler import Clamp, Process
from sedd_jax.diffusion.score import DenseScore

T_MIN = 0.05
SCHEDULES = {
    "loglinear": (noises.loglinear(1e-3), lambda t: -math.log(1 - 0.999 * t)),
    "geometric": (noises.geometric(1e-4, 20.0), lambda t: 1e-4 * 2e5**t),
}
B, L, V = 5, 7, 4
MASK = V - 1
FREE = np.random.default_rng(1).random((B, L)) < 0.7
FREE[0], FREE[1] = True, False


def _by_loops(u, sigma_at, steps):
    """The call and the noise of every position, from the times at which they leave the mask."""
    call, sigma = np.full((B, L), -1), np.zeros((B, L))
    masked_at_1 = 1 - math.exp(-sigma_at(1.0))
    grid = [sigma_at(t) for t in np.linspace(1, T_MIN, (steps or 1) + 1)]
    for row in range(B):
        events = []  # (noise of the call, positions)
        for i in range(L):
            if FREE[row, i]:
                hit = -math.log1p(-u[row, i] * masked_at_1)
                at = min(s for s in grid if s > hit) if steps else max(hit, grid[-1])
                events.append((at, hit, i))
        events.sort(reverse=True)
        done = -1
        for number, (at, _, i) in enumerate(events):
            new = steps is None or number == 0 or at != events[number - 1][0]
            done += new
            call[row, i], sigma[row, i] = done, at
    return call, sigma


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("steps", [None, 1, 4])
def test_positions_leave_at_their_own_times(schedule, steps):
    noise, sigma_at = SCHEDULES[schedule]
    u = np.random.default_rng(0).random((B, L))
    u[0, :3] = 1e-3, 2e-4, 1e-9  # after t_min
    if schedule == "geometric":  # times are spread like 1 - exp(-sigma): near 1, most of them
        u[2:] **= 20
    hits = hits_from_uniforms(jnp.array(u, jnp.float32), noise, jnp.array(FREE), T_MIN, steps)
    call, sigma = _by_loops(np.float64(np.float32(u)), sigma_at, steps)
    np.testing.assert_array_equal(hits.evaluation, call)
    np.testing.assert_allclose(np.asarray(hits.sigma)[FREE], sigma[FREE], rtol=2e-5)
    np.testing.assert_array_equal(hits.nfe, call.max(-1) + 1)
    assert hits.nfe[1] == 0 and np.asarray(hits.sigma).min() > 0
    if steps is None:
        np.testing.assert_array_equal(hits.nfe, FREE.sum(-1))
    else:
        assert hits.nfe.max() <= steps + 1


def test_times_of_rows_and_positions_are_drawn_apart():
    keys = jax.random.split(jax.random.key(0), B)

    def hits_of(keys):
        held = jnp.zeros((len(keys), L), bool)
        process = _process(Clamp(jnp.zeros((len(keys), L), int), held), None)
        return FirstHitting().init(keys, process, jnp.full(held.shape, MASK)).hits

    hits = hits_of(keys)
    assert len(np.unique(hits.evaluation, axis=0)) == B
    alone = hits_of(keys[2:3])
    np.testing.assert_array_equal(alone.evaluation[0], hits.evaluation[2])


def _score_fn(xt, sigma, bad=0.0):
    """Scores that depend on all that a network sees."""
    angle = xt.sum(-1)[:, None, None] + jnp.arange(L * V).reshape(1, L, V) * 1.3
    log_score = jnp.sin(angle + sigma[:, None, None])
    log_score = log_score.at[3:, :, 0].add(bad)
    return DenseScore(xt, jnp.where(xt[..., None] == jnp.arange(V)[None, None], 0, log_score))


def _process(clamp, steps, bad=0.0):
    score_fn = functools.partial(_score_fn, bad=bad)
    graph, noise = graphs.absorbing(MASK), SCHEDULES["loglinear"][0]
    return Process(graph, noise, score_fn, clamp, T_MIN, steps)


@functools.cache
def _run(steps, bad=0.0):
    """Hits, and what every call found: (tokens, info), the start first."""
    keys = jax.random.split(jax.random.key(5), (L + 1, B))
    clamp = Clamp(jnp.full((B, L), 1), jnp.array(~FREE))
    process = _process(clamp, steps, bad)
    state = FirstHitting().init(keys[-1], process, jnp.full((B, L), MASK))
    hits, found = state.hits, [(np.asarray(state.xt), None)]
    kernel = jax.jit(lambda keys, state: FirstHitting().step(keys, process, state))
    for number in range(int(hits.nfe.max())):
        state, info = kernel(keys[number], state)
        found.append((np.asarray(state.xt), jax.device_get(info)))
    return hits, found


@pytest.mark.parametrize("steps", [None, 3])
def test_a_call_draws_the_positions_of_its_number_at_their_noise(steps):
    hits, found = _run(steps)
    call, sigma = np.asarray(hits.evaluation), np.asarray(hits.sigma)
    for number, (xt, info) in enumerate(found[1:]):
        before = found[number][0]
        np.testing.assert_array_equal(xt != before, call == number)
        np.testing.assert_array_equal(info.changed, (call == number).sum(-1))
        np.testing.assert_array_equal(info.evaluations, (call == number).any(-1))
        for row in np.flatnonzero(info.evaluations):
            assert {info.sigma[row]} == set(sigma[row][call[row] == number])
        assert info.finite.all() and (info.sigma > 0).all()
    last = found[-1][0]
    assert (last[FREE] < MASK).all() and (last[~FREE] == 1).all()
    assert len(np.unique(last[FREE])) == MASK


def test_a_score_that_is_not_finite_is_told_of_its_row():
    _, found = _run(None, bad=np.inf)
    finite = np.array([info.finite for _, info in found[1:]]).all(0)
    np.testing.assert_array_equal(finite, [True, True, True, False, False])

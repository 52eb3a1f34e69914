"""Which positions are drawn from an evaluation, and how many; what they draw is enumerated."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sedd_jax.diffusion import graph as graphs
from sedd_jax.diffusion import noise as noises
from sedd_jax.diffusion.adaptive import Confidence, EntropyBounded, within_bound
from sedd_jax.diffusion.sampler import Clamp, Process
from sedd_jax.diffusion.score import DenseScore
from sedd_jax.diffusion.spaced import Spaced, turns
from sedd_jax.diffusion.unmasking import smallest
from sedd_jax.errors import BadInput

T_MIN, NOISE = 0.05, noises.loglinear()
B, L, MASK = 4, 8, 3
LENGTHS = np.array([L, L, L, 5], np.int32)
FREE = np.ones((B, L), bool)
FREE[1], FREE[2, ::2], FREE[3, 5:] = False, False, False
SAMPLERS = EntropyBounded(bound=0.2), Confidence(), Spaced(growth=2.0)


def log_scores(xt):
    """Log-scores of masked positions that depend on all tokens, some nearly certain."""
    angle = xt.sum(-1)[:, None, None] + jnp.arange(L * MASK).reshape(1, L, MASK) * 1.3
    sharp = jnp.where(jnp.arange(L) % 3 == 1, 12.0, 1.0)[None, :, None]
    return jnp.pad(sharp * jnp.sin(angle), ((0, 0), (0, 0), (0, 1)))


def process_of(steps, bad=0.0):
    def score_fn(xt, sigma):
        log_score = log_scores(xt) - sigma[:, None, None]
        return DenseScore(xt, jnp.where(xt[..., None] == MASK, log_score + bad, 0))

    clamp = Clamp(jnp.full((B, L), 1), jnp.array(~FREE))
    return Process(
        graphs.absorbing(MASK), NOISE, score_fn, clamp, T_MIN, steps, lengths=jnp.array(LENGTHS)
    )


@functools.partial(jax.jit, static_argnums=(0, 1))
def step(sampler, steps, keys, state, bad):
    return sampler.step(keys, process_of(steps, bad), state)


@functools.cache
def run(sampler, steps, bad=0.0):
    """The most evaluations of every row, and what every step found: (tokens, info)."""
    process = process_of(steps)
    state = sampler.init(jax.random.split(jax.random.key(0), B), process, jnp.full((B, L), MASK))
    nfe, found = np.asarray(sampler.nfe(process, state)), [(np.asarray(state.xt), None)]
    while len(found) <= L and sampler.unfinished(process, state).any():
        keys = jax.random.split(jax.random.key(len(found)), B)
        state, info = step(sampler, steps, keys, state, bad)
        found.append((np.asarray(state.xt), jax.device_get(info)))
    return nfe, found


@pytest.mark.parametrize("bound", [0.0, 0.7, 100.0])
def test_the_largest_set_that_the_bound_allows(bound):
    rng = np.random.default_rng(0)
    entropy, masked = np.float32(rng.exponential(0.4, (50, L))), rng.random((50, L)) < 0.7
    arrays = jnp.array(entropy), jnp.array(masked)
    found = smallest(*arrays, within_bound(*arrays, bound))
    for chosen, values, open_ in zip(np.asarray(found), entropy, masked, strict=True):
        wanted = set()
        for i in sorted(np.flatnonzero(open_), key=values.__getitem__):
            if sum(values[j] for j in wanted) <= bound:  # all but the largest of them
                wanted.add(i)
        assert set(np.flatnonzero(chosen)) == wanted


def test_free_positions_are_revealed_in_the_van_der_corput_order():
    free = np.ones((2, 13), bool)
    free[1, [0, 4, 5, 11]] = False
    for row, found in zip(free, np.asarray(turns(jnp.array(free))), strict=True):
        places = np.flatnonzero(row)
        order = places[np.argsort(found[row])]
        if row.all():
            assert order.tolist() == [0, 8, 4, 12, 2, 10, 6, 1, 9, 5, 3, 11, 7]
        else:  # nine of them
            assert np.searchsorted(places, order).tolist() == [0, 8, 4, 2, 6, 1, 5, 3, 7]
    wider = turns(jnp.array(np.pad(free, ((0, 0), (0, 50)))))[:, :13]
    np.testing.assert_array_equal(np.argsort(wider[0]), np.argsort(turns(jnp.array(free))[0]))


def test_growth_draws_few_at_first():
    _, found = run(Spaced(growth=2.0), 2)
    sizes = np.array([info.changed for _, info in found[1:]])
    np.testing.assert_array_equal(sizes[:, 0], [1, 3, 4])  # 8/9, 32/9 and 8, rounded up
    with pytest.raises(BadInput, match="growth must be above 0"):
        Spaced(growth=0.0)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("steps", [None, 2])
def test_every_position_is_drawn_once_within_the_budget(sampler, steps):
    nfe, found = run(sampler, steps)
    budget = FREE.sum(-1) if steps is None else np.minimum(FREE.sum(-1), steps + 1)
    np.testing.assert_array_equal(nfe, budget)
    drawn = np.zeros((B, L), int)
    for (before, _), (xt, info) in itertools.pairwise(found):
        masked = (before == MASK).sum(-1)
        np.testing.assert_array_equal(info.evaluations, masked > 0)
        np.testing.assert_array_equal(info.changed, (xt != before).sum(-1))
        assert (info.changed[masked > 0] > 0).all() and info.finite.all()
        share = np.clip(masked / LENGTHS, *(1 - np.exp(-NOISE.sigma(np.array([T_MIN, 1.0])))))
        np.testing.assert_allclose(1 - np.exp(-info.sigma), share, rtol=1e-5)
        drawn += xt != before
    evaluations = sum(info.evaluations for _, info in found[1:])
    assert (evaluations <= budget).all() and evaluations[1] == 0
    np.testing.assert_array_equal(drawn, FREE)
    assert (found[-1][0][~FREE] == 1).all() and (found[-1][0] < MASK).all()


def test_the_bound_is_kept_but_where_the_budget_needs_more():
    for steps in (None, 2):
        nfe, found = run(SAMPLERS[0], steps)
        sizes = []
        for number, ((before, _), (xt, _)) in enumerate(itertools.pairwise(found)):
            score = process_of(steps).score_fn(jnp.array(before), jnp.ones(B))
            entropy = np.asarray(score.shannon_entropy(jnp.array(before == MASK)))
            for row in np.flatnonzero((before == MASK).any(-1)):
                chosen = (xt != before)[row]
                least = math.ceil((before[row] == MASK).sum() / (nfe[row] - number))
                error = entropy[row][chosen].sum() - entropy[row][chosen].max()
                assert error <= 0.2 + 1e-6 or chosen.sum() == least
                sizes.append(chosen.sum())
        assert max(sizes) > 1 and (steps or min(sizes) == 1)


def test_confidence_draws_equal_numbers_and_keeps_the_surest():
    nfe, found = run(SAMPLERS[1], 2)
    sizes = np.array([info.changed for _, info in found[1:]])
    assert sizes.shape == (3, B) and nfe.tolist() == [3, 0, 3, 3]
    np.testing.assert_array_equal(sizes[:, 0], [3, 3, 2])
    np.testing.assert_array_equal(sizes[:, [1, 2, 3]].T, [[0, 0, 0], [2, 1, 1], [2, 2, 1]])
    # at the sharp positions nearly every draw is surer than elsewhere
    first = found[1][0][0] != MASK
    assert (first == (np.arange(L) % 3 == 1)).all()


def test_scores_that_are_not_finite_are_told():
    for sampler in SAMPLERS:
        _, found = run(sampler, 2, bad=np.nan)
        np.testing.assert_array_equal(found[1][1].finite, ~FREE.any(-1))


@pytest.mark.parametrize("bound", [-0.1, math.inf, math.nan])
def test_a_bound_out_of_range_is_refused(bound):
    with pytest.raises(BadInput, match="bound must be at least 0 and finite"):
        EntropyBounded(bound=bound)

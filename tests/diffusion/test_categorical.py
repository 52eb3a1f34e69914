"""Frequencies, down to events far too rare to be drawn.

An event of probability 1e-10 is checked by importance sampling: the 64 bits behind its uniform
are drawn below 2^k only, which happens with probability 2^(k - 64), so that about one draw in ten
is a hit, and the share of hits is scaled back by that probability.
"""

import functools
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chisquare, kstest

from sedd_jax.diffusion import categorical as categorical_module
from sedd_jax.diffusion.categorical import (
    bernoulli,
    categorical,
    jump,
    jump_probs,
    uniform,
    uniform_from_bits,
)

RARE_DRAWS = 200_000
DRAWS = 20_000  # one shape [DRAWS, 4] nearly everywhere: one compilation
LEVEL = 1e-4  # of a chi-square test; keys are fixed, so a pass stays a pass
BELOW_ONE = 1 - 2.0**-24

# Compiling the random bits takes most of the time here, and optimising their code half of that.
_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
_jump = _jit(jump)
_uniform_from_bits = _jit(uniform_from_bits)
_jump_rows = _jit(jax.vmap(jump, in_axes=(0, None, None)))
_categorical = _jit(categorical)
_bernoulli = _jit(bernoulli)


def _rows(row, dtype=jnp.float32):
    """DRAWS copies of a row."""
    return jnp.array(np.broadcast_to(row, (DRAWS, *np.shape(row))), dtype)


def _bits_below(rng, num_bits, shape):
    """The two words of 64-bit integers drawn uniformly below 2^num_bits."""
    draws = rng.integers(0, 2**num_bits, shape, dtype=np.uint64)
    high, low = draws >> np.uint64(32), draws & np.uint64(0xFFFFFFFF)
    return jnp.array(high.astype(np.uint32)), jnp.array(low.astype(np.uint32))


def _tail(rng, num_bits, shape):
    """Uniforms given that they lie below 2^(num_bits - 64)."""
    return np.asarray(_uniform_from_bits(*_bits_below(rng, num_bits, shape)))


def _use_uniforms(monkeypatch, *arrays):
    """Makes the module draw these uniforms, in turn, instead of its own."""
    queue = [jnp.array(array) for array in arrays]

    def drawn(key, shape):
        del key
        assert queue[0].shape == tuple(shape)
        return queue.pop(0)

    for name in ("uniform", "uniform_by_position"):
        monkeypatch.setattr(categorical_module, name, drawn)


def _assert_frequency(hits, condition_prob, expected):
    """The estimated probability agrees to 3 %: over four standard errors at 20,000 hits."""
    estimate = np.mean(hits) * condition_prob
    assert abs(estimate / expected - 1) < 0.03, (estimate, expected)


@pytest.mark.parametrize(
    ("high", "low", "expected"),
    [
        (0, 0, 2.0**-65),
        (0, 1, 1.5 * 2.0**-64),
        (0, 2**31, 2.0**-33 + 2.0**-65),  # rounds to 2^-33
        (1, 0, 2.0**-32),
        (1, 2**31, 1.5 * 2.0**-32),
        (3, 2**30, 3.25 * 2.0**-32),
        (2**31, 0, 0.5),
        (2**31 + 2**30, 2**32 - 1, 0.75),
        (2**32 - 2**8, 0, BELOW_ONE),
        (2**32 - 1, 0, BELOW_ONE),  # nearest float32 is 1
        (2**32 - 1, 2**32 - 1, BELOW_ONE),
    ],
)
def test_uniform_from_chosen_bits(high, low, expected):
    got = _uniform_from_bits(jnp.uint32(high), jnp.uint32(low))
    assert got.dtype == jnp.float32
    assert float(got) == np.float32(expected)
    assert 0 < float(got) < 1


@pytest.mark.parametrize("num_bits", [4, 20, 31, 32, 33, 40, 60])
def test_uniform_from_bits_is_accurate_relative_to_itself(num_bits):
    high, low = _bits_below(np.random.default_rng(num_bits), num_bits, (200,))
    got = _uniform_from_bits(high, low)
    for first, second, u in zip(high.tolist(), low.tolist(), got.tolist(), strict=True):
        exact = (Fraction(first * 2**32 + second) + Fraction(1, 2)) / 2**64
        # three roundings of 2^-24: the low word, the high word, their sum
        assert abs(Fraction(u) / exact - 1) <= Fraction(3, 2**24)


def test_uniform_from_bits_increases_across_the_words():
    low = jnp.array([0, 1, 2**16, 2**32 - 2**8, 0, 2**31, 0], jnp.uint32)
    high = jnp.array([0, 0, 0, 0, 1, 1, 2], jnp.uint32)
    assert np.all(np.diff(_uniform_from_bits(high, low)) > 0)


def test_uniform_is_uniform_down_to_its_fine_end():
    u = np.float64(uniform(jax.random.key(0), (2**22,)))
    assert u.min() > 0 and u.max() < 1
    assert kstest(u[:100_000], "uniform").pvalue > LEVEL
    small = u[u < 2.0**-14]
    assert kstest(small * 2.0**14, "uniform").pvalue > LEVEL
    # Below 2^-14 a float32 resolves 2^-38, so the second word shows in the digits below 2^-32; on
    # a 2^-32 grid they would all be 0, and with one word used twice all nearly 0.
    assert kstest(small * 2.0**32 % 1, "uniform").pvalue > LEVEL


@pytest.mark.parametrize("prob", [1e-3, 1e-7, 1e-10, 1e-12, 1e-15])
def test_bernoulli_hits_rare_events_at_their_rate(monkeypatch, prob):
    num_bits = 66 + int(np.floor(np.log2(prob)))  # a quarter to a half of the draws hit
    _use_uniforms(monkeypatch, _tail(np.random.default_rng(0), num_bits, RARE_DRAWS))
    hits = bernoulli(jax.random.key(0), jnp.full(RARE_DRAWS, prob, jnp.float32))
    _assert_frequency(hits, 2.0 ** (num_bits - 64), prob)


def test_bernoulli_never_at_0_and_always_at_1():
    hits = np.asarray(_bernoulli(jax.random.key(0), _rows([0.0, 1.0, 0.0, 1.0])))
    never, always = hits[:, ::2], hits[:, 1::2]
    assert not never.any() and always.all()


@pytest.mark.parametrize("extreme", [2.0**-65, BELOW_ONE])
def test_bernoulli_never_at_0_and_always_at_1_for_extreme_bits(monkeypatch, extreme):
    _use_uniforms(monkeypatch, np.full(2, extreme, np.float32))
    hits = bernoulli(jax.random.key(0), jnp.array([0.0, 1.0]))
    np.testing.assert_array_equal(hits, [False, True])


def test_bernoulli_uses_the_probability_of_each_position():
    probs = np.array([0.03, 0.4, 0.9, 0.5])
    error = np.mean(_bernoulli(jax.random.key(1), _rows(probs)), axis=0) - probs
    assert np.all(np.abs(error) < 4 * np.sqrt(probs * (1 - probs) / DRAWS))


def _rare_race(weight):
    """Uniforms of a race of weights [1, weight], the second given that it is small."""
    rng = np.random.default_rng(0)
    # The second wins if its exponential is below weight * the first, which exceeds 8 once in
    # exp(8) = 3000: the condition loses less than 0.1 % of the wins.
    num_bits = 67 + int(np.ceil(np.log2(weight)))
    u = np.stack([_tail(rng, 64, RARE_DRAWS), _tail(rng, num_bits, RARE_DRAWS)], axis=-1)
    return u, 2.0 ** (num_bits - 64)


@pytest.mark.parametrize("weight", [1e-7, 1e-10, 1e-12])
def test_categorical_draws_rare_tokens_at_their_rate(monkeypatch, weight):
    u, condition_prob = _rare_race(weight)
    _use_uniforms(monkeypatch, u)
    weights = jnp.tile(jnp.array([1, weight], jnp.float32), (RARE_DRAWS, 1))
    hits = categorical(jax.random.key(0), weights) == 1
    _assert_frequency(hits, condition_prob, weight / (1 + weight))


@pytest.mark.parametrize("weight", [1e-7, 1e-10])
def test_a_race_with_noise_on_a_23_bit_grid_fails_the_same_check(weight):
    # The usual float32 Gumbel: -log(-log(u)), u a multiple of 2^-23, whose largest value, 15.9,
    # truncates the tail. If this passed, the test above could not fail.
    u, condition_prob = _rare_race(weight)
    grid = np.floor((1 - np.float64(u)) * 2**23) * 2.0**-23
    smallest = np.float64(np.finfo(np.float32).tiny)
    noise = -np.log(-np.log(np.maximum(grid, smallest)))
    hits = noise[:, 1] + np.log(weight) > noise[:, 0]
    with pytest.raises(AssertionError):
        _assert_frequency(hits, condition_prob, weight / (1 + weight))


@pytest.mark.parametrize("scale", [1.0, 1e-6, 300.0])
def test_categorical_has_the_frequencies_of_the_normalised_weights(scale):
    weights = np.array([0.4, 0.05, 0.25, 0.3])
    drawn = np.asarray(_categorical(jax.random.key(0), _rows(weights * scale)))
    assert drawn.dtype == np.int32 and drawn.shape == (DRAWS,)
    assert chisquare(np.bincount(drawn, minlength=4), DRAWS * weights).pvalue > LEVEL


def test_categorical_gives_the_same_tokens_for_unnormalised_weights():
    # log(64 w) rounds differently from log(w): two tokens within 1e-6 of a tie may swap.
    weights = _rows([0.4, 0.05, 0.25, 0.3])
    key = jax.random.key(2)
    same = np.mean(_categorical(key, weights) == _categorical(key, 64 * weights))
    assert same > 1 - 2 / DRAWS


def test_categorical_uses_the_weights_of_each_position():
    weights = np.array([[1, 3, 0, 0], [3, 1, 0, 0]] * (DRAWS // 2), np.float32)
    drawn = np.asarray(_categorical(jax.random.key(3), jnp.array(weights)))
    share = [drawn[::2].mean(), drawn[1::2].mean()]
    np.testing.assert_allclose(share, [0.75, 0.25], atol=4 * np.sqrt(0.75 * 0.25 / (DRAWS // 2)))


def test_categorical_never_draws_zero_weight():
    drawn = np.asarray(_categorical(jax.random.key(4), _rows([0.0, 1.0, 0.0, 1e-30])))
    assert set(drawn.tolist()) <= {1, 3}


def test_categorical_never_draws_zero_weight_at_the_extremes_of_the_noise(monkeypatch):
    # the best noise on a zero weight, the worst on the others
    u = np.array([[2.0**-65, BELOW_ONE, BELOW_ONE]], np.float32)
    _use_uniforms(monkeypatch, u)
    drawn = categorical(jax.random.key(0), jnp.array([[0.0, 0.0, 1e-30]]))
    np.testing.assert_array_equal(drawn, [2])


@pytest.mark.parametrize("xt", range(4))
@pytest.mark.parametrize(
    "probs",
    [[0.05, 0.05, 0.85, 0.05], [1.5, 0.3, 0.15, 0.75], [0.3, -0.8, 0.5, 0.2]],
    ids=["normalised", "unnormalised", "one_negative"],
)
def test_jump_draws_from_the_clamped_normalised_weights(xt, probs):
    # One position per key: if both draws shared bits, they would do so within the position.
    keys = jax.random.split(jax.random.key(xt), DRAWS)
    drawn = np.asarray(_jump_rows(keys, jnp.array([xt]), jnp.array([probs])))[:, 0]
    clamped = np.maximum(probs, 0)
    possible = clamped > 0
    counts = np.bincount(drawn, minlength=4)
    assert counts[~possible].sum() == 0
    expected = len(drawn) * clamped / clamped.sum()
    assert chisquare(counts[possible], expected[possible]).pvalue > LEVEL, counts


def test_jump_treats_every_position_by_its_own_weights():
    probs = np.array([[0.875, 0.125, 0, 0], [0.25, 0.375, 0.25, 0.125]])
    xt = np.tile([0, 2], DRAWS // 2)
    tiled = jnp.array(np.tile(probs, (DRAWS // 2, 1)), jnp.float32)
    drawn = np.asarray(_jump(jax.random.key(0), jnp.array(xt), tiled))
    for parity in range(2):
        counts = np.bincount(drawn[parity::2], minlength=4)
        possible = probs[parity] > 0
        assert counts[~possible].sum() == 0
        expected = DRAWS // 2 * probs[parity, possible]
        assert chisquare(counts[possible], expected).pvalue > LEVEL


@pytest.mark.parametrize("xt", [4, 5, -1])
def test_jump_always_leaves_a_state_outside_the_weights(xt):
    probs = _rows([0.5, 0.0, 0.25, 1e-9])  # rows need not sum to 1
    drawn = np.asarray(_jump(jax.random.key(0), _rows(xt, jnp.int32), probs))
    assert set(drawn.tolist()) == {0, 2}
    assert chisquare(np.bincount(drawn)[[0, 2]], DRAWS * np.array([2, 1]) / 3).pvalue > LEVEL


@pytest.mark.parametrize(
    "probs",
    [[0.0, 1.0, 0.0, 0.0], [-0.5, 2.0, -1e-9, 0.0]],
    ids=["zero_elsewhere", "negative_elsewhere"],
)
def test_jump_stays_where_nothing_else_has_weight(probs):
    xt = _rows(1, jnp.int32)
    np.testing.assert_array_equal(_jump(jax.random.key(0), xt, _rows(probs)), xt)


def test_jump_reaches_a_rare_target_of_a_rare_jump_at_its_rate(monkeypatch):
    # One step in a thousand jumps, and one jump in ten thousand has the target: 1e-7 in all.
    rng = np.random.default_rng(0)
    leaves = _tail(rng, 55, RARE_DRAWS)  # below 2^-9
    targets = np.stack([_tail(rng, num_bits, RARE_DRAWS) for num_bits in (64, 64, 54)], axis=-1)
    _use_uniforms(monkeypatch, leaves, targets)
    probs = jnp.array([1 - 1e-3, 1e-3 * (1 - 1e-4), 1e-7], jnp.float32)
    drawn = jump(
        jax.random.key(0), jnp.zeros(RARE_DRAWS, jnp.int32), jnp.tile(probs, (RARE_DRAWS, 1))
    )
    # 10,000 hits: the standard error is 1 %, and the check of 3 % three of them
    _assert_frequency(drawn == 2, 2.0 ** (55 + 54 - 128), 1e-7)
    _assert_frequency(drawn != 0, 2.0 ** (55 - 64), 1e-3)


def test_jump_probs_are_the_clamped_normalised_weights():
    weights = np.random.default_rng(0).normal(0.3, 1, (3, 2, 4)).astype(np.float32)
    weights[..., 0] = 0.5  # so that every row has some weight
    assert weights.min() < 0
    got = jump_probs(jnp.array(weights))
    for b, i in np.ndindex(3, 2):
        clamped = [max(float(w), 0.0) for w in weights[b, i]]
        np.testing.assert_allclose(got[b, i], [w / sum(clamped) for w in clamped], rtol=1e-6)


def test_uniforms_by_position_do_not_depend_on_how_many_there_are():
    few, many = (
        categorical_module.uniform_by_position(jax.random.key(0), (count, 3)) for count in (5, 8)
    )
    np.testing.assert_array_equal(few, many[:5])
    assert len(np.unique(many)) == 24
    assert 0 < many.min() < many.max() < 1

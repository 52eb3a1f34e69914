import jax
import numpy as np
import pytest
from scipy.stats import kstest

from sedd_jax.diffusion.times import sample_times

LEVEL = 1e-4  # of a Kolmogorov-Smirnov test; keys are fixed, so a pass stays a pass
B, T_MIN, NUM_KEYS = 16, 1e-3, 2000


@pytest.fixture(scope="module", params=[True, False], ids=["low_discrepancy", "iid"])
def times(request):
    """Whether times are low-discrepancy, and their draws [key, B], rescaled to [0, 1]."""
    keys = jax.random.split(jax.random.key(0), NUM_KEYS)
    chosen = () if request.param else (False,)  # low discrepancy is the default
    draw = jax.jit(
        jax.vmap(lambda key: sample_times(key, B, T_MIN, *chosen)),
        compiler_options={"xla_backend_optimization_level": 0},
    )
    t = np.float64(draw(keys))
    assert t.shape == (NUM_KEYS, B)
    assert t.min() >= np.float32(T_MIN) and t.max() <= 1
    assert t.min() < 1.1 * T_MIN and t.max() > 1 - 1e-4  # the whole range is used
    return request.param, (t - T_MIN) / (1 - T_MIN)


def test_every_time_is_uniform(times):
    _, unit = times
    for position in [0, 1, B // 2, B - 1]:
        assert kstest(unit[:, position], "uniform").pvalue > LEVEL


def test_low_discrepancy_puts_one_time_in_every_interval(times):
    low_discrepancy, unit = times
    occupied = np.sort(np.floor(unit * B), axis=1)
    every = np.all(occupied == np.arange(B), axis=1)
    offsets = unit * B % 1
    spread = np.abs((offsets - offsets[:, :1] + 0.5) % 1 - 0.5).max(1)
    if low_discrepancy:
        # the common offset may lie within rounding of the end of an interval
        assert every.mean() > 0.99
        assert spread.max() < 1e-4
        assert kstest(offsets[:, 0], "uniform").pvalue > LEVEL
    else:
        assert not every.any()  # 16! / 16^16 = 1e-6 by chance
        assert np.median(spread) > 0.3


def test_times_are_in_random_order(times):
    _, unit = times
    rank = np.argsort(np.argsort(unit, axis=1), axis=1)
    # the mean rank at each position is 7.5 with standard error 4.6 / sqrt(2000) = 0.1
    np.testing.assert_allclose(rank.mean(0), (B - 1) / 2, atol=0.45)
    neighbours = np.mean((np.diff(rank, axis=1) % B) == 1)
    assert neighbours < 0.1  # 1 if only shifted, about 1/16 at random

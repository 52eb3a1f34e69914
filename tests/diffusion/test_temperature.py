import jax.numpy as jnp
import numpy as np
import pytest

from sedd_jax.diffusion.temperature import TokenFilter, nucleus
from sedd_jax.errors import BadInput


@pytest.mark.parametrize(
    ("weights", "top_p", "kept"),
    [
        ([1, 4, 2, 3], 0.3, [1]),
        ([1, 4, 2, 3], 1e-50, [1]),  # 0 in float32
        ([1, 4, 2, 3], 0.4, [1]),  # reached exactly
        ([1, 4, 2, 3], 0.41, [1, 3]),
        ([1, 4, 2, 3], 0.95, [0, 1, 2, 3]),
        ([2, 2, 2, 2], 0.5, [0, 1]),  # of equal ones the first
        ([0, 1, 0, 1], 1.0, [0, 1, 2, 3]),
        ([1e-9, 1, 1, 1], 1.0, [0, 1, 2, 3]),  # though the sum is 3 in float32
    ],
)
def test_the_nucleus_is_the_smallest_set_of_that_mass(weights, top_p, kept):
    weights = np.array([weights, weights[::-1]], np.float32)
    found = np.asarray(nucleus(jnp.asarray(weights), top_p))
    assert found[0].tolist() == [w if i in kept else 0 for i, w in enumerate(weights[0])]
    assert (found[1] > 0).sum() == (found[0] > 0).sum()


@pytest.mark.parametrize(
    ("temperature", "top_p", "wanted"),
    [
        (1.0, 1.0, [1 / 4, 1, 0, 1 / 2]),
        (0.5, 1.0, [1 / 16, 1, 0, 1 / 4]),
        (2.0, 1.0, [1 / 2, 1, 0, 2**-0.5]),
        (0.5, 0.8, [0, 1, 0, 1 / 4]),  # shares after the temperature: 1/21, 16/21, 0, 4/21
        (0.0, 0.5, [0, 1, 0, 0]),
    ],
)
def test_the_temperature_comes_first_and_then_the_nucleus(temperature, top_p, wanted):
    weights = 1e30 * np.array([[1, 4, 0, 2], [2, 4, 0, 1]], np.float32)
    found = TokenFilter(temperature, top_p)(jnp.log(jnp.array(weights)))
    np.testing.assert_allclose(found[0], wanted, rtol=1e-5)
    np.testing.assert_allclose(found[1], wanted[::-1][:1] + wanted[1:3] + wanted[:1], rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ((-0.1, 1.0), "temperature must be 0 .greedy. or more, and finite, got -0.1"),
        ((float("inf"), 1.0), "temperature must be 0"),
        ((1e-38, 1.0), "temperature must be at least 1e-06, or 0 for greedy, got 1e-38"),
        ((float("nan"), 1.0), "temperature must be 0"),
        ((1.0, 0.0), r"top_p must be in \(0, 1\], got 0.0"),
        ((1.0, float("nan")), "top_p must be in"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(BadInput, match=message):
        TokenFilter(*settings).check()

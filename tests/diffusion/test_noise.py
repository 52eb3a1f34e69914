import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sedd_jax.diffusion import noise as noise_module

# A float32 argument of size 11.5 (log 1e-5) under an exponential: 11.5 * 2^-24 * 2 = 1.4e-6.
RTOL = 3e-6
# 1 - (1 - eps) t at t = 1 is a difference of numbers near 1 that leaves eps = 1e-3: 2^-24 / 1e-3.
RTOL_NEAR_ONE = 1e-4


class LogLinear:
    make = staticmethod(lambda: noise_module.loglinear(1e-3))

    def sigma(self, t):
        return -np.log1p(-0.999 * t)

    def dsigma(self, t):
        return 0.999 / (1 - 0.999 * t)


class Geometric:
    make = staticmethod(lambda: noise_module.geometric(1e-5, 20.0))

    def sigma(self, t):
        return 1e-5 * 2e6**t

    def dsigma(self, t):
        return 1e-5 * 2e6**t * np.log(2e6)


@pytest.fixture(scope="module", params=[LogLinear(), Geometric()], ids=["loglinear", "geometric"])
def schedule(request):
    """The schedule under test and its closed form in float64."""
    noise = request.param.make()
    return noise_module.Noise(jax.jit(noise.sigma), jax.jit(noise.dsigma)), request.param


def _grid(low=0.0, high=1.0):
    return np.linspace(low, high, 501, dtype=np.float32)


def test_sigma_and_dsigma_are_the_closed_forms(schedule):
    noise, exact = schedule
    for t, rtol in [(_grid(high=0.9), RTOL), (_grid(low=0.9), RTOL_NEAR_ONE)]:
        wide = t.astype(np.float64)
        np.testing.assert_allclose(noise.sigma(jnp.array(t)), exact.sigma(wide), rtol=rtol)
        np.testing.assert_allclose(noise.dsigma(jnp.array(t)), exact.dsigma(wide), rtol=rtol)


def test_dsigma_is_the_derivative_of_sigma(schedule):
    noise, _ = schedule
    t = jnp.array(_grid(low=1e-3))
    derivative = jax.vmap(jax.grad(noise.sigma))(t)
    np.testing.assert_allclose(noise.dsigma(t), derivative, rtol=RTOL)


def test_sigma_increases(schedule):
    noise, _ = schedule
    t = jnp.array(_grid())
    assert np.all(np.diff(noise.sigma(t)) > 0)
    assert np.all(noise.dsigma(t) > 0)


@pytest.mark.parametrize("t", [1e-6, 1e-5, 1e-3])
def test_sigma_keeps_its_relative_accuracy_near_zero(schedule, t):
    # log(1 - x) without log1p would be wrong by 2^-24 / 1e-6 = 6 % at the first of these times.
    noise, exact = schedule
    t = np.float32(t)
    np.testing.assert_allclose(noise.sigma(jnp.array(t)), exact.sigma(np.float64(t)), rtol=RTOL)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)], ids=str)
def test_any_shape(schedule, shape):
    noise, exact = schedule
    t = np.full(shape, 0.25, np.float32)
    for got, expected in [
        (noise.sigma(jnp.array(t)), exact.sigma(0.25)),
        (noise.dsigma(jnp.array(t)), exact.dsigma(0.25)),
    ]:
        assert got.shape == shape and got.dtype == jnp.float32
        np.testing.assert_allclose(got, np.full(shape, expected), rtol=RTOL)


@pytest.mark.parametrize("eps", [1e-3, 1e-2, 0.5])
def test_loglinear_leaves_eps_unmoved_at_the_end(eps):
    noise = noise_module.loglinear(eps)
    t = np.array([0, 0.25, 1], np.float32)
    unmoved = np.exp(-np.float64(noise.sigma(jnp.array(t))))
    np.testing.assert_allclose(unmoved, 1 - (1 - eps) * t, rtol=RTOL_NEAR_ONE)


@pytest.mark.parametrize(("sigma_min", "sigma_max"), [(1e-4, 20.0), (1e-5, 20.0), (0.1, 0.2)])
def test_geometric_runs_from_sigma_min_to_sigma_max(sigma_min, sigma_max):
    noise = noise_module.geometric(sigma_min, sigma_max)
    ends = noise.sigma(jnp.array([0.0, 0.5, 1.0]))
    middle = np.sqrt(sigma_min * sigma_max)
    np.testing.assert_allclose(ends, [sigma_min, middle, sigma_max], rtol=RTOL)


@pytest.mark.parametrize("eps", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_loglinear_rejects_eps_outside_0_1(eps):
    with pytest.raises(ValueError, match="0 < eps < 1"):
        noise_module.loglinear(eps)


@pytest.mark.parametrize(
    ("sigma_min", "sigma_max"),
    [(0.0, 20.0), (-1.0, 20.0), (20.0, 1e-4), (1.0, 1.0), (float("nan"), 1.0)],
)
def test_geometric_rejects_an_empty_or_non_positive_range(sigma_min, sigma_max):
    with pytest.raises(ValueError, match="0 < sigma_min < sigma_max"):
        noise_module.geometric(sigma_min, sigma_max)

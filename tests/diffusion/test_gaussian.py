"""The formulas of Gaussian diffusion against those of normal distributions, written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import multivariate_normal

from sedd_jax.diffusion import gaussian

E = 5
GAMMAS = [-4.0, 0.3, 5.0]


def numbers(*shape):
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def unit(*shape):
    x = numbers(*shape)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def factors(gamma):
    """alpha and sigma, by the definition: SNR = exp(-gamma), and both squares add up to 1."""
    snr = np.exp(-gamma)
    return np.sqrt(snr / (1 + snr)), np.sqrt(1 / (1 + snr))


@pytest.mark.parametrize("gamma", GAMMAS)
def test_the_prior_term_is_the_divergence_of_two_normal_distributions(gamma):
    a, s = factors(gamma)
    mean = a * unit(1, E)[0]
    each = 0.5 * (s**2 + mean**2 - 1 - np.log(s**2))
    np.testing.assert_allclose(gaussian.prior_kl(jnp.array(gamma), E), each.sum(), rtol=1e-4)


@pytest.mark.parametrize("gamma", GAMMAS)
def test_evidence_is_the_log_likelihood_of_a_token_but_for_a_constant(gamma):
    a, s = factors(gamma)
    table, z = unit(7, E), numbers(1, 1, E)
    found = gaussian.evidence(jnp.asarray(z), jnp.array([gamma]))[0, 0] @ table.T
    wanted = np.array([multivariate_normal.logpdf(z[0, 0], a * x, s**2) for x in table])
    np.testing.assert_allclose(found - found[0], wanted - wanted[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("now", "then"), [(2.0, -1.0), (5.0, 4.9)])
def test_a_step_draws_from_the_posterior_of_less_noise(now, then):
    """By the precisions of q(z_s | x) and of q(z_t | z_s), whose product it is."""
    (a_t, s_t), (a_s, s_s) = factors(now), factors(then)
    z, x = jnp.asarray(numbers(2, 3, E)), jnp.asarray(unit(2, 3, E))
    ratio = a_t / a_s
    left = s_t**2 - (ratio * s_s) ** 2
    precision = 1 / s_s**2 + ratio**2 / left
    mean = (a_s * x / s_s**2 + ratio * z / left) / precision
    gamma = jnp.array(now), jnp.array(then)
    found = gaussian.posterior_step(z, x, gamma, jnp.zeros_like(z))
    np.testing.assert_allclose(found, mean, atol=2e-5)
    moved = gaussian.posterior_step(z, x, gamma, jnp.ones_like(z)) - found
    np.testing.assert_allclose(moved, np.full_like(z, precision**-0.5), rtol=1e-3)


def test_the_loss_is_half_the_rate_of_the_signal_to_noise_ratio_times_the_squared_error():
    gamma, rate = np.array([-1.0, 2.0]), np.array([3.0, 0.5])
    x, x_hat = unit(2, 3, E), numbers(2, 3, E)
    found = gaussian.diffusion_loss(*map(jnp.asarray, (x, x_hat, gamma, rate)))
    dt = 1e-4
    fall = np.exp(-gamma) - np.exp(-gamma - rate * dt)  # of exp(-gamma) over dt
    wanted = 0.5 * (fall / dt)[:, None] * ((x - x_hat) ** 2).sum(-1)
    np.testing.assert_allclose(found, wanted, rtol=1e-3)


def test_times_have_the_gradient_of_the_square_and_parameters_that_of_the_loss():
    params, times, data = jnp.array(1.5), {"t": jnp.array([0.2, 0.7, 0.9])}, jnp.arange(3)

    def loss(params, times, data):
        return jnp.sin(params * times["t"]) * (1 + data)

    def found(params, times):
        return gaussian.by_variance(loss, params, times, data).mean()

    value, (d_params, d_times) = jax.value_and_grad(found, (0, 1))(params, times)
    np.testing.assert_allclose(value, loss(params, times, data).mean(), rtol=1e-6)
    wanted = jax.grad(lambda params: loss(params, times, data).mean())(params)
    np.testing.assert_allclose(d_params, wanted, rtol=1e-6)
    square = jax.grad(lambda times: (loss(params, times, data) ** 2).mean())(times)
    np.testing.assert_allclose(d_times["t"], square["t"], rtol=1e-6)

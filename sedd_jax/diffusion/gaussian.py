"""Gaussian diffusion of embedded tokens in continuous time, and its bound on -log p(x).

A token is the vector x of its embedding, of norm 1. With gamma = -log SNR, which grows with t,

    z_t = alpha x + sigma eps,    alpha^2 = sigmoid(-gamma),    sigma^2 = sigmoid(gamma)

    -log p(tokens)  <=  KL(q(z_1 | x) || N(0, 1))  +  E[-log p(tokens | z_0)]
                        +  1/2 integral of gamma'(t) exp(-gamma(t)) E|x - x_hat(z_t)|^2 dt

where x_hat is the network's mean of x given z_t. The last term depends on gamma at both ends alone,
so what is between them is free to lower the variance of its estimate.

Shapes: B batch, L length, E dimensions of an embedding, V tokens.

References:
  Gulrajani and Hashimoto, Likelihood-Based Diffusion Language Models, 2023 (arXiv 2305.18619).
  Kingma et al., Variational Diffusion Models, 2021 (arXiv 2107.00630): the bound (Eqs. 11 to 17),
    the step (Appendix A.4), the schedule (Appendix I.2).
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def alpha(gamma: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """Returns the factor of the embedding in z."""
    return jnp.sqrt(jax.nn.sigmoid(-gamma))


def sigma(gamma: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """Returns the standard deviation of the noise in z."""
    return jnp.sqrt(jax.nn.sigmoid(gamma))


def noised(
    x: Float[Array, "B L E"], gamma: Float[Array, "B"], eps: Float[Array, "B L E"]
) -> Float[Array, "B L E"]:
    """Returns z.

    Args:
      x: embeddings.
      gamma: of every row.
      eps: standard normal noise.
    """
    return _per_row(alpha(gamma)) * x + _per_row(sigma(gamma)) * eps


def evidence(z: Float[Array, "B L E"], gamma: Float[Array, "B"]) -> Float[Array, "B L E"]:
    """Returns alpha / sigma^2 z: its product with an embedding is log q(z | token) + a constant.

    The constant is the same for all tokens, since embeddings have norm 1.
    """
    return _per_row(alpha(gamma) / jax.nn.sigmoid(gamma)) * z


def diffusion_loss(
    x: Float[Array, "B L E"],
    x_hat: Float[Array, "B L E"],
    gamma: Float[Array, "B"],
    rate: Float[Array, "B"],
) -> Float[Array, "B L"]:
    """Returns the integrand of the bound at one time, nats per position.

    Args:
      x: embeddings of the tokens.
      x_hat: their means given z.
      gamma: of every row.
      rate: d gamma / dt.
    """
    weight = 0.5 * rate * jnp.exp(-gamma)
    return weight[:, None] * jnp.square(x - x_hat).sum(-1)


def prior_kl(gamma: Float[Array, ""], dimensions: int) -> Float[Array, ""]:
    """Returns KL(q(z_1 | x) || N(0, 1)) of a position, the same for every token.

        1/2 (alpha^2 + E (sigma^2 - 1 - log sigma^2))

    Args:
      gamma: at t = 1.
      dimensions: E.
    """
    left = jax.nn.sigmoid(-gamma)  # alpha^2 = 1 - sigma^2
    return 0.5 * (left + dimensions * (jax.nn.softplus(-gamma) - left))


def posterior_step(
    z: Float[Array, "B L E"],
    x_hat: Float[Array, "B L E"],
    gamma: tuple[Float[Array, ""], Float[Array, ""]],
    eps: Float[Array, "B L E"],
) -> Float[Array, "B L E"]:
    """Returns a draw of z_s from q(z_s | z_t, x = x_hat), s < t.

    Args:
      z: z_t.
      x_hat: mean of x given z_t.
      gamma: at t and at s.
      eps: standard normal noise.
    """
    now, then = gamma
    forgotten = -jnp.expm1(then - now)  # 1 - SNR(t) / SNR(s)
    kept = (1 - forgotten) / alpha(now) * z + forgotten * x_hat
    return alpha(then) * kept + sigma(then) * jnp.sqrt(forgotten) * eps


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def by_variance(
    loss: Callable[..., Float[Array, "B"]], params: Any, times: Any, data: Any
) -> Float[Array, "B"]:
    """Returns loss(params, times, data), with another gradient in `times`.

    That of the square of every row's loss, whose mean over t is the variance of the estimate but
    for a constant: a schedule so learned makes the loss the same at all times. One backward pass.

    Args:
      loss: a function to the loss of every row.
      params: their gradient is that of the loss.
      times: arrays [B]; a row's loss depends on its own entries alone.
      data: not differentiated.
    """
    return loss(params, times, data)


def _by_variance_forward(loss, params, times, data):
    value, backward = jax.vjp(lambda params, times: loss(params, times, data), params, times)
    return value, (value, backward)


def _by_variance_backward(loss, residual, cotangent):
    value, backward = residual
    d_params, d_times = backward(cotangent)
    return d_params, jax.tree.map(lambda d: 2 * value * d, d_times), None


by_variance.defvjp(_by_variance_forward, _by_variance_backward)


def _per_row(x):
    return x[:, None, None] if x.ndim else x

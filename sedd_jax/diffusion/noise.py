"""Noise schedules: the total noise sigma(t) and its rate dsigma(t) for t in [0, 1].

The forward process at time t is exp(sigma(t) Q): `sigma` is the total noise (sigma-bar in the
paper), `dsigma` its time derivative, the rate that weighs the loss (Section 3.3, Eq. 14).
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

Schedule = Callable[[Float[Array, "..."]], Float[Array, "..."]]


class Noise(NamedTuple):
    """A noise schedule: two functions of the time t in [0, 1], of any shape.

    Attributes:
      sigma: total noise sigma(t), increasing in t.
      dsigma: its rate d sigma / dt, positive.
    """

    sigma: Schedule
    dsigma: Schedule


def loglinear(eps: float = 1e-3) -> Noise:
    """Returns the log-linear schedule sigma(t) = -log(1 - (1 - eps) t).

    A token has moved by time t with probability 1 - exp(-sigma(t)) = (1 - eps) t, so under the
    absorbing graph the expected number of masks grows linearly with t.

    Args:
      eps: probability that a token is still unmoved at t = 1, in (0, 1).
    """
    if not 0 < eps < 1:
        raise ValueError(f"loglinear noise needs 0 < eps < 1, got {eps}.")
    moved = 1 - eps

    def sigma(t):
        return -jnp.log1p(-moved * t)

    def dsigma(t):
        return moved / (1 - moved * t)

    return Noise(sigma, dsigma)


def geometric(sigma_min: float, sigma_max: float) -> Noise:
    """Returns the geometric schedule sigma(t) = sigma_min^(1 - t) sigma_max^t.

    The paper uses it for the uniform graph: 1e-5 to 20 in the text, 1e-4 to 20 in the published
    configurations.

    Args:
      sigma_min: total noise at t = 0, positive.
      sigma_max: total noise at t = 1, larger than sigma_min.
    """
    if not 0 < sigma_min < sigma_max:
        raise ValueError(
            f"geometric noise needs 0 < sigma_min < sigma_max, got {sigma_min} and {sigma_max}."
        )
    log_min, log_max = math.log(sigma_min), math.log(sigma_max)

    def sigma(t):
        return jnp.exp((1 - t) * log_min + t * log_max)

    def dsigma(t):
        return sigma(t) * (log_max - log_min)

    return Noise(sigma, dsigma)

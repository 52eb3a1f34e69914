"""Times t to evaluate a loss at: spread evenly at random, or the nodes of a quadrature.

Quantiles are numbers in [0, 1): a distribution of t, see `importance`, maps them to times.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key


def sample_times(
    key: Key[Array, ""], batch_size: int, t_min: float, low_discrepancy: bool = True
) -> Float[Array, "B"]:
    """Draws times t, each uniform on [t_min, 1].

    Args:
      key: random key, used once.
      batch_size: the GLOBAL batch size B.
      t_min: the smallest time, 1e-3 in the paper: the weights grow without bound towards 0.
      low_discrepancy: one time in each interval of length 1/B, frac(u + i/B) in random order,
        which keeps every t uniform and lowers the variance of the mean; else independent draws.

    References:
      Kingma et al., Variational Diffusion Models, 2021 (arXiv 2107.00630), Appendix I.1.
    """
    return t_min + (1 - t_min) * sample_quantiles(key, batch_size, low_discrepancy)


def sample_quantiles(
    key: Key[Array, ""], batch_size: int, low_discrepancy: bool = True
) -> Float[Array, "B"]:
    """Draws quantiles of t, each uniform on [0, 1).

    Args:
      key: random key, used once.
      batch_size: the GLOBAL batch size B.
      low_discrepancy: one quantile in each interval of length 1/B, in random order.
    """
    shift_key, order_key = jax.random.split(key)
    if low_discrepancy:
        grid = jnp.arange(batch_size) / batch_size + jax.random.uniform(shift_key)
        return jax.random.permutation(order_key, grid % 1)
    return jax.random.uniform(shift_key, (batch_size,))


def quadrature_quantiles(
    num_nodes: int,
) -> tuple[Float[np.ndarray, "N"], Float[np.ndarray, "N"]]:
    """Returns quantiles of a uniform t to evaluate a mean over t at, and their weights.

    Gauss-Legendre nodes in v, with t = v^2 (3 - 2 v), which puts more of them near both ends, where
    the log-linear schedule is steep. Weights add up to 1.

    Args:
      num_nodes: at least 2.
    """
    v, weights = np.polynomial.legendre.leggauss(num_nodes)
    v, weights = (v + 1) / 2, weights / 2
    return v**2 * (3 - 2 * v), 6 * v * (1 - v) * weights

"""The optimiser, the learning-rate schedule and the average of the weights."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from sedd_jax.model.score_model import Params
from sedd_jax.runtime.config import OptimConfig


def learning_rate(config: OptimConfig, steps: int) -> optax.Schedule:
    """Returns the schedule: linear warm-up, then constant, or cosine to 0 at `steps`.

    Update n (from 0) is at min(1, (n + 1) / warmup_steps) of the peak: the first one counts.
    """

    def schedule(count: Int[Array, ""]) -> Float[Array, ""]:
        warmup = jnp.minimum(1.0, (count + 1) / config.warmup_steps)
        if config.decay == "constant":
            return config.learning_rate * warmup
        progress = jnp.clip((count - config.warmup_steps) / (steps - config.warmup_steps), 0, 1)
        return config.learning_rate * warmup * 0.5 * (1 + jnp.cos(jnp.pi * progress))

    return schedule


def optimizer(config: OptimConfig, steps: int) -> optax.GradientTransformation:
    """Returns AdamW behind clipping by the global norm; only matrices decay."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            learning_rate(config, steps),
            b1=config.beta1,
            b2=config.beta2,
            eps=config.eps,
            weight_decay=config.weight_decay,
            mask=_matrices,
        ),
    )


def ema_update(ema: Params, params: Params, count: Int[Array, ""], decay: float) -> Params:
    """Returns decay_n ema + (1 - decay_n) params, decay_n = min(decay, (1 + n) / (10 + n)).

    Args:
      ema: the average so far, float32.
      params: the weights after update n.
      count: n, from 1.
      decay: the final decay.
    """
    rate = jnp.minimum(decay, (1 + count) / (10 + count))
    return optax.incremental_update(params, ema, 1 - rate)


def _matrices(params):
    """Marks the leaves that decay: not norms and biases, whatever axes are stacked before them."""
    return jax.tree.map_with_path(lambda path, _: path[-1].key in ("kernel", "table"), params)

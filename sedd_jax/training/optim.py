"""The optimiser, the learning-rate schedule and the average of the weights."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, BFloat16, Float, Int, Key

from sedd_jax.experiment.config import OptimConfig
from sedd_jax.model.score_model import Params


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


def optimizer(config: OptimConfig, steps: int) -> optax.GradientTransformationExtraArgs:
    """Returns AdamW behind clipping by the global norm; only matrices decay.

    `update` takes a keyword `key`, new at every update, if a moment is kept in bfloat16; with both
    in float32 it needs no key, and is `optax.adamw`.
    """
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.chain(
            _adam(config),
            optax.add_decayed_weights(config.weight_decay, _matrices),
            optax.scale_by_learning_rate(learning_rate(config, steps)),
        ),
    )


def stochastic_round(key: Key[Array, ""], x: Float[Array, "..."]) -> BFloat16[Array, "..."]:
    """Returns x as bfloat16: one of its two neighbours, so that the mean over keys is x.

    A float32 is a bfloat16 followed by 16 bits, f: adding 16 uniform bits carries into the upper
    half with probability f / 2^16. Values that bfloat16 holds are unchanged, infinities and NaN
    too. Beyond the largest bfloat16, where the neighbour is infinite, x is cut and so biased.

    Args:
      key: random key, used once.
      x: float32.
    """
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    noise = jax.random.bits(key, x.shape, jnp.uint16)
    size = bits & 0x7FFFFFFF
    sign = bits ^ size
    size = jnp.minimum(size + noise, 0x7F7FFFFF)  # the largest finite float32
    upper = ((sign | size) >> 16).astype(jnp.uint16)
    rounded = jax.lax.bitcast_convert_type(upper, jnp.bfloat16)
    return jnp.where(jnp.isfinite(x), rounded, x.astype(jnp.bfloat16))


def ema_update(ema: Params, params: Params, count: Int[Array, ""], decay: float) -> Params:
    """Returns decay_n ema + (1 - decay_n) params, decay_n = min(decay, (1 + n) / (10 + n)).

    There is no bfloat16 average: at decay 0.9999 it would not change if rounded to nearest, and
    carry 1 % of noise in every weight if rounded stochastically, where weights scatter by 3 %.

    Args:
      ema: the average so far, float32.
      params: the weights after update n.
      count: n, from 1.
      decay: the final decay.
    """
    rate = jnp.minimum(decay, (1 + count) / (10 + count))
    return optax.incremental_update(params, ema, 1 - rate)


def _matrices(params):
    """Marks the leaves that decay: all but norms and biases; by name, since blocks are stacked."""
    return jax.tree.map_with_path(lambda path, _: path[-1].key in ("kernel", "table"), params)


def _adam(config):
    """Adam's step, computed in float32; moments are stored in the types of the settings.

    Rounding to the nearest bfloat16 would stop the second moment: neighbours are 0.4 to 0.8 %
    apart, and beta2 = 0.999 moves it by 0.1 % where the squared gradient is twice the mean.
    Stochastic rounding scatters it by about 4 %, the step by 2 %, without bias in the moment.
    """
    adam = optax.scale_by_adam(b1=config.beta1, b2=config.beta2, eps=config.eps)
    dtypes = {"mu": config.first_moment, "nu": config.second_moment}
    narrow = [name for name, dtype in dtypes.items() if dtype == "bfloat16"]
    if not narrow:
        return adam

    def init(params):
        state = adam.init(params)
        return state._replace(
            **{name: optax.tree.cast(getattr(state, name), jnp.bfloat16) for name in narrow}
        )

    def update(grads, state, params=None, *, key):
        # widened first: optax would multiply a bfloat16 moment by its decay in bfloat16
        wide = {name: optax.tree.cast(getattr(state, name), jnp.float32) for name in narrow}
        updates, state = adam.update(grads, state._replace(**wide), params)
        keys = zip(narrow, jax.random.split(key, len(narrow)), strict=True)
        kept = {name: _round_leaves(key, getattr(state, name)) for name, key in keys}
        return updates, state._replace(**kept)

    return optax.GradientTransformationExtraArgs(init, update)


def _round_leaves(key, tree):
    """Rounds every leaf with its own key, without reshaping, so that its sharding is kept."""
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(key, len(leaves))
    return structure.unflatten(
        stochastic_round(key, leaf) for key, leaf in zip(keys, leaves, strict=True)
    )

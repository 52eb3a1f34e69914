"""One training step, as a pure function that is jitted elsewhere."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from sedd_jax.experiment.build import Baseline, Components
from sedd_jax.experiment.config import Config
from sedd_jax.experiment.state import Skipped, TrainState
from sedd_jax.training.objective import build_objective
from sedd_jax.training.optim import ema_update, learning_rate, optimizer


def init_state(
    key: Key[Array, ""], components: Components | Baseline, config: Config
) -> TrainState:
    """Returns the state before the first step."""
    params = components.model.init(key)
    opt_state = optimizer(config.optim, config.train.steps).init(params)
    ema_params = jax.tree.map(jnp.copy, params)  # not the same buffers: the state is donated
    step, total, in_row = (jnp.zeros((), jnp.int32) for _ in range(3))
    return TrainState(step, params, opt_state, ema_params, Skipped(total, in_row))


Metrics = dict[str, Float[Array, ""] | Int[Array, ""]]
Step = Callable[[TrainState, Int[Array, "B L"]], tuple[TrainState, Metrics]]


def build_train_step(
    components: Components | Baseline, config: Config, key: Key[Array, ""]
) -> Step:
    """Returns train_step(state, tokens) -> (state, metrics), the objective and one AdamW update.

    Everything random is a function of (key, state.step). The loss is the mean over the batch of
    nats per sequence; it is reported per token. A step whose loss or gradient is not finite makes
    no update: it is counted, and its tokens are passed over. Metrics: loss, grad_norm before
    clipping and learning_rate, float32 scalars, and the counts skipped and skipped_in_row.
    """
    transform = optimizer(config.optim, config.train.steps)
    rate_at = learning_rate(config.optim, config.train.steps)
    objective = build_objective(components, config)

    def train_step(state: TrainState, x0: Int[Array, "B L"]) -> tuple[TrainState, Metrics]:
        step_key = jax.random.fold_in(key, state.step)
        time_key, noise_key, dropout_key, moments_key = jax.random.split(step_key, 4)
        draw = objective.draw(time_key, noise_key, x0)
        loss, grads = mean_over_microbatches(
            jax.value_and_grad(objective.loss), config.train.microbatches
        )(state.params, (draw, x0), dropout_key)
        grad_norm = optax.global_norm(grads)
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        skipped = Skipped(
            total=state.skipped.total + ~finite,
            in_row=jnp.where(finite, 0, state.skipped.in_row + 1),
        )
        step = state.step + 1

        def update(grads, params, opt_state, ema_params):
            updates, opt_state = transform.update(grads, opt_state, params, key=moments_key)
            params = optax.apply_updates(params, updates)
            count = step - skipped.total
            return params, opt_state, ema_update(ema_params, params, count, config.optim.ema_decay)

        # not a choice between old and new arrays: XLA:CPU held both, 3.7 bytes a parameter
        params, opt_state, ema_params = jax.lax.cond(
            finite,
            update,
            lambda _, *kept: kept,
            grads,
            state.params,
            state.opt_state,
            state.ema_params,
        )
        metrics = {
            "loss": loss / x0.shape[1],
            "grad_norm": grad_norm,
            "learning_rate": rate_at(state.step - state.skipped.total),
            "skipped": skipped.total,
            "skipped_in_row": skipped.in_row,
        }
        return TrainState(step, params, opt_state, ema_params, skipped), metrics

    return train_step


def mean_over_microbatches(value_and_grad, count: int):
    """Returns a function of (params, batch, key) that averages over `count` parts of the batch.

    Part i takes rows i, i + count, ...: on every device its own, where the batch is sharded in
    contiguous rows. Each part has its own dropout key.
    """

    def split(x):
        return jnp.swapaxes(x.reshape(x.shape[0] // count, count, *x.shape[1:]), 0, 1)

    def averaged(params, batch, key):
        def add(total, part):
            rows, part_key = part
            return jax.tree.map(jnp.add, total, value_and_grad(params, *rows, part_key)), None

        parts = (jax.tree.map(split, batch), jax.random.split(key, count))
        zero = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, params))
        total, _ = jax.lax.scan(add, zero, parts)
        return jax.tree.map(lambda x: x / count, total)

    if count == 1:
        return lambda params, batch, key: value_and_grad(params, *batch, key)
    return averaged

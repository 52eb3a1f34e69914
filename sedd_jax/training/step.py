"""The training step as a pure function, and compiled for the devices of a mesh."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key

from sedd_jax.experiment import mesh as meshes
from sedd_jax.experiment.config import Config, OptimConfig, TrainConfig
from sedd_jax.experiment.state import RunKeys, Skipped, TrainState
from sedd_jax.inference.family import Family
from sedd_jax.model.conditions import condition_shapes
from sedd_jax.model.score_model import Params
from sedd_jax.model.sharding import shardings
from sedd_jax.training.optim import ema_update, learning_rate, optimizer


def init_state(
    key: Key[Array, ""],
    family: Family,
    optim: OptimConfig,
    train: TrainConfig = TrainConfig(),  # noqa: B008 - frozen
) -> TrainState:
    """Returns the state before the first step.

    Args:
      key: random key of the weights.
      family: the model.
      optim: settings of the optimiser.
      train: those of training; times that are learned have a state.
    """
    params = family.model.init(key)
    opt_state = optimizer(optim, steps=1).init(params)  # the same for any number of steps
    ema_params = jax.tree.map(jnp.copy, params)  # other buffers: the state is donated
    step, total, in_row = (jnp.zeros((), jnp.int32) for _ in range(3))
    learned = family.objective(train).learned
    times = learned.state if learned else ()
    return TrainState(step, params, opt_state, ema_params, Skipped(total, in_row), times)


Metrics = dict[str, Float[Array, ""] | Int[Array, ""]]
Step = Callable[..., tuple[TrainState, Metrics]]  # (state, tokens [B, L], condition=None)


def build_train_step(
    family: Family, train: TrainConfig, optim: OptimConfig, key: Key[Array, ""]
) -> Step:
    """Returns train_step(state, tokens, condition=None) -> (state, metrics): one AdamW update.

    Tokens are [B, L], and the condition, of a family that takes one, is a tree of arrays [B, ...].
    All random draws are functions of (key, state.step). The loss is the mean over the batch of nats
    per sequence; its metric is per token, but see `BatchLoss.per_token`. A step whose loss or
    gradient is not finite makes no update: it is counted, and its tokens are not used again.
    Metrics: loss, grad_norm before clipping and learning_rate, float32 scalars, and the counts
    skipped and skipped_in_row.

    Args:
      family: the model.
      train: settings of the objective, the microbatches and the number of steps.
      optim: settings of the update.
      key: random key of the whole training.
    """
    transform = optimizer(optim, train.steps)
    rate_at = learning_rate(optim, train.steps)
    objective = family.objective(train)

    def train_step(
        state: TrainState, x0: Int[Array, "B L"], condition: Any = None
    ) -> tuple[TrainState, Metrics]:
        told = {} if condition is None else {"condition": condition}
        step_key = jax.random.fold_in(key, state.step)
        time_key, noise_key, dropout_key, moments_key = jax.random.split(step_key, 4)
        if objective.learned is None:
            draw, times = objective.draw(time_key, noise_key, x0, **told), state.times
            loss, grads = mean_over_microbatches(
                jax.value_and_grad(_of_rows(objective.loss)), train.microbatches
            )(state.params, (draw, x0, told), dropout_key)
        else:
            draw = objective.draw(time_key, noise_key, x0, state.times, **told)
            loss, grads, losses = _loss_of_rows(objective.learned.loss, train.microbatches)(
                state.params, draw, x0, told, dropout_key
            )
            times = objective.learned.update(state.times, draw, losses)
        grad_norm = optax.global_norm(grads)
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        skipped = Skipped(
            total=state.skipped.total + ~finite,
            in_row=jnp.where(finite, 0, state.skipped.in_row + 1),
        )
        step = state.step + 1

        def update(grads, times, params, opt_state, ema_params, _):
            updates, opt_state = transform.update(grads, opt_state, params, key=moments_key)
            params = optax.apply_updates(params, updates)
            count = step - skipped.total
            ema_params = ema_update(ema_params, params, count, optim.ema_decay)
            return params, opt_state, ema_params, times

        # cond, not where: XLA:CPU held both old and new arrays, 3.7 bytes a parameter
        params, opt_state, ema_params, times = jax.lax.cond(
            finite,
            update,
            lambda _grads, _times, *unchanged: unchanged,
            grads,
            times,
            state.params,
            state.opt_state,
            state.ema_params,
            state.times,
        )
        metrics = {
            "loss": loss / x0.shape[1] if objective.per_token else loss,
            "grad_norm": grad_norm,
            "learning_rate": rate_at(state.step - state.skipped.total),
            "skipped": skipped.total,
            "skipped_in_row": skipped.in_row,
        }
        return TrainState(step, params, opt_state, ema_params, skipped, times), metrics

    return train_step


def mean_over_microbatches(
    value_and_grad: Callable[..., tuple[Float[Array, ""], Params]], count: int
) -> Callable[[Params, tuple[Any, ...], Key[Array, ""]], tuple[Float[Array, ""], Params]]:
    """Returns f(params, batch, key) -> the mean (loss, gradient) over `count` parts of the batch.

    `batch` holds arguments of value_and_grad(params, *batch, key): trees of arrays [B, ...]. Part i
    takes rows i, i + count, ..., so that a device keeps its rows where the batch is sharded in
    contiguous ones. Each part has its own dropout key.
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


def _of_rows(loss):
    """A loss with its keyword arguments as a dict before the key: rows that are split as others."""
    return lambda params, draw, x0, told, key: loss(params, draw, x0, key, **told)


def _loss_of_rows(loss, count):
    """Returns f(params, draw, x0, told, key) -> the mean loss, its gradient, and that of every row.

    The last is the gradient in factors of 1 of the rows: all parts add to it, each for its rows.
    """

    def of_part(trained, draw, x0, told, rows, key):
        params, factors = trained
        return loss(params, draw, x0, key, factors[rows], **told)

    def evaluated(params, draw, x0, told, key):
        factors, rows = jnp.ones(x0.shape[0]), jnp.arange(x0.shape[0])
        mean = mean_over_microbatches(jax.value_and_grad(of_part), count)
        value, (grads, losses) = mean((params, factors), (draw, x0, told, rows), key)
        return value, grads, losses * x0.shape[0]

    return evaluated


class Programs(NamedTuple):
    """The jitted functions of a run.

    Attributes:
      abstract: shapes, types and placement of the state.
      batch: those of a batch: of its tokens and, if the network is told something, its conditions.
      init: init(key) -> state; each device computes its own part.
      train_step: train_step(state, tokens, condition=None) -> (state, metrics); the old state is
        donated.
    """

    abstract: TrainState
    batch: tuple[Any, ...]
    init: Callable[[Key[Array, ""]], TrainState]
    train_step: Step


def build_programs(family: Family, config: Config, keys: RunKeys, mesh: Mesh) -> Programs:
    """Returns the functions of a run.

    Args:
      family: the model.
      config: its settings.
      keys: the random keys of the run.
      mesh: the devices.
    """

    def init(key):
        return init_state(key, family, config.optim, config.train)

    shapes = jax.eval_shape(init, keys.init)
    layout = shardings(shapes, mesh)
    size, place = config.train.batch_size, meshes.over_batch(mesh)
    batch = (jax.ShapeDtypeStruct((size, config.model.length), jnp.int32, sharding=place),)
    if sizes := getattr(family.model, "conditions", ()):
        batch += (condition_shapes(sizes, size, place),)
    train_step = jax.jit(
        build_train_step(family, config.train, config.optim, keys.train),
        in_shardings=(layout, *[place] * len(batch)),
        out_shardings=(layout, meshes.replicated(mesh)),
        donate_argnums=0,
    )
    return Programs(
        abstract=meshes.placed(shapes, layout),
        batch=batch,
        init=jax.jit(init, out_shardings=layout),
        train_step=train_step,
    )

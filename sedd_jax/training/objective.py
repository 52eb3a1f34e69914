"""What training makes smaller, by family."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from jaxtyping import Array, Float

from sedd_jax.diffusion.importance import propose
from sedd_jax.diffusion.loss import mean_dwdse_loss
from sedd_jax.diffusion.score_entropy import sample_quantiles
from sedd_jax.experiment.build import Baseline, Components, build_proposal
from sedd_jax.experiment.config import TrainConfig


class Objective(NamedTuple):
    """A loss over a batch of clean tokens.

    Attributes:
      draw: draw(time_key, noise_key, x0 [B, L]) -> what is drawn for the batch as a whole: arrays
        with a leading axis of B, or none.
      loss: loss(params, draw, x0, dropout_key) -> mean nats per sequence of these rows.
    """

    draw: Callable[..., Any]
    loss: Callable[..., Float[Array, ""]]


def build_objective(components: Components | Baseline, config: TrainConfig) -> Objective:
    """Returns the loss that a run trains on."""
    if isinstance(components, Baseline):
        return _likelihood(components)
    return _score_entropy(components, config)


def _score_entropy(components, config):
    """Algorithm 1."""
    graph, noise, model = components
    proposal = build_proposal(components, config)

    def draw(time_key, noise_key, x0):
        unit = sample_quantiles(time_key, x0.shape[0], config.low_discrepancy)
        return propose(noise_key, proposal, graph, noise, unit, x0)

    def loss(params, draw, x0, key):
        score_fn = functools.partial(model.score, params, key=key)
        return mean_dwdse_loss(graph, noise, score_fn, draw, x0)

    return Objective(draw, loss)


def _likelihood(components):
    """The negative log-likelihood itself: there is nothing to draw."""

    def loss(params, draw, x0, key):
        return components.model.nll(params, x0, key=key).mean()

    return Objective(lambda *_: (), loss)

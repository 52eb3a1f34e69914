"""What a network is told of the rows besides tokens and noise, on its way from the callers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sedd_jax.diffusion import graph as graphs
from sedd_jax.diffusion import noise as noises
from sedd_jax.experiment.config import OptimConfig, TrainConfig
from sedd_jax.experiment.state import run_keys
from sedd_jax.inference.prompt import Prompt
from sedd_jax.inference.score_based import ScoreBased
from sedd_jax.model.config import ModelConfig, TransformerConfig
from sedd_jax.model.context import NOTHING
from sedd_jax.model.score_model import dense_model, score_model
from sedd_jax.training.step import build_train_step, init_state

ROWS, LENGTH, TOKENS = 4, 5, 3
CONFIG = TransformerConfig(
    ModelConfig(hidden_size=16, cond_dim=8, num_blocks=1, num_heads=2),
    num_states=TOKENS + 1,
    dtype=jnp.dtype("float32"),
)
TRAIN = TrainConfig(batch_size=ROWS, low_discrepancy=False, condition_dropout=0.0)
X0 = jnp.asarray(np.random.default_rng(0).integers(0, TOKENS, (ROWS, LENGTH)))
CONDITION = {"class": jnp.arange(ROWS, dtype=jnp.float32)}


def told_family(seen):
    """A family whose log-scores are the conditions of the rows; `seen` gets what it was told."""

    def apply(params, xt, sigma, key=None, lengths=None, context=NOTHING):
        jax.debug.callback(seen.append, context)
        value = params["scale"] * context.condition["class"][:, None, None]
        return jnp.broadcast_to(value, (*xt.shape, TOKENS + 1)) / 10

    model = dense_model(lambda key: {"scale": jnp.ones(())}, apply, told_given=True)
    return ScoreBased(graphs.absorbing(TOKENS), noises.loglinear(), model)


def first_loss(train):
    family = told_family([])
    state = init_state(run_keys(0).init, family, OptimConfig(), train)
    step = build_train_step(family, train, OptimConfig(), run_keys(0).train)
    _, metrics = jax.jit(step)(state, X0, CONDITION)
    return float(metrics["loss"]), float(metrics["grad_norm"])


@pytest.mark.parametrize("times", ["uniform", "learned"])
def test_every_microbatch_has_the_conditions_of_its_rows(times):
    train = dataclasses.replace(TRAIN, times=times)
    whole = first_loss(train)
    np.testing.assert_allclose(first_loss(dataclasses.replace(train, microbatches=2)), whole)


def test_bounds_and_samplers_tell_the_network_what_is_known_of_the_rows():
    seen = []
    family = told_family(seen)
    params, keys = family.model.init(None), jax.random.split(jax.random.key(0), ROWS)
    prompt = Prompt(X0, X0 == 1, condition=CONDITION)
    context = NOTHING._replace(given=prompt.held, condition=CONDITION)
    row_loss, last_loss = family.row_loss(1e-3, "low-discrepancy"), family.reconstruction_loss(1e-3)
    jax.jit(row_loss)(params, keys, jnp.full(ROWS, 0.5), X0, None, context)
    jax.jit(last_loss)(params, keys, X0, None, context)
    jax.jit(family.generator(family.sampling(steps=1), t_min=1e-3))(params, keys, prompt)
    jax.effects_barrier()
    assert len(seen) == 4  # of a sampler's step and its final one
    for told in seen:
        jax.tree.map(np.testing.assert_array_equal, told, context)


def test_training_holds_tokens_clean_and_tells_the_network():
    seen = []
    objective = told_family(seen).objective(dataclasses.replace(TRAIN, hold="tokens"))
    draw = objective.draw(jax.random.key(0), jax.random.key(1), X0)
    assert draw.held.any() and not draw.held.all()
    np.testing.assert_array_equal(draw.xt[draw.held], X0[draw.held])
    objective.loss({"scale": jnp.ones(())}, draw, X0, jax.random.key(2), condition=CONDITION)
    jax.effects_barrier()
    np.testing.assert_array_equal(seen[-1].given, draw.held)


def test_positions_with_noise_of_their_own_train():
    family = told_family([])
    train = dataclasses.replace(TRAIN, times="positions(order='monotone')", hold="tokens")
    draw = family.objective(train).draw(jax.random.key(0), jax.random.key(1), X0)
    assert draw.t.shape == draw.weight.shape == X0.shape
    assert (jnp.diff(draw.t, axis=1) >= 0).all()
    loss = family.objective(train).loss
    assert loss({"scale": jnp.ones(())}, draw, X0, jax.random.key(2), condition=CONDITION) > 0


def test_a_network_that_is_told_nothing_makes_the_same_program():
    model = score_model(CONFIG)
    silent = model._replace(score=lambda *args, context, **rest: model.score(*args, **rest))
    texts = []
    for network in (model, silent):
        family = ScoreBased(graphs.absorbing(TOKENS), noises.loglinear(), network)
        state = jax.eval_shape(lambda f=family: init_state(run_keys(0).init, f, OptimConfig()))
        step = build_train_step(family, TRAIN, OptimConfig(), run_keys(0).train)
        texts.append(jax.jit(step).lower(state, X0).as_text())
    assert texts[0] == texts[1]


def test_a_network_is_told_which_tokens_are_given_only_if_it_takes_it():
    given = NOTHING._replace(given=X0 == 1)
    assert score_model(CONFIG).told(given).empty
    assert told_family([]).model.told(given) == given

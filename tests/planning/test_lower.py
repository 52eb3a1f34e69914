"""The programs of a run: what they are given is known to the byte."""

import dataclasses

import pytest

from sedd_jax.errors import BadInput
from sedd_jax.experiment.config import Config, DataConfig
from sedd_jax.inference.sampling import Sampling
from sedd_jax.model.score_model import forward_flops
from sedd_jax.planning.hlo_cost import hlo
from sedd_jax.planning.hlo_cost.hlo import Instruction
from sedd_jax.planning.lower import (
    bound_program,
    sample_program,
    state_per_chip,
    train_program,
    vocab_size_of,
    with_batch,
)

pytestmark = pytest.mark.usefixtures("quick_compilation")


def answered_in_full(config, answered):
    model = config.model
    return forward_flops(
        hidden_size=model.hidden_size,
        cond_dim=model.cond_dim,
        num_blocks=model.num_blocks,
        num_states=258,
        length=model.length,
        answered=answered,
    )


def given(program, compiled=None):
    """The bytes that the compiled program takes on each device, every loop of it counted."""
    compiled = compiled or program.lowered.compile()
    hlo.read(compiled.as_text()).runs(program.dynamic_trips)
    return compiled.memory_analysis().argument_size_in_bytes


def test_a_training_step_is_given_the_state_and_the_batch(planned, training, compiled):
    config, mesh = planned
    state = sum(size for name, size in training.kept.items() if name != "batch")
    assert given(training, compiled) == state + training.kept["batch"]
    assert training.kept["batch"] == 4 * 128 * 4  # 4 of 32 rows, int32
    assert state == state_per_chip(config, 257, mesh)
    assert training.tokens == 32 * 128
    expected = 3 * 32 * answered_in_full(config, 0.5)
    assert training.model_flops == pytest.approx(expected, rel=1e-3)


def test_a_pass_of_the_bound_is_given_parameters_and_a_batch(planned, training):
    config, mesh = planned
    program = bound_program(config, 257, mesh, rows=9)
    assert given(program) == sum(program.kept.values())
    assert program.tokens == 16 * 128  # filled up
    assert program.parameters == training.parameters
    assert program.kept["parameters"] == training.kept["parameters"]


@pytest.mark.parametrize(
    ("sampling", "calls", "answered"),
    [
        (Sampling(steps=3), 4, (1 + 2 / 3 + 1 / 3) / 4),
        (Sampling(sampler="first_hitting"), 128, 1 / 128),
    ],
)
def test_a_sampler_is_given_parameters_and_a_prompt(planned, sampling, calls, answered):
    config, mesh = planned
    program = sample_program(config, 257, mesh, sampling, rows=8)
    assert given(program) == sum(program.kept.values())
    assert program.tokens == 8 * 128
    expected = 8 * calls * answered_in_full(config, answered)
    assert program.model_flops == pytest.approx(expected, rel=1e-2)


def test_attention_of_a_trained_model_is_chosen_where_it_is_loaded(planned):
    config, mesh = planned
    splash = dataclasses.replace(config.model, attention="splash")
    texts = {
        bound_program(dataclasses.replace(config, model=model), 257, mesh, 8).lowered.as_text()
        for model in (config.model, splash)
    }
    assert len(texts) == 1


def test_only_first_hitting_has_a_loop_that_is_not_counted_in_the_program(planned):
    config, mesh = planned
    loop = Instruction("while.1", "while", (), (), 'metadata={op_name="jit(f)/while"}')
    hitting = sample_program(config, 257, mesh, Sampling(4, "first_hitting"), rows=8)
    assert hitting.dynamic_trips(loop) == 5
    with pytest.raises(BadInput, match="trips are not known"):
        sample_program(config, 257, mesh, Sampling(4), rows=8).dynamic_trips(loop)


def test_the_baseline_computes_every_position_once(planned):
    config = Config(family="autoregressive", mesh=planned[0].mesh)
    sizes = dict(hidden_size=32, num_blocks=1, num_heads=2, length=16, scale_by_sigma=True)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, **sizes))
    sampled = sample_program(config, 257, planned[1], Sampling(), rows=8)
    scored = bound_program(config, 257, planned[1], rows=8)
    assert sampled.model_flops == scored.model_flops > 0
    assert given(scored) == sum(scored.kept.values())


def test_a_batch_that_does_not_divide_is_refused(planned):
    config, mesh = planned
    train = dataclasses.replace(config.train, batch_size=9)
    with pytest.raises(BadInput, match="batch_size.* is 9"):
        train_program(dataclasses.replace(config, train=train), 257, mesh)


def test_a_batch_per_chip_is_in_one_part(planned):
    config, mesh = planned
    parts = dataclasses.replace(config.train, microbatches=2)
    found = with_batch(dataclasses.replace(config, train=parts), mesh, 5)
    assert (found.train.batch_size, found.train.microbatches) == (40, 1)


@pytest.mark.parametrize(
    ("data", "size"),
    [
        (DataConfig(), 257),
        (DataConfig(tokenizer="gpt2", tokenizer_path="no/folder", vocab_size=50257), 50257),
        (DataConfig(tokenizer="text8", vocab_size=0), 27),
        (DataConfig(tokenizer="characters", vocab_size=0), None),
        (DataConfig(tokenizer="gpt2", tokenizer_path="no/folder", vocab_size=0), None),
    ],
)
def test_tokens_are_known_or_asked_for(data, size):
    config = Config(data=data)
    if size:
        assert vocab_size_of(config) == size
    else:
        with pytest.raises(BadInput, match="--vocab_size=N"):
            vocab_size_of(config)

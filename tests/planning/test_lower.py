"""The programs of a run: what they are given is known to the byte."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sedd_jax.diffusion import graph as graphs
from sedd_jax.diffusion import noise as noises
from sedd_jax.diffusion.hold import hold_named
from sedd_jax.diffusion.importance import guess_proposal, plain_proposal
from sedd_jax.errors import BadInput
from sedd_jax.experiment.config import Config, DataConfig, TrainConfig
from sedd_jax.inference.sampling import Sampling
from sedd_jax.inference.score_based import ScoreBased, share_with_loss
from sedd_jax.model.rows import ActiveRows
from sedd_jax.model.score_model import forward_flops
from sedd_jax.planning.head_trips import block_trips, counts_with_loss, shares_by_call
from sedd_jax.planning.hlo_cost import hlo
from sedd_jax.planning.hlo_cost.hlo import Instruction
from sedd_jax.planning.lower import (
    bound_program,
    dynamic_trips,
    sample_program,
    state_per_chip,
    train_program,
    vocab_size_of,
    with_batch,
)


def answered_in_full(config, answered):
    model = config.model
    return forward_flops(
        hidden_size=model.hidden_size,
        cond_dim=model.cond_dim,
        num_blocks=model.num_blocks,
        num_states=258,
        length=model.length,
        head_share=answered,
    )


def given(program, compiled=None):
    """The bytes that the compiled program takes on each device, every loop of it counted."""
    compiled = compiled or program.lowered.compile()
    hlo.parse(compiled.as_text()).execution_counts(program.dynamic_trips)
    return compiled.memory_analysis().argument_size_in_bytes


def test_a_training_step_is_given_the_state_and_the_batch(planned, training, compiled):
    config, mesh = planned
    state = sum(size for name, size in training.argument_bytes.items() if name != "batch")
    assert given(training, compiled) == state + training.argument_bytes["batch"]
    assert training.argument_bytes["batch"] == 4 * 128 * 4  # 4 of 32 rows, int32
    assert state == state_per_chip(config, 257, mesh)
    assert training.tokens == 32 * 128
    expected = 3 * 32 * answered_in_full(config, 0.5)
    assert training.model_flops == pytest.approx(expected, rel=1e-3)


def test_a_pass_of_the_bound_is_given_parameters_and_a_batch(planned, training):
    config, mesh = planned
    program = bound_program(config, 257, mesh, rows=9)
    assert given(program) == sum(program.argument_bytes.values())
    assert program.tokens == 16 * 128  # filled up
    assert program.parameters == training.parameters
    assert program.argument_bytes["parameters"] == training.argument_bytes["parameters"]


@pytest.mark.parametrize(
    ("settings", "calls", "answered", "kind"),
    [
        ({"steps": 3}, 4, (1 + 2 / 3 + 1 / 3) / 4, "sampler (tweedie, 4 calls)"),
        ({"sampler": "first_hitting"}, 128, 1 / 128, "sampler (first_hitting, at most 128 calls)"),
        pytest.param(
            {"sampler": "entropy_bounded(bound=1)", "steps": 3},
            4,
            2.5 / 4,
            "sampler (entropy_bounded(bound=1), at most 4 calls)",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_sampler_is_given_parameters_and_a_prompt(planned, settings, calls, answered, kind):
    config, mesh = planned
    program = sample_program(config, 257, mesh, settings, rows=8)
    assert program.kind == kind
    assert given(program) == sum(program.argument_bytes.values())
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
    hitting = sample_program(config, 257, mesh, {"steps": 4, "sampler": "first_hitting"}, rows=8)
    assert hitting.dynamic_trips(loop) == 5
    with pytest.raises(BadInput, match="trips are not known"):
        sample_program(config, 257, mesh, {"steps": 4}, rows=8).dynamic_trips(loop)


def test_the_baseline_computes_every_position_once(planned):
    config = Config(family="autoregressive", mesh=planned[0].mesh)
    sizes = dict(hidden_size=32, num_blocks=1, num_heads=2, length=16, scale_by_sigma=True)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, **sizes))
    sampled = sample_program(config, 257, planned[1], {}, rows=8)
    scored = bound_program(config, 257, planned[1], rows=8)
    assert sampled.model_flops == scored.model_flops > 0
    assert given(scored) == sum(scored.argument_bytes.values())


@pytest.mark.slow
def test_gaussian_diffusion_evaluates_the_network_at_every_step(planned):
    config, mesh = planned
    config = dataclasses.replace(config, family="gaussian")
    sampled = sample_program(config, 257, mesh, {"steps": 4}, rows=8)
    scored = bound_program(config, 257, mesh, rows=8)
    assert sampled.model_flops == 4 * scored.model_flops > 0
    assert (sampled.kind, scored.kind) == ("sampler (4 calls)", "held-out bound, one draw")
    assert given(scored) == sum(scored.argument_bytes.values())
    assert train_program(config, 257, mesh).model_flops == 3 * 4 * scored.model_flops  # of 32 rows


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


NOISE = noises.loglinear(1e-3)


@pytest.mark.parametrize("sizes", [(64, 16), (16,), (256, 64, 16)])
def test_blocks_are_counted_as_the_head_runs_them(sizes):
    positions, counts = 200, np.array([0, 1, 15, 16, 17, 64, 100, 199, 200])

    @jax.jit
    def run(count):
        front = ActiveRows.of((jnp.arange(positions) < count)[None], sizes)
        tally = {size: jnp.zeros((), jnp.int32) for size in sizes}

        def body(block, tally):
            return tally | {block.size: tally[block.size] + 1}

        return front.fold(body, tally)

    runs = [jax.device_get(run(count)) for count in counts]
    expected = {size: np.mean([each[size] for each in runs]) for size in sizes}
    found = block_trips(counts.astype(float), positions, sizes)
    assert {size: found.get(size, 0.0) for size in sizes} == pytest.approx(expected)


def test_positions_with_a_loss_are_those_that_are_masked():
    # evenly drawn times of a log-linear schedule: a sum of four even shares of 32 positions
    found = counts_with_loss(graphs.absorbing(10), NOISE, plain_proposal(1e-3), rows=4, length=32)
    assert found.mean() == pytest.approx(4 * 32 / 2, rel=0.02)
    assert found.std() == pytest.approx(32 * (4 / 12) ** 0.5, rel=0.05)


def test_given_tokens_have_no_loss():
    """Half of the rows have a given prefix, of half of the tokens on average."""
    absorbing, uniform = graphs.absorbing(10), graphs.uniform(10)
    shape = plain_proposal(1e-3), 4, 32
    hold, train = hold_named("prefix"), TrainConfig(hold="prefix")
    for graph, masked in ((absorbing, 0.5), (uniform, 1.0)):
        found = counts_with_loss(graph, NOISE, *shape, hold)
        assert found.mean() == pytest.approx(4 * 32 * 0.75 * masked, rel=0.03)
        share = ScoreBased(graph, NOISE, None).training_share(train)
        assert share == pytest.approx(0.75 * masked, rel=0.03)
    by_position = counts_with_loss(absorbing, NOISE, *shape, per_position=True)
    np.testing.assert_allclose(by_position, 4 * 32 / 2, rtol=0.02)


@pytest.mark.slow
def test_guidance_evaluates_the_blocks_twice(planned):
    """In the compiled products too, and the tables of conditions are among the parameters."""
    config, mesh = planned
    data = dataclasses.replace(config.data, condition="class", wrap=False, crop="blocks")
    sizes = dict(hidden_size=16, num_heads=2, cond_dim=8, length=16, num_blocks=1)
    model = dataclasses.replace(config.model, **sizes)
    without = dataclasses.replace(config, model=model)
    config = dataclasses.replace(without, data=data)
    plain, guided = (
        sample_program(config, 257, mesh, {"steps": 1, **settings}, rows=8)
        for settings in ({}, {"guidance": 2.0})
    )
    assert guided.kind == "sampler (tweedie, 2 calls, guidance 2)"
    blocks = 8 * 2 * answered_in_full(config, 0.0)
    assert guided.model_flops - plain.model_flops == pytest.approx(blocks, rel=1e-6)
    assert plain.argument_bytes["batch"] == guided.argument_bytes["batch"]
    assert "taken to have 1,000 classes" in plain.assumptions[0]
    twice = [each.lowered.as_text().count("dot_general") for each in (plain, guided)]
    assert 1.4 < twice[1] / twice[0] < 2
    bare = sample_program(without, 257, mesh, {"steps": 1}, rows=8)
    assert plain.parameters - bare.parameters == 1001 * 8 and not bare.assumptions
    with pytest.raises(BadInput, match="guidance=2 has nothing to guide by"):
        sample_program(without, 257, mesh, {"steps": 1, "guidance": 2.0}, rows=8)


def test_times_are_drawn_by_the_proposal():
    graph = graphs.absorbing(10)
    noise = noises.geometric(1e-3, 3.0)  # under which masks are rare at most times
    proposal = guess_proposal(graph, noise, 1e-3)
    found = counts_with_loss(graph, noise, proposal, 4, 32).mean()
    assert found == pytest.approx(4 * 32 * share_with_loss(graph, noise, proposal), rel=0.02)
    assert found != pytest.approx(
        counts_with_loss(graph, noise, plain_proposal(1e-3), 4, 32).mean(), rel=0.1
    )


def test_under_the_uniform_graph_every_position_has_a_loss():
    found = counts_with_loss(
        graphs.uniform(4), noises.geometric(1e-4, 20.0), plain_proposal(1e-3), 3, 5
    )
    assert found.tolist() == [15.0]


def test_a_sampler_moves_every_masked_position_once():
    sampling = Sampling(steps=7)
    active, jumps = shares_by_call(graphs.absorbing(10), NOISE, sampling, 1e-3, 32)
    assert len(active) == len(jumps) == 8
    masked = 1 - 1e-3  # of the forward process at t = 1
    assert active[0] == pytest.approx(masked, abs=1e-6)
    assert jumps.sum() == pytest.approx(masked, abs=1e-6)
    np.testing.assert_allclose(active[:-1] - active[1:], jumps[:-1], atol=1e-6)


def test_jumps_of_the_uniform_graph_are_those_of_the_forward_process():
    graph, noise = graphs.uniform(4), noises.geometric(1e-2, 3.0)
    active, jumps = shares_by_call(graph, noise, Sampling(steps=2), 1e-3, 32)
    assert active.tolist() == [1, 1, 1]
    sigma = [*np.asarray(noise.sigma(np.linspace(1, 1e-3, 3))), 0.0]
    expected = [
        1 - float(graph.transition(jnp.array([0]), jnp.array([high - low]))[0, 0])
        for high, low in itertools.pairwise(sigma)
    ]
    np.testing.assert_allclose(jumps, expected, rtol=1e-4)


@pytest.mark.parametrize("sampler", ["first_hitting", "spaced"])
def test_a_sampler_that_knows_its_positions_reads_no_others(sampler):
    active, jumps = shares_by_call(graphs.absorbing(10), NOISE, Sampling(sampler=sampler), 1e-3, 32)
    assert active.tolist() == jumps.tolist() == [1 / 32] * 32


@pytest.mark.parametrize("sampler", ["entropy_bounded", "confidence"])
def test_a_sampler_that_chooses_by_the_answer_reads_all_masked_positions(sampler):
    sampling = Sampling(3, sampler)
    active, jumps = shares_by_call(graphs.absorbing(10), NOISE, sampling, 1e-3, 32)
    assert active.tolist() == [1, 0.75, 0.5, 0.25] and jumps.tolist() == [0.25] * 4


@pytest.mark.parametrize("graph", graphs.GRAPHS)
def test_gibbs_moves_read_what_they_draw(graph):
    sampling = Sampling(8, "gibbs(spacing=5)")
    found = shares_by_call(graphs.GRAPHS[graph](10), NOISE, sampling, 1e-3, 32)
    steps = shares_by_call(graphs.GRAPHS[graph](10), NOISE, Sampling(4), 1e-3, 32)
    for shares, without in zip(found, steps, strict=True):
        assert shares[4:8].tolist() == [0.2] * 4
        np.testing.assert_array_equal(np.delete(shares, range(4, 8)), without)


def loop(source):
    return Instruction("while.1", "while", (), (), f'metadata={{op_name="{source}"}}')


def test_a_loop_is_known_by_its_scope():
    trips = dynamic_trips({32: 1.5, 128: 4.0}, otherwise=9.0)
    assert trips(loop("jit(f)/while/body/blocks_of_128/while")) == 4.0
    assert trips(loop("jit(f)/blocks_of_32/while")) == 1.5
    assert trips(loop("jit(f)/while")) == 9.0
    assert trips(loop("jit(f)/blocks_of_32/while/body/gather/while")) == 9.0
    with pytest.raises(BadInput, match=r"while.1 \(jit\(f\)/while\)"):
        dynamic_trips({32: 1.5})(loop("jit(f)/while"))

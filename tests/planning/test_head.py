"""How often the head's loops run: against the loops themselves, and against draws."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sedd_jax.diffusion import graph as graphs
from sedd_jax.diffusion import noise as noises
from sedd_jax.diffusion.importance import guess_proposal, plain_proposal
from sedd_jax.errors import BadInput
from sedd_jax.inference.sampling import Sampling
from sedd_jax.inference.score_based import share_with_loss
from sedd_jax.model.tiles import ActiveRows
from sedd_jax.planning.head import block_trips, counts_with_loss, dynamic_trips, shares_by_call
from sedd_jax.planning.hlo_cost.hlo import Instruction

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


def test_first_hitting_moves_one_position_a_call():
    sampling = Sampling(sampler="first_hitting")
    active, jumps = shares_by_call(graphs.absorbing(10), NOISE, sampling, 1e-3, 32)
    assert active.tolist() == jumps.tolist() == [1 / 32] * 32


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

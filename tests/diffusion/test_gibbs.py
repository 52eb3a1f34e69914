"""Gibbs moves: what they draw, what they hold, and how they share the evaluations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sedd_jax.diffusion import graph as graphs
from sedd_jax.diffusion import noise as noises
from sedd_jax.diffusion.gibbs import Gibbs, gibbs_move
from sedd_jax.diffusion.sampler import Clamp, Process, SamplerState
from sedd_jax.diffusion.score import DenseScore
from sedd_jax.errors import BadInput
from sedd_jax.inference.sampling import Sampling

ROWS, LENGTH, TOKENS = 4000, 8, 3
LOG_PROBS = jnp.log(jnp.array([0.6, 0.3, 0.1]))


def score_fn(graph):
    """True scores of independent tokens with LOG_PROBS, at next to no noise."""

    def score(xt, sigma):
        masks = graph.num_states - TOKENS
        log_probs = jnp.pad(LOG_PROBS, (0, masks), constant_values=-jnp.inf)
        shape = (*xt.shape, graph.num_states)
        to = jnp.broadcast_to(log_probs, shape)
        own = jnp.where(xt < TOKENS, log_probs[xt], jnp.log(jnp.expm1(sigma))[:, None])
        return DenseScore(xt, to - own[..., None])

    return score


def process_of(graph, held, steps=8):
    clamp = Clamp(jnp.full((len(held), LENGTH), 2), held)
    return Process(graph, noises.loglinear(), score_fn(graph), clamp, 1e-3, steps)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["absorb", "uniform", "hybrid"])
def test_a_move_draws_chosen_positions_and_no_others(name):
    graph = graphs.GRAPHS[name](TOKENS)
    held = jnp.zeros((ROWS, LENGTH), bool).at[:, 4].set(True)
    xt = jnp.zeros((ROWS, LENGTH), jnp.int32).at[:, 4].set(2)
    process = process_of(graph, held)
    chosen = jnp.broadcast_to(jnp.arange(LENGTH) % 4 == 0, xt.shape)
    move = gibbs_move(process, xt, chosen, 0.25)
    np.testing.assert_array_equal(move.active[0], np.arange(LENGTH) == 0)
    keys = jax.random.split(jax.random.key(0), ROWS)
    drawn = process.score_fn(move.xt, move.sigma).draw(keys, move.weights, move.active).xt
    drawn = np.asarray(process.clamp(drawn))
    np.testing.assert_array_equal(drawn[:, 1:], np.asarray(xt)[:, 1:])
    frequencies = np.bincount(drawn[:, 0], minlength=TOKENS) / ROWS
    np.testing.assert_allclose(frequencies, np.exp(LOG_PROBS), atol=0.03)


def test_masks_of_a_move_and_the_noise_that_is_told():
    graph = graphs.absorbing(TOKENS)
    process = process_of(graph, jnp.zeros((2, LENGTH), bool))
    chosen = jnp.broadcast_to(jnp.arange(LENGTH) % 4 == 1, (2, LENGTH))
    move = gibbs_move(process, jnp.ones((2, LENGTH), jnp.int32), chosen, 0.25)
    np.testing.assert_array_equal(move.xt == graph.mask_id, chosen)
    np.testing.assert_allclose(1 - np.exp(-move.sigma), 0.25, rtol=1e-6)


@pytest.mark.parametrize(("name", "steps"), [("absorb", 1), ("uniform", 2), ("absorb", 8)])
def test_moves_are_a_share_of_the_evaluations(name, steps):
    graph, sampler = graphs.GRAPHS[name](TOKENS), Gibbs()
    held = jnp.zeros((2, LENGTH), bool).at[:, 3].set(True)
    process, sigmas = process_of(graph, held, steps), []
    limit = graph.sample_limit(jax.random.key(0), (2, LENGTH))
    state = sampler.init(jax.random.split(jax.random.key(1), 2), process, limit)
    kernels = [
        jax.jit(lambda *args, f=f: f(args[0], process, args[1]))
        for f in (sampler.step, sampler.final)
    ]
    for kernel in [kernels[0]] * steps + [kernels[1]]:
        state, info = kernel(jax.random.split(jax.random.key(len(sigmas)), 2), state)
        assert (state.xt[:, 3] == 2).all()
        sigmas.append(float(info.sigma[0]))
    assert len(sigmas) == sampler.max_nfe(steps, LENGTH)
    assert (state.xt < TOKENS).all()
    predictions = steps - steps // 2
    level = -np.log(0.75) if name == "absorb" else float(process.noise.sigma(1e-3))
    np.testing.assert_allclose(sigmas[predictions:-1], level, rtol=1e-5)
    assert (np.diff(sigmas[:predictions]) < 0).all()


@pytest.mark.parametrize("order", ["random", "unlikely"])
def test_moves_of_other_orders_draw_their_share(order):
    graph, steps = graphs.uniform(TOKENS), 4
    sampler = Gibbs(order=order, spacing=4)
    held = jnp.zeros((ROWS, LENGTH), bool).at[:, 3].set(True)
    process = process_of(graph, held, steps)
    xt = jnp.ones((ROWS, LENGTH), jnp.int32).at[:, 3].set(2).at[:, 5:7].set(2)  # 2 is unlikely
    state = SamplerState(xt, jnp.array(steps - 1))
    keys = jax.random.split(jax.random.key(0), ROWS)
    after, info = jax.jit(lambda keys, state: sampler.step(keys, process, state))(keys, state)
    changed = np.asarray(after.xt != xt)
    np.testing.assert_array_equal(changed.sum(-1), info.changed)
    rates = changed.mean(0)
    assert rates[3] == 0
    if order == "unlikely":  # 2 of 7 free positions
        np.testing.assert_allclose(rates[5:7], 0.9, atol=0.03)
        assert rates.sum() == rates[5:7].sum()
    else:
        drawn = np.where(np.arange(LENGTH) // 5 == 1, 0.9, 0.7)
        drawn[7], drawn[3] = 0.7, 0
        np.testing.assert_allclose(rates, drawn / 4, atol=0.03)


def test_the_least_likely_positions_need_an_answer_at_every_one():
    assert not Gibbs(order="unlikely").serves(graphs.absorbing(TOKENS))
    with pytest.raises(BadInput, match="without an absorbing mask"):
        Sampling(sampler="gibbs(order='unlikely')").check(graphs.absorbing(TOKENS))
    with pytest.raises(BadInput, match="order must be one of"):
        Gibbs(order="sorted")

"""Remasking: the posteriors of the papers, the noise that is added, and what stays held."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sedd_jax.diffusion import graph as graphs
from sedd_jax.diffusion import noise as noises
from sedd_jax.diffusion.categorical import jump_probs
from sedd_jax.diffusion.renoising import (
    ForwardBackward,
    Psi,
    RemdmCap,
    RemdmLoop,
    RemdmRescale,
    add_noise,
    step_weights,
)
from sedd_jax.diffusion.sampler import Clamp, Process
from sedd_jax.diffusion.score import DenseScore, total_away

CLEAN = np.array([0.6, 0.3, 0.1])  # of a token
NOISE = noises.loglinear()
T, T_NEXT = 0.6, 0.5
SAMPLERS = {
    "absorb": (
        ForwardBackward(),
        Psi(kappa=0.7),
        RemdmCap(eta=0.2),
        RemdmRescale(eta=0.3),
        RemdmLoop(eta=0.2, time=0.3),
    ),
    "uniform": (ForwardBackward(), Psi(kappa=0.7)),
    "hybrid": (ForwardBackward(churn=1.5), Psi(kappa=0.7)),
}
CASES = [(name, sampler) for name, all_of in SAMPLERS.items() for sampler in all_of]


def score_of(graph, xt, sigma):
    """True scores of one token with distribution CLEAN."""
    noised = noised_tokens(graph, sigma)
    return noised / noised[xt]


def noised_tokens(graph, sigma):
    """The distribution of a token after noise."""
    clean = jnp.pad(jnp.array(CLEAN), (0, graph.num_states - 3))
    return clean @ jax.vmap(graph.transition, (0, None))(jnp.arange(graph.num_states), sigma)


def kernel(sampler, graph, t=T, t_next=T_NEXT):
    """The distribution after a step from every state of one position, [from, to]."""
    states = jnp.arange(graph.num_states)[:, None]
    sigma, sigma_next = NOISE.sigma(jnp.array([t, t_next]))
    reach = sampler.reach(NOISE, jnp.array(t), jnp.array(t_next))
    score = jnp.stack([score_of(graph, x, sigma) for x in range(graph.num_states)])[:, None]
    after = 0
    for share, end in ((sampler.far, reach), (1 - sampler.far, sigma_next)):
        end = jnp.full(states.shape, end)
        weights = step_weights(graph, states, total_away(states, score), sigma, end)
        probs = jump_probs(weights.weights(states, score))[:, 0]
        noise = jax.vmap(graph.transition, (0, None))(states[:, 0], sigma_next - end[0, 0])
        after = after + share * probs @ noise
    return np.asarray(after)


def alphas():
    return np.exp(-np.asarray(NOISE.sigma(jnp.array([T, T_NEXT]))))


@pytest.mark.parametrize(
    ("sampler", "prob"),
    [
        (RemdmCap(eta=0.2), lambda alpha, after: 0.2),
        (RemdmRescale(eta=0.3), lambda alpha, after: 0.3 * min(1, (1 - after) / alpha)),
        (Psi(kappa=0.7), lambda alpha, after: 0.3 * (1 - after)),
    ],
)
def test_under_the_absorbing_graph_a_step_is_the_posterior_of_remdm(sampler, prob):
    graph, (alpha, after) = graphs.absorbing(3), alphas()
    r = prob(alpha, after)
    leaves = (after - (1 - r) * alpha) / (1 - alpha)  # arXiv 2503.00307, Eq. 6
    expected = np.zeros((4, 4))
    expected[:3, :3], expected[:3, 3] = (1 - r) * np.eye(3), r
    expected[3] = *(leaves * CLEAN), 1 - leaves
    np.testing.assert_allclose(kernel(sampler, graph), expected, atol=2e-6)


def test_under_the_uniform_graph_a_psi_step_is_the_mixture():
    graph, kappa = graphs.uniform(3), 0.7
    sigma, sigma_next = np.asarray(NOISE.sigma(jnp.array([T, T_NEXT])))
    to = [np.asarray(graph.transition(jnp.arange(3), jnp.array(s))) for s in (sigma, sigma_next)]
    between = np.asarray(graph.transition(jnp.arange(3), jnp.array(sigma - sigma_next)))
    # clean given x_t; x_s given the clean token and x_t, and given the clean token alone
    clean = (CLEAN[:, None] * to[0]).T / (CLEAN @ to[0])[:, None]
    reverse = to[1][None] * between.T[:, None] / to[0].T[:, :, None]
    expected = kappa * np.einsum("xc,xcs->xs", clean, reverse) + (1 - kappa) * clean @ to[1]
    np.testing.assert_allclose(kernel(Psi(kappa=kappa), graph), expected, atol=2e-6)


@pytest.mark.parametrize(("name", "sampler"), CASES)
def test_a_step_of_one_token_leads_from_p_t_to_p_t_next(name, sampler):
    graph = graphs.GRAPHS[name](3)
    t, t_next = (0.3, 0.3) if isinstance(sampler, RemdmLoop) else (T, T_NEXT)
    p_t, p_next = (noised_tokens(graph, NOISE.sigma(jnp.array(time))) for time in (t, t_next))
    np.testing.assert_allclose(p_t @ kernel(sampler, graph, t, t_next), p_next, atol=2e-6)


@pytest.mark.parametrize(("name", "sampler"), CASES)
def test_samples_are_the_data_and_held_tokens_stay(name, sampler):
    rows, length, steps = 4000, 3, 3
    graph = graphs.GRAPHS[name](3)
    held = jnp.zeros((rows, length), bool).at[:, 1].set(True)

    def score_fn(xt, sigma):
        table = jnp.stack([score_of(graph, x, sigma[0]) for x in range(graph.num_states)])
        return DenseScore(xt, jnp.log(table)[xt])

    clamp = Clamp(jnp.full(held.shape, 2), held)
    process = Process(graph, NOISE, score_fn, clamp, 1e-3, steps)

    @jax.jit
    def run(key):
        limit_key, *keys = jax.random.split(key, steps + 2)

        def step(state, key):
            state, info = sampler.step(jax.random.split(key, rows), process, state)
            return state, (state.xt, info)

        start = graph.sample_limit(limit_key, held.shape)
        state = sampler.init(jax.random.split(key, rows), process, start)
        state, (seen, _) = jax.lax.scan(step, state, jnp.stack(keys[:-1]))
        state, info = sampler.final(jax.random.split(keys[-1], rows), process, state)
        return [*seen, state.xt], info

    seen, info = run(jax.random.key(0))
    assert len(seen) == sampler.max_nfe(steps, length)
    assert all((xt[:, 1] == 2).all() for xt in seen)
    np.testing.assert_array_equal(info.changed, (seen[-2] != seen[-1]).sum(-1))
    frequencies = np.bincount(np.asarray(seen[-1][:, 0]), minlength=graph.num_states) / rows
    np.testing.assert_allclose(frequencies[:3], CLEAN, atol=0.03)


def test_no_step_to_the_clean_end_leads_to_a_mask():
    """Whatever a network says of it; steps that end before it may."""
    graph, xt = graphs.hybrid(3), jnp.zeros((1, 3), jnp.int32)
    sigma, reach = NOISE.sigma(jnp.array(T)), jnp.array([[0.0, 0.1, 0.0]])
    score = jnp.tile(jnp.array([1.0, 0.5, 0.2, 40.0]), (1, 3, 1))
    weights = step_weights(graph, xt, total_away(xt, score), sigma, reach).weights(xt, score)
    np.testing.assert_array_equal(np.asarray(weights)[0, :, 3] > 0, [False, True, False])


@pytest.mark.parametrize("name", ["absorb", "uniform"])
def test_noise_is_added_with_its_probability(name):
    graph, sigma = graphs.GRAPHS[name](3), jnp.array([0.0, 0.4, 3.0])
    keys = jax.random.split(jax.random.key(0), 20_000)
    noised = jax.jit(jax.vmap(lambda key: add_noise(graph, key, jnp.array([1, 1, 1]), sigma)))(keys)
    for position, each in enumerate(sigma):
        found = np.bincount(np.asarray(noised[:, position]), minlength=graph.num_states) / len(keys)
        expected = graph.transition(jnp.array(1), each)
        np.testing.assert_allclose(found, expected, atol=0.015)


def test_the_loop_stays_at_its_time():
    process = Process(graphs.absorbing(3), NOISE, None, None, 1e-3, None)
    for steps in (1, 2, 3, 20, 100):
        times = np.asarray(RemdmLoop().times(process, steps))
        assert len(times) == steps + 1
        assert times[0] == 1 and np.isclose(times[-1], 1e-3)
        assert (np.diff(times) <= 0).all()
    assert (np.diff(times) == 0).sum() == 50  # of 100 steps


def test_going_too_far_is_bounded_by_the_clean_tokens():
    for sampler in SAMPLERS["absorb"]:
        reach = sampler.reach(NOISE, jnp.array(0.02), jnp.array(0.001))
        assert 0 <= reach <= NOISE.sigma(0.001)

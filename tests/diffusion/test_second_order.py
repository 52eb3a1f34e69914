"""Two evaluations a step: what the second part draws, and how steps and options are counted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sedd_jax.diffusion import graph as graphs
from sedd_jax.diffusion import noise as noises
from sedd_jax.diffusion.blend import Blend
from sedd_jax.diffusion.categorical import jump_probs
from sedd_jax.diffusion.sampler import Clamp, Process
from sedd_jax.diffusion.score import DenseScore, total_away
from sedd_jax.diffusion.second_order import Evaluation, ThetaRK2, ThetaTrapezoidal
from sedd_jax.errors import BadInput
from sedd_jax.inference.sampling import Sampling

TOKENS, LENGTH = 3, 4
SIGMAS = np.array([0.9, 0.7, 0.4])
SAMPLERS = (ThetaTrapezoidal(), ThetaTrapezoidal(theta=0.3), ThetaRK2(), ThetaRK2(theta=1 / 3))
CASES = [(name, sampler) for name in ("absorb", "uniform", "hybrid") for sampler in SAMPLERS]


def formula(graph, sampler, before, after, xt, mid):
    """The distribution of the next token of one position, by the module's two formulas.

    Ratios of the same position are conditional distributions, divided by their entry at the token;
    those of y_n are brought to the noise of rho by the inverse of the forward kernel.
    """
    limit, count = np.float64(graph.limit), graph.num_states
    generator = np.outer(limit, np.ones(count)) - np.eye(count)  # Q[to, from]

    def kernel(sigma):
        return np.eye(count) + -np.expm1(-sigma) * generator

    earlier = np.linalg.inv(kernel(SIGMAS[0] - SIGMAS[1])) @ before
    theta, rk2 = sampler.theta, isinstance(sampler, ThetaRK2)
    start, sigma = (xt, SIGMAS[0]) if rk2 else (mid, SIGMAS[1])
    earlier, later = earlier / earlier[start], after / after[start]
    if rk2:
        rates = (1 - 1 / (2 * theta)) * earlier + later / (2 * theta)
    else:
        a_1 = 1 / (2 * theta * (1 - theta))
        rates = a_1 * later - ((1 - theta) ** 2 + theta**2) * a_1 * earlier
    if rk2 and graph.absorbs and mid != graph.mask_id:
        rates = earlier
    marginal = np.linalg.inv(kernel(SIGMAS[1] - SIGMAS[2])) @ np.maximum(rates, 0)
    weights = np.maximum(marginal * kernel(sigma - SIGMAS[2])[start], 0)
    return weights / weights.sum()


@jax.enable_x64(True)
@pytest.mark.parametrize(("name", "sampler"), CASES)
def test_the_second_part_follows_the_formulas(name, sampler):
    graph, rng = graphs.GRAPHS[name](TOKENS), np.random.default_rng(0)
    count = graph.num_states

    def ratios(xt, sigma):
        """Of random conditional distributions of clean tokens, noised."""
        clean = np.zeros((len(xt), count))
        clean[:, :TOKENS] = rng.dirichlet(np.full(TOKENS, 2.0), len(xt))
        noised = np.exp(-sigma) * clean - np.expm1(-sigma) * np.float64(graph.limit)
        return noised / noised[np.arange(len(xt)), xt][:, None]

    masks = name == "absorb"
    xt = np.full(24, count - 1) if masks else rng.integers(0, count, 24)
    mid = rng.integers(0, count, 24) if masks else np.where(rng.random(24) < 0.5, xt, xt[::-1])
    before, after = ratios(xt, SIGMAS[0]), ratios(mid, SIGMAS[1])
    tokens = [jnp.array(x, jnp.int32)[:, None] for x in (xt, mid)]
    sees = [
        Evaluation(x, DenseScore(x, jnp.log(jnp.array(r))[:, None]))
        for x, r in zip(tokens, (before, after), strict=True)
    ]
    total = total_away(sees[0].xt, jnp.array(before)[:, None])
    sigmas = jnp.broadcast_to(jnp.array(SIGMAS)[:, None], (3, 24))
    start, score, weights = sampler.second(graph, sigmas, sees[0], total, sees[1])
    found = weights(total_away(start, jnp.exp(score.log_score)))
    found = jump_probs(found.weights(start, jnp.exp(score.log_score)))[:, 0]
    clipped = 0
    for i in np.flatnonzero(np.asarray(graph.limit)[np.asarray(start[:, 0])] > 0):
        wanted = formula(graph, sampler, before[i], after[i], xt[i], mid[i])
        np.testing.assert_allclose(found[i], wanted, atol=1e-12)
        clipped += (wanted == 0).sum()
    assert clipped > 0 or isinstance(sampler, ThetaRK2)


def test_a_ratio_below_the_noise_taken_off_it_gives_no_rate():
    ratios, others = jnp.array([[0.5, 0.5]]), jnp.array([[0.1, 1.0]])
    for second, wanted in ((-1.0, [[1.0, 0.3]]), (1.0, [[1.0, 1.7]])):
        blend = Blend(jnp.array([2.0]), jnp.array([second]), jnp.array([-0.3 * second]))
        np.testing.assert_allclose(blend(ratios, others, jnp.arange(2)), wanted, rtol=1e-6)


def process_of(graph, steps, held):
    """True scores of independent tokens."""
    noise, clean = noises.loglinear(), jnp.array([0.6, 0.3, 0.1])

    def score_fn(xt, sigma):
        tokens = jnp.pad(clean, (0, graph.num_states - TOKENS))
        noised = jnp.outer(jnp.exp(-sigma), tokens) - jnp.outer(jnp.expm1(-sigma), graph.limit)
        noised = jnp.log(jnp.broadcast_to(noised[:, None], (*xt.shape, graph.num_states)))
        return DenseScore(xt, noised - jnp.take_along_axis(noised, xt[..., None], -1))

    clamp = Clamp(jnp.full((len(held), LENGTH), 2), held)
    return Process(graph, noise, score_fn, clamp, 1e-3, steps)


@pytest.mark.parametrize(("name", "sampler"), CASES[::2])
def test_independent_tokens_are_exact_in_one_step_and_held_ones_stay(name, sampler):
    graph, rows = graphs.GRAPHS[name](TOKENS), 8192
    held = jnp.zeros((rows, LENGTH), bool).at[:, 1].set(True)
    process = process_of(graph, 3, held)  # one step: the third evaluation is too little for another
    assert sampler.num_steps(3) == 1 and sampler.max_nfe(3, LENGTH) == 3
    limit = graph.sample_limit(jax.random.key(0), (rows, LENGTH))

    @jax.jit
    def run(keys):
        state = sampler.init(keys[0], process, limit)
        state, info = sampler.step(keys[1], process, state)
        last, _ = sampler.final(keys[2], process, state)
        return state, info, last

    state, info, last = run(jax.random.split(jax.random.key(1), (3, rows)))
    assert (info.evaluations == 2).all() and info.finite.all()
    assert (np.asarray(info.changed) == (state.xt != process.clamp(limit)).sum(-1)).all()
    assert (state.xt[:, 1] == 2).all() and (last.xt[:, 1] == 2).all()
    free = np.delete(np.asarray(last.xt), 1, axis=1)
    frequencies = np.bincount(free.ravel(), minlength=TOKENS) / free.size
    np.testing.assert_allclose(frequencies, [0.6, 0.3, 0.1], atol=4 * 0.5 / free.size**0.5)


@pytest.mark.parametrize("noise", [noises.loglinear(), noises.geometric(1e-4, 20.0)])
def test_the_share_theta_of_the_masks_has_left_in_log(noise):
    sampler = ThetaTrapezoidal(theta=0.3)
    for t, t_next in ((1.0, 0.8), (0.5, 0.4), (0.01, 0.001)):
        sigma, mid, last = np.float64(sampler.sigmas(noise, jnp.array(t), jnp.array(t_next)))
        assert sigma > mid > last
        if sigma < 10:  # else the probability of a mask rounds to 1
            masked = np.log(-np.expm1([-sigma, -mid, -last]))
            np.testing.assert_allclose(masked[1], 0.7 * masked[0] + 0.3 * masked[2], rtol=1e-4)


def test_settings_out_of_range_are_refused():
    with pytest.raises(BadInput, match="2 network evaluations a step: steps must be at least 2"):
        Sampling(1, "theta_trapezoidal").check()
    Sampling(2, "theta_rk2").check()
    for theta in (0, 1, -0.5):
        with pytest.raises(BadInput, match="theta must be above 0 and below 1"):
            Sampling(4, f"theta_trapezoidal(theta={theta})").check()
    with pytest.raises(BadInput, match="needs sampler='tweedie'"):
        Sampling(4, "theta_trapezoidal", conditioning="resample").check()
    with pytest.raises(BadInput, match="does not go with sampler='theta_rk2'"):
        Sampling(4, "theta_rk2", temperature=0.5, tempering="conditional").check()

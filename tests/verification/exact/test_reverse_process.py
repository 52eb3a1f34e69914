import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import expm

from sedd_jax.diffusion import noise as noises
from sedd_jax.diffusion.score import StepWeights
from sedd_jax.inference.batches import row_keys
from sedd_jax.inference.prompt import Prompt, empty_prompt
from sedd_jax.inference.sampling import Sampling
from sedd_jax.inference.score_based import ScoreBased
from sedd_jax.model.score_model import dense_model
from sedd_jax.verification.exact.reverse_process import (
    ReverseProcess,
    exact_process,
    reverse_distribution,
)
from sedd_jax.verification.exact.scores import exact_params
from sedd_jax.verification.exact.space import goodness_of_fit, total_variation

T_MIN = 0.05
LEVEL = 1e-4  # of a chi-square test; keys are fixed, so a pass stays a pass

# by name: the schedule, and its sigma and dsigma by their formulas
SCHEDULES = {
    "absorb": (
        noises.loglinear(1e-2),
        lambda t: -math.log(1 - 0.99 * t),
        lambda t: 0.99 / (1 - 0.99 * t),
    ),
    "uniform": (
        noises.geometric(1e-2, 4.0),
        lambda t: 1e-2 * 400**t,
        lambda t: 1e-2 * 400**t * math.log(400),
    ),
}
SMALL = pytest.mark.parametrize("brute", ["absorb-4-2", "uniform-3-3"], indirect=True)
SAMPLERS = pytest.mark.parametrize("sampler", ["tweedie", "euler"])


def _rough_model(num_states):
    """A score model that is wrong: its scores fit no distribution, so some weights are negative."""

    def apply(params, xt, sigma, key=None):
        del key
        position, token = jnp.arange(xt.shape[1])[:, None], jnp.arange(num_states)[None]
        phase = (xt @ params["weights"])[:, None, None]
        angle = phase + (1.7 * token + 2.3 * position * (token + 1))[None]
        log_score = 1.5 * jnp.sin(angle) + 0.4 * sigma[:, None, None]
        return jnp.where(xt[..., None] == token[None], 0, log_score)

    return dense_model(dict, apply)


def _rough_score(weights, state, i, token, sigma):
    """The same, for one entry."""
    if state[i] == token:
        return 1.0
    phase = sum(w * x for w, x in zip(weights, state, strict=True))
    angle = phase + 1.7 * token + 2.3 * i * (token + 1)
    return math.exp(1.5 * math.sin(angle) + 0.4 * sigma)


WEIGHTS = [0.9, 2.1, 0.4]
# compiling the random bits takes most of the time here, and optimising their code half of that
_fast_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@functools.cache
def _rough(brute):
    """One process for each space, so that programs are shared."""
    family = ScoreBased(brute.space.graph, SCHEDULES[brute.name][0], _rough_model(brute.num_states))
    return ReverseProcess(family, {"weights": np.array(WEIGHTS[: brute.length])}, brute.space)


def _position_weights(brute, sampler, state, i, t, t_next):
    """The weights of a step for one position, before clamping: Eq. 17 or Eq. 19."""
    _, sigma_at, dsigma_at = SCHEDULES[brute.name]
    V, Q, x = brute.num_states, brute.Q, state[i]
    weights = WEIGHTS[: brute.length]
    score = np.array([_rough_score(weights, state, i, y, sigma_at(t)) for y in range(V)])
    if sampler == "euler":
        step = dsigma_at(t) * (t - t_next)
        probs = [step * score[y] * Q[x, y] if y != x else 0.0 for y in range(V)]
        probs[x] = 1 - sum(probs)
        return np.array(probs)
    delta = sigma_at(t) - (sigma_at(t_next) if t_next is not None else 0)
    return (expm(-delta * Q) @ score) * expm(delta * Q)[x]


def _after_step(brute, before, sampler, t, t_next):
    """The distribution after a step, and the lowest weight; t_next None removes all noise."""
    after, lowest = np.zeros(len(before)), 0.0
    tokens = brute.num_states - (brute.name == "absorb" and t_next is None)
    for s, state in enumerate(brute.states):
        probs = []
        for i in range(brute.length):
            weights = _position_weights(brute, sampler, state, i, t, t_next)[:tokens]
            lowest = min(lowest, weights.min())
            clamped = [max(w, 0.0) for w in weights]
            probs.append([w / sum(clamped) for w in clamped])
        for to, target in enumerate(brute.states):
            if max(target) < tokens:
                after[to] += before[s] * math.prod(p[y] for p, y in zip(probs, target, strict=True))
    return after, lowest


@SMALL
@SAMPLERS
def test_sampler_distribution_is_the_sum_over_all_paths(brute, sampler):
    steps, process = 3, _rough(brute)
    expected = np.zeros(len(brute.states))
    if brute.name == "absorb":
        expected[-1] = 1  # masks only
    else:
        expected[:] = 1 / len(expected)
    negative = []
    for t, t_next in itertools.pairwise(np.linspace(1, T_MIN, steps + 1)):
        expected, lowest = _after_step(brute, expected, sampler, t, t_next)
        negative.append(lowest)
    if brute.name == "uniform" or sampler == "euler":
        assert min(negative) < -0.01  # so that clamping matters
    arguments = {"steps": steps, "sampler": sampler, "t_min": T_MIN}
    with jax.enable_x64(True):
        noised = process.sampler_distribution(denoise=False, **arguments)
        clean = process.sampler_distribution(**arguments)
    np.testing.assert_allclose(noised, expected, rtol=1e-9, atol=1e-14)
    expected, _ = _after_step(brute, expected, "tweedie", T_MIN, None)
    np.testing.assert_allclose(clean, expected, rtol=1e-9, atol=1e-14)
    assert clean.dtype == np.float64 and clean.sum() == pytest.approx(1)


@pytest.mark.parametrize("brute", ["uniform-3-3"], indirect=True)
def test_sampler_distribution_is_computed_in_the_default_precision(brute):
    process = _rough(brute)
    arguments = {"steps": 3, "sampler": "tweedie", "t_min": T_MIN}
    with jax.enable_x64(True):
        exact = process.sampler_distribution(**arguments)
    rounded = process.sampler_distribution(**arguments)
    assert 1e-9 < total_variation(rounded, exact) < 1e-4


@pytest.mark.parametrize(
    ("brute", "sampler"), [("absorb-4-2", "tweedie"), ("uniform-3-3", "euler")], indirect=["brute"]
)
def test_the_generator_draws_from_the_sampler_distribution(brute, sampler):
    rows = 4096
    process = _rough(brute)
    params = jax.tree.map(jnp.asarray, process.params)
    generate = _fast_jit(process.family.generator(Sampling(3, sampler), t_min=T_MIN))
    keys = row_keys(jax.random.key(0), jnp.arange(rows))
    tokens, _ = generate(params, keys, empty_prompt(rows, brute.length))
    probs = process.sampler_distribution(steps=3, sampler=sampler, t_min=T_MIN)
    _assert_drawn_from(probs, tokens, brute)


def _assert_drawn_from(probs, tokens, brute):
    rows = len(tokens)
    counts = np.bincount(brute.space.index(np.asarray(tokens)), minlength=len(probs))
    assert np.sum(rows * probs > 5) >= 3
    assert goodness_of_fit(counts / rows, probs, rows) > LEVEL


def _calibrated(graph, noise, xt, total, t, t_next):
    """Leaving the mask as if the ratios had the sum that true ones have; to tokens by the score."""
    stays = jnp.expm1(-noise.sigma(t_next)) / jnp.expm1(-noise.sigma(t))
    masked = xt == graph.mask_id
    leave = jnp.where(masked, 1 - stays[:, None], 0)
    return StepWeights(scale=leave / total, cut=None, stay=1 - leave)


@pytest.mark.parametrize("brute", ["absorb-4-2"], indirect=True)
def test_first_hitting_on_a_grid_is_the_chain_of_calibrated_steps(brute):
    rows, steps = 4096, 3
    process = _rough(brute)
    params = jax.tree.map(jnp.asarray, process.params)
    sampling = Sampling(steps, "first_hitting")
    generate = _fast_jit(process.family.generator(sampling, t_min=T_MIN))
    keys = row_keys(jax.random.key(0), jnp.arange(rows))
    tokens, diagnostics = generate(params, keys, empty_prompt(rows, brute.length))
    probs = process.sampler_distribution(steps=steps, sampler=_calibrated, t_min=T_MIN)
    _assert_drawn_from(probs, tokens, brute)
    # as many calls as intervals in which a position falls: of two positions, two or one
    masked = [1 - math.exp(-SCHEDULES["absorb"][1](t)) for t in np.linspace(1, T_MIN, steps + 1)]
    shares = -np.diff([*masked, 0]) / masked[0]
    together = np.mean(np.asarray(diagnostics.evaluations) == 1)
    assert abs(together - np.sum(shares**2)) < 5 / math.sqrt(rows)
    assert diagnostics.evaluations.max() == 2


@pytest.mark.parametrize("brute", ["absorb-3-3"], indirect=True)
def test_first_hitting_draws_from_the_data_and_from_bayes_rule(brute):
    data, mask, held = brute.space.random_data(0), brute.num_states - 1, 1
    posterior = data * (brute.space.states[:, 1] == held)  # in the middle
    posterior /= posterior.sum()
    start = np.zeros(len(data))
    start[brute.states.index((mask, held, mask))] = 1
    with jax.enable_x64(True):
        process = exact_process(brute.space, SCHEDULES["absorb"][0], data)
        probs = process.first_hitting_distribution()
        given = process.first_hitting_distribution(start)
    np.testing.assert_allclose(probs, data, atol=1e-12)
    np.testing.assert_allclose(given, posterior, atol=1e-12)

    rows = 8192  # in every other one the token is held
    free_rows = np.arange(rows) % 2 == 0
    prompt = empty_prompt(rows, brute.length)
    prompt = Prompt(jnp.full_like(prompt.tokens, held), prompt.held.at[1::2, 1].set(True))
    generator = process.family.generator(Sampling(None, "first_hitting"), t_min=T_MIN)
    keys = row_keys(jax.random.key(1), jnp.arange(rows))
    drawn = _fast_jit(generator)(exact_params(data), keys, prompt)
    tokens, diagnostics = jax.device_get(drawn)
    _assert_drawn_from(data, tokens[free_rows], brute)
    _assert_drawn_from(posterior, tokens[~free_rows], brute)
    np.testing.assert_array_equal(diagnostics.evaluations, np.where(free_rows, 3, 2))


def _bayes(brute, data, sigma_late, sigma_early):
    """p(early | late), [late, early]; rows of impossible sequences are 0."""
    early, late = brute.marginal(data, sigma_early), brute.marginal(data, sigma_late)
    forward = brute.transition(sigma_late - sigma_early)  # [late, early]
    kernel = np.zeros_like(forward)
    for x, y in np.ndindex(kernel.shape):
        if late[x] > 0:
            kernel[x, y] = early[y] * forward[x, y] / late[x]
    return kernel


@SMALL
@pytest.mark.parametrize(("support", "t"), [(1.0, 0.2), (0.3, 0.0)])
def test_reverse_distribution_is_the_product_of_bayes_kernels(brute, support, t):
    noise, sigma_at, _ = SCHEDULES[brute.name]
    data = brute.space.random_data(0, support)
    if brute.name == "absorb":
        expected = np.eye(len(data))[-1]
    else:
        expected = np.full(len(data), 1 / len(data))
    sigmas = [sigma_at(1.0), sigma_at(0.7), sigma_at(0.4), sigma_at(t) if t > 0 else 0.0]
    for late, early in itertools.pairwise(sigmas):
        expected = expected @ _bayes(brute, data, late, early)
    got = reverse_distribution(brute.space, noise, data, t)
    np.testing.assert_allclose(got, expected, rtol=1e-10, atol=1e-14)
    if t > 0:  # it starts elsewhere than the data's own process, and that shows
        assert total_variation(got, brute.marginal(data, sigmas[-1])) > 1e-5


@SMALL
def test_reverse_distribution_starts_at_the_limit(brute):
    data = brute.space.random_data(0)
    got = reverse_distribution(brute.space, SCHEDULES[brute.name][0], data, 1.0)
    np.testing.assert_allclose(got, brute.space.limit(), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("brute", ["absorb-4-1", "uniform-4-1"], indirect=True)
def test_tweedie_with_exact_scores_is_exact_for_a_single_token(brute):
    noise = SCHEDULES[brute.name][0]
    data = brute.space.random_data(0)
    with jax.enable_x64(True):
        process = exact_process(brute.space, noise, data)
        arguments = {"steps": 2, "sampler": "tweedie", "t_min": T_MIN}
        noised = process.sampler_distribution(denoise=False, **arguments)
        clean = process.sampler_distribution(**arguments)
    for got, t in ((noised, T_MIN), (clean, 0.0)):
        expected = reverse_distribution(brute.space, noise, data, t)
        np.testing.assert_allclose(got, expected, atol=1e-12)

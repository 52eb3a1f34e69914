import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import expm
from scipy.stats import chisquare

from sedd_jax.diffusion import graph as graph_module
from sedd_jax.diffusion import noise as noise_module
from sedd_jax.diffusion.euler import Euler, euler_probs, reverse_rate
from sedd_jax.diffusion.sampler import Clamp, Process, SamplerState
from sedd_jax.diffusion.score import DenseScore
from sedd_jax.diffusion.tweedie import Tweedie

V = 4
SAMPLERS = {"euler": Euler(), "tweedie": Tweedie()}
# Q[y, x] is the rate from x to y: columns sum to 0 (Eqs. 15, over V, and 16).
UNIFORM_Q = np.full((V, V), 0.25) - np.eye(V)
ABSORBING_Q = np.array([[-1.0, 0, 0, 0], [0, -1.0, 0, 0], [0, 0, -1.0, 0], [1.0, 1.0, 1.0, 0]])
MASK = 3
LEVEL = 1e-4  # of a chi-square test; keys are fixed, so a pass stays a pass
SIGMA = np.array([0.01, 0.5, 3.0], np.float32)

CASES = {
    "absorb": (graph_module.absorbing(3), ABSORBING_Q, np.array([0.5, 0.3, 0.2, 0])),
    "uniform": (graph_module.uniform(4), UNIFORM_Q, np.array([0.45, 0.3, 0.2, 0.05])),
}


@pytest.fixture(params=CASES)
def case(request):
    """A graph over 4 states, its Q, and a distribution of a single clean token."""
    return CASES[request.param]


def _states():
    """Every state once in every row."""
    return jnp.tile(jnp.arange(V), (len(SIGMA), 1))


def _exact_scores(Q, p0):
    """p_t(y) / p_t(x) for x_t = 0 ... V-1 at every noise of SIGMA."""
    marginals = np.stack([expm(float(sigma) * Q) @ p0 for sigma in SIGMA])
    return marginals[:, None, :] / marginals[:, :, None]


def _enumerated_rates(Q, score):
    """Eq. 3 entry by entry: the score of y times Q[x, y], and what makes the row sum to 0."""
    rates = np.zeros(score.shape)
    for row, x, y in np.ndindex(score.shape):
        if y != x:
            rates[row, x, y] = score[row, x, y] * Q[x, y]
            rates[row, x, x] -= score[row, x, y] * Q[x, y]
    return rates


def test_reverse_rate_is_the_score_times_the_rate_towards_xt(case):
    graph, Q, p0 = case
    score = _exact_scores(Q, p0)
    got = np.float64(reverse_rate(graph, _states(), jnp.array(score, jnp.float32)))
    np.testing.assert_allclose(got, _enumerated_rates(Q, score), rtol=1e-6)


def test_reverse_rate_is_the_derivative_of_the_posterior(case):
    # Bayes over a small step h: p(x_(t - h) = y | x_t = x) = delta + h * rate + O(h^2).
    graph, Q, p0 = case
    h = 1e-7
    score = jnp.array(_exact_scores(Q, p0), jnp.float32)
    got = np.float64(reverse_rate(graph, _states(), score))
    for row, sigma in enumerate(np.float64(SIGMA)):
        earlier, later = expm((sigma - h) * Q) @ p0, expm(sigma * Q) @ p0
        posterior = expm(h * Q) * earlier / later[:, None]  # [x, y]
        # h^2 times rates of at most 100: relative 1e-5; the quotient cancels to 1e-16 / 1e-7
        np.testing.assert_allclose(got[row], (posterior - np.eye(V)) / h, rtol=1e-4, atol=1e-6)


def test_reverse_rate_rows_sum_to_zero_and_ignore_the_score_at_xt(case):
    graph, _, _ = case
    score = np.random.default_rng(0).uniform(0.1, 3, (len(SIGMA), V, V)).astype(np.float32)
    got = reverse_rate(graph, _states(), jnp.array(score))
    np.testing.assert_allclose(got.sum(-1), np.zeros((len(SIGMA), V)), atol=1e-6)
    score[:, np.arange(V), np.arange(V)] = 7
    np.testing.assert_array_equal(got, reverse_rate(graph, _states(), jnp.array(score)))


def test_euler_probs_add_the_rates_of_each_row_to_staying(case):
    graph, Q, _ = case
    score = np.random.default_rng(0).uniform(0.1, 3, (len(SIGMA), V, V)).astype(np.float32)
    steps = np.array([0.0, 0.02, 2.0], np.float32)
    got = np.float64(euler_probs(graph, _states(), jnp.array(score), jnp.array(steps)))
    rates = _enumerated_rates(Q, np.float64(score))
    expected = np.eye(V) + np.float64(steps)[:, None, None] * rates
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(got.sum(-1), np.ones((len(SIGMA), V)), atol=2e-6)
    np.testing.assert_array_equal(got[0], np.eye(V))
    assert got[2].min() < 0  # too large a step shows, clamping is the sampler's task


SCHEDULES = {
    "loglinear": (noise_module.loglinear(1e-3), lambda t: -np.log(1 - 0.999 * t)),
    "geometric": (noise_module.geometric(1e-4, 20.0), lambda t: 1e-4 * 2e5**t),
}
# Compiling the random bits takes most of the time here, and optimising their code half of that.
_fast_jit = functools.partial(
    functools.partial, jax.jit, compiler_options={"xla_backend_optimization_level": 0}
)
NUM_STEPS, ROWS = 64, 4096
TIMES = np.linspace(1, 1e-3, NUM_STEPS + 1, dtype=np.float32)


def _exact_score_fn(Q, p0):
    """Scores of a single token whose distribution is p0, for any x_t and noise."""
    limit = np.full(V, 0.25) if Q is UNIFORM_Q else np.eye(V)[MASK]
    p0, limit = jnp.array(p0, jnp.float32), jnp.array(limit, jnp.float32)

    def score_fn(xt, sigma):
        stayed = jnp.exp(-sigma)[:, None]
        log_pt = jnp.log(stayed * p0[None] + (1 - stayed) * limit[None])[:, None]
        return DenseScore(xt, log_pt - jnp.take_along_axis(log_pt, xt[..., None], axis=-1))

    return score_fn


def _free(shape):
    return Clamp(jnp.zeros(shape, jnp.int32), jnp.zeros(shape, bool))


@_fast_jit(static_argnums=(0, 1))
def _sample_single_tokens(graph_name, sampler, schedule_index, keys, start):
    """The tokens after every reverse step, and the final ones; one token in each of ROWS rows."""
    graph, Q, p0 = CASES[graph_name]
    noises = [noise for noise, _ in SCHEDULES.values()]
    # the schedule is chosen inside, so that both share one compilation
    noise = noise_module.Noise(
        lambda t: jnp.where(schedule_index == 0, noises[0].sigma(t), noises[1].sigma(t)),
        lambda t: jnp.where(schedule_index == 0, noises[0].dsigma(t), noises[1].dsigma(t)),
    )
    clamp = _free((ROWS, 1))
    score_fn = _exact_score_fn(Q, p0)
    process = Process(graph, noise, score_fn, clamp, float(TIMES[-1]), NUM_STEPS)

    def body(state, keys):
        state, _ = SAMPLERS[sampler].step(keys, process, state)
        return state, state.xt

    state, tokens = jax.lax.scan(body, SamplerState(start, jnp.int32(0)), keys[:-1])
    return tokens[..., 0], SAMPLERS[sampler].final(keys[-1], process, state)[0].xt[:, 0]


@pytest.fixture(
    scope="module",
    params=itertools.product(CASES, SAMPLERS, SCHEDULES),
    ids="-".join,
)
def single_token_run(request):
    """One token sampled with exact scores from the limit, by ROWS independent rows."""
    graph_name, sampler, schedule = request.param
    index = jnp.int32(list(SCHEDULES).index(schedule))
    keys = jax.random.split(jax.random.key(0), (NUM_STEPS + 1, ROWS))
    rng = np.random.default_rng(0)
    start = rng.integers(0, V, (ROWS, 1)) if graph_name == "uniform" else np.full((ROWS, 1), MASK)
    start = jnp.array(start, jnp.int32)
    tokens, final = _sample_single_tokens(graph_name, sampler, index, keys, start)
    return request.param, np.asarray(tokens), np.asarray(final)


@functools.cache
def _forward(graph_name, sigma):
    """exp(sigma Q), by eigenvectors: expm takes a second for all the steps below."""
    values, vectors = np.linalg.eig(CASES[graph_name][1])
    return ((vectors * np.exp(sigma * values)) @ np.linalg.inv(vectors)).real


def _assert_distribution(tokens, probs):
    counts = np.bincount(tokens, minlength=V)
    # states of fewer than 5 expected draws are too few for a chi-square: at most 20 of each
    frequent = len(tokens) * probs >= 5
    assert counts[~frequent].sum() < 20
    probs = probs[frequent] / probs[frequent].sum()
    if len(probs) > 1:
        assert chisquare(counts[frequent], counts[frequent].sum() * probs).pvalue > LEVEL, counts


def test_sampling_with_exact_scores_gives_the_data_distribution(single_token_run):
    (graph_name, sampler, _), _, final = single_token_run
    _, _, p0 = CASES[graph_name]
    counts = np.bincount(final, minlength=V)
    assert np.all(counts[p0 == 0] == 0)  # the final step removes every mask
    if sampler == "tweedie":  # exact for a single token, whatever the steps
        _assert_distribution(final, p0)
    else:
        # Euler is biased: the chain enumerated below ends up to 0.005 from p0 in total variation,
        # with 64 steps of the geometric schedule; 4096 draws add 0.011 on average.
        assert np.abs(counts / ROWS - p0).sum() / 2 < 0.03


def test_every_step_has_the_distribution_of_the_enumerated_chain(single_token_run):
    """Follows the chain in float64: Bayes per step (Tweedie) or Eq. 17, clamped (Euler)."""
    (graph_name, sampler, schedule), tokens, final = single_token_run
    _, Q, p0 = CASES[graph_name]
    sigma_at = SCHEDULES[schedule][1]
    times = np.float64(TIMES)
    distribution = np.full(V, 0.25) if graph_name == "uniform" else np.eye(V)[MASK]
    for step in range(NUM_STEPS):
        t, t_next = times[step], times[step + 1]
        later, earlier = (_forward(graph_name, sigma_at(time)) @ p0 for time in (t, t_next))
        if sampler == "tweedie":
            step_kernel = _forward(graph_name, sigma_at(t) - sigma_at(t_next))
            kernel = step_kernel * earlier / later[:, None]
        else:
            dsigma = (sigma_at(t + 1e-7) - sigma_at(t - 1e-7)) / 2e-7
            score = later[None, None] / later[None, :, None]
            kernel = np.eye(V) + dsigma * (t - t_next) * _enumerated_rates(Q, score)[0]
            kernel = np.maximum(kernel, 0)
        distribution = distribution @ (kernel / kernel.sum(1, keepdims=True))
        if step % 8 == 7:
            _assert_distribution(tokens[step], distribution)
            if sampler == "tweedie" and graph_name == "absorb":
                np.testing.assert_allclose(
                    distribution, earlier, atol=2e-3
                )  # of which 1e-3 is the start
    last = _forward(graph_name, sigma_at(times[-1]))
    _assert_distribution(final, distribution @ (last * p0 / (last @ p0)[:, None]))


LENGTH, BATCH = 6, 32
FEW_TIMES = np.array([1.0, 0.9, 0.8, 0.7, 0.6], np.float32)
HALF_HELD = np.random.default_rng(0).random((BATCH, LENGTH)) < 0.5


def _rough_log_scores(graph, xt, sigma):
    """Scores like those of a network: they differ by position, context and noise."""
    states = jnp.arange(V)[None, None]
    context = (xt.sum(-1)[:, None, None] + jnp.arange(LENGTH)[None, :, None]) * 1.3
    log_score = jnp.sin(context + states * 2.1)
    if graph.mask_id is not None:  # the ratios to the mask are of this size
        log_score -= jnp.log(jnp.expm1(sigma))[:, None, None] + 1
    return jnp.where(states == xt[..., None], 0, log_score)


@_fast_jit(static_argnums=(0, 1))
def _step(graph, which, keys, xt, step, held_tokens, held, disturbance):
    """One kernel, by name: a sampler or "denoise". All tests share the compiled functions."""
    process = Process(
        graph,
        SCHEDULES["loglinear"][0],
        lambda xt, sigma: DenseScore(xt, _rough_log_scores(graph, xt, sigma) + disturbance),
        Clamp(held_tokens, held),
        float(FEW_TIMES[-1]),
        len(FEW_TIMES) - 1,
    )
    step_of = Tweedie().final if which == "denoise" else SAMPLERS[which].step
    return step_of(keys, process, SamplerState(xt, step))


ALL = slice(None)


def _call(graph, which, xt, *, seed=0, step=0, rows=ALL, held_tokens=None, bad=0.0):
    """The tokens and info after a step; half the positions are held where held_tokens is given."""
    keys = jax.random.split(jax.random.key(seed), BATCH)
    held = np.zeros((BATCH, LENGTH), bool) if held_tokens is None else HALF_HELD
    held_tokens = np.zeros((BATCH, LENGTH), int) if held_tokens is None else held_tokens
    disturbance = np.zeros((BATCH, LENGTH, V), np.float32)
    disturbance[3, 1, 2] = bad
    arrays = (xt.astype(np.int32), np.int32(step), held_tokens.astype(np.int32), held, disturbance)
    arrays = [jnp.array(array[rows] if array.ndim else array) for array in arrays]
    state, info = _step(graph, which, keys[rows], *arrays)
    assert state.step == step + 1
    return np.asarray(state.xt), info


def _start(graph):
    if graph.mask_id is not None:
        return np.full((BATCH, LENGTH), graph.mask_id)
    return np.random.default_rng(2).integers(0, V, (BATCH, LENGTH))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_held_positions_never_change_and_masks_do_not_remain(case, sampler):
    graph, _, _ = case
    held_tokens = np.random.default_rng(1).integers(0, graph.num_tokens, (BATCH, LENGTH))
    # The first step also puts them in place: the state does not start with the held tokens.
    xt = _start(graph)
    for step, which in enumerate([*[sampler] * (len(FEW_TIMES) - 1), "denoise"]):
        before = xt
        xt, info = _call(graph, which, before, seed=step, step=step, held_tokens=held_tokens)
        np.testing.assert_array_equal(xt[HALF_HELD], held_tokens[HALF_HELD])
        np.testing.assert_array_equal(info.changed, (before != xt).sum(-1))
        assert np.any(before[~HALF_HELD] != xt[~HALF_HELD])
        assert np.all(info.finite)
    assert np.all(xt < graph.num_tokens)
    if graph.mask_id is not None:
        assert np.any(before == graph.mask_id)  # so the final step had masks to remove


@pytest.mark.parametrize("which", ["tweedie", "denoise"])
def test_each_kernel_restores_a_held_position(case, which):
    # Held at a token that the state does not have, as if the draw had moved it.
    graph, _, _ = case
    state = np.zeros((BATCH, LENGTH), np.int32)
    xt, info = _call(graph, which, state, held_tokens=np.ones((BATCH, LENGTH), np.int32))
    assert np.all(xt[HALF_HELD] == 1)
    assert np.all(np.asarray(info.changed) >= HALF_HELD.sum(-1))


@pytest.mark.parametrize(("name", "which"), [("uniform", "tweedie"), ("absorb", "denoise")])
def test_a_row_does_not_depend_on_the_others(name, which):
    graph, _, _ = CASES[name]
    xt = _start(graph)
    whole, whole_info = _call(graph, which, xt)
    rows = slice(2, 9)
    part, part_info = _call(graph, which, xt, rows=rows)
    np.testing.assert_array_equal(part, whole[rows])
    np.testing.assert_array_equal(part_info.changed, whole_info.changed[rows])


@pytest.mark.parametrize("which", ["tweedie", "denoise"])
def test_rows_of_the_same_tokens_draw_apart(case, which):
    graph, _, _ = case
    drawn, _ = _call(graph, which, np.tile(_start(graph)[:1], (BATCH, 1)))
    assert len(np.unique(drawn, axis=0)) > 1


@pytest.mark.parametrize("which", ["tweedie", "denoise"])
@pytest.mark.parametrize("bad", [np.nan, np.inf], ids=str)
def test_finite_is_false_only_for_the_row_with_a_bad_score(case, which, bad):
    graph, _, _ = case
    start = _start(graph)
    start[3, 1] = graph.num_states - 1  # not the state of the bad entry
    xt, info = _call(graph, which, start, bad=bad)
    np.testing.assert_array_equal(info.finite, np.arange(BATCH) != 3)
    assert xt.min() >= 0 and xt.max() < V  # a bad score draws no token out of range
    others = np.arange(BATCH) != 3
    np.testing.assert_array_equal(xt[others], _call(graph, which, start)[0][others])


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_each_kernel_asks_once_for_the_scores_at_its_own_noise(case, sampler, schedule):
    graph, _, _ = case
    noise, sigma_at = SCHEDULES[schedule]

    @jax.jit
    def noise_of_calls(keys, state):
        calls = []

        def score_fn(xt, sigma):
            calls.append(sigma)
            return DenseScore(xt, _rough_log_scores(graph, xt, sigma))

        clamp = _free((BATCH, LENGTH))
        process = Process(graph, noise, score_fn, clamp, float(FEW_TIMES[-1]), len(FEW_TIMES) - 1)
        for step_of in (SAMPLERS[sampler].step, SAMPLERS[sampler].final):
            step_of(keys, process, state)  # only for its calls: what it draws is never computed
        return calls

    keys = jax.random.split(jax.random.key(0), BATCH)
    calls = noise_of_calls(keys, SamplerState(jnp.array(_start(graph), jnp.int32), jnp.int32(2)))
    expected = np.repeat([[sigma_at(0.8)], [sigma_at(0.6)]], BATCH, axis=1)
    np.testing.assert_allclose(calls, expected, rtol=5e-6)

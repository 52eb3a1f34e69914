import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sedd_jax.diffusion import noise as noises
from sedd_jax.inference.batches import row_keys
from sedd_jax.inference.prompt import empty_prompt
from sedd_jax.inference.sampling import Sampling
from sedd_jax.inference.score_based import ScoreBased
from sedd_jax.model.score_model import dense_model
from sedd_jax.verification.exact.scores import (
    concrete_score_matching,
    denoising_score_entropy,
    exact_model,
    exact_params,
    exact_ratios,
    explicit_score_entropy,
    implicit_score_entropy,
    tabulated,
)

# float32 throughout, so that both precisions are asked about the same noise
SIGMAS = np.float32([1e-4, 1e-2, 0.5, 3, 6.9, 20])
SPARSE = 0.3
ROUNDING = 1e-11
TWO_SPACES = pytest.mark.parametrize("brute", ["absorb-4-2", "uniform-3-3"], indirect=True)
RTOL = {"float32": 1e-5, "float64": 1e-6}  # the latter is of expm, 1e-16 / exp(-20)


@functools.cache
def _apply(brute):
    return jax.jit(exact_model(brute.space).apply)


@functools.cache
def _answers(brute, support, precision):
    """Log scores of every sequence at every noise, [N, S, L, V], from one shuffled batch."""
    count = len(brute.states)
    order = np.random.default_rng(0).permutation(len(SIGMAS) * count)
    xt = np.tile(np.array(brute.states, np.int32), (len(SIGMAS), 1))[order]
    sigma = np.repeat(SIGMAS, count)[order]
    with jax.enable_x64(precision == "float64"):
        params = exact_params(brute.space.random_data(0, support))
        got = _apply(brute)(params, jnp.asarray(xt), jnp.asarray(sigma, precision))
        assert got.dtype == precision
    log_score = np.empty(got.shape)
    log_score[order] = got
    return log_score.reshape(len(SIGMAS), count, brute.length, brute.num_states)


@TWO_SPACES
@pytest.mark.parametrize("precision", RTOL)
@pytest.mark.parametrize("support", [1.0, SPARSE])
def test_scores_of_possible_sequences_are_ratios_of_the_marginal(brute, support, precision):
    data = brute.space.random_data(0, support)
    for sigma, answers in zip(SIGMAS, _answers(brute, support, precision), strict=True):
        marginal = brute.marginal(data, float(sigma))
        got = np.exp(answers[marginal > 0])
        expected = brute.ratios(marginal)[marginal > 0]
        positive = expected > 0
        assert positive.sum() > positive.size / 4
        rtol, name = RTOL[precision], f"sigma = {sigma}"
        np.testing.assert_allclose(got[positive], expected[positive], rtol=rtol, err_msg=name)
        assert np.all(got[~positive] < 1e-20)


@pytest.mark.parametrize("precision", RTOL)
@pytest.mark.parametrize("brute", ["absorb-4-2"], indirect=True)
def test_scores_among_impossible_sequences_are_those_of_uniform_data(brute, precision):
    data = brute.space.random_data(0, SPARSE)
    for sigma, got in zip(SIGMAS, _answers(brute, SPARSE, precision), strict=True):
        marginal = brute.marginal(data, float(sigma))
        uniform = brute.ratios(brute.marginal(brute.space.uniform_data(), float(sigma)))
        assert not np.any(np.isnan(got[marginal == 0]))
        checked = 0
        for s, i, y, to in brute.changes:
            if marginal[s] == 0 and marginal[to] == 0:
                assert np.exp(got[s, i, y]) == pytest.approx(uniform[s, i, y], rel=RTOL[precision])
                checked += 1
            elif marginal[s] == 0:  # towards possible sequences there is nearly no limit
                assert got[s, i, y] > np.log(1e20)
        assert checked > 10


@TWO_SPACES
def test_log_score_is_0_at_the_current_token(brute):
    got = _answers(brute, SPARSE, "float64")
    for s, state in enumerate(brute.states):
        for i, x in enumerate(state):
            np.testing.assert_array_equal(got[:, s, i, x], 0)


def test_params_have_the_default_precision_and_init_is_uniform_data(brute):
    data = brute.space.random_data(0, SPARSE)
    for precision in ("float32", "float64"):
        with jax.enable_x64(precision == "float64"):
            params = np.asarray(exact_params(data)["data"])
            initial = np.asarray(exact_model(brute.space).init(jax.random.key(0))["data"])
        assert params.dtype == initial.dtype == precision
        rtol = float(np.finfo(precision).eps)
        np.testing.assert_allclose(params[data > 0], data[data > 0], rtol=rtol)
        assert np.all(params[data == 0] < 1e-25)
        np.testing.assert_allclose(initial, brute.space.uniform_data(), rtol=rtol, atol=1e-25)


@TWO_SPACES
def test_tabulated_equals_the_model_where_rows_share_sigma(brute):
    table = jax.jit(tabulated(exact_model(brute.space), brute.space).apply)
    rows = np.random.default_rng(0).integers(0, len(brute.states), 50)
    xt = jnp.asarray(brute.space.states[rows])
    params = exact_params(brute.space.random_data(0))
    for sigma in (0.01, 2.0):
        sigma = jnp.full(50, sigma)
        expected = _apply(brute)(params, xt, sigma)
        np.testing.assert_allclose(table(params, xt, sigma), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("brute", ["uniform-3-3"], indirect=True)
def test_tabulated_evaluates_once_per_sequence_and_passes_everything_on(brute):
    asked = []

    def apply(params, xt, sigma, key=None):
        asked.append((np.asarray(xt), np.asarray(sigma), key))
        return jnp.broadcast_to(params["scale"] * xt[..., None], (*xt.shape, 3))

    model = dense_model(lambda key: {"scale": 3}, apply)
    table = tabulated(model, brute.space)
    assert table.init(None) == {"scale": 3}
    xt = jnp.asarray(brute.space.states[[5, 5, 26, 0, 11] * 20])
    got = table.apply({"scale": 7}, xt, jnp.full(100, 0.5), key="a key")
    np.testing.assert_array_equal(got, np.repeat(7 * np.asarray(xt)[..., None], 3, axis=-1))
    ((states, sigma, key),) = asked
    np.testing.assert_array_equal(states, brute.states)
    np.testing.assert_array_equal(sigma, np.full(27, 0.5))
    assert key == "a key"


@pytest.mark.parametrize("brute", ["uniform-3-3"], indirect=True)
def test_a_generator_takes_the_exact_model(brute):
    # All mass on one sequence: with the true scores only that one can be drawn.
    space, rows = brute.space, 64
    truth = brute.clean[len(brute.clean) // 2 + 1]
    data = np.zeros(len(brute.states))
    data[truth] = 1
    family = ScoreBased(space.graph, noises.loglinear(1e-3), exact_model(space))
    generate = jax.jit(family.generator(Sampling(3), t_min=1e-3))
    keys = row_keys(jax.random.key(0), jnp.arange(rows))
    tokens, diagnostics = generate(exact_params(data), keys, empty_prompt(rows, brute.length))
    assert np.all(diagnostics.finite)
    np.testing.assert_array_equal(tokens, np.tile(brute.states[truth], (rows, 1)))


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


FLOAT64 = pytest.mark.usefixtures("float64")


@pytest.fixture
def noised(brute):
    """A data distribution, sparse under the absorbing graph, and the noise sigma."""
    support, sigma = (0.3, 0.05) if brute.name == "absorb" else (1.0, 3.0)
    return brute.space.random_data(0, support), sigma


def _table(brute, seed=0):
    """Log scores of a model that is wrong, its entries at the current token too."""
    shape = (len(brute.states), brute.length, brute.num_states)
    return np.random.default_rng(seed).normal(0, 1, shape)


def _any_distribution(brute):
    """A distribution over all sequences, of which some are impossible."""
    probs = np.random.default_rng(1).dirichlet(np.ones(len(brute.states)))
    probs[::5] = 0
    return probs / probs.sum()


def _k(r):
    """K(r) = r (log r - 1), 0 at 0."""
    return r * (np.log(r) - 1) if r > 0 else 0.0


def _explicit(brute, log_score, probs):
    """Eq. 5; w_xy = Q[x, y], the rate from y to x."""
    total = 0.0
    for x, i, token, y in brute.changes:
        if probs[x] > 0:
            s, r = np.exp(log_score[x, i, token]), probs[y] / probs[x]
            total += probs[x] * brute.generator[x, y] * (s - r * np.log(s) + _k(r))
    return total


def _implicit(brute, log_score, probs):
    """Eq. 6; the score of y towards x is at the token that x has where they differ."""
    total = 0.0
    for x, i, token, y in brute.changes:
        back = log_score[y, i, brute.states[x][i]]
        here = brute.generator[x, y] * np.exp(log_score[x, i, token])
        total += probs[x] * (here - brute.generator[y, x] * back)
    return total


def _denoising(brute, log_score, data, sigma):
    """Eq. 7 with the constant that Eq. 10 has, for every x_0 apart."""
    kernel = brute.transition(sigma)
    return sum(data[x0] * _explicit(brute, log_score, kernel[:, x0]) for x0 in np.flatnonzero(data))


def _squared(brute, score, probs):
    """Eq. 4, weighted."""
    total = 0.0
    for x, i, token, y in brute.changes:
        if probs[x] > 0:
            error = score[x, i, token] - probs[y] / probs[x]
            total += probs[x] * brute.generator[x, y] * error**2 / 2
    return total


def test_exact_ratios_are_0_where_the_sequence_is_impossible(brute):
    probs = _any_distribution(brute)
    got = exact_ratios(brute.space, probs)
    np.testing.assert_allclose(got, np.nan_to_num(brute.ratios(probs), nan=0), rtol=1e-14)


@FLOAT64
@TWO_SPACES
def test_explicit_score_entropy_is_equation_5(brute):
    table, probs = _table(brute), _any_distribution(brute)
    expected = _explicit(brute, table, probs)
    assert explicit_score_entropy(brute.space, table, probs) == pytest.approx(expected, rel=1e-6)


@FLOAT64
@TWO_SPACES
def test_implicit_score_entropy_is_equation_6(brute):
    table, probs = _table(brute), _any_distribution(brute)
    expected = _implicit(brute, table, probs)
    assert implicit_score_entropy(brute.space, table, probs) == pytest.approx(expected, rel=1e-6)


@FLOAT64
@TWO_SPACES
def test_concrete_score_matching_is_equation_4_with_weights(brute):
    score, probs = np.exp(_table(brute)), _any_distribution(brute)
    expected = _squared(brute, score, probs)
    assert concrete_score_matching(brute.space, score, probs) == pytest.approx(expected, rel=1e-6)


@FLOAT64
@TWO_SPACES
def test_denoising_score_entropy_is_equation_7_with_its_constant(brute, noised):
    table, (data, sigma) = _table(brute), noised
    expected = _denoising(brute, table, data, sigma)
    got = denoising_score_entropy(brute.space, table, data, sigma)
    assert got == pytest.approx(expected, rel=1e-6)


def _objectives(brute, data, sigma):
    """All four as functions of the log score, for the data at noise sigma."""
    space, marginal = brute.space, brute.marginal(data, sigma)
    return {
        "explicit": lambda table: explicit_score_entropy(space, table, marginal),
        "implicit": lambda table: implicit_score_entropy(space, table, marginal),
        "denoising": lambda table: denoising_score_entropy(space, table, data, sigma),
        "squared": lambda table: concrete_score_matching(space, jnp.exp(table), marginal),
    }


@FLOAT64
@TWO_SPACES
def test_score_entropies_differ_by_constants(brute, noised):
    data, sigma = noised
    objectives = _objectives(brute, data, sigma)

    @jax.jit
    def evaluate(table):
        return [objectives[name](table) for name in ("explicit", "implicit", "denoising")]

    values = np.array([evaluate(_table(brute, seed)) for seed in range(4)])
    assert values.dtype == np.float64
    assert np.ptp(values[:, 0]) > 0.01
    differences = values - values[:, :1]
    np.testing.assert_allclose(differences, differences[:1].repeat(4, 0), atol=ROUNDING * 10)


@FLOAT64
@TWO_SPACES
def test_gradients_are_0_at_the_truth_and_only_there(brute, noised):
    data, sigma = noised
    objectives = _objectives(brute, data, sigma)

    @jax.jit
    def gradients(table):
        return {name: jax.grad(objective)(table) for name, objective in objectives.items()}

    ratios = np.nan_to_num(brute.ratios(brute.marginal(data, sigma)), nan=1)
    truth = np.log(np.maximum(ratios, 1e-30))
    for name, gradient in gradients(truth).items():
        np.testing.assert_allclose(gradient, 0, atol=ROUNDING * ratios.max(), err_msg=name)
    for name, gradient in gradients(truth + 0.3 * _table(brute)).items():
        assert np.all(np.isfinite(gradient)) and np.abs(gradient).max() > 1e-5, name


@FLOAT64
@TWO_SPACES
def test_explicit_and_squared_losses_of_the_truth_are_0(brute, noised):
    data, sigma = noised
    marginal = brute.marginal(data, sigma)
    truth = np.nan_to_num(brute.ratios(marginal), nan=1)
    log_truth = np.log(np.maximum(truth, 1e-30))
    for objective, table in [
        (explicit_score_entropy, log_truth),
        (concrete_score_matching, truth),
    ]:
        assert objective(brute.space, table, marginal) == pytest.approx(0, abs=ROUNDING)

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sedd_jax.diffusion import noise as noises
from sedd_jax.inference.batches import row_keys
from sedd_jax.inference.prompt import free
from sedd_jax.inference.sampling import Sampling
from sedd_jax.inference.score_based import ScoreBased
from sedd_jax.model.score_model import dense_model
from sedd_jax.verification.exact.scores import exact_model, exact_params, tabulated

# float32 throughout, so that both precisions are asked about the same noise
SIGMAS = np.float32([1e-4, 1e-2, 0.5, 3, 6.9, 20])
SPARSE = 0.3
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


@pytest.mark.parametrize("precision", RTOL)
@pytest.mark.parametrize("support", [1.0, SPARSE])
@pytest.mark.parametrize("index", range(len(SIGMAS)), ids=map(str, SIGMAS))
def test_scores_of_possible_sequences_are_ratios_of_the_law(brute, support, precision, index):
    data = brute.space.random_data(0, support)
    marginal = brute.marginal(data, float(SIGMAS[index]))
    got = np.exp(_answers(brute, support, precision)[index][marginal > 0])
    expected = brute.ratios(marginal)[marginal > 0]
    positive = expected > 0
    assert positive.sum() > positive.size / 4
    np.testing.assert_allclose(got[positive], expected[positive], rtol=RTOL[precision])
    assert np.all(got[~positive] < 1e-20)


@pytest.mark.parametrize("precision", RTOL)
@pytest.mark.parametrize("brute", ["absorb-4-2", "absorb-3-3"], indirect=True)
@pytest.mark.parametrize("index", range(len(SIGMAS)), ids=map(str, SIGMAS))
def test_scores_among_impossible_sequences_are_those_of_the_guess(brute, precision, index):
    sigma = float(SIGMAS[index])
    marginal = brute.marginal(brute.space.random_data(0, SPARSE), sigma)
    guess = brute.ratios(brute.marginal(brute.space.uniform_data(), sigma))
    got = _answers(brute, SPARSE, precision)[index]
    assert not np.any(np.isnan(got[marginal == 0]))
    checked = 0
    for s, i, y, to in brute.changes:
        if marginal[s] == 0 and marginal[to] == 0:
            assert np.exp(got[s, i, y]) == pytest.approx(guess[s, i, y], rel=RTOL[precision])
            checked += 1
        elif marginal[s] == 0:  # towards possible sequences there is nearly no limit
            assert got[s, i, y] > np.log(1e20)
    assert checked > 10


@pytest.mark.parametrize("support", [1.0, SPARSE])
def test_log_score_is_0_at_the_current_token(brute, support):
    got = _answers(brute, support, "float64")
    for s, state in enumerate(brute.states):
        for i, x in enumerate(state):
            np.testing.assert_array_equal(got[:, s, i, x], 0)


def test_params_have_the_present_precision_and_init_is_the_guess(brute):
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
def test_tabulated_asks_once_per_sequence_and_hands_everything_on(brute):
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


@pytest.mark.parametrize(
    ("brute", "wrap"),
    [("absorb-4-2", tabulated), ("uniform-3-3", lambda model, space: model)],
    indirect=["brute"],
)
def test_a_generator_takes_the_exact_model(brute, wrap):
    # All mass on one sequence: whoever knows the truth can only draw that one.
    space, rows, steps = brute.space, 64, 3
    truth = brute.clean[len(brute.clean) // 2 + 1]
    data = np.zeros(len(brute.states))
    data[truth] = 1
    components = ScoreBased(space.graph, noises.loglinear(1e-3), wrap(exact_model(space), space))
    generate = jax.jit(
        components.generator(Sampling(steps), t_min=1e-3),
        compiler_options={"xla_backend_optimization_level": 0},
    )
    keys = row_keys(jax.random.key(0), jnp.arange(rows))
    tokens, diagnostics = generate(exact_params(data), keys, free(rows, brute.length))
    assert tokens.shape == (rows, brute.length)
    assert np.all(diagnostics.finite)
    assert diagnostics.changed.shape == (steps + 1, rows)
    np.testing.assert_array_equal(tokens, np.tile(brute.states[truth], (rows, 1)))

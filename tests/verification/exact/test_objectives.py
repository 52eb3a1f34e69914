import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sedd_jax.verification.exact.scores import (
    concrete_score_matching,
    denoising_score_entropy,
    exact_ratios,
    explicit_score_entropy,
    implicit_score_entropy,
)

ROUNDING = 1e-11


TWO_SPACES = pytest.mark.parametrize("brute", ["absorb-4-2", "uniform-3-3"], indirect=True)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(params=[(1.0, 3.0), (0.3, 0.05)], ids=["full", "sparse"])
def noised(brute, request):
    """A law of data and the noise sigma."""
    support, sigma = request.param
    return brute.space.random_data(0, support), sigma


def _table(brute, seed=0):
    """Log scores of a model that is wrong, its entries at the current token too."""
    shape = (len(brute.states), brute.length, brute.num_states)
    return np.random.default_rng(seed).normal(0, 1, shape)


def _any_law(brute):
    """A law over all sequences, of which some are impossible."""
    law = np.random.default_rng(1).dirichlet(np.ones(len(brute.states)))
    law[::5] = 0
    return law / law.sum()


def _k(r):
    """K(r) = r (log r - 1), 0 at 0."""
    return r * (np.log(r) - 1) if r > 0 else 0.0


def _explicit(brute, log_score, law):
    """Eq. 5; w_xy = Q[x, y], the rate from y to x."""
    total = 0.0
    for x, i, token, y in brute.changes:
        if law[x] > 0:
            s, r = np.exp(log_score[x, i, token]), law[y] / law[x]
            total += law[x] * brute.generator[x, y] * (s - r * np.log(s) + _k(r))
    return total


def _implicit(brute, log_score, law):
    """Eq. 6; the score of y towards x is at the token that x has where they differ."""
    total = 0.0
    for x, i, token, y in brute.changes:
        back = log_score[y, i, brute.states[x][i]]
        here = brute.generator[x, y] * np.exp(log_score[x, i, token])
        total += law[x] * (here - brute.generator[y, x] * back)
    return total


def _denoising(brute, log_score, data, sigma):
    """Eq. 7 with the constant that Eq. 10 has, for every x_0 apart."""
    kernel = brute.transition(sigma)
    return sum(data[x0] * _explicit(brute, log_score, kernel[:, x0]) for x0 in np.flatnonzero(data))


def _squared(brute, score, law):
    """Eq. 4, weighted."""
    total = 0.0
    for x, i, token, y in brute.changes:
        if law[x] > 0:
            error = score[x, i, token] - law[y] / law[x]
            total += law[x] * brute.generator[x, y] * error**2 / 2
    return total


def test_exact_ratios_are_those_of_the_law_and_0_without_one(brute):
    law = _any_law(brute)
    got = exact_ratios(brute.space, law)
    np.testing.assert_allclose(got, np.nan_to_num(brute.ratios(law), nan=0), rtol=1e-14)


def test_explicit_score_entropy_is_equation_5(brute):
    table, law = _table(brute), _any_law(brute)
    expected = _explicit(brute, table, law)
    assert explicit_score_entropy(brute.space, table, law) == pytest.approx(expected, rel=1e-6)


def test_implicit_score_entropy_is_equation_6(brute):
    table, law = _table(brute), _any_law(brute)
    expected = _implicit(brute, table, law)
    assert implicit_score_entropy(brute.space, table, law) == pytest.approx(expected, rel=1e-6)


def test_concrete_score_matching_is_equation_4_with_weights(brute):
    score, law = np.exp(_table(brute)), _any_law(brute)
    expected = _squared(brute, score, law)
    assert concrete_score_matching(brute.space, score, law) == pytest.approx(expected, rel=1e-6)


@TWO_SPACES
def test_denoising_score_entropy_is_equation_7_with_its_constant(brute, noised):
    table, (data, sigma) = _table(brute), noised
    expected = _denoising(brute, table, data, sigma)
    got = denoising_score_entropy(brute.space, table, data, sigma)
    assert got == pytest.approx(expected, rel=1e-6)


def _objectives(brute, data, sigma):
    """All four as functions of the log score, for the law of the data at noise sigma."""
    space, marginal = brute.space, brute.marginal(data, sigma)
    return {
        "explicit": lambda table: explicit_score_entropy(space, table, marginal),
        "implicit": lambda table: implicit_score_entropy(space, table, marginal),
        "denoising": lambda table: denoising_score_entropy(space, table, data, sigma),
        "squared": lambda table: concrete_score_matching(space, jnp.exp(table), marginal),
    }


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

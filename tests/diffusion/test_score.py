import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chisquare, entropy

import sedd_jax as sedd
from sedd_jax.diffusion.categorical import jump_probs
from sedd_jax.diffusion.denoiser import (
    denoise_probs,
    denoise_weights,
    tweedie_probs,
    tweedie_weights,
)
from sedd_jax.diffusion.euler import euler_probs, euler_weights
from sedd_jax.diffusion.importance import NoisedBatch
from sedd_jax.diffusion.objective import dwdse_loss, mean_dwdse_loss
from sedd_jax.diffusion.score import DenseScore, StepWeights
from sedd_jax.diffusion.score_entropy import entropy_terms, score_entropy, target
from tests.skewed import skewed

TOKENS = 5
GRAPHS = {
    "absorb": sedd.graph.absorbing(TOKENS),
    "uniform": sedd.graph.uniform(TOKENS),
    "hybrid": sedd.graph.hybrid(TOKENS, mask=0.6),
    "skewed": skewed(0.05, 0.4, 0.2, 0.1, 0.15, 0.1, mask=True),
}
# loglinear noise ends at 6.9, which is all that the absorbing graph is used with
SIGMA = {
    "absorb": np.array([1e-4, 1e-2, 0.5, 6.9], np.float32),
} | dict.fromkeys(("uniform", "hybrid", "skewed"), np.array([1e-4, 1e-2, 0.5, 20], np.float32))
SHAPE = (4, 6)
LEVEL = 1e-4  # of a chi-square test; keys are fixed, so a pass stays a pass
jit = functools.partial(
    functools.partial,
    jax.jit,
    compiler_options={
        "xla_backend_optimization_level": 0,
        "xla_llvm_disable_expensive_passes": True,
    },
)


@pytest.fixture(params=GRAPHS)
def name(request):
    return request.param


def tokens(name, shape=SHAPE):
    """Noised and clean tokens, every other position noised."""
    rng = np.random.default_rng(0)
    x0 = rng.integers(0, TOKENS, shape)
    states = GRAPHS[name].num_states
    noised = TOKENS if name == "absorb" else (x0 + rng.integers(1, states, shape)) % states
    xt = np.where(np.arange(shape[1]) % 2, x0, noised)
    return jnp.asarray(xt, jnp.int32), jnp.asarray(x0, jnp.int32)


def log_scores(name, scale=1.5):
    shape = (*SHAPE, GRAPHS[name].num_states)
    return jnp.asarray(np.random.default_rng(1).normal(0, scale, shape), jnp.float32)


def at(x, states):
    """Whether an entry [..., y] is that of x."""
    return np.asarray(x)[..., None] == np.arange(states)


def problem(name):
    graph = GRAPHS[name]
    return graph, jnp.asarray(SIGMA[name]), *tokens(name)


def size_of_terms(name):
    """What rounding errors of the entropy of every position are relative to."""
    graph, sigma, xt, x0 = problem(name)
    log_score = np.float64(log_scores(name))
    distribution = np.float64(graph.transition(x0, sigma))
    ratio = distribution / distribution[at(xt, graph.num_states)].reshape(*SHAPE, 1)
    logs = np.abs(log_score) + np.abs(np.log(np.maximum(ratio, 1e-30)))
    terms = np.exp(log_score) + ratio * (1 + logs)
    return np.where(at(xt, graph.num_states), 0, terms).sum(-1)


@jit(static_argnums=(0, 1))
def in_chunks(graph, order, log_score, sigma, xt, x0):
    """The entropy of every position from terms at a few states at a time, and its gradient."""

    def entropy(log_score):
        wanted = target(graph, sigma, xt, x0)
        chunks = np.array_split(np.array(order), 3)
        terms = [entropy_terms(wanted, jnp.array(s), log_score[..., s]).sum(-1) for s in chunks]
        value = wanted.weight * sum(terms)
        return value.sum(), value

    grad, value = jax.grad(entropy, has_aux=True)(log_score)
    return value, grad


@jit(static_argnums=0)
def dense(graph, log_score, sigma, xt, x0):
    def entropy(log_score):
        value = score_entropy(graph, log_score, sigma, xt, x0)
        return value.sum(), value

    grad, value = jax.grad(entropy, has_aux=True)(log_score)
    return value, grad


def test_terms_at_chunks_of_states_in_any_order_add_up_to_the_score_entropy(name):
    graph, sigma, xt, x0 = problem(name)
    log_score = log_scores(name)
    order = tuple(np.random.default_rng(2).permutation(graph.num_states).tolist())
    value, grad = in_chunks(graph, order, log_score, sigma, xt, x0)
    wanted, wanted_grad = dense(graph, log_score, sigma, xt, x0)
    scale = np.asarray(target(graph, sigma, xt, x0).weight) * size_of_terms(name)
    # a few roundings of 6e-8 each, and the ratio has two more
    assert (np.abs(value - wanted) <= 1e-6 * scale).all()
    assert (np.abs(grad - wanted_grad) <= 1e-6 * scale[..., None]).all()
    assert (np.asarray(value)[:, ::2] > 0).all()
    assert (np.asarray(value)[:, 1::2] > 0).all() == (name != "absorb")


def test_no_entry_that_is_ignored_overflows(name):
    """1e4, whose exp is infinite, at x_t and wherever the position has no loss."""
    graph, sigma, xt, x0 = problem(name)
    log_score = log_scores(name)
    ignored = at(xt, graph.num_states) | (np.asarray(graph.limit)[xt] == 0)[..., None]
    huge = jnp.where(ignored, 1e4, log_score)
    order = tuple(range(graph.num_states))
    value, grad = in_chunks(graph, order, huge, sigma, xt, x0)
    same, same_grad = in_chunks(graph, order, log_score, sigma, xt, x0)
    np.testing.assert_array_equal(value, same)
    np.testing.assert_array_equal(grad, same_grad)
    assert np.isfinite(value).all() and np.isfinite(grad).all()
    assert not np.asarray(grad)[ignored].any() and np.asarray(grad)[~ignored].any()


def test_dense_score_has_the_score_entropy(name):
    graph, sigma, xt, x0 = problem(name)
    score, wanted = DenseScore(xt, log_scores(name)), target(graph, sigma, xt, x0)
    entropy = np.asarray(score.entropy(wanted))
    exact, _ = dense(graph, score.log_score, sigma, xt, x0)
    scale = np.asarray(wanted.weight) * size_of_terms(name)
    assert (np.abs(entropy - exact) <= 1e-6 * scale).all()
    weight = jnp.array([0.0, 0.5, 1.0, 7.0])
    total = float(score.weighted_entropy(wanted, weight))
    assert total == pytest.approx(np.sum(np.float64(weight)[:, None] * entropy), rel=1e-6)


def test_shannon_entropy_is_that_of_the_normalised_ratios(name):
    xt, _ = tokens(name)
    log_score = np.float64(log_scores(name, scale=4)) + 3
    log_score[0, 0], log_score[0, 0, (xt[0, 0] + 1) % 5] = (
        -np.inf,
        2.0,
    )  # one state alone is possible
    log_score[at(xt, log_score.shape[-1])] = 50  # must not count
    active = np.broadcast_to(np.arange(SHAPE[1]) % 3 != 2, SHAPE)
    score = np.where(at(xt, log_score.shape[-1]), 0, np.exp(log_score))
    wanted = np.where(active, entropy(score, axis=-1), 0)
    found = DenseScore(xt, jnp.float32(log_score)).shannon_entropy(jnp.array(active))
    np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=2e-6)
    assert found[0, 0] == 0 and wanted.max() > 0.5


STEP = np.array([1e-3, 0.1, 1.0, 5.0], np.float32)  # of each row, in sigma


@pytest.mark.parametrize("rule", ["euler", "tweedie", "denoise"])
def test_a_distribution_has_the_weights_of_the_dense_rule(name, rule):
    graph, _, xt, _ = problem(name)
    at_xt = at(xt, graph.num_states)
    score = jnp.where(at_xt, 1, jnp.exp(log_scores(name)))
    total = jnp.where(at_xt, 0, score).sum(-1)
    step = jnp.asarray(STEP)
    step_weights_of, probs_of = {
        "euler": (euler_weights, euler_probs),
        "tweedie": (tweedie_weights, tweedie_probs),
        "denoise": (denoise_weights, denoise_probs),
    }[rule]
    step_weights = step_weights_of(graph, xt, total, step)
    # the entry at x_t is whatever a network says there
    got = np.asarray(step_weights.weights(xt, jnp.where(at_xt, -7, score)))
    wanted = np.asarray(probs_of(graph, xt, score, step))
    if rule == "denoise":  # has no column for the mask, which must leave
        assert not np.maximum(got[..., graph.num_tokens :], 0).any()
        got, at_xt = got[..., : graph.num_tokens], at_xt[..., : graph.num_tokens]
    # sums and differences of numbers up to the step's growth times the scores
    growth = STEP if rule == "euler" else np.expm1(STEP)
    away = growth[:, None] * np.asarray(graph.limit)[xt] * (1 + np.asarray(total))
    scale = at_xt + away[..., None]
    assert (np.abs(got - wanted) <= 1e-6 * scale).all()
    assert np.abs(wanted[~at_xt]).max() > 0.1


def test_weights_are_a_line_in_the_score_and_stay_at_xt():
    step_weights = StepWeights(
        scale=jnp.array([[2.0]]), cut=jnp.array([[0.5]]), stay=jnp.array([[-3.0]])
    )
    score = jnp.array([[[1.0, 9.0, 0.25]]])
    weights = step_weights.weights(jnp.array([[1]]), score)
    np.testing.assert_array_equal(weights, [[[1.0, -3.0, -0.5]]])
    np.testing.assert_array_equal(
        step_weights._replace(cut=None).weights(jnp.array([[1]]), score), [[[2.0, -3.0, 0.5]]]
    )


ROWS = 8192


@jit(static_argnums=(0, 1))
def drawn(graph, step_weights_of, keys, xt, log_score, step, active):
    score = DenseScore(xt, log_score)
    return score.draw(keys, lambda total: step_weights_of(graph, xt, total, step), active)


@pytest.mark.parametrize("step_weights_of", [tweedie_weights, denoise_weights])
def test_dense_draws_follow_the_distribution_where_active(name, step_weights_of):
    graph = GRAPHS[name]
    states = graph.num_states
    # masks, or tokens that stay or leave; the last position is not active
    xt = np.array([states - 1, 2, states - 1])
    log_score = np.random.default_rng(3).normal(0, 1, (3, states)).astype(np.float32)
    log_score[np.arange(3), xt] = 50  # must not count
    log_score -= np.log(states) * (name == "absorb")
    many = jax.tree.map(
        lambda x: jnp.broadcast_to(x, (ROWS, *x.shape)), (jnp.array(xt), jnp.array(log_score))
    )
    active = jnp.broadcast_to(jnp.array([True, True, False]), (ROWS, 3))
    keys = jax.random.split(jax.random.key(0), ROWS)
    draw = drawn(graph, step_weights_of, keys, *many, jnp.full(ROWS, 0.7), active)
    score = np.where(at(xt, states), 0, np.exp(log_score))
    total = score.sum(-1)
    np.testing.assert_allclose(draw.total[0, :2], total[:2], rtol=1e-6)
    assert (np.asarray(draw.total)[:, 2] == 0).all() and (np.asarray(draw.xt)[:, 2] == xt[2]).all()
    step_weights = step_weights_of(
        graph, jnp.array(xt[None]), jnp.array(total[None]), jnp.full(1, 0.7)
    )
    probs = jump_probs(step_weights.weights(jnp.array(xt[None]), jnp.array(score[None])))[0]
    for position in range(2):
        counts = np.bincount(draw.xt[:, position], minlength=states)
        expected = np.float64(probs[position]) * ROWS
        assert not counts[expected == 0].any()
        counts, expected = counts[expected > 0], expected[expected > 0]
        assert expected.min() > 5  # few enough states for a chi-square of all
        if len(counts) > 1:
            assert chisquare(counts, expected * ROWS / expected.sum()).pvalue > LEVEL


def test_the_loss_of_training_is_the_weighted_mean_of_the_loss(name):
    graph, _, xt, x0 = problem(name)
    noise = sedd.noise.loglinear(1e-3)
    t = jnp.array([0.01, 0.3, 0.6, 1.0])
    weight = jnp.array([0.2, 0.0, 3.0, 1.0])

    def score_fn(xt, sigma):
        return DenseScore(xt, log_scores(name) - sigma[:, None, None])

    loss = mean_dwdse_loss(graph, noise, score_fn, NoisedBatch(t, xt, weight), x0)
    each = np.float64(weight) * np.float64(dwdse_loss(graph, noise, score_fn, t, xt, x0))
    assert float(loss) == pytest.approx(each.mean(), rel=1e-5)

"""The objectives beside score entropy, against their definitions in matrices and loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sedd_jax.diffusion import graph as graphs
from sedd_jax.diffusion import noise as noises
from sedd_jax.diffusion.concrete_score import ConcreteScoreMatching
from sedd_jax.diffusion.cross_entropy import CrossEntropy
from sedd_jax.diffusion.d3pm import D3PM
from sedd_jax.diffusion.importance import NoisedBatch
from sedd_jax.diffusion.objective import ScoreEntropy
from sedd_jax.diffusion.output import Denoiser, LeaveOneOut
from sedd_jax.errors import BadInput

N, B, L = 4, 5, 3
GRAPHS = {
    "absorb": graphs.absorbing(N),
    "uniform": graphs.uniform(N),
    "hybrid": graphs.hybrid(N, mask=0.6),
}
NOISE = noises.loglinear(1e-2)
WEIGHT = np.array([0.5, 1, 2, 3, 1], np.float32)


def problem(name, times):
    """A batch at these times, and the logits of a network of one table."""
    graph, rng = GRAPHS[name], np.random.default_rng(0)
    x0 = jnp.asarray(rng.integers(0, N, (B, L)), jnp.int32)
    t = jnp.asarray(times, jnp.float32)
    xt = graph.sample_transition(jax.random.key(3), x0, NOISE.sigma(t))
    logits = jnp.asarray(rng.normal(0, 1, (B, L, graph.num_states)), jnp.float32)
    return graph, NoisedBatch(t, xt, jnp.asarray(WEIGHT)), x0, logits


def value(objective, output, graph, batch, x0, logits):
    def score_fn(xt, sigma):
        return output(graph).dense(sigma, xt, logits)

    return float(objective(graph, NOISE, score_fn, batch, x0))


@pytest.mark.parametrize(
    "objective",
    [ScoreEntropy(), CrossEntropy(), D3PM(10, 0.1), ConcreteScoreMatching()],
    ids=lambda objective: type(objective).__name__,
)
@pytest.mark.parametrize("name", ["absorb", "uniform"])
def test_held_positions_have_no_loss_and_no_gradient(name, objective):
    graph, batch, x0, logits = problem(name, TIMES)
    held = jnp.asarray(np.random.default_rng(5).random((B, L)) < 0.5)

    def loss(logits, held):
        xt = batch.xt if held is None else jnp.where(held, x0, batch.xt)
        noised = batch._replace(held=held, xt=xt)
        return objective(
            graph, NOISE, lambda xt, sigma: Denoiser(graph).dense(sigma, xt, logits), noised, x0
        )

    # a sum over positions: what is held in turn is what nothing held gives
    parts, whole = (
        sum(jax.value_and_grad(loss)(logits, each)[0] for each in helds)
        for helds in ((held, ~held), (None,))
    )
    np.testing.assert_allclose(parts, whole, rtol=1e-5)
    gradient = np.asarray(jax.grad(loss)(logits, held))
    assert not gradient[held].any()
    assert gradient[~held].any()


@pytest.mark.parametrize(
    "objective",
    [ScoreEntropy(), CrossEntropy(), D3PM(10, 0.1), ConcreteScoreMatching()],
    ids=lambda objective: type(objective).__name__,
)
@pytest.mark.parametrize("name", GRAPHS)
def test_noise_of_positions_is_that_of_rows_one_position_at_a_time(name, objective):
    graph, batch, x0, logits = problem(name, TIMES)
    t = jnp.asarray(np.random.default_rng(7).integers(1, 11, (B, L)) / 10, jnp.float32)
    of_positions = batch._replace(t=t, weight=jnp.ones((B, L)))
    parts = 0
    for i in range(L):
        others = jnp.broadcast_to(jnp.arange(L)[None] != i, (B, L))
        alone = NoisedBatch(t[:, i], batch.xt, jnp.ones(B), others)
        parts += value(objective, Denoiser, graph, alone, x0, logits)
    got = value(objective, Denoiser, graph, of_positions, x0, logits)
    np.testing.assert_allclose(got, parts, rtol=1e-5)


def matrix(graph, delta):
    """p(y | x) after noise delta, [x, y], in float64."""
    with jax.enable_x64(True):
        return np.asarray(graph.transition(jnp.arange(graph.num_states), jnp.float64(delta)))


TIMES = [0.1, 0.3, 0.5, 0.7, 1.0]


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("name", GRAPHS)
def test_cross_entropy(name, weighted):
    graph, batch, x0, logits = problem(name, TIMES)
    got = value(CrossEntropy(weighted), Denoiser, graph, batch, x0, logits)
    log_prob = np.log(jax.nn.softmax(logits[..., :N], axis=-1))
    total = 0
    for b, i in np.ndindex(B, L):
        if name == "absorb" and batch.xt[b, i] != graph.mask_id:
            continue
        factor = NOISE.dsigma(batch.t[b]) / np.expm1(NOISE.sigma(batch.t[b])) if weighted else 1
        total -= WEIGHT[b] * factor * log_prob[b, i, x0[b, i]]
    np.testing.assert_allclose(got, total / B, rtol=1e-5)


def test_score_entropy_of_a_softmax_is_the_weighted_cross_entropy_where_there_are_masks():
    problem_of = problem("absorb", TIMES)
    got = [value(each, Denoiser, *problem_of) for each in (ScoreEntropy(), CrossEntropy())]
    np.testing.assert_allclose(*got, rtol=1e-5)
    other = problem("uniform", TIMES)
    assert value(ScoreEntropy(), Denoiser, *other) != pytest.approx(
        value(CrossEntropy(), Denoiser, *other), rel=0.05
    )


@pytest.mark.parametrize("auxiliary", [0.0, 0.1])
@pytest.mark.parametrize("name", GRAPHS)
def test_d3pm_is_the_kl_of_posteriors_by_matrices(name, auxiliary):
    """With q(x_(i-1) | x_i, x0) by Bayes' rule, and the sum over predictions of x0 (Eq. 4)."""
    graph, batch, x0, logits = problem(name, TIMES)  # of 10 steps: 1, 3, 5, 7 and 10
    got = value(D3PM(10, auxiliary), LeaveOneOut, graph, batch, x0, logits)
    softmax = np.float64(jax.nn.softmax(logits[..., :N], axis=-1))
    total = 0
    for b, i in np.ndindex(B, L):
        xt, clean = int(batch.xt[b, i]), int(x0[b, i])
        if name == "absorb" and xt != graph.mask_id:
            continue
        t = float(batch.t[b])
        sigma = float(NOISE.sigma(t))
        before = float(NOISE.sigma(t - 0.1)) if t > 0.15 else 0.0
        to_before, step, whole = (matrix(graph, s) for s in (before, sigma - before, sigma))
        joint = to_before[:N] * step[:, xt]  # p(x_(i-1), x_i | x0), [x0, x_(i-1)]
        truth = joint[clean] / joint[clean].sum()
        model = softmax[b, i] @ joint
        model = model / model.sum()
        kl = sum(q * np.log(q / p) for q, p in zip(truth, model, strict=True) if q > 0)
        posterior = softmax[b, i] * whole[:N, xt]
        kl -= auxiliary * np.log(posterior[clean] / posterior.sum())
        total += WEIGHT[b] * 10 * kl
    np.testing.assert_allclose(got, total / B, rtol=2e-5)


@pytest.mark.parametrize("output", [Denoiser, LeaveOneOut])
@pytest.mark.parametrize("name", GRAPHS)
def test_d3pm_of_many_steps_is_score_entropy(name, output):
    graph, batch, x0, logits = problem(name, TIMES)
    got = value(D3PM(4000), output, graph, batch, x0, logits)
    wanted = value(ScoreEntropy(), output, graph, batch, x0, logits)
    # a step covers the rates of (t - 1/4000, t], here and at t = 1, where dsigma is 100, by 1 %
    np.testing.assert_allclose(got, wanted, rtol=0.01)


@pytest.mark.parametrize("name", GRAPHS)
def test_d3pm_of_one_step_is_cross_entropy(name):
    graph, batch, x0, logits = problem(name, np.ones_like(TIMES))
    batch = batch._replace(t=jnp.ones_like(batch.t))
    got = value(D3PM(1), Denoiser, graph, batch, x0, logits)
    wanted = value(CrossEntropy(weighted=False), Denoiser, graph, batch, x0, logits)
    np.testing.assert_allclose(got, wanted, rtol=1e-5)


@pytest.mark.parametrize("steps", [0, -3, 2**16 + 1])
def test_d3pm_without_steps_or_with_too_many(steps):
    with pytest.raises(BadInput, match=f"steps must be from 1 to 65536, got {steps}"):
        D3PM(steps)


@pytest.mark.parametrize("auxiliary", [-0.1, float("inf"), float("nan")])
def test_d3pm_with_an_auxiliary_loss_that_is_none(auxiliary):
    with pytest.raises(
        BadInput, match=f"auxiliary must not be negative or infinite, got {auxiliary}"
    ):
        D3PM(auxiliary=auxiliary)


@pytest.mark.parametrize("name", GRAPHS)
def test_concrete_score_matching(name):
    graph, batch, x0, logits = problem(name, TIMES)
    got = value(ConcreteScoreMatching(), Denoiser, graph, batch, x0, logits)
    score = np.exp(Denoiser(graph).dense(NOISE.sigma(batch.t), batch.xt, logits).log_score)
    total = 0
    for b, i in np.ndindex(B, L):
        xt, clean = int(batch.xt[b, i]), int(x0[b, i])
        if name == "absorb" and xt != graph.mask_id:
            continue
        kernel = matrix(graph, float(NOISE.sigma(batch.t[b])))
        ratio = kernel[clean] / kernel[clean, xt]
        other = (xt + 1) % N
        unit = kernel[other, other] / kernel[other, xt]  # to x0, of a token that has moved
        factor = NOISE.dsigma(batch.t[b]) / np.expm1(NOISE.sigma(batch.t[b]))
        others = [y for y in range(len(ratio)) if y != xt]
        errors = [((score[b, i, y] - ratio[y]) / unit) ** 2 / 2 for y in others]
        total += WEIGHT[b] * factor * sum(errors)
    np.testing.assert_allclose(got, total / B, rtol=1e-5)


def test_which_of_them_are_bounds():
    absorb, *others = GRAPHS.values()
    assert all(
        each.is_bound(graph) for each in (ScoreEntropy(), D3PM()) for graph in GRAPHS.values()
    )
    assert CrossEntropy().is_bound(absorb) and not any(map(CrossEntropy().is_bound, others))
    for other in (CrossEntropy(weighted=False), ConcreteScoreMatching(), D3PM(auxiliary=0.1)):
        assert not other.is_bound(absorb)

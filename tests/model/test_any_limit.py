"""The streamed head under a limiting distribution with another value at every state and a mask."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import expm
from scipy.stats import chisquare

from sedd_jax.diffusion import graph as graphs
from sedd_jax.diffusion.blend import Blend
from sedd_jax.diffusion.categorical import jump_probs
from sedd_jax.diffusion.denoiser import denoise_weights, tweedie_weights
from sedd_jax.diffusion.graph import ByLimit
from sedd_jax.diffusion.output import OUTPUTS
from sedd_jax.diffusion.score_entropy import target
from sedd_jax.model.tiles import Tiling, Unembedding
from sedd_jax.model.vocab_head import StreamedScore
from tests.model.test_vocab_head import (
    LEVEL,
    PADDED,
    WEIGHT,
    B,
    Case,
    D,
    L,
    V,
    assert_same_answers,
    drawing_problem,
    entropies,
    jit,
    on_mesh,
    problem,
    streamed,
    written_out,
)
from tests.skewed import skewed

RULES = {"tweedie": tweedie_weights, "denoise": denoise_weights}


def rule_weights(graph, number, xt, total, step):
    """Both rules share a program: the cut of the first one has nothing added at the mask."""
    tweedie, denoise = (rule(graph, xt, total, step) for rule in RULES.values())
    cut = dataclasses.replace(tweedie.cut, more_at_mask=jnp.zeros(xt.shape))
    both = tweedie._replace(cut=cut), denoise
    return jax.tree.map(lambda *parts: jnp.stack(parts)[number], *both)


@dataclasses.dataclass(frozen=True)
class Own(Case):
    """Probabilities over three decades, 0.2 on the mask, and a state that nothing moves to."""

    def graph(self, name=None):
        probs = np.random.default_rng(0).uniform(-3, 0, self.states - 1)
        probs = np.append(10.0**probs, 0)
        probs[5] = 0
        probs *= 0.8 / probs.sum()
        probs[-1] = 0.2
        return skewed(*probs.tolist(), mask=True)


PLACES = (Own(), Own(placement=on_mesh()))


def size_of_terms(arrays):
    """What rounding errors of the entropy of every position are relative to."""
    hidden, table, shift, xt, x0, sigma, _ = arrays
    graph = Own().graph()
    log_score = np.float64(written_out(Own(), hidden, table, shift, xt).log_score)
    noised = np.float64(graph.transition(x0, sigma))
    at_xt = np.asarray(xt)[..., None] == np.arange(V)
    ratio = noised / noised[at_xt].reshape(B, L, 1)
    logs = np.abs(log_score) + np.abs(np.log(np.maximum(ratio, 1e-30)))
    terms = np.where(at_xt, 0, np.exp(log_score) + ratio * (1 + logs)).sum(-1)
    return np.asarray(graph.limit)[np.asarray(xt)] * terms


@pytest.mark.parametrize("case", PLACES, ids=["one device", "mesh"])
def test_entropies_and_gradients_are_the_dense_ones(case):
    arrays = problem("uniform")
    xt, x0 = np.asarray(arrays[3]), np.asarray(arrays[4])
    assert (xt[xt != x0] != 5).all() and (xt == 7).any()  # reachable
    got, wanted = (
        jax.device_get(entropies(each, "own", form, *arrays))
        for each, form in ((case, streamed), (Own(), written_out))
    )
    assert_same_answers(got, wanted, size_of_terms(arrays), 2e-6)
    assert (wanted[0] > 0).all() == (xt != 5).all()


@jit(static_argnums=(0, 1))
def answers(case, form, number, keys, hidden, table, shift, xt, active, step, states):
    score = form(case, hidden, table, shift, xt)

    def weights(total):
        return rule_weights(case.graph(), number, xt, total, step)

    return score.draw(keys, weights, active), score.log_prob(weights, active, states)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "rule"), enumerate(RULES))
def test_draws_and_log_probabilities_are_the_dense_ones(number, rule):
    keys, *arrays, step = drawing_problem("uniform")
    active, table = arrays[-1], arrays[1].first(PADDED)
    arrays[1] = table._replace(bias=table.bias.at[V - 1].set(6))  # large ratios to the mask
    states = np.random.default_rng(9).integers(0, V, (B, L))
    states[:, :2] = V - 1  # the mask
    exact, log_prob = answers(Own(), written_out, number, keys, *arrays, step, jnp.array(states))
    drawn = []
    for case in PLACES:
        draw, found = answers(case, streamed, number, keys, *arrays, step, jnp.array(states))
        np.testing.assert_allclose(draw.total, exact.total, rtol=2e-6)
        np.testing.assert_allclose(found, log_prob, rtol=1e-5, atol=2e-5)
        drawn.append(np.asarray(draw.xt))
    assert ((drawn[0] != arrays[3]) & active).sum() > 4
    at_mask = np.asarray(log_prob)[(states == V - 1) & active & (np.asarray(arrays[3]) != V - 1)]
    assert len(at_mask) > 3 and np.isneginf(at_mask).all() == (rule == "denoise")


FEW, ROWS = 300, 4096


@pytest.mark.parametrize(("number", "rule"), enumerate(RULES))
def test_draws_follow_the_dense_weights(number, rule):
    rng = np.random.default_rng(6)
    hidden = jnp.array(rng.normal(0, 0.3, (1, 2, D)), jnp.float32)
    kernel = jnp.array(rng.normal(0, 1, (D, 384)), jnp.float32)
    table = Unembedding(kernel, jnp.full(384, 0.1).at[FEW - 1].set(6))  # large ratios to the mask
    case, xt = Own(FEW, Tiling(256, (4096,), 4096)), jnp.array([[FEW - 1, 140]])

    def rows(x):
        return jnp.broadcast_to(x, (ROWS, *x.shape[1:]))

    keys, step = jax.random.split(jax.random.key(7), ROWS), jnp.full(ROWS, 0.15)
    shift, active = jnp.zeros((1, 2)), np.ones((ROWS, 2), bool)
    arrays = rows(hidden), table, rows(shift), rows(xt), active, step, rows(xt)
    draw, _ = answers(case, streamed, number, keys, *arrays)
    score = jnp.exp(written_out(case, hidden, table, shift, xt).log_score)
    total = jnp.where(xt[..., None] == jnp.arange(FEW)[None, None], 0, score).sum(-1)
    rule_weights = RULES[rule](case.graph(), xt, total, step[:1])
    probs = np.float64(jump_probs(rule_weights.weights(xt, score)))[0]
    for place in range(2):
        counts, expected = np.bincount(draw.xt[:, place], minlength=FEW), ROWS * probs[place]
        assert not counts[expected == 0].any()
        assert place == 0 or (expected[-1] == 0) == (rule == "denoise")
        rare = expected < 5
        counts = np.append(counts[~rare], counts[rare].sum())
        expected = np.append(expected[~rare], expected[rare].sum())
        keep = expected >= 5
        counts, expected = counts[keep], expected[keep]
        assert chisquare(counts, expected * counts.sum() / expected.sum()).pvalue > LEVEL


@jit(static_argnums=(0, 1))
def blended(case, form, keys, hidden, table, shift, xt, active, others, states):
    other_hidden, other_xt, start, amount = others
    offset = ByLimit(amount, case.graph())
    blend = Blend(jnp.full_like(shift, 1.5), jnp.full_like(shift, -0.5), offset)
    score = form(case, hidden, table, shift, xt)
    score = score.blended(form(case, other_hidden, table, shift, other_xt), blend, start)

    def weights(total):
        return tweedie_weights(case.graph(), start, total, jnp.full(len(xt), 0.3))

    return score.draw(keys, weights, active).total, score.log_prob(weights, active, states)


def test_blends_are_the_dense_ones():
    keys, *arrays, _ = drawing_problem("uniform")
    hidden, xt = arrays[0], arrays[3]
    rng = np.random.default_rng(8)
    start = jnp.where(rng.random((B, L)) < 0.5, xt, (xt + 3) % V)
    others = hidden + 0.3, (xt + 3) % V, start, jnp.array(rng.uniform(0, 9, (B, L)), jnp.float32)
    states = jnp.array(rng.integers(0, V, (B, L)))
    exact = blended(Own(), written_out, keys, *arrays, others, states)
    found = blended(PLACES[1], streamed, keys, *arrays, others, states)
    for got, wanted in zip(found, exact, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)


@jit(static_argnums=(0, 1))
def of_softmax(case, name, hidden, table, xt, sigma, states, wanted):
    """Ratios, total and score entropy of a softmax, streamed and written out."""
    graph = case.graph()
    output = OUTPUTS[name](graph)
    shift = jnp.zeros(xt.shape)
    head = streamed(case, hidden, table, shift, xt)
    dense = output.dense(sigma, xt, written_out(case, hidden, table, shift, xt).log_score)
    both = StreamedScore.of_softmax(head.head, table, head.inputs, sigma, output), dense
    active = graph.limit[xt] > 0

    def weights(total):
        return tweedie_weights(graph, xt, total, sigma / 2)

    keys = jax.random.split(jax.random.key(0), len(xt))
    return [
        (
            jnp.where(active, score.at(states), 0),
            score.draw(keys, weights, active).total,
            score.entropy(wanted),
            score.weighted_entropy(wanted, WEIGHT),
        )
        for score in both
    ]


@pytest.mark.parametrize(("name", "case"), zip(OUTPUTS, PLACES, strict=True))
def test_a_softmax_has_the_dense_ratios(name, case):
    hidden, table, _, xt, x0, sigma, _ = problem("uniform", scale=0.5)
    states = np.random.default_rng(3).integers(0, V, (B, L))
    states[:, 0] = V - 1
    wanted = target(case.graph(), sigma, xt, x0)
    for got, exact in zip(
        *of_softmax(case, name, hidden, table, xt, sigma, jnp.array(states), wanted), strict=True
    ):
        np.testing.assert_allclose(got, exact, rtol=5e-5, atol=1e-5 * np.abs(exact).max())


@jit(static_argnums=(0, 1))
def log_probs_of(graph, name, sigma, xt, logits):
    found = OUTPUTS[name](graph).dense(sigma, xt, logits)
    return found.log_score, found.log_posterior


@pytest.mark.parametrize("name", OUTPUTS)
@pytest.mark.parametrize(
    "graph",
    [
        graphs.hybrid(3, mask=0.4),
        skewed(0.1, 0.5, 0.25, 0.15),
        skewed(0.1, 0.0, 0.6, 0.3, mask=True),
    ],
    ids=["hybrid", "skewed", "masked"],
)
def test_the_true_softmax_of_a_token_gives_the_true_ratios(graph, name):
    clean = np.array([0.5, 0.3, 0.2, 0] if graph.mask_id else [0.4, 0.3, 0.2, 0.1])
    sigma = np.array([0.05, 0.7, 3.0], np.float32)
    limit = np.float64(graph.limit)
    rate = np.outer(limit, np.ones(4)) - np.eye(4)
    kernel = np.stack([expm(noise * rate) for noise in np.float64(sigma)])
    noised = kernel @ clean
    posterior = kernel * clean / noised[..., None]  # [sigma, x_t, x0]
    q = posterior if name == "denoiser" else np.broadcast_to(clean, kernel.shape)
    with np.errstate(divide="ignore"):
        logits = np.log(np.float32(q)) + 3
    xt = np.tile(np.arange(4), (3, 1))
    log_score, log_posterior = log_probs_of(graph, name, sigma, xt, logits)
    moves, wanted = limit > 0, noised[:, None] / noised[..., None]
    np.testing.assert_allclose(np.exp(log_score)[:, moves], wanted[:, moves], rtol=2e-4)
    np.testing.assert_allclose(np.exp(log_posterior), posterior, atol=2e-5)

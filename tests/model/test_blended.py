"""Blends of two outputs, streamed, against those that are written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chisquare

from sedd_jax.diffusion.blend import Blend
from sedd_jax.diffusion.score import StepWeights
from sedd_jax.diffusion.score_entropy import target
from sedd_jax.diffusion.temperature import NO_FILTER, TokenFilter
from sedd_jax.model.tiles import Unembedding
from tests.model.test_vocab_head import (
    LEVEL,
    B,
    Case,
    D,
    L,
    V,
    drawing_problem,
    jit,
    on_mesh,
    streamed,
    written_out,
)

CUT = 1e-3


def both(case, form, hidden, table, shift, xt, others):
    """The blend of an output with the one of other hidden states and tokens."""
    other_hidden, other_xt, blend, start = others
    first = form(case, hidden, table, shift, xt)
    return first.blended(form(case, other_hidden, table, shift, other_xt), blend, start)


def step(total):
    """Weights with a cut and a stay, of any total."""
    return StepWeights(jnp.full_like(total, 0.5), jnp.full_like(total, CUT), 1 + 0 * total)


@jit(static_argnums=(0, 1))
def answers(case, form, keys, hidden, table, shift, xt, others, active, states):
    score = both(case, form, hidden, table, shift, xt, others)
    draw = score.draw(keys, step, active)
    return draw, score.log_prob(step, active, states), score.shannon_entropy(active)


@pytest.fixture(scope="module")
def problem():
    keys, hidden, table, shift, xt, *_ = drawing_problem("uniform")
    rng = np.random.default_rng(8)
    active = rng.random((B, L)) < 0.8
    other_xt = jnp.where(rng.random((B, L)) < 0.5, xt, (xt + 3) % V)
    start = jnp.where(rng.random((B, L)) < 0.5, xt, other_xt)
    uniform = [jnp.array(rng.uniform(*ends, (B, L)), jnp.float32) for ends in ((1, 2), (0.2, 0.8))]
    blend = Blend(uniform[0], -uniform[1], jnp.full((B, L), 0.01))
    others = hidden + 0.3 * jnp.array(rng.normal(0, 1, hidden.shape), jnp.float32), other_xt
    states = np.random.default_rng(9).integers(0, V, (B, L))
    for place, tokens in enumerate((xt, other_xt, start)):  # where one of the ratios is 1
        states = np.where(np.arange(L) % 4 == place, tokens, states)
    states = jnp.array(states, jnp.int32)
    return keys, hidden, table, shift, xt, (*others, blend, start), active, states


def test_blends_are_the_dense_ones(problem):
    exact, drawn = answers(Case(), written_out, *problem), []
    for case in (Case(), Case(placement=on_mesh())):
        draw, *rest = answers(case, streamed, *problem)
        np.testing.assert_allclose(draw.total, exact[0].total, rtol=1e-5)
        drawn.append(np.asarray(draw.xt))
        for found, wanted in zip(rest, exact[1:], strict=True):
            np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(*drawn)
    assert (drawn[0] != problem[5][3]).sum() > 4
    log_prob = np.asarray(exact[1])[np.asarray(problem[6])]
    assert np.isneginf(log_prob).any() and (log_prob > -9).sum() > 5  # clipped ones, and others


@jit(static_argnums=0)
def ratios(form, hidden, table, shift, xt, states):
    return form(Case(), hidden, table, shift, xt).at(states)


def test_the_ratio_of_one_state(problem):
    _, hidden, table, shift, xt, *_, states = problem
    exact = ratios(written_out, hidden, table, shift, xt, states)
    np.testing.assert_allclose(ratios(streamed, hidden, table, shift, xt, states), exact, rtol=1e-5)
    assert (np.asarray(exact)[np.asarray(states == xt)] == 1).all()


def test_a_blend_has_no_score_entropy(problem):
    _, hidden, table, shift, xt, others, *_ = problem
    score = both(Case(), streamed, hidden, table, shift, xt, others)
    wanted = target(Case().graph("uniform"), jnp.ones(B), xt, xt)
    for ask in (score.entropy, lambda it: score.weighted_entropy(it, jnp.ones(B))):
        with pytest.raises(TypeError, match="no score entropy"):
            ask(wanted)


FEW, ROWS = 300, 2048  # states, in three groups


@pytest.mark.slow
@pytest.mark.parametrize("token_filter", [NO_FILTER, TokenFilter(0.8, 0.9)], ids=["plain", "sharp"])
def test_draws_follow_the_blend(token_filter):
    rng = np.random.default_rng(6)
    hidden = jnp.array(rng.normal(0, 0.3, (2, 2, D)), jnp.float32)
    table = Unembedding(jnp.array(rng.normal(0, 1, (D, 384)), jnp.float32), jnp.full(384, 0.1))
    xt, other_xt, start = jnp.array([[7, 130], [7, 250], [250, 130]])
    blend = Blend(jnp.full(2, 2.0), jnp.full(2, -1.2), jnp.full(2, 0.05))

    @jit(static_argnums=(0, 1))
    def drawn(form, rows, keys):
        def every(x):
            return jnp.broadcast_to(x, (rows, *x.shape))

        others = every(hidden[1]), every(other_xt), Blend(*map(every, blend)), every(start)
        args = every(hidden[0]), table, jnp.zeros((rows, 2)), every(xt), others
        score = both(Case(FEW), form, *args)
        active = jnp.ones((rows, 2), bool)
        if form is written_out:
            return score.log_score
        return score.draw(keys, step, active, token_filter).xt

    found = np.asarray(drawn(streamed, ROWS, jax.random.split(jax.random.key(0), ROWS)))
    log_score = drawn(written_out, 1, None)[0]
    for place, token in enumerate(np.asarray(start)):
        away = np.maximum(np.exp(np.float64(log_score[place])) - CUT, 0) * 0.5
        away[token] = 0
        leave = away.sum() / (1 + away.sum())
        probs = np.asarray(token_filter(jnp.log(jnp.array(away))), float)
        probs *= leave / probs.sum()
        probs[token] = 1 - leave
        assert (probs == 0).sum() > 10
        counts = np.bincount(found[:, place], minlength=FEW)
        assert not counts[probs == 0].any()
        often = probs * ROWS > 5
        observed = np.append(counts[often], counts[~often].sum())
        expected = np.append(probs[often], probs[~often].sum()) * ROWS
        keep = expected > 0
        assert (
            chisquare(observed[keep], expected[keep] * observed.sum() / expected.sum()).pvalue
            > LEVEL
        )

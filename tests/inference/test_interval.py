"""Likelihood as an interval, of a network whose likelihood can be summed up."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sedd_jax as sedd
from sedd_jax.diffusion.padding import real_positions
from sedd_jax.errors import BadInput
from sedd_jax.experiment.config import Config
from sedd_jax.inference.interval import NLLInterval, nll_interval
from sedd_jax.inference.model import TrainedModel
from sedd_jax.inference.score_based import ScoreBased
from sedd_jax.model.score_model import dense_model

V, L = 3, 3  # with the mask
GRAPH, NOISE = sedd.graph.absorbing(V - 1), sedd.noise.loglinear()
# of every token at every position of every sequence: conditionals of no one distribution
LOGITS = np.random.default_rng(1).normal(0, 0.7, (V,) * L + (L, V))


def apply(params, xt, sigma, key=None, lengths=None):
    """Logits by the tokens of a row; its padding counts as mask."""
    del params, key
    if lengths is not None:
        xt = jnp.where(real_positions(lengths, xt.shape[1]), xt, V - 1)
    return jnp.asarray(LOGITS, jnp.float32)[tuple(xt.T)] - 0 * sigma[:, None, None]


MODEL = TrainedModel(ScoreBased(GRAPH, NOISE, dense_model(dict, apply)), {}, Config(), None, None)
TOKENS = np.array(list(itertools.product(range(V - 1), repeat=L)), np.int32)


def exact(x0, known=(), block=L):
    """-log p of the tokens that are not known: over all orders through the blocks."""
    free = [i for i in range(L) if i not in known]
    blocks = [free[i : i + block] for i in range(0, len(free), block)]
    probs = []
    for parts in itertools.product(*(itertools.permutations(it) for it in blocks)):
        xt, found = np.array([x0[i] if i in known else V - 1 for i in range(L)]), 1.0
        for i in itertools.chain(*parts):
            odds = np.exp(LOGITS[tuple(xt)][i, : V - 1])
            found *= odds[x0[i]] / odds.sum()
            xt[i] = x0[i]
        probs.append(found)
    return -np.log(np.mean(probs))


@functools.cache
def found(block=None, draws=64, seed=0):
    return nll_interval(jax.random.key(seed), MODEL, TOKENS, block=block, draws=draws)


@pytest.mark.parametrize("block", [2, 3])
def test_the_interval_holds_the_likelihood(block):
    """Of every sequence, up to the errors of the draws; the errors of all are those stated."""
    interval, wanted = found(block), np.array([exact(x0, block=block) for x0 in TOKENS])
    assert (interval.low_by_row < interval.high_by_row).all()
    assert np.abs(interval.high_by_row - wanted).max() < 0.3
    assert np.abs(interval.low_by_row - wanted).max() < 0.3
    for bound, error in (
        (interval.low, interval.low_stderr),
        (interval.high, interval.high_stderr),
    ):
        assert abs(bound - wanted.mean() / L) < 4 * error < 0.06
    assert interval.high < interval.evidence_bound
    assert 32 < interval.effective_draws < 64


def test_from_left_to_right_nothing_is_left_to_draw():
    interval = found(1, draws=2)
    wanted = np.array([exact(x0, block=1) for x0 in TOKENS])
    np.testing.assert_allclose(interval.low_by_row, wanted, rtol=1e-5)
    np.testing.assert_allclose(interval.high_by_row, wanted, rtol=1e-5)
    assert interval.effective_draws == pytest.approx(2) and np.isnan(interval.low_stderr)


def test_given_tokens_and_padding_are_not_scored():
    lengths, held = np.full(len(TOKENS), 2), np.zeros(TOKENS.shape, bool)
    held[:, 1] = True
    padded = nll_interval(jax.random.key(0), MODEL, TOKENS, lengths=lengths, block=1, draws=2)
    np.testing.assert_array_equal(padded.tokens, 2)
    shorter = found(1, draws=2).log_weights[:, :2].sum(1)
    np.testing.assert_allclose(padded.log_weights.sum(1), shorter, rtol=1e-5)

    def apply_told(*arguments, context, **options):
        del context  # it knows given tokens as it knows any
        return apply(*arguments, **options)

    told = dataclasses.replace(
        MODEL, family=MODEL.family._replace(model=dense_model(dict, apply_told, told_given=True))
    )
    given = nll_interval(jax.random.key(0), told, TOKENS, held=held, block=1, draws=2)
    wanted = [exact(x0, known=(1,), block=1) for x0 in TOKENS]
    np.testing.assert_allclose(given.high_by_row, wanted, rtol=1e-5)


def test_the_figures_are_those_of_the_key_and_not_of_the_batches():
    again = nll_interval(jax.random.key(0), MODEL, TOKENS, draws=3, batch_size=3)
    np.testing.assert_allclose(again.log_weights, found(draws=3).log_weights, rtol=1e-6)
    other = found(draws=3, seed=1)
    assert not np.allclose(again.log_weights, other.log_weights)
    assert len(np.unique(again.log_weights.round(5), axis=0)) == 3  # draws differ


def test_stated_errors_are_those_of_repetition():
    """Lognormal weights of two blocks; the second sequence has one block."""
    rng = np.random.default_rng(0)
    drawn = rng.normal(0, 0.8, (200, 8, 2, 2))
    drawn[:, :, 1, 1] = 0
    each = [NLLInterval(log_w, np.array([4, 2]), 2) for log_w in drawn]
    for name in ("low", "high"):
        spread = np.std([getattr(it, name) for it in each])
        stated = np.sqrt(np.mean([getattr(it, f"{name}_stderr") ** 2 for it in each]))
        assert 0.85 < stated / spread < 1.3  # the jackknife errs on the side of caution
    # log E w is 0.32 a block, of three blocks over six tokens
    assert np.mean([it.low for it in each]) < -0.16 < np.mean([it.high for it in each])


def test_what_has_no_interval_is_refused():
    with pytest.raises(BadInput, match="at least 2 draws, got 1: set draws"):
        nll_interval(jax.random.key(0), MODEL, TOKENS, draws=1)
    with pytest.raises(BadInput, match="block must be at least 1"):
        nll_interval(jax.random.key(0), MODEL, TOKENS, block=0)
    uniform = dataclasses.replace(
        MODEL, family=MODEL.family._replace(graph=sedd.graph.uniform(V - 1))
    )
    with pytest.raises(BadInput, match="this model has no upper bound that is known"):
        nll_interval(jax.random.key(0), uniform, TOKENS)

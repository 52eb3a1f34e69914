"""Bounds of rows that are compared on common random numbers, by `rows=` of `nll_bound`."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sedd_jax as sedd
from sedd_jax.diffusion.token_guess import guess_kl
from sedd_jax.errors import BadInput
from sedd_jax.experiment.config import Config
from sedd_jax.inference.build import build_family
from sedd_jax.inference.family import draw_times_by_number
from sedd_jax.inference.model import TrainedModel
from sedd_jax.inference.score_based import ScoreBased
from sedd_jax.model.config import ModelConfig
from sedd_jax.model.score_model import dense_model

PROBS = np.array([0.5, 0.3, 0.15, 0.05])  # of tokens that do not depend on each other
REST = np.array([2, 3, 0, 1])
CONTEXTS = ([], [1], [0, 3, 2])
KEY = jax.random.key(0)


@functools.cache
def independent(graph):
    """A model with the true scores of independent tokens, which see no context."""
    graph = sedd.graph.GRAPHS[graph](len(PROBS))

    def apply(params, xt, sigma, key=None, lengths=None):
        del params, key, lengths
        kept = jnp.exp(-sigma)[:, None]
        clean = jnp.zeros(graph.num_states).at[: len(PROBS)].set(PROBS)[None]
        log_p = jnp.log(kept * clean + (1 - kept) * graph.limit[None])
        return log_p[:, None] - jnp.take_along_axis(log_p, xt, 1)[..., None]

    family = ScoreBased(graph, sedd.noise.loglinear(), dense_model(dict, apply))
    return TrainedModel(family, {}, Config(), None, None)


def after_contexts(contexts=CONTEXTS, width=8):
    """The same continuation after contexts of different lengths, as arguments of `nll_bound`."""
    lengths = np.array([len(context) + len(REST) for context in contexts])
    tokens = np.zeros((len(contexts), width), int)
    for row, context in zip(tokens, contexts, strict=True):
        row[: len(context) + len(REST)] = [*context, *REST]
    given = lengths - len(REST)
    held = np.arange(width) < given[:, None]
    return {"tokens": tokens, "lengths": lengths, "held": held}


@pytest.mark.parametrize(
    ("graph", "complete"),
    [
        ("absorb", False),
        pytest.param("absorb", True, marks=pytest.mark.slow),
        pytest.param("uniform", True, marks=pytest.mark.slow),
    ],
)
def test_rows_of_a_number_have_the_same_noise_after_any_context(graph, complete):
    options = after_contexts() | {"draws": 3, "complete": complete}
    nats = sedd.nll_bound(KEY, independent(graph), **options, rows=[7, 7, 7]).nats
    np.testing.assert_allclose(nats[:, 1:], nats[:, :1].repeat(2, 1), rtol=1e-5)
    others = sedd.nll_bound(KEY, independent(graph), **options, rows=[7, 8, 7]).nats
    np.testing.assert_allclose(others[:, ::2], nats[:, ::2], rtol=1e-5)
    assert np.abs(others[:, 1] - nats[:, 1]).min() > 1e-3


def test_the_times_of_a_row_are_spread_over_its_draws():
    """One in every eighth of the quantiles; whatever other rows there are."""
    family, numbers = independent("absorb").family, np.array([5, 2, 5], np.uint32)
    drawn = draw_times_by_number(family, KEY, "low-discrepancy", 1e-3, 8, numbers)
    np.testing.assert_array_equal(np.sort(np.floor(drawn.quantiles * 8), 0)[:, 0], np.arange(8))
    np.testing.assert_array_equal(drawn.t[:, 0], drawn.t[:, 2])
    assert np.abs(drawn.t[:, 0] - drawn.t[:, 1]).max() > 0.01
    alone = draw_times_by_number(family, KEY, "low-discrepancy", 1e-3, 8, numbers[1:2])
    np.testing.assert_array_equal(alone.t, drawn.t[:, 1:2])


@pytest.mark.slow
@pytest.mark.parametrize("graph", ["absorb", "uniform"])
def test_the_bound_is_the_same_on_average(graph):
    """Exact, since the scores are true: how far KL(q || p) of the tokens falls in [t_min, 1]."""
    rows, model = 24, independent(graph)
    options = after_contexts([[1, 2]] * rows, width=6)
    found = sedd.nll_bound(KEY, model, **options, rows=np.arange(rows) + 2**32 - rows, draws=32)
    t_min = model.config.train.t_min
    first, last = model.noise.sigma(jnp.array([t_min, 1.0]))
    guess, tokens = jnp.float32(PROBS), jnp.asarray(REST)[None]
    falls = guess_kl(model.graph, guess, first[None], tokens) - guess_kl(
        model.graph, guess, last[None], tokens
    )
    wanted = float(falls.sum()) / (1 - t_min)
    assert wanted == pytest.approx(-np.log(PROBS[REST]).sum(), rel=5e-3)
    each = found.nats.mean(0)
    assert abs(each.mean() - wanted) < 4 * each.std() / np.sqrt(rows)
    assert each.std() < 0.2 * wanted


@pytest.mark.slow
def test_the_nodes_of_a_quadrature_have_no_number():
    options = after_contexts() | {"draws": 4, "times": "quadrature"}
    found = sedd.nll_bound(KEY, independent("absorb"), **options, rows=[1, 2, 1])
    np.testing.assert_allclose(found.nats[:, 0], found.nats[:, 2], rtol=1e-5)


@pytest.mark.parametrize("rows", [[0, 1], [-1, 0, 1], [0, 1, 2**32], [0.5, 1, 2]])
def test_numbers_that_are_none_are_refused(rows):
    with pytest.raises(BadInput, match=r"rows must be 3 whole numbers in \[0, 2\^32\)"):
        sedd.nll_bound(KEY, independent("absorb"), **after_contexts(), rows=rows)


@functools.cache
def causal():
    sizes = ModelConfig(hidden_size=8, num_blocks=1, num_heads=2, length=8, remat="none")
    config = dataclasses.replace(Config(family="autoregressive"), model=sizes)
    family = build_family(config, len(PROBS))
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: jnp.asarray(0.4 * rng.standard_normal(x.shape), jnp.float32),
        jax.eval_shape(family.model.init, KEY),
    )
    return TrainedModel(family, params, config, None, None)


@pytest.mark.slow
def test_given_a_prefix_an_autoregressive_value_is_a_difference():
    options = after_contexts(CONTEXTS[1:])
    found = sedd.nll_bound(KEY, causal(), **options, rows=[0, 0])
    held = options.pop("held")
    whole = sedd.nll_bound(KEY, causal(), **options).nats
    prefix = sedd.nll_bound(KEY, causal(), options["tokens"], lengths=held.sum(1)).nats
    np.testing.assert_allclose(found.nats, whole - prefix, rtol=1e-5)
    assert found.times == "exact" and found.tokens.tolist() == [4, 4]
    with pytest.raises(BadInput, match="must be a prefix"):
        sedd.nll_bound(KEY, causal(), **options, held=~held)

"""Guided outputs, streamed, against those that are written out."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sedd_jax.diffusion.blend import Blend
from sedd_jax.diffusion.denoiser import tweedie_weights
from sedd_jax.diffusion.temperature import NO_FILTER, TokenFilter
from sedd_jax.model.config import ModelConfig, TransformerConfig
from sedd_jax.model.rows import BLOCKS_OF
from sedd_jax.model.score_model import forward_flops, score_model
from sedd_jax.model.tiles import CPU
from tests.model.test_softmax_head import FEW_ROWS, score_of
from tests.model.test_vocab_head import Case, jit, on_mesh, problem

WEIGHTS = jnp.array([2.5, 1.0, 0.0, -0.5])  # one for every row
KINDS = ("ratio", "leave_one_out")


def outputs(case, form, name, kind):
    """Two outputs at the same tokens."""
    hidden, table, shift, xt, _, sigma, _ = problem(name, 0.3)
    other = hidden[::-1] + 0.2
    return tuple(
        score_of(case, form, name, kind, each, table, moved, xt, sigma)
        for each, moved in ((hidden, shift), (other, shift - 0.5))
    )


@jit(static_argnums=(0, 1, 2, 3, 4))
def answers(case, form, name, kind, token_filter):
    """All that a sampler asks of a guided output."""
    _, _, _, xt, x0, sigma, _ = problem(name, 0.3)
    graph = case.graph(name)
    score, other = outputs(case, form, name, kind)
    score, active = score.guided(other, WEIGHTS), graph.limit[xt] > 0
    at = jnp.where(active, score.at(x0), 0)
    if name == "absorb":
        at_all = jnp.broadcast_to(1 / jnp.expm1(sigma)[:, None], xt.shape)
        score = score.scaled_to(jnp.where(active, at_all, 0))
    if token_filter != NO_FILTER:
        score = score.tempered(token_filter)
    weights = functools.partial(tweedie_weights, graph, xt, delta_sigma=sigma / 3)
    draw = score.draw(jax.random.split(jax.random.key(0), len(xt)), weights, active)
    log_prob = jnp.maximum(score.log_prob(weights, active, x0), -40)
    return at, draw.total, log_prob, score.shannon_entropy(active)


def compare(case, name, kind, token_filter=NO_FILTER):
    wanted, got = (
        answers(*each, name, kind, token_filter) for each in ((Case(), "dense"), (case, "streamed"))
    )
    for exact, found in zip(wanted, got, strict=True):
        np.testing.assert_allclose(found, exact, rtol=1e-4, atol=1e-4)
    assert np.asarray(wanted[1]).any()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("absorb", "ratio"),
        ("uniform", "leave_one_out"),
        pytest.param("absorb", "denoiser", marks=pytest.mark.slow),
        pytest.param("uniform", "ratio", marks=pytest.mark.slow),
        pytest.param("uniform", "denoiser", marks=pytest.mark.slow),
    ],
)
def test_answers_are_those_written_out(name, kind):
    compare(Case(tiling=FEW_ROWS), name, kind)


@pytest.mark.slow
def test_a_mesh_gives_the_answers_of_one_device():
    compare(Case(tiling=FEW_ROWS, placement=on_mesh()), "uniform", "leave_one_out")


@pytest.mark.slow
def test_a_guided_output_is_tempered_as_any():
    # 0.4 is low enough for the bounds of the ratios
    compare(Case(tiling=FEW_ROWS), "uniform", "leave_one_out", TokenFilter(0.4, 0.8))


def test_only_added_terms_cost_a_second_product():
    def guide(name, kind):
        score, other = outputs(Case(), "streamed", name, kind)
        return score.guided(other, WEIGHTS).inputs.guide

    for key in (("uniform", "ratio"), ("absorb", "denoiser")):
        assert jax.eval_shape(functools.partial(guide, *key)) is None
    assert jax.eval_shape(functools.partial(guide, "uniform", "denoiser")) is not None


@pytest.mark.slow
def test_guided_outputs_are_blended():
    """As second-order samplers do, whose two evaluations are guided each."""
    _, _, _, xt, x0, _, _ = problem("uniform", 0.3)
    blend = Blend(jnp.full(xt.shape, 2.0), jnp.full(xt.shape, -0.7), jnp.full(xt.shape, 0.01))

    @jit(static_argnums=0)
    def ratios(form):
        score, other = outputs(Case(tiling=FEW_ROWS), form, "uniform", "leave_one_out")
        first, second = score.guided(other, 2.0), other.guided(score, 3.0)
        blended = first.blended(second, blend, x0)
        step = functools.partial(
            tweedie_weights, Case().graph("uniform"), x0, delta_sigma=jnp.ones(len(xt))
        )
        keys, active = jax.random.split(jax.random.key(1), len(xt)), jnp.ones(xt.shape, bool)
        return blended.at(xt), blended.draw(keys, step, active).total

    for found, exact in zip(ratios("streamed"), ratios("dense"), strict=True):
        np.testing.assert_allclose(found, exact, rtol=1e-4)


def test_factors_multiply_the_ratios():
    hidden, table, shift, xt, *_ = problem("uniform", 0.3)
    case = Case(states=5)
    factors = np.random.default_rng(0).normal(0, 1, (*xt.shape, 5)).astype(np.float32)
    factors[..., 2] = -np.inf
    factors = jnp.array(factors)
    arguments = hidden, table, shift, xt % 5, jnp.ones(len(xt))
    dense, streamed = (
        score_of(case, form, "uniform", "leave_one_out", *arguments).times(factors)
        for form in ("dense", "streamed")
    )
    away = np.arange(5) != np.asarray(xt % 5)[..., None]
    np.testing.assert_allclose(streamed.log_score[away], dense.log_score[away], rtol=1e-4)
    assert np.isneginf(streamed.log_score[..., 2]).all()


def test_tempered_outputs_are_not_guided():
    score, other = outputs(Case(), "streamed", "uniform", "ratio")
    with pytest.raises(TypeError, match="Tempered"):
        score.tempered(TokenFilter(0.5)).guided(other, 2.0)


def product_flops(jaxpr, rows):
    """FLOPs of the matrix products, where loops over the largest blocks go through `rows` rows."""
    total = 0
    for eqn in jaxpr.eqns:
        leaves = jax.tree.leaves(eqn.params, is_leaf=lambda x: hasattr(x, "eqns"))
        inner = [product_flops(each, rows) for each in leaves if hasattr(each, "eqns")]
        name = eqn.primitive.name
        if name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            shape = eqn.invars[0].aval.shape
            width = np.prod([shape[axis] for axis in contracted])
            total += 2 * width * np.prod(eqn.outvars[0].aval.shape)
        elif name == "while":
            largest = f"{BLOCKS_OF}{CPU.rows[0]}" in str(eqn.source_info.name_stack)
            total += largest * rows / CPU.rows[0] * sum(inner)
        else:
            total += max(inner, default=0) * eqn.params.get("length", 1)
    return total


@pytest.mark.parametrize(
    ("name", "most"), [("absorb", 1.9), pytest.param("uniform", 1.6, marks=pytest.mark.slow)]
)
def test_guidance_costs_less_than_two_evaluations(name, most):
    """At owt_small's shape; of the absorbing graph half of the positions are masked on average."""
    graph = Case(50_258).graph(name)
    sizes = ModelConfig(hidden_size=768, cond_dim=128, num_blocks=12, num_heads=12)
    config = TransformerConfig(sizes, graph.num_states, dtype=jnp.dtype("bfloat16"))
    model, xt, sigma = score_model(config), jnp.zeros((1, 1024), jnp.int32), jnp.ones(1)

    def evaluation(params, weight=None):
        score = model.score(params, xt, sigma)
        if weight is not None:
            score = score.guided(model.score(params, xt, sigma), weight)
        weights = functools.partial(tweedie_weights, graph, xt, delta_sigma=sigma)
        return score.draw(jax.random.split(jax.random.key(0), 1), weights, xt == 0).xt

    params = jax.eval_shape(model.init, jax.random.key(0))
    rows = xt.size / 2 if graph.absorbs else xt.size
    plain, guided = (
        product_flops(jax.make_jaxpr(evaluation)(params, *more).jaxpr, rows)
        for more in ((), (jnp.full(1, 2.0),))
    )
    forward = forward_flops(
        hidden_size=768,
        cond_dim=128,
        num_blocks=12,
        num_states=graph.num_states,
        length=1024,
        head_share=rows / xt.size * (1 if graph.absorbs else 2),  # twice where there is a cut
    )
    np.testing.assert_allclose(plain, forward, rtol=0.02)
    assert 1.5 < guided / plain < most

"""Whole rows of the streamed head, and softmax outputs on it, against what is written out."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sedd_jax.diffusion.denoiser import tweedie_weights
from sedd_jax.diffusion.output import OUTPUTS
from sedd_jax.diffusion.score_entropy import target
from sedd_jax.diffusion.temperature import TokenFilter
from sedd_jax.model.head_inputs import HeadInputs
from sedd_jax.model.tiles import StreamedHead
from sedd_jax.model.vocab_head import StreamedScore
from tests.model.test_vocab_head import (
    SMALL,
    Case,
    V,
    assert_near,
    jit,
    on_mesh,
    problem,
    written_out,
)

FEW_ROWS = SMALL._replace(kept=4 * 640)  # blocks of 4 rows
KINDS = ("ratio", *OUTPUTS)


def score_of(case, form, name, kind, hidden, table, shift, xt, sigma):
    if kind == "ratio":
        if form == "dense":
            return written_out(case, hidden, table, shift, xt)
        head = StreamedHead(case.states, case.tiling, case.placement)
        return StreamedScore(head, table, HeadInputs(hidden, shift, xt))
    output = OUTPUTS[kind](case.graph(name))
    if form == "dense":
        logits = written_out(case, hidden, table, jnp.zeros(xt.shape), xt).log_score
        return output.dense(sigma, xt, logits)
    head = StreamedHead(case.states, case.tiling, case.placement)
    inputs = HeadInputs(hidden, jnp.zeros(xt.shape), xt)
    return StreamedScore.of_softmax(head, table, inputs, sigma, output)


def terms(of_states, xt, x0, factor):
    """They depend on all that is known of a state."""
    other = jnp.where(x0 == xt, x0 - 1, x0)  # not x_t, where a log-score means nothing
    each = factor[..., None] * jnp.log1p(jnp.tanh(of_states.log_score / 30) ** 2)
    each = jnp.where(of_states.at(xt), 0, each + jnp.where(of_states.at(other), each, 0))
    if of_states.log_posterior is None:
        return each
    stays = jnp.exp(of_states.log_stays)[..., None]
    return each - jnp.where(of_states.at(x0), of_states.log_posterior + 3 * stays, 0)


@jit(static_argnums=(0, 1, 2, 3))
def answers(case, form, name, kind, hidden, table, shift, xt, x0, sigma, weight):
    """Two losses with their gradients, the entropies, and ratios and probabilities of states."""
    graph = case.graph(name)
    wanted, active = target(graph, sigma, xt, x0), graph.limit[xt] > 0
    score_fn = functools.partial(score_of, case, form, name, kind)

    factor = jnp.broadcast_to(weight[:, None], xt.shape)

    def losses(hidden, table, weight):
        score = score_fn(hidden, table, shift, xt, sigma)
        custom = score.weighted(terms, (xt, x0, factor), weight[:, None] * active)
        return 2 * custom, 3 * score.weighted_entropy(wanted, weight)

    def total(*x):
        both = losses(*x)
        return sum(both), both

    gradients = jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True)(hidden, table, weight)
    score = score_fn(hidden, table, shift, xt, sigma)
    weights = functools.partial(tweedie_weights, graph, xt, delta_sigma=sigma / 3)
    figures = (
        score.entropy(wanted),
        jnp.where(active, score.at(x0), 0),
        score.shannon_entropy(active),
        jnp.maximum(score.log_prob(weights, active, x0), -40),
    )
    return gradients, figures


def compare(case, name, kind):
    arrays = problem(name, 0.3)
    wanted, got = (
        jax.device_get(answers(*each, name, kind, *arrays))
        for each in ((Case(), "dense"), (case, "streamed"))
    )
    for leaf in jax.tree.leaves(got):
        assert np.isfinite(leaf).all()
    jax.tree.map(functools.partial(assert_near, rtol=2e-5), got, wanted)
    d_table = got[0][1][1]
    assert not d_table.kernel[:, V:].any() and not d_table.bias[V:].any()
    assert np.abs(d_table.kernel).max() > 1e-3


# under the absorbing graph the two softmaxes are one
@pytest.mark.parametrize(
    ("name", "kind"), [("absorb", "denoiser"), *(("uniform", kind) for kind in KINDS)]
)
def test_streamed_answers_are_those_written_out(name, kind):
    compare(Case(tiling=FEW_ROWS), name, kind)


@pytest.mark.slow
def test_a_mesh_gives_the_answers_of_one_device():
    compare(Case(tiling=FEW_ROWS, placement=on_mesh()), "uniform", "leave_one_out")


@pytest.mark.parametrize("top_p", [1.0, 0.8])
def test_a_softmax_is_tempered_as_any_score(top_p):
    hidden, table, shift, xt, x0, sigma, _ = problem("uniform", 0.3)
    graph = Case().graph("uniform")
    weights = functools.partial(tweedie_weights, graph, xt, delta_sigma=sigma / 3)

    @jit(static_argnums=0)
    def log_prob(form):
        score = score_of(
            Case(tiling=FEW_ROWS), form, "uniform", "leave_one_out", hidden, table, shift, xt, sigma
        )
        # 0.4 is low enough for the bounds of the ratios
        tempered = score.tempered(TokenFilter(temperature=0.4, top_p=top_p))
        return jnp.maximum(tempered.log_prob(weights, jnp.ones(xt.shape, bool), x0), -40)

    np.testing.assert_allclose(log_prob("streamed"), log_prob("dense"), atol=2e-3)

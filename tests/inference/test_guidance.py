"""What guides a sampler, from its settings to the ratios."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sedd_jax.diffusion import graph as graphs
from sedd_jax.diffusion import noise as noises
from sedd_jax.errors import BadInput
from sedd_jax.inference.guidance import build_guided
from sedd_jax.inference.prompt import Prompt
from sedd_jax.inference.sampling import Sampling
from sedd_jax.inference.score_based import ScoreBased
from sedd_jax.model.context import NOTHING, Context
from sedd_jax.model.score_model import dense_model

ROWS, LENGTH, TOKENS = 2, 3, 4
XT, SIGMA = jnp.array([[0, 3, 1], [2, 2, 3]]), jnp.array([0.5, 2.0])
CONDITION = {"class": jnp.array([3, 1]), "activity": jnp.array([0.5, -0.2])}
GRAPH = graphs.uniform(TOKENS)
KNOWN = {"context": Context(condition=CONDITION)}


def told(xt, condition):
    """Log-scores by class and activity, and other ones where a row is not told them."""
    alone = (condition["class"] == -1) & jnp.isnan(condition["activity"])
    shift = jnp.where(alone, 0, condition["class"] + condition["activity"])
    return jnp.sin(shift[:, None, None] + xt[..., None] + jnp.arange(TOKENS)[None, None])


def apply(params, xt, sigma, key=None, lengths=None, context=NOTHING):
    return told(xt, context.condition) if context.condition else jnp.zeros((*xt.shape, TOKENS))


MODEL = dense_model(lambda key: {}, apply)


def likes(graph, token=0):
    """Evidence that is linear in the tokens."""

    def evidence(tokens, sigma):
        here = tokens == token if tokens.ndim == 2 else tokens[..., token]
        return -here.sum(-1) * sigma

    return evidence


def ratios(known=KNOWN, **settings):
    sampling = Sampling(**settings)
    return build_guided(GRAPH, MODEL, sampling)({}, known)(XT, SIGMA).log_score


def test_guidance_is_towards_the_condition_of_each_row():
    alone = told(XT, {"class": jnp.full(2, -1), "activity": jnp.full(2, jnp.nan)})
    conditional = told(XT, CONDITION)
    assert np.abs(conditional - alone).max() > 0.5
    for weight in (0.0, 1.0, 2.5):
        wanted = weight * conditional + (1 - weight) * alone
        np.testing.assert_allclose(ratios(guidance=weight), wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["exact", "first_order"])
def test_the_power_is_of_all_evidence_but_a_constraint(kind):
    classifier = {"classifier": f"{__name__}:likes(token=2)", "classifier_ratios": kind}
    plain = ratios(guidance=2.0)
    away = (np.arange(TOKENS) != 2).astype(int) - (np.asarray(XT) != 2)[..., None]
    factors = away * np.asarray(SIGMA)[:, None, None]
    np.testing.assert_allclose(ratios(guidance=2.0, **classifier), plain + 2 * factors, atol=1e-5)
    constrained = ratios(guidance=2.0, constraint=f"{__name__}:likes(token=2)")
    np.testing.assert_allclose(constrained, plain + factors, atol=1e-5)


def test_the_masks_of_guided_rows_are_left_as_scheduled():
    graph = graphs.absorbing(TOKENS - 1)

    def total(**settings):
        guided = build_guided(graph, MODEL, Sampling(guidance=2.0, **settings))({}, KNOWN)
        score = jnp.exp(guided(XT, SIGMA).log_score)[graph.mask_id == XT]
        return score[:, : graph.num_tokens].sum(-1)

    scheduled = 1 / np.expm1(np.asarray(SIGMA))
    np.testing.assert_allclose(total(), scheduled, rtol=1e-5)
    blended = total(sampler="theta_trapezoidal")  # needs the ratios themselves
    assert (np.abs(blended / scheduled - 1) > 0.1).all()


@pytest.mark.slow
def test_generated_rows_keep_a_constraint():
    graph = graphs.absorbing(TOKENS - 1)
    family = ScoreBased(graph, noises.loglinear(), MODEL)
    sampling = family.sampling(sampler="first_hitting", constraint="count(tokens=(1,), at_most=1)")
    generator = jax.jit(family.generator(sampling, t_min=1e-3))
    rows = 32
    prompt = Prompt(jnp.zeros((rows, LENGTH), jnp.int32), jnp.zeros((rows, LENGTH), bool))
    tokens, _ = generator({}, jax.random.split(jax.random.key(0), rows), prompt)
    counts = (np.asarray(tokens) == 1).sum(-1)
    assert set(counts) == {0, 1} and np.asarray(tokens).max() < graph.mask_id


def asked(**settings):
    return ScoreBased(GRAPH, noises.loglinear(), MODEL).sampling(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"guidance": float("nan")}, "guidance must be finite"),
        ({"classifier": "likes"}, "classifier must be package.module:function"),
        ({"classifier": f"{__name__}:likes(kind=2)"}, "has the options token, got kind"),
        ({"constraint": "count"}, r"tokens must be ids in \[0, 4\)"),
        ({"constraint": "most(tokens=(1,))"}, "constraint must be one of count, forbid"),
        ({"classifier_ratios": "second_order"}, "must be one of exact, first_order"),
        ({"classifier_ratios": "first_order"}, "are those of a classifier: give one"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(BadInput, match=message):
        asked(**settings)


@pytest.mark.parametrize(
    ("known", "settings", "message"),
    [
        ({}, {"guidance": 2.0}, "guidance=2 has nothing to guide by"),
        (
            {"lengths": jnp.array([3, 2])},
            {"constraint": "forbid(tokens=(1,))"},
            "takes rows without padding",
        ),
    ],
)
def test_rows_that_cannot_be_guided_are_refused(known, settings, message):
    with pytest.raises(BadInput, match=message):
        ratios(known, **settings)

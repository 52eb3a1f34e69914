"""Audits of objectives on the smallest spaces: what is right passes, what is wrong is caught."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import exact_absorb, exact_uniform
from sedd_jax.diffusion.objective import mean_dwdse_loss
from sedd_jax.diffusion.output import OUTPUTS, output_named
from sedd_jax.diffusion.score_entropy import target
from sedd_jax.experiment.config import parse
from sedd_jax.inference import score_based
from sedd_jax.inference.build import build_family
from sedd_jax.inference.score_based import OBJECTIVES, objective_named
from sedd_jax.system.registry import split_options
from sedd_jax.verification import audit, objectives
from sedd_jax.verification.exact.objectives import true_logits, true_model
from sedd_jax.verification.exact.reverse_process import ReverseProcess
from sedd_jax.verification.exact.scores import exact_model, exact_params
from sedd_jax.verification.exact.space import Space
from sedd_jax.verification.objectives import gradients, minimum, numbers, random_process
from sedd_jax.verification.report import ExactConfig

CONFIGS = {"absorb": exact_absorb, "uniform": exact_uniform}


@functools.cache
def settings(graph, output="ratio", **train):
    """The config of two tokens and two positions, its pieces, its space and data."""
    values = CONFIGS[graph].get_config()
    values.data.vocab_size = values.model.length = 2
    values.model.output = output
    values.model.scale_by_sigma &= output == "ratio"
    values.train.update(train)
    config = parse(values, ExactConfig)
    family = build_family(config, 2)
    space = Space(family.graph, 2)
    return config, family, space, space.random_data(1)


def output_of(graph, kind):
    return output_named(kind, settings(graph)[2].graph)


def true_process(graph, kind="ratio"):
    _, family, space, data = settings(graph)
    model = true_model(output_of(graph, kind), space)
    return ReverseProcess(family._replace(model=model), exact_params(data), space)


def minimum_of(objective, graph, kind="ratio"):
    _, family, space, data = settings(graph)
    return minimum(objective, output_of(graph, kind), space, family.noise, data)


def snapshots(graph, noise, score_fn, batch, x0):
    """The mean over t of -log p(x0 | x_t), without the weight that makes it a bound."""
    return objective_named("cross_entropy(weighted=False)")(graph, noise, score_fn, batch, x0)


def too_small(graph, noise, score_fn, batch, x0):
    return 0.99 * mean_dwdse_loss(graph, noise, score_fn, batch, x0)


def larger_ratios(graph, noise, score_fn, batch, x0):
    sigma = noise.sigma(batch.t)
    wanted = target(graph, sigma, batch.xt, x0)
    wanted = wanted._replace(ratio=tuple(1.1 * ratio for ratio in wanted.ratio))
    return score_fn(batch.xt, sigma).weighted_entropy(wanted, batch.weight / len(x0))


def ratios_without_their_sum(graph, noise, score_fn, batch, x0):
    """Cross-entropy of the ratios divided by their sum over the tokens."""
    log_score = score_fn(batch.xt, noise.sigma(batch.t)).log_score  # written out
    log_probs = jax.nn.log_softmax(log_score[..., : graph.num_tokens])
    each = -jnp.take_along_axis(log_probs, x0[..., None], axis=-1)[..., 0]
    weight = batch.weight[:, None] / len(x0) * (batch.xt == graph.mask_id)
    return jnp.sum(weight * each)


def per_mask(graph, noise, score_fn, batch, x0):
    """The mean over the masks of the batch, whose number varies."""
    masks = jnp.sum(batch.weight[:, None] * (batch.xt == graph.mask_id)) / len(x0)
    return snapshots(graph, noise, score_fn, batch, x0) / jnp.maximum(masks, 1e-6)


snapshots.is_bound = too_small.is_bound = lambda graph: True


def failed(reported):
    return [claim.statement for claim in audit._bound_claims(reported) if not claim.holds]


@pytest.mark.parametrize(
    ("graph", "kind", "name"),
    [
        ("uniform", "leave_one_out", "score_entropy"),
        ("uniform", "denoiser", "d3pm(steps=6)"),
        pytest.param("absorb", "denoiser", "cross_entropy", marks=pytest.mark.slow),
        pytest.param("absorb", "ratio", "score_entropy", marks=pytest.mark.slow),
        pytest.param("absorb", "denoiser", "d3pm(steps=6)", marks=pytest.mark.slow),
        pytest.param("uniform", "leave_one_out", "d3pm(steps=6)", marks=pytest.mark.slow),
    ],
)
def test_bounds_are_bounds_for_every_clean_sequence(graph, kind, name):
    config, family, space, _ = settings(graph, kind)
    objective = objective_named(name)
    assert audit.claims_bound(objective, space.graph)
    random = random_process(config, family, space)
    reported = {
        "true": numbers(objective, true_process(graph, kind), 1e-3),
        "random": numbers(objective, random, 1e-3),
    }
    assert failed(reported) == []
    assert reported["random"].gap > 1e-4
    if name == "score_entropy":  # by the reverse process of whole sequences, independently
        bound = true_process(graph, kind).bound(
            space.transition(float(family.noise.sigma(1.0))).T @ space.uniform_data(), 1e-3
        )
        np.testing.assert_allclose(reported["true"].reported, bound.total, atol=1e-5)


def test_a_mean_of_snapshots_is_no_bound():
    """The sum of exp(-number) tells so without any likelihood."""
    reported = {"true": numbers(snapshots, true_process("absorb", "denoiser"), 1e-3)}
    assert reported["true"].total > 1.2 and reported["true"].gap < -0.2
    assert len(failed(reported)) == 2


def test_one_percent_less_than_score_entropy_is_no_bound():
    reported = {"true": numbers(too_small, true_process("uniform"), 1e-3)}
    assert len(failed(reported)) == 2


@pytest.mark.parametrize(
    ("graph", "kind", "name"),
    [
        ("absorb", "denoiser", "d3pm(steps=6, auxiliary=0.01)"),
        ("uniform", "ratio", "concrete_score_matching"),
        ("uniform", "denoiser", "cross_entropy(weighted=False)"),
        pytest.param("absorb", "ratio", "concrete_score_matching", marks=pytest.mark.slow),
        pytest.param("uniform", "leave_one_out", "d3pm(steps=6)", marks=pytest.mark.slow),
    ],
)
def test_the_true_scores_are_the_minimum(graph, kind, name):
    found = minimum_of(objective_named(name), graph, kind)
    assert found.at_truth < 1e-9 and found.elsewhere > 1e-6
    assert found.summary == "true ratios"


def test_a_minimum_elsewhere_is_found():
    found = minimum_of(larger_ratios, "uniform")
    assert found.at_truth > 1e-3
    assert found.distance == pytest.approx(np.log(1.1), rel=1e-3)
    assert found.summary == "other ratios, by up to 0.095 nats"


def test_a_free_factor_is_found():
    found = minimum_of(ratios_without_their_sum, "absorb")
    assert found.at_truth < 1e-9 and found.elsewhere > 1e-4
    assert found.summary == "true ratios up to a factor"


@pytest.mark.slow
def test_the_gradient_of_a_batch_is_that_of_the_expectation(monkeypatch):
    monkeypatch.setattr(objectives, "DRAWS", 512)
    name = "cross_entropy(weighted=False)"
    config, family, space, data = settings("absorb", "denoiser", batch_size=4, objective=name)
    process = random_process(config, family, space)
    right = gradients(config, process, data)
    assert right.bias < audit.MAX_BIAS and right.variance > 1
    for module in (objectives, score_based):
        monkeypatch.setattr(module, "objective_named", lambda _: per_mask)
    assert gradients(config, process, data).bias > 2 * audit.MAX_BIAS


def test_true_logits_give_the_true_ratios():
    """Bayes' rule on whole sequences, and the closed forms of the outputs."""
    with jax.enable_x64(True):
        for graph in CONFIGS:
            _, _, space, data = settings(graph)
            outputs = [output_of(graph, kind) for kind in OUTPUTS]

            @jax.jit
            def log_scores(data, xt, sigma, space=space, outputs=outputs):
                logits = [true_logits(each, space, data, xt, sigma) for each in outputs]
                scores = [
                    output.dense(sigma, xt, each).log_score
                    for output, each in zip(outputs, logits, strict=True)
                ]
                return exact_model(space).apply({"data": data}, xt, sigma), scores

            exact, found = log_scores(data, space.states, np.full(len(space.states), 0.4))
            active = np.asarray(space.graph.limit)[space.states] > 0
            for log_score in found:
                np.testing.assert_allclose(log_score[active], exact[active], atol=1e-9)


def test_every_objective_of_the_library_is_audited():
    for graph in CONFIGS:
        config, _, space, _ = settings(graph)
        rows = audit.pairs_of(space)
        audit.check_audits(config, rows)
        assert {split_options(name, "objective")[0] for _, name in rows} == {*OBJECTIVES.names}


@pytest.mark.slow
def test_an_audit_reports_claims_and_a_row(monkeypatch):
    monkeypatch.setattr(objectives, "DRAWS", 64)
    config, _, space, data = settings("absorb", steps=400, batch_size=64)
    audits = (("ratio", "score_entropy"), ("ratio", "concrete_score_matching"))
    entropy, concrete, metropolis, table = audit.check_objectives(config, audits, space, data)
    assert [claim.statement for claim in entropy.claims if not claim.holds] == []
    assert len(entropy.claims) == 10 and len(concrete.claims) == 3
    assert metropolis.claims[0].holds
    *_, variance, distance = table.tables[0].rows[0]
    assert variance == 1 and distance < 0.02
    claims = [row[2] for row in table.tables[0].rows]
    assert claims == ["yes", "no"]

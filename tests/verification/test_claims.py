"""Every claim of `sedd_jax.exact`, on smaller spaces; and that claims fail when they should."""

import dataclasses

import jax
import numpy as np
import pytest

from configs import exact_absorb, exact_hybrid, exact_uniform
from sedd_jax.diffusion import denoiser
from sedd_jax.diffusion import noise as noises
from sedd_jax.diffusion.second_order import ThetaTrapezoidal
from sedd_jax.experiment.build import build_graph
from sedd_jax.experiment.config import parse
from sedd_jax.inference.build import build_family
from sedd_jax.inference.sampling import sampler_named
from sedd_jax.verification import adaptive, conditioning, correctors, order, samplers, scores
from sedd_jax.verification.adaptive import check_adaptive
from sedd_jax.verification.conditioning import check_conditioning
from sedd_jax.verification.correctors import check_correctors
from sedd_jax.verification.exact import reverse_process, two_stage
from sedd_jax.verification.exact.space import Space
from sedd_jax.verification.order import check_order
from sedd_jax.verification.report import ExactConfig
from sedd_jax.verification.samplers import check_samplers
from sedd_jax.verification.scores import check_scores
from sedd_jax.verification.training import check_bound, check_training

SHARE = {"hybrid": "hybrid(mask=0.3)"}  # with more masks Euler's order shows at more steps only
SCHEDULES = {"loglinear": noises.loglinear(), "geometric": noises.geometric(1e-4, 20.0)}


def space_of(graph, length=2):
    return Space(build_graph(SHARE.get(graph, graph), 3), length)


@pytest.fixture(autouse=True)
def one_noise_level(monkeypatch):
    """One program instead of three; the tests of exact scores go through six levels."""
    monkeypatch.setattr(scores, "SIGMAS", (0.7,))


def failed(section):
    return [(claim.statement, claim.figure) for claim in section.claims if not claim.holds]


@pytest.mark.parametrize(
    ("graph", "support"),
    [
        pytest.param("absorb", 1.0, marks=pytest.mark.slow),
        ("absorb", 0.3),
        ("uniform", 1.0),
        pytest.param("uniform", 0.3, marks=pytest.mark.slow),
        ("hybrid", 0.3),
        pytest.param("hybrid", 1.0, marks=pytest.mark.slow),
    ],
)
def test_claims_on_scores(graph, support):
    space = space_of(graph)
    section = check_scores(space, SCHEDULES, space.random_data(0, support))
    assert failed(section) == []
    assert len(section.claims) == 15


@pytest.fixture(scope="module")
def sampled():
    """The sections on samplers by graph and schedule; one program draws for each graph."""

    def section(graph, names, drawn_steps=()):
        space = space_of(graph)
        return check_samplers(
            space,
            {name: SCHEDULES[name] for name in names},
            space.random_data(1),
            t_min=1e-3,
            max_steps=64,
            drawn_steps=drawn_steps,
            num_samples=16_384,
            num_distributions=2,
        )

    return {
        "absorb": section("absorb", SCHEDULES),
        "uniform, loglinear": section("uniform", ["loglinear"]),
        "uniform, geometric": section("uniform", ["geometric"], (16,)),
        "hybrid, loglinear": section("hybrid", ["loglinear"]),
    }


def test_claims_on_samplers(sampled):
    for name, section in sampled.items():
        assert failed(section) == [], name
    assert [len(section.claims) for section in sampled.values()] == [8, 2, 2, 2]


def test_tweedie_and_euler_under_uniform_geometric_noise(sampled):
    """The order that was found with 3 tokens and length 2: Tweedie ahead from 4 steps on."""
    table = sampled["uniform, geometric"].tables[0]
    column = {name: i for i, name in enumerate(table.columns)}
    for row in table.rows[2:]:
        assert row[column["TV, tweedie"]] < row[column["TV, euler"]]


def test_claims_on_samplers_fail_for_a_sampler_that_is_off(monkeypatch):
    """Delta sigma in place of the schedule's rate is right, half of it is not."""

    def slow_tweedie(graph, noise, xt, total, t, t_next):
        return sampler_named("tweedie").weights(graph, noise, xt, total, t, (t + t_next) / 2)

    monkeypatch.setitem(samplers.RULES, "tweedie", slow_tweedie)
    space = space_of("uniform")
    section = check_samplers(
        space,
        {"loglinear": SCHEDULES["loglinear"]},
        space.random_data(0),
        t_min=1e-3,
        max_steps=64,
        drawn_steps=(),
        num_samples=0,
        num_distributions=1,
    )
    assert failed(section)


@pytest.mark.slow
@pytest.mark.parametrize("graph", ["absorb", "uniform"])
def test_claims_on_orders(graph):
    space = space_of(graph, 3)
    section = check_order(
        space, SCHEDULES, space.random_data(0), t_min=1e-3, evaluations=(8,), num_samples=16_384
    )
    assert failed(section) == []
    assert len(section.claims) == 11
    for table in section.tables[1:]:
        _, *of_first, trapezoid = table.rows[0]
        assert trapezoid < min(of_first)


@pytest.mark.slow
def test_the_trapezoid_is_of_second_order_by_its_extrapolation(monkeypatch):
    space = space_of("uniform", 3)
    monkeypatch.setattr(order, "ORDERS", {"theta_trapezoidal": 2})

    def failures():
        two_stage._step.cache_clear()
        schedules = {"loglinear": SCHEDULES["loglinear"]}
        settings = {"t_min": 1e-3, "evaluations": (8,)}
        return failed(check_order(space, schedules, space.random_data(0), **settings))

    assert failures() == []
    monkeypatch.setattr(ThetaTrapezoidal, "factors", (0.0, 1.0))  # two steps of first order
    ((statement, slope_off),) = failures()
    assert "theta_trapezoidal" in statement and slope_off > 0.8
    two_stage._step.cache_clear()


@pytest.mark.parametrize(
    "graph",
    [*(pytest.param(name, marks=pytest.mark.slow) for name in ("absorb", "hybrid")), "uniform"],
)
def test_claims_on_correctors(graph, monkeypatch):
    monkeypatch.setattr(correctors, "STEPS", (32, 64))
    space = space_of(graph)
    schedules = {"loglinear": SCHEDULES["loglinear"]}
    section = check_correctors(space, schedules, space.random_data(1), t_min=1e-3)
    assert failed(section) == []
    worst, *least_likely = section.tables[0].rows
    assert worst[3] > 0.01  # both positions at once
    assert all(row[2] > 0.01 for row in least_likely)  # even one
    move = correctors.gibbs_move

    def hesitant(*args):
        found = move(*args)

        def weights(total):
            right = found.weights(total)
            return right._replace(stay=right.stay + 0.1)

        return found._replace(weights=weights)

    monkeypatch.setattr(correctors, "gibbs_move", hesitant)
    section = check_correctors(space, schedules, space.random_data(1), t_min=1e-3)
    assert failed(section)[0][0].startswith("Gibbs: TV after a move")


@pytest.mark.slow
def test_claims_on_adaptive_samplers(monkeypatch):
    space = space_of("absorb")
    data, drawn, sample = space.random_data(1, 0.6), {}, adaptive.sample_frequencies

    def once(process, sampler, **settings):
        if sampler not in drawn:
            drawn[sampler] = sample(process, sampler=sampler, **settings)
        return drawn[sampler]

    def section():
        noise = SCHEDULES["loglinear"]
        return check_adaptive(space, noise, data, t_min=1e-3, num_samples=8192)

    monkeypatch.setattr(adaptive, "sample_frequencies", once)
    found = section()
    assert failed(found) == [] and len(found.claims) == 6
    evaluations, tv = [[row[column] for row in found.tables[0].rows] for column in (1, 2)]
    assert evaluations[0] > evaluations[-3] == 1 and tv[-1] > 0.05
    # one position more than the bound allows, in what is computed and not in what is drawn
    within = adaptive.within_bound
    monkeypatch.setattr(adaptive, "within_bound", lambda *args: within(*args) + 1)
    assert len(failed(section())) >= 3


def conditioned(graph, max_steps=32, **schedules):
    space = space_of(graph, length=3)
    return check_conditioning(
        space, schedules, space.random_data(1), t_min=1e-3, max_steps=max_steps
    )


def test_claims_on_given_tokens(monkeypatch):
    section = conditioned("absorb", loglinear=SCHEDULES["loglinear"])
    assert failed(section) == [] and len(section.claims) == 2
    # what is drawn for a free position when held tokens are not seen is not Bayes'
    monkeypatch.setattr(reverse_process, "clamped", lambda probs, given: probs)
    assert len(failed(conditioned("absorb", loglinear=SCHEDULES["loglinear"]))) == 2


@pytest.mark.slow
def test_clamping_is_an_approximation_under_the_uniform_graph_and_copies_mend_it(monkeypatch):
    monkeypatch.setattr(conditioning, "NUM_SAMPLES", 512)
    section = conditioned("uniform", 16, loglinear=SCHEDULES["loglinear"])
    assert failed(section) == [] and len(section.claims) == 3
    column = section.tables[1].columns.index("TV, tweedie")
    coarse, fine = (row[column] for row in section.tables[1].rows[-2:])
    assert fine > 0.02 and fine > 0.7 * coarse  # more steps do not mend it


@pytest.mark.slow
def test_copies_that_are_not_weighed_fail_the_claims(monkeypatch):
    monkeypatch.setattr(reverse_process, "_weighted", reverse_process.clamped)
    monkeypatch.setattr(conditioning, "NUM_PARTICLES", 1)
    assert len(failed(conditioned("uniform", 16, loglinear=SCHEDULES["loglinear"]))) == 3


def short(config, **train):
    """The config on two positions, with a shorter training."""
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, length=2),
        train=dataclasses.replace(config.train, **train),
    )


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(module, marks=pytest.mark.slow)
        for module in (exact_absorb, exact_uniform, exact_hybrid)
    ],
    ids=["absorb", "uniform", "hybrid"],
)
def trained(request):
    """A shortened config, its pieces and data, and what its training gave."""
    config = short(parse(request.param.get_config(), ExactConfig), steps=400, batch_size=128)
    family = build_family(config, config.data.vocab_size)
    space = Space(family.graph, 2)
    data = space.random_data(2)
    result = check_training(
        config,
        family,
        space,
        data,
        set_sizes=(16, 65_536),
        sampler_steps=32,
        num_samples=16_384,
    )
    return config, family, space, data, result


def test_training_recovers_the_data(trained):
    *_, result = trained
    few, many = result.section.tables[0].rows
    assert many[2] < 0.05 < few[2]  # TV of the samples to the data
    assert few[3] < 0.05  # ... to the 16 sequences that were shown
    of_distribution, of_samples, p_value = result.section.claims
    assert of_distribution.figure == many[2] and abs(of_samples.figure - many[2]) < 0.02
    assert p_value.holds


@pytest.mark.slow
def test_the_bound_of_an_untrained_uniform_network_holds_and_is_no_entropy():
    config = short(parse(exact_uniform.get_config(), ExactConfig))
    family = build_family(config, 3)
    space = Space(family.graph, 2)
    params = family.model.init(jax.random.key(0))
    data = space.random_data(2)
    section = check_bound(config, family, params, space, data, repeats=16)
    assert failed(section) == []
    terms = dict(section.tables[0].rows)
    assert terms["bound"] > terms["entropy of the data"] + 0.1


def test_a_score_that_is_no_number_fails_the_claims(monkeypatch):
    def broken(*args):
        return np.nan * denoiser.tweedie_probs(*args)

    monkeypatch.setattr("sedd_jax.verification.scores.tweedie_probs", broken)
    space = space_of("uniform")
    section = check_scores(space, {"loglinear": SCHEDULES["loglinear"]}, space.random_data(0))
    broken_claims = [statement for statement, _ in failed(section)]
    assert any("Eq. 19" in statement for statement in broken_claims)
    assert (
        sum("Thm. 4.2" in statement or "1e-3 off" in statement for statement in broken_claims) >= 2
    )


def test_claims_on_the_bound(trained):
    config, family, space, data, result = trained
    section = check_bound(config, family, result.params, space, data, repeats=32)
    assert failed(section) == []
    terms = dict(section.tables[0].rows)
    assert terms["entropy of the data"] < terms["exact -log p"] < terms["bound"]

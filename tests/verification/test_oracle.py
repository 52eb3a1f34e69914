"""The oracle of samplers at real length, on rows that are short here."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest

from configs import oracle_markov
from sedd_jax.diffusion import graph as graphs
from sedd_jax.diffusion import noise as noises
from sedd_jax.diffusion.tweedie import Tweedie
from sedd_jax.errors import BadInput
from sedd_jax.experiment.config import parse
from sedd_jax.inference.sampling import Sampling
from sedd_jax.verification import oracle as oracle_module
from sedd_jax.verification import oracle_report
from sedd_jax.verification.markov import random_model
from sedd_jax.verification.oracle import Excess, Oracle, OracleConfig, check_oracle_settings
from sedd_jax.verification.oracle_report import Figure, oracle_sections

LENGTH = 32


def small(**settings):
    config = parse(oracle_markov.get_config(), OracleConfig)
    small = {"max_steps": 8, "evaluations": 4096, "max_length": 64} | settings
    oracle = dataclasses.replace(config.oracle, **small)
    model = dataclasses.replace(config.model, length=LENGTH)
    return dataclasses.replace(config, oracle=oracle, model=model)


@pytest.fixture(scope="module")
def oracle():
    return Oracle(random_model(0, 8, 0, 0.3), LENGTH, seed=0)


def test_excess_of_the_data_is_zero_and_of_others_is_not(oracle):
    own = oracle.excess(oracle.data(4000, jax.random.key(0)))
    assert abs(own.mean) < 4 * own.error < 0.03 and own.impossible == 0
    assert own.bigram_tv < 0.02
    shuffled = np.random.default_rng(0).permuted(oracle.data(400, jax.random.key(1)), axis=1)
    other = oracle.excess(shuffled)
    assert other.mean > 20 * other.error and other.bigram_tv > 0.1


@pytest.mark.slow
def test_the_entropy_of_an_hmm_is_estimated_with_an_error(monkeypatch):
    monkeypatch.setattr(oracle_module, "ENTROPY_TOKENS", 2**18)
    oracle = Oracle(random_model(0, 4, 3, 0.5), LENGTH, seed=0)
    assert 0 < oracle.entropy_error < 4e-3 and 0 < oracle.entropy < np.log(4)
    own = oracle.excess(oracle.data(2000, jax.random.key(0)))
    assert abs(own.mean) < 4 * own.error


def excess(oracle, graph, noise, sampling, rows, first_row=0):
    return oracle.excess(*oracle.draw(graph, noise, sampling, rows, 1e-3, first_row))


@pytest.mark.parametrize("name", [pytest.param("absorb", marks=pytest.mark.slow), "uniform"])
def test_gibbs_is_nearer_than_tweedie_at_equal_evaluations(oracle, name):
    graph, noise = graphs.GRAPHS[name](8), noises.loglinear()
    found = {
        sampler: excess(oracle, graph, noise, Sampling(sampler=sampler, steps=8), 1000)
        for sampler in ("tweedie", "gibbs")
    }
    tweedie, gibbs = found["tweedie"], found["gibbs"]
    assert tweedie.mean > 10 * tweedie.error
    assert gibbs.mean + 4 * gibbs.error < tweedie.mean / 2
    assert gibbs.bigram_tv < tweedie.bigram_tv


class Biased(Tweedie):
    """A sampler that is off: it ends with a token that it likes."""

    def final(self, keys, process, state):
        state, info = super().final(keys, process, state)
        return state._replace(xt=state.xt * 0), info


@pytest.mark.slow
def test_a_sampler_of_ones_own_is_measured_and_a_wrong_one_fails():
    config = small()
    samplers = ("tweedie", f"{__name__}:Biased")
    check_oracle_settings(config, samplers)
    data, absorb = itertools.islice(oracle_sections(config, samplers), 2)
    assert all(claim.holds for claim in data.claims)
    assert [row[:2] for row in absorb.tables[0].rows] == [(name, 9) for name in samplers]
    assert [claim.holds for claim in absorb.claims][-1] is False


def figures(**excess):
    """Figures of samplers at 8, 16, 32, ... steps, as (mean, error, bigram TV)."""
    return [
        Figure(name, 8 * 2**i, 8 * 2**i + 1, 4, Excess(mean, error, 0, tv, 0))
        for name, points in excess.items()
        for i, (mean, error, tv) in enumerate(points)
    ]


def test_the_best_sampler_is_drawn_anew_and_must_reach_the_error_of_tweedie(oracle, monkeypatch):
    def drawn(*args):
        asked.append(args[1:])
        return Figure(*args[1:3], args[2] + 1, args[3], Excess(mean, 1e-4, 0, 0.02, 0))

    monkeypatch.setattr(oracle_report._Case, "figure", drawn)
    monkeypatch.setattr(Oracle, "seconds", lambda self, *args: np.array([[1.0, 8.0]] * 3))
    case = oracle_report._Case(oracle, "absorb", graphs.absorbing(8), None, small(evaluations=4000))
    errors = (1e-3, 1e-3, 1e-3)
    tweedie = [(2.0 / n + 1.0 / n**2, e, 0.5 / n) for n, e in zip((9, 17, 33), errors, strict=True)]
    # too likely, and so far from the data that it is not the best
    sure = [(-0.5, 1e-3, 0.1)] * 3
    measured = figures(tweedie=tweedie, confidence=sure, gibbs=[(0.02, 1e-3, 0.1), (1e-4, 1e-3, 0)])
    asked, mean = [], 0.003
    section = oracle_report._check_best(case, measured)
    assert asked == [("gibbs", 16, 1000, 2**30)]
    reached, of_tv = section.claims
    np.testing.assert_allclose(reached.limit, 2 / 513 + 1 / 513**2, rtol=1e-6)
    np.testing.assert_allclose(of_tv.limit, 0.5 / 513, rtol=1e-6)
    assert reached.holds and section.tables[1].rows[0][-1] == 1 / 8
    mean = -0.004  # too likely is as far off
    assert not oracle_report._check_best(case, measured).claims[0].holds


def test_other_rows_are_other_draws_and_evaluations_are_counted(oracle):
    graph, noise = graphs.absorbing(8), noises.loglinear()
    sampling = Sampling(sampler="first_hitting", steps=16)
    first, other = (excess(oracle, graph, noise, sampling, 8, row) for row in (0, 2**30))
    assert first.mean != other.mean
    assert 10 < first.evaluations < 17


@pytest.mark.slow
def test_seconds_are_those_of_rounds_of_all_ways(oracle):
    ways = [Sampling(steps=1), Sampling(steps=64)]
    seconds = oracle.seconds(graphs.uniform(8), noises.loglinear(), ways, 2, 1e-3)
    assert seconds.shape == (3, 2) and (seconds > 0).all()


def test_two_tokens_and_two_positions():
    oracle = Oracle(random_model(0, 2, 0, 0.3), 2, seed=0)
    found = excess(oracle, graphs.absorbing(2), noises.loglinear(), Sampling(steps=8), 64)
    assert np.isfinite([found.mean, found.error, found.bigram_tv]).all()


class Neither(Tweedie):
    """A sampler of no graph here."""

    def serves(self, graph):
        return False


@pytest.mark.parametrize(
    ("sampler", "words"),
    [
        ("no_such", "no_such"),
        ("os.path:join", "os.path:join"),
        ("gibbs(spacing=1)", "spacing must be at least 2"),
        (f"{__name__}:Neither", "serves neither graph"),
    ],
)
def test_what_is_no_sampler(sampler, words):
    with pytest.raises(BadInput, match=words):
        check_oracle_settings(small(), (sampler,))


@pytest.mark.parametrize(
    ("group", "settings", "words"),
    [
        ("oracle", {"max_steps": 12}, r"oracle\.max_steps must be a power of 2"),
        ("oracle", {"hidden": 2000}, r"oracle\.hidden must be at most 1024, got 2000"),
        ("model", {"length": 1}, r"model\.length must be at least 2, got 1"),
        ("data", {"vocab_size": 1}, r"data\.vocab_size must be from 2 to 1024, got 1"),
        ("data", {"vocab_size": 50_257}, r"data\.vocab_size must be from 2 to 1024"),
    ],
)
def test_settings_that_are_refused(group, settings, words):
    config = small()
    changed = {group: dataclasses.replace(getattr(config, group), **settings)}
    with pytest.raises(BadInput, match=words):
        check_oracle_settings(dataclasses.replace(config, **changed), ())


def test_one_position_has_no_neighbours():
    with pytest.raises(BadInput, match="at least 2 tokens, got length=1"):
        Oracle(random_model(0, 2, 0, 0.3), 1, seed=0)

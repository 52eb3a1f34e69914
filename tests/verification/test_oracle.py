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
from sedd_jax.verification.markov import random_model
from sedd_jax.verification.oracle import Oracle, OracleConfig, check_oracle_settings
from sedd_jax.verification.oracle_report import oracle_sections

LENGTH = 32


def small(**settings):
    config = parse(oracle_markov.get_config(), OracleConfig)
    oracle = dataclasses.replace(
        config.oracle, max_steps=8, evaluations=4096, max_length=64, **settings
    )
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


def test_the_entropy_of_an_hmm_is_estimated_with_an_error(monkeypatch):
    monkeypatch.setattr(oracle_module, "ENTROPY_TOKENS", 2**18)
    oracle = Oracle(random_model(0, 4, 3, 0.5), LENGTH, seed=0)
    assert 0 < oracle.entropy_error < 4e-3 and 0 < oracle.entropy < np.log(4)
    own = oracle.excess(oracle.data(2000, jax.random.key(0)))
    assert abs(own.mean) < 4 * own.error


@pytest.mark.parametrize("name", [pytest.param("absorb", marks=pytest.mark.slow), "uniform"])
def test_gibbs_is_nearer_than_tweedie_at_equal_evaluations(oracle, name):
    graph, noise = graphs.GRAPHS[name](8), noises.loglinear()
    found = {
        sampler: oracle.sample(graph, noise, Sampling(sampler=sampler, steps=8), 1000, 1e-3)
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


@pytest.mark.parametrize(
    ("settings", "samplers", "words"),
    [
        ({"hidden": 0}, ("no_such",), "no_such"),
        ({}, ("os.path:join",), "os.path:join"),
    ],
)
def test_what_is_no_sampler(settings, samplers, words):
    with pytest.raises(BadInput, match=words):
        check_oracle_settings(small(**settings), samplers)


def test_settings_that_are_refused():
    config = small()
    odd = dataclasses.replace(config.oracle, max_steps=12)
    with pytest.raises(BadInput, match=r"oracle\.max_steps must be a power of 2"):
        check_oracle_settings(dataclasses.replace(config, oracle=odd), ())
    one = dataclasses.replace(config.model, length=1)
    with pytest.raises(BadInput, match=r"model\.length must be at least 2"):
        check_oracle_settings(dataclasses.replace(config, model=one), ())

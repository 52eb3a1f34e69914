"""Quality at the entropy of real text."""

import math

import pytest
from sedd_jax.evaluation.matched import matched

from sedd_jax.evaluation.record import Record


def sampled(entropy, log_perplexity):
    perplexity = math.exp(log_perplexity)
    figures = {"entropy": entropy, "gen_perplexity_samples": perplexity}
    errors = {"entropy_stderr": 0.0, "gen_perplexity_samples_stderr": 0.1 * perplexity}
    return Record("quality", "it", {}, {}, figures | errors)


def test_quality_is_interpolated_in_the_entropy():
    records = [sampled(3.0, 2.0), sampled(2.0, 1.0), sampled(4.0, 9.0)]
    value, error, mark = matched(records, 2.5)
    assert value == pytest.approx(math.exp(1.5)) and mark == ""
    assert error == pytest.approx(value * 0.1 / math.sqrt(2))
    value, _, mark = matched(records[:2], 3.5)
    assert value == pytest.approx(math.exp(2.5)) and mark == "*"
    assert matched(records[:1], 2.5)[0] == pytest.approx(math.exp(2.0))


def test_samples_of_one_entropy_are_one_point():
    twice = [sampled(3.0, 2.5), sampled(3.0, 2.0)]
    assert matched(twice, 2.5)[0] == pytest.approx(math.exp(2.0))
    assert matched([*twice, sampled(2.0, 1.0)], 2.5)[0] == pytest.approx(math.exp(1.5))

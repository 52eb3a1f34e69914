import numpy as np
import pytest

from sedd_jax.evaluation.statistics import distinct, entropy, mean, ratio, self_repetition


def test_a_mean_and_its_error():
    found = mean([1, 2, 6])  # the squares of the deviations sum to 14
    assert found.value == 3
    assert found.stderr == pytest.approx(np.sqrt(14 / 2 / 3))


def test_a_ratio_of_sums_and_its_error():
    found = ratio([2, 4, 9], [1, 2, 3])  # 15 / 6; what is left: -1/2, -1, 3/2
    assert found.value == 2.5
    assert found.stderr == pytest.approx(np.sqrt(3 / 2 * 3.5) / 6)
    assert ratio([2, 4, 6], [1, 2, 3]).stderr == 0


def test_the_error_of_a_ratio_is_what_it_scatters_by():
    rng = np.random.default_rng(0)
    length = rng.integers(5, 50, (2000, 100))
    nats = 3 * length + rng.normal(0, 1, length.shape) * length
    found = [ratio(*pair) for pair in zip(nats, length, strict=True)]
    scatter = np.std([each.value for each in found])
    assert np.mean([each.stderr for each in found]) == pytest.approx(scatter, rel=0.05)


def test_the_entropy_of_a_sample():
    rows = [np.array([7, 7, 7, 7]), np.array([1, 2, 1, 2]), np.array([1, 2, 3, 3])]
    each = [0, np.log(2), 0.5 * np.log(4) + 0.5 * np.log(2)]
    found = entropy(rows)
    assert found.value == pytest.approx(np.mean(each))
    assert found.stderr == pytest.approx(np.std(each, ddof=1) / np.sqrt(3))


def test_distinct_counts_over_all_samples():
    rows = np.array([[1, 2, 1, 2], [1, 2, 3, 4]])
    assert distinct(rows, 1) == 4 / 8
    assert distinct(rows, 2) == 4 / 6  # 12 21 23 34: none goes from one sample to the next
    assert distinct(rows, 3) == 4 / 4  # 121 212 123 234
    assert distinct(list(rows), 2) == distinct([np.array([1, 2, 1, 2]), rows[1]], 2)


def test_repetition_within_a_sample():
    once, often = [1, 2, 3, 4, 5, 6, 7], [9] * 7  # four 4-grams each
    found = self_repetition(np.array([once, often, once, once]))
    assert found.value == 3 / 16
    assert found.stderr == pytest.approx(np.std([0, 0.75, 0, 0], ddof=1) / 2)
    assert self_repetition([np.array([1, 2, 1, 2, 1])] * 2, n=2) == (2 / 4, 0)  # 12 21 12 21

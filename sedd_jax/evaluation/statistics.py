"""What token rows tell of themselves: how varied they are, and how much they repeat.

A row is the ids of one sample. No text and no model is needed; together with a generative
perplexity these tell whether a low one was bought by dull samples.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

Rows = Sequence[np.ndarray]  # of integers, each [its own length]; an array [N, L] is one


class Estimate(NamedTuple):
    """A figure and its standard error."""

    value: float
    stderr: float


def mean(values: np.ndarray) -> Estimate:
    """Returns the mean of independent values, of which there must be two at least."""
    values = np.asarray(values, np.float64)
    return Estimate(float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values))))


def ratio(numerators: np.ndarray, denominators: np.ndarray) -> Estimate:
    """Returns sum / sum over independent pairs, two at least; the error to first order in it."""
    numerators, denominators = (np.asarray(x, np.float64) for x in (numerators, denominators))
    count, total = len(numerators), denominators.sum()
    value = numerators.sum() / total
    residuals = numerators - value * denominators
    stderr = np.sqrt(count / (count - 1) * np.sum(residuals**2)) / total
    return Estimate(float(value), float(stderr))


def entropy(rows: Rows) -> Estimate:
    """Returns the entropy of the unigrams of one sample, in nats, as a mean over samples.

    -sum_v p_v log p_v, p_v the share of the token v in the sample: log L at most. As is printed
    beside generative perplexities in the literature.
    """
    return mean([_entropy(np.unique(row, return_counts=True)[1]) for row in rows])


def distinct(rows: Rows, n: int) -> float:
    """Returns different n-grams / n-grams, both counted over all samples together.

    It falls with the number of samples: compare it at the same number and length.
    """
    grams = np.concatenate([_grams(row, n) for row in rows])
    return len(np.unique(grams, axis=0)) / len(grams)


def self_repetition(rows: Rows, n: int = 4) -> Estimate:
    """Returns the share of a sample's n-grams that it had before, as a mean over samples."""
    grams = [_grams(row, n) for row in rows]
    return mean([1 - len(np.unique(each, axis=0)) / len(each) for each in grams])


def _entropy(counts):
    share = counts / counts.sum()
    return -np.sum(share * np.log(share))


def _grams(row, n):
    """The n-grams of a row of at least n tokens, [its length - n + 1, n]."""
    return np.lib.stride_tricks.sliding_window_view(np.asarray(row), n)

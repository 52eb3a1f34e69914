"""Generative perplexity at the entropy of real text, from samples at several temperatures.

Generative perplexity alone favours samples with few words. So log perplexity is interpolated
linearly in the entropy of the samples to the entropy of real text.
"""

from collections.abc import Sequence

import numpy as np

from sedd_jax.evaluation.record import Record

PERPLEXITY = "gen_perplexity_samples"


def matched(
    records: Sequence[Record], entropy: float, figure: str = PERPLEXITY
) -> tuple[float, float, str]:
    """Returns the perplexity at an entropy, its standard error, and "*" if it is extrapolated.

    The error is that of the two samples that the line goes through. Of samples with the same
    entropy those with the lowest perplexity count.

    Args:
      records: of one sampler and number of steps, at different temperatures.
      entropy: of real text, nats.
      figure: the name of the perplexity.
    """
    points = sorted(
        (
            it.figures["entropy"],
            np.log(it.figures[figure]),
            it.figures[f"{figure}_stderr"] / it.figures[figure],
            it.figures["entropy_stderr"],
        )
        for it in records
    )
    points = [point for i, point in enumerate(points) if not i or point[0] > points[i - 1][0]]
    if len(points) == 1:
        value = float(np.exp(points[0][1]))
        return value, value * points[0][2], " (one temperature)"
    x = np.array([point[0] for point in points])
    left = int(np.clip(np.searchsorted(x, entropy) - 1, 0, len(x) - 2))
    (x0, y0, e0, h0), (x1, y1, e1, h1) = points[left : left + 2]
    share, slope = (entropy - x0) / (x1 - x0), (y1 - y0) / (x1 - x0)
    error = np.hypot((1 - share) * np.hypot(e0, slope * h0), share * np.hypot(e1, slope * h1))
    value = float(np.exp(y0 + share * (y1 - y0)))
    return value, float(value * error), "" if x[0] <= entropy <= x[-1] else "*"

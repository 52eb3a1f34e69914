"""Both bounds of `diffusion/any_order.py` on a likelihood, beside the mean over all orders.

The network is a table of conditionals of no one distribution, without which all orders have the
same probability and the interval has no width.
"""

import itertools

import jax
import numpy as np

from sedd_jax.diffusion.any_order import lower_bound, upper_bound
from sedd_jax.display.table import Table
from sedd_jax.experiment.build import build_noise
from sedd_jax.experiment.config import Config
from sedd_jax.inference.interval import nll_interval
from sedd_jax.inference.model import TrainedModel
from sedd_jax.inference.score_based import ScoreBased
from sedd_jax.verification.exact.orders import (
    inconsistent_logits,
    log_order_probs,
    logits_model,
)
from sedd_jax.verification.exact.space import Space
from sedd_jax.verification.report import Claim, Section

SPREAD = 1.0  # of the logits, nats
DRAWS = 64  # of the estimates


def check_interval_bounds(space: Space, config: Config) -> Section:
    """Returns the bounds of few draws, as exact expectations, and estimates from many.

    Args:
      space: of few positions, with the absorbing graph.
      config: the settings of the run; its noise, smallest time and seed are used.
    """
    logits = inconsistent_logits(space, SPREAD, config.seed)
    rows, sides, closer = [], [], []
    for block in range(2, space.length + 1):
        log_w = log_order_probs(space, logits, block)
        log_p = np.logaddexp.reduce(log_w, axis=1) - np.log(log_w.shape[1])
        gaps = {1: (log_p - log_w.mean(1), np.full(len(log_p), np.inf))}
        for draws in (2, 3):
            low, high = _expectations(log_w, draws)
            gaps[draws] = log_p - low, high - log_p
        for draws, (below, above) in gaps.items():
            rows.append((block, draws, below.min(), below.max(), above.min(), above.max()))
            sides.append(min(below.min(), above.min()))
        closer += [np.max(gaps[3][side] - gaps[2][side]) for side in (0, 1)]
    columns = ("block", "draws", *(f"{side}, {end}" for side in ("log p - lower bound", "upper "
               "bound - log p") for end in ("least", "most")))  # fmt: skip
    title = f"Gaps over all {len(space.clean)} sequences, nats, expectations over all orders"
    return Section(
        "The likelihood as an interval",
        [
            Claim("both bounds, every sequence: least gap to log p, nats", min(sides), ">=", 0.0),
            Claim("three draws in place of two: largest change of a gap", max(closer), "<=", 0.0),
            *_estimates(space, config, logits),
        ],
        [Table(title, columns, rows)],
    )


def _expectations(log_w, draws):
    """The exact means of both bounds over independent orders, for every sequence."""
    every = np.array(list(itertools.product(range(log_w.shape[1]), repeat=draws))).T
    drawn = log_w[:, every].transpose(1, 0, 2)
    flat = drawn.reshape(draws, -1)
    return [bound(flat).reshape(drawn.shape[1:]).mean(-1) for bound in (lower_bound, upper_bound)]


def _estimates(space, config, logits):
    """What `nll_interval` gives, from the network's own passes."""
    family = ScoreBased(space.graph, build_noise(config.noise), logits_model(space, logits))
    model = TrainedModel(family, {}, config, None, None)
    tokens = space.states[space.clean]
    worst = []
    for block in range(1, space.length + 1):
        log_w = log_order_probs(space, logits, block)
        nll = np.log(log_w.shape[1]) - np.logaddexp.reduce(log_w, axis=1)
        found = nll_interval(jax.random.key(config.seed), model, tokens, block=block, draws=DRAWS)
        if block == 1:
            left_to_right = np.abs([found.low_by_row - nll, found.high_by_row - nll]).max()
            continue
        wanted = nll.mean() / space.length
        worst += [
            abs(found.low - wanted) / found.low_stderr,
            abs(found.high - wanted) / found.high_stderr,
        ]
    return [
        Claim("blocks of one position: error of -log p, nats", left_to_right, "<=", 1e-5),
        Claim(f"{DRAWS} draws: error of both bounds, in standard errors", max(worst), "<=", 4.0),
    ]

"""The bound of `nll_bound` beside independent draws without a control variate, in one process.

    python -m benchmarks.bound --checkpoint=runs/tiny --data=DATA --suite=lambada,wikitext2

Before: the estimator of ESTIMATOR 1, for which every draw's times are spread over all of [t_min, 1]
in proportion to the loss of a uniform guess. Both take turns, each with another seed every time.
The time at equal standard error is the ratio of seconds times the ratio of variances: by the
standard errors that they state, and by the spread of the figures over seeds, of which R repeats
know the standard deviation to a share of 1 / sqrt(2 (R - 1)).
"""

import time
from pathlib import Path

import jax
import numpy as np
from absl import flags

from benchmarks.measure import alternate, check_output, report
from sedd_jax.diffusion.importance import guess_proposal
from sedd_jax.diffusion.times import sample_quantiles
from sedd_jax.evaluation.catalog import DatasetCatalog
from sedd_jax.evaluation.likelihood import load_sets, resolve_suites
from sedd_jax.evaluation.protocol import Choices
from sedd_jax.experiment import cli
from sedd_jax.inference.likelihood import NLLEstimate, nll_bound
from sedd_jax.inference.load import load
from sedd_jax.inference.row_passes import passes_over
from sedd_jax.inference.score_based import sequence_loss

_MODEL = cli.define_model_flags()
_DATA = flags.DEFINE_string("data", None, "Folder of the data sets.")
_SUITE = flags.DEFINE_list("suite", ["lambada", "wikitext2"], "Data sets.")
_BLOCKS = flags.DEFINE_integer("blocks", 64, "Of every data set, evenly spaced.")
_DRAWS = flags.DEFINE_integer("draws", 16, "Of every block.")
_REPEATS = flags.DEFINE_integer("repeats", 4, "Estimates of each kind.")
_OUTPUT = flags.DEFINE_string("output", None, "File for the results as JSON.")


def main() -> None:
    """Prints a line for every data set and estimator."""
    check_output(_OUTPUT.value)
    model = load(**_MODEL())
    catalog = DatasetCatalog(_DATA.value and Path(_DATA.value))
    names, _ = resolve_suites(_SUITE.value, catalog, "sedd")
    lines = []
    for name, blocks, _ in load_sets(model, names, catalog, Choices(max_blocks=_BLOCKS.value)):
        found = {"before": [], "now": []}
        programs = {
            kind: _program(estimate, found[kind], model, blocks.tokens, blocks.lengths)
            for kind, estimate in (("before", _before), ("now", nll_bound))
        }
        seconds = alternate(programs, _REPEATS.value)
        lines += _lines(name, found, seconds)
    report(lines, _OUTPUT.value)


def _program(estimate, found, model, tokens, lengths):
    """A program for `alternate`: an estimate with another key every time."""

    def program():
        key = jax.random.key(len(found))
        began = time.perf_counter()
        found.append(estimate(key, model, tokens, lengths=lengths, draws=_DRAWS.value))
        return time.perf_counter() - began

    return program


def _before(key, model, tokens, *, lengths, draws):
    """Independent draws, their times in proportion to the loss of a uniform guess."""
    passes, count = passes_over(model, tokens, lengths=lengths)
    settings = (model.config.train.t_min,)
    nats = []
    for draw_key in jax.random.split(key, draws):
        time_key, noise_key = jax.random.split(draw_key)
        quantiles = np.asarray(sample_quantiles(time_key, len(tokens)))
        nats.append(passes(_guess_loss, settings, noise_key, quantiles))
    return NLLEstimate(np.stack(nats), count, "low-discrepancy")


def _guess_loss(family, t_min):
    return sequence_loss(family, guess_proposal(family.graph, family.noise, t_min))


def _lines(name, found, seconds):
    lines, costs = [], {}
    for kind, bounds in found.items():
        values = [bound.nats_per_token for bound in bounds]
        stated = float(np.sqrt(np.mean([bound.stderr**2 for bound in bounds])))
        errors = {"stderr": stated, "spread_over_seeds": float(np.std(values, ddof=1))}
        taken = float(np.median(seconds[kind]))
        costs[kind] = {error: taken * size**2 for error, size in errors.items()}
        lines.append(
            {"set": name, "estimator": kind, "draws": _DRAWS.value, "repeats": len(bounds)}
            | {"nats_per_token": float(np.mean(values)), "seconds": taken}
            | errors
            | {f"time_at_equal_{error}": costs[kind][error] / costs["before"][error]
               for error in errors}
        )  # fmt: skip
    return lines


if __name__ == "__main__":
    cli.run(main)

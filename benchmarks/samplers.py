"""Times samplers on a trained checkpoint: network evaluations of a row, and seconds of a batch.

    python -m benchmarks.samplers --checkpoint=runs/tiny --ways=first_hitting,tweedie:512

A way is SAMPLER or SAMPLER:STEPS. The ways alternate; `times_first` is the time over that of the
first way in the same round. `sedd_jax.evaluate --suite=quality` measures the quality of samples.
"""

import statistics

import jax
import jax.numpy as jnp
from absl import flags

from benchmarks.measure import alternate, check_output, report, timed
from sedd_jax.errors import BadInput
from sedd_jax.experiment import cli
from sedd_jax.inference.batches import row_keys
from sedd_jax.inference.load import load
from sedd_jax.inference.prompt import empty_prompt
from sedd_jax.inference.sampling import Sampling

_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Run folder of a diffusion model.")
_WAYS = flags.DEFINE_list(
    "ways", ["first_hitting", "first_hitting:128", "tweedie:128", "tweedie:512"], "What to time."
)
_BATCH_SIZES = flags.DEFINE_list("batch_sizes", ["1", "8", "32"], "Sequences at a time.")
_LENGTH = flags.DEFINE_integer(
    "length", None, "Tokens per sequence; the trained length by default."
)
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Measured runs of each.")
_OUTPUT = flags.DEFINE_string("output", None, "File for the results as JSON.")


def main() -> None:
    """Runs the benchmark."""
    check_output(_OUTPUT.value)
    if not _CHECKPOINT.value:
        raise BadInput("--checkpoint=FOLDER is needed.")
    ways = {way: _sampling(way) for way in _WAYS.value}
    checkpoint = load(_CHECKPOINT.value)
    for sampling in ways.values():
        sampling.check(checkpoint.graph)
    rows = [row for size in _BATCH_SIZES.value for row in _measured(checkpoint, ways, int(size))]
    report(rows, _OUTPUT.value)


def _sampling(way):
    sampler, separator, steps = way.partition(":")
    if separator and not steps.isdecimal():
        raise BadInput(f"--ways needs SAMPLER or SAMPLER:STEPS, got {way!r}.")
    return Sampling(int(steps) if steps else None, sampler)


def _measured(checkpoint, ways, batch_size):
    """Returns the rows of a batch size."""
    config = checkpoint.config
    length = _LENGTH.value or config.model.length
    keys = row_keys(jax.random.key(0), jnp.arange(batch_size))
    given = checkpoint.params, keys, empty_prompt(batch_size, length)
    evaluations = {}

    def of_way(way, sampling):
        generator = checkpoint.diffusion.generator(sampling, t_min=config.train.t_min)
        compiled = jax.jit(generator).lower(*given).compile()

        def sample():
            evaluations[way] = jax.block_until_ready(compiled(*given))[1].evaluations

        return timed(sample)

    programs = {way: of_way(way, sampling) for way, sampling in ways.items()}
    seconds = alternate(programs, _ROUNDS.value)
    first = next(iter(seconds.values()))
    return [
        {
            "batch": batch_size,
            "way": way,
            "evaluations": float(evaluations[way].mean()),
            "most": int(evaluations[way].max()),
            "median_s": statistics.median(times),
            "min_s": min(times),
            "times_first": statistics.median(a / b for a, b in zip(times, first, strict=True)),
        }
        for way, times in seconds.items()
    ]


if __name__ == "__main__":
    cli.run(main)

"""Times the vocabulary head alone: loss and gradient from the hidden states on.

    python -m benchmarks.head

A dense head, and a streamed head with all, half and an eighth of the positions masked, alternate in
one process. The floor is the FLOPs of the three matrix products of the masked positions at the rate
of one large product on this machine. Absorbing graph, float32.
"""

import statistics

import jax
import jax.numpy as jnp
from absl import flags

from benchmarks.measure import (
    alternate,
    check_output,
    product_rate,
    report,
    temporaries,
    timed,
)
from benchmarks.shapes import SHAPES, compiled_head
from sedd_jax.experiment import cli
from sedd_jax.model.config import padded
from sedd_jax.model.tiles import Unembedding

_SHAPE = flags.DEFINE_enum("shape", "head_heavy", list(SHAPES), "Sizes, as in training_step.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Measured calls of each.")
_OUTPUT = flags.DEFINE_string("output", None, "File for the results as JSON.")


def main() -> None:
    """Runs the benchmark."""
    check_output(_OUTPUT.value)
    shape = SHAPES[_SHAPE.value]
    keys = jax.random.split(jax.random.key(0), 4)
    size = (shape.batch, shape.length)
    hidden = jax.random.normal(keys[0], (*size, shape.hidden))
    columns = padded(shape.tokens + 1)
    kernel = 0.05 * jax.random.normal(keys[1], (shape.hidden, columns))
    x0 = jax.random.randint(keys[2], size, 0, shape.tokens)
    order = jax.random.uniform(keys[3], size)
    heads = {name: compiled_head(shape, name) for name in ("dense", "streamed")}

    def program(head, masked):
        xt = jnp.where(order < masked, shape.tokens, x0)
        table = Unembedding(kernel, jnp.zeros(columns))
        return timed(heads[head], hidden, table, jnp.ones(shape.batch), xt, x0)

    cases = [("dense", 1 / 2), ("streamed", 1.0), ("streamed", 1 / 2), ("streamed", 1 / 8)]
    seconds = alternate({case: program(*case) for case in cases}, _ROUNDS.value)
    operations = 6 * shape.batch * shape.length * shape.hidden * shape.tokens
    rate = product_rate()
    rows = [
        {
            "head": head,
            "masked": masked,
            "median_s": statistics.median(times),
            "min_s": min(times),
            "ratio_to_dense": statistics.median(
                a / b for a, b in zip(times, seconds[cases[0]], strict=True)
            ),
            "floor_s": operations * masked / rate,
            "temporaries_mb": round(temporaries(heads[head]) / 1e6),
        }
        for (head, masked), times in seconds.items()
    ]
    report(rows, _OUTPUT.value)


if __name__ == "__main__":
    cli.run(main)

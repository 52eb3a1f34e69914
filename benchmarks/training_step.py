"""Times the training step: streamed head against dense, and against the published PyTorch code.

    python -m benchmarks.training_step --shape=head_heavy
    python -m benchmarks.training_step --shape=body_heavy --variants=streamed/products,streamed/none
    python -m benchmarks.training_step --shape=owt_small --batch_size=8 --rounds=0
    python -m benchmarks.training_step --shape=owt_small --graph=uniform \
        --variants=streamed/products/leave_one_out/score_entropy,streamed/products

A variant is HEAD/REMAT, or HEAD/REMAT/OUTPUT/OBJECTIVE: a streamed or a dense head (the oracle:
same network, same loss), and `config.model.remat`, `config.model.output` and
`config.train.objective` (ratio and score_entropy by default). Steps alternate in one process. With
--published=FOLDER and --published_python=PYTHON the published code alternates with them, in a
process that sleeps otherwise. The memory figures are the compiler's, of the step and of loss and
gradient from the hidden states on (head). The floor is the FLOPs of the matrix products, with half
of the positions masked, at the rate of one large product on this machine. No dropout. --rounds=0
compiles only.
"""

import contextlib
import dataclasses
import statistics

import jax
from absl import flags

from benchmarks.measure import alternate, check_output, product_rate, report, temporaries
from benchmarks.published import Published
from benchmarks.shapes import HEADS, SHAPES, compiled_head, config_of, family_of
from benchmarks.step import Step
from sedd_jax.errors import BadInput
from sedd_jax.experiment import cli
from sedd_jax.model.transformer import REMAT

_SHAPE = flags.DEFINE_enum("shape", "head_heavy", list(SHAPES), "Sizes of the step.")
_GRAPH = flags.DEFINE_enum("graph", "absorb", ["absorb", "uniform"], "The token graph.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", None, "Sequences; those of the shape by default.")
_VARIANTS = flags.DEFINE_list("variants", ["streamed/products", "dense/products"], "What to time.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Measured steps of each variant.")
_PUBLISHED = flags.DEFINE_string("published", None, "Folder of the published PyTorch code.")
_PYTHON = flags.DEFINE_string("published_python", "python", "A Python that has torch.")
_OUTPUT = flags.DEFINE_string("output", None, "File for the results as JSON.")


PAPER = ("ratio", "score_entropy")


def main() -> None:
    """Runs the benchmark."""
    check_output(_OUTPUT.value)
    shape = SHAPES[_SHAPE.value]
    if _BATCH_SIZE.value is not None:
        shape = dataclasses.replace(shape, batch=_BATCH_SIZE.value)
    variants = {name: _variant(name) for name in _VARIANTS.value}
    tokens = jax.random.randint(jax.random.key(1), (shape.batch, shape.length), 0, shape.tokens)
    with contextlib.ExitStack() as stack:
        published = {}
        if _PUBLISHED.value:  # first: it may be missing, and ours take long to compile
            worker = stack.enter_context(Published(_PYTHON.value, _PUBLISHED.value))
            spec = dataclasses.asdict(shape) | {"cond": 128}
            published["published"] = lambda: worker.seconds("train", **spec)
        steps = {
            name: Step(
                family_of(shape, head, remat, _GRAPH.value, output),
                config_of(shape, remat, _GRAPH.value, output, objective),
                tokens,
            )
            for name, (head, remat, output, objective) in variants.items()
        }
        programs = steps | published
        seconds = alternate(programs, _ROUNDS.value) if _ROUNDS.value else {}
    floor = sum(shape.product_operations()) / product_rate() if seconds else 0.0
    last = list(programs)[-1]
    rows = []
    for name in programs:
        row = {"shape": _SHAPE.value, "graph": _GRAPH.value, "batch": shape.batch, "variant": name}
        if name in seconds:
            times = seconds[name]
            row |= {
                "median_s": statistics.median(times),
                "min_s": min(times),
                f"over {last}": statistics.median(
                    a / b for a, b in zip(times, seconds[last], strict=True)
                ),
                "floor_s": floor,
            }
        if name in steps:
            row["step_mb"] = round(temporaries(steps[name].compiled) / 1e6)
            if variants[name][2:] == PAPER:
                row["head_mb"] = round(temporaries(compiled_head(shape, variants[name][0])) / 1e6)
        rows.append(row)
    report(rows, _OUTPUT.value)


def _variant(name):
    """The parts of a variant: head, remat, output, objective."""
    parts = tuple(name.split("/"))
    if len(parts) == 2:
        parts += PAPER
    if len(parts) != 4 or parts[0] not in HEADS or parts[1] not in REMAT:
        raise BadInput(
            "--variants are HEAD/REMAT or HEAD/REMAT/OUTPUT/OBJECTIVE, as streamed/products; got "
            f"{name}."
        )
    return parts


if __name__ == "__main__":
    cli.run(main)

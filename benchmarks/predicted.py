"""Compares what `sedd_jax.plan` predicts with measurements on the devices of this machine.

    python -m benchmarks.predicted --config=configs/owt_small.py --per_chip=16
    python -m benchmarks.predicted --config=configs/tiny.py --config.train.batch_size=8

The script compiles the training step as `plan` does, for the devices of this machine, and runs it
on random tokens: first steps that are awaited one by one, then queued steps, as in a training run.
It prints their milliseconds, tokens per second and share of the chips' peak; the memory according
to the compiler, and the peak memory of the device, or on a CPU of the process; and the prediction,
where `plan` knows the chip.
"""

import resource
import statistics
import time

import jax
import numpy as np
from absl import flags

from benchmarks.measure import check_output, report
from sedd_jax.experiment import cli
from sedd_jax.experiment.config_files import define_config_flag
from sedd_jax.experiment.mesh import build_mesh, global_batch, placement, rows_here
from sedd_jax.experiment.state import run_keys
from sedd_jax.inference.build import build_family
from sedd_jax.planning.hlo_cost import hlo
from sedd_jax.planning.hlo_cost.cost import predict
from sedd_jax.planning.lower import train_program, vocab_size_of, with_batch
from sedd_jax.planning.topology import CHIPS
from sedd_jax.training.step import build_programs
from sedd_jax.training.throughput import peak_flops, peak_memory_gib

_CONFIG = define_config_flag("The run's config file.")
_PER_CHIP = flags.DEFINE_integer("per_chip", None, "As for plan.", lower_bound=1)
_VOCAB_SIZE = flags.DEFINE_integer("vocab_size", None, "As for plan.", lower_bound=1)
_STEPS = flags.DEFINE_integer("steps", 10, "Timed steps of each kind.", lower_bound=1)
_OUTPUT = flags.DEFINE_string("output", None, "File for the results as JSON.")
_GIB = 2**30


def main() -> None:
    """Runs the benchmark."""
    check_output(_OUTPUT.value)
    config = cli.config_from(_CONFIG)
    mesh = build_mesh(config.mesh)
    if _PER_CHIP.value:
        config = with_batch(config, mesh, _PER_CHIP.value)
    vocab_size = _VOCAB_SIZE.value or vocab_size_of(config)
    program = train_program(config, vocab_size, mesh)
    began = time.perf_counter()
    compiled = program.lowered.compile()
    compile_seconds = time.perf_counter() - began
    before = _held_gib()
    waited, queued = _seconds(compiled, config, vocab_size, mesh)
    memory, peak = compiled.memory_analysis(), peak_flops()
    row = {
        "sequences": config.train.batch_size,
        "remat": config.model.remat,
        "waited for, ms": 1e3 * waited,
        "queued, ms": 1e3 * queued,
        "tokens a second": program.tokens / queued,
        "MFU": program.model_flops / queued / peak if peak else "",
        "predicted, ms": _predicted(compiled, program),
        "arguments, GiB": memory.argument_size_in_bytes / _GIB,
        "temporaries, GiB": memory.temp_size_in_bytes / _GIB,
        "held more than before, GiB": _held_gib() - before,
        "compiled, s": compile_seconds,
    }
    report([row], _OUTPUT.value)


def _seconds(compiled, config, vocab_size, mesh):
    """Returns the median seconds of awaited steps, and the mean seconds of queued steps."""
    family = build_family(config, vocab_size, placement(mesh))
    keys = run_keys(config.seed)
    state = build_programs(family, config, keys, mesh).init(keys.init)
    size = config.train.batch_size
    here = len(rows_here(size, mesh))
    rows = np.random.default_rng(0).integers(0, vocab_size, (here, config.model.length), np.int32)
    tokens = global_batch(rows, size, mesh)
    waited = []
    for _ in range(_STEPS.value + 2):
        began = time.perf_counter()
        state, metrics = jax.block_until_ready(compiled(state, tokens))
        waited.append(time.perf_counter() - began)
    began = time.perf_counter()
    for _ in range(_STEPS.value):
        state, metrics = compiled(state, tokens)
    jax.block_until_ready(metrics)
    return statistics.median(waited[2:]), (time.perf_counter() - began) / _STEPS.value


def _predicted(compiled, program):
    """Returns the predicted milliseconds, "" for an unknown chip."""
    kind = jax.devices()[0].device_kind
    for chip in CHIPS.values():
        if chip.device_kind == kind:
            module = hlo.parse(compiled.as_text())
            return 1e3 * predict(module, chip, program.mesh, program.dynamic_trips).seconds
    return ""


def _held_gib():
    """Returns the peak GiB of a device, or on a CPU of this process."""
    most = peak_memory_gib()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20 if most is None else most


if __name__ == "__main__":
    cli.run(main)

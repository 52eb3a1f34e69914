"""Times training steps while a checkpoint is saved, beside steps without a save.

    python -m benchmarks.saving --workdir=/tmp/saving
    python -m benchmarks.saving --workdir=gs://BUCKET/saving

Rounds alternate in one process: steps until a save has ended, then as many without one. On the
CPUs of one machine steps and saves compete for cores, and with an emulator for all three; with
--device_ms a step only waits, as for an accelerator, and what is measured is the host.
"""

import contextlib
import statistics
import time

import jax
from absl import flags

from benchmarks.measure import check_output, report
from configs import tiny
from sedd_jax.errors import BadInput
from sedd_jax.experiment import cli
from sedd_jax.experiment import mesh as meshes
from sedd_jax.experiment.checkpoint import Checkpoints
from sedd_jax.experiment.config import parse
from sedd_jax.experiment.state import run_keys
from sedd_jax.inference.build import build_family
from sedd_jax.system import mirror
from sedd_jax.system.bucket import is_address
from sedd_jax.system.bucket import parse as parse_address
from sedd_jax.training.step import build_programs

_WORKDIR = flags.DEFINE_string("workdir", None, "An empty folder, or one in a bucket.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Saves.", lower_bound=1)
_DEVICE_MS = flags.DEFINE_float("device_ms", 0, "A step waits so long in place of computing.")
_OUTPUT = flags.DEFINE_string("output", None, "File for the results as JSON.")


def main() -> None:
    """Runs the benchmark."""
    check_output(_OUTPUT.value)
    if not _WORKDIR.value:
        raise BadInput("--workdir=FOLDER is needed: where the checkpoints are written.")
    config = parse(tiny.get_config())
    family = build_family(config, config.data.vocab_size)
    mesh, keys = meshes.build_mesh(config.mesh), run_keys(config.seed)
    programs = build_programs(family, config, keys, mesh)
    state = programs.init(keys.init)
    step = programs.train_step.lower(programs.abstract, *programs.batch).compile()
    shape = (config.train.batch_size, config.model.length)
    tokens = jax.random.randint(jax.random.key(1), shape, 0, config.data.vocab_size)

    def advance():
        nonlocal state
        began = time.perf_counter()
        if _DEVICE_MS.value:
            time.sleep(_DEVICE_MS.value / 1000)
            state = state._replace(step=state.step + 1)
        else:
            state, metrics = step(state, tokens)
            jax.block_until_ready(metrics)
        return time.perf_counter() - began

    with contextlib.ExitStack() as stack:
        run = stack.enter_context(mirror.opened(_WORKDIR.value, "--workdir"))
        checkpoints = stack.enter_context(Checkpoints(run, config.checkpoint))
        rows = []
        for _ in range(_ROUNDS.value + 1):
            advance()
            began = time.perf_counter()
            checkpoints.save(state, config)
            called = time.perf_counter() - began
            during = []
            while checkpoints.saving is not None:
                during.append(advance())
                checkpoints.check()
            saved = time.perf_counter() - began
            without = [advance() for _ in during]
            rows.append((called, saved, statistics.median(during), statistics.median(without)))
    rows = rows[1:]  # the first save makes what the others find
    names = ("call_s", "save_s", "step_during_a_save_s", "step_s")
    figures = {
        name: statistics.median(each)
        for name, each in zip(names, zip(*rows, strict=True), strict=True)
    }
    figures["ratio"] = statistics.median(during / without for *_, during, without in rows)
    place = parse_address(_WORKDIR.value).scheme if is_address(_WORKDIR.value) else "local"
    report([{"place": place} | figures], _OUTPUT.value)


if __name__ == "__main__":
    cli.run(main)

"""Trains a model: `python -m sedd_jax.train --config=configs/tiny.py --workdir=runs/tiny`.

The same command resumes a stopped run. The command line overrides any setting, as in
`--config.train.steps=500`.
"""

import contextlib
import dataclasses
import math
import time
from pathlib import Path

import jax
import numpy as np
from absl import flags

from sedd_jax.data import account
from sedd_jax.data.pipeline import arguments_of, train_batches
from sedd_jax.display.table import duration
from sedd_jax.errors import BadInput, Halted
from sedd_jax.experiment import cli
from sedd_jax.experiment import mesh as meshes
from sedd_jax.experiment.card import (
    RunFacts,
    find_records,
    flags_of_use,
    read_history,
    write_card,
)
from sedd_jax.experiment.checkpoint import Checkpoints
from sedd_jax.experiment.checkpoint_folder import FOLDER
from sedd_jax.experiment.config import Config
from sedd_jax.experiment.config_files import define_config_flag
from sedd_jax.experiment.metrics import MetricWriter
from sedd_jax.experiment.run import followed, locked, open_run, read_run
from sedd_jax.experiment.state import run_keys
from sedd_jax.experiment.trackers.tracker import build_trackers
from sedd_jax.inference.build import build_family, check_names, dotted_paths
from sedd_jax.model.score_model import count_params
from sedd_jax.system import mirror, preemption, processes
from sedd_jax.system.console import as_typed
from sedd_jax.system.joining import initialize_distributed
from sedd_jax.system.processes import StopSignal, is_primary, print_on_primary, warn_on_primary
from sedd_jax.training import hooks
from sedd_jax.training.best import KeepBest, check_oracle, try_oracle
from sedd_jax.training.evaluator import Evaluator, bound_text
from sedd_jax.training.initial_weights import load_initial, with_weights_of
from sedd_jax.training.machine import FAULT, check_machines
from sedd_jax.training.step import build_programs
from sedd_jax.training.stopping import Saves, stop_at_signal
from sedd_jax.training.throughput import StepTimer, step_flops, step_memory_gib

_CONFIG = define_config_flag("The run's config file.")
_WORKDIR = flags.DEFINE_string("workdir", None, "The run folder: created, or resumed.")
_PROFILE = flags.DEFINE_integer("profile", 0, "Steps to trace, from the third on.", lower_bound=0)
_CHECK = flags.DEFINE_bool(
    "check",
    False,
    "Check machines, folder, data and memory, and train nothing.",
)
_PROCESSES = cli.define_process_flags()


def main() -> None:
    """Trains as the flags say."""
    config = cli.config_from(_CONFIG)
    if not _WORKDIR.value:
        raise BadInput("--workdir=FOLDER is needed: where the run is kept.")
    initialize_distributed(*(flag.value for flag in _PROCESSES))
    with mirror.opened(_WORKDIR.value, "--workdir") as run:
        if _CHECK.value:
            check(config, run)
        else:
            train(config, run, _PROFILE.value)


def check(config: Config, run: Path) -> None:
    """Prints what the machines have for a run, line by line, without training.

    Raises:
      Halted: something is at fault.
    """
    lines = []
    for line in check_machines(config, run):
        lines.append(line)
        print_on_primary(f"{line.verdict:8} {line.what}: {line.found}")
    if faults := [line.what for line in lines if line.verdict == FAULT]:
        raise Halted(f"The run cannot begin: see {', '.join(faults)} above.")


def train(config: Config, run: Path, trace_steps: int = 0) -> None:
    """Trains from the latest checkpoint of `run`, or from the start, to `config.train.steps`.

    Args:
      config: the settings.
      run: the folder.
      trace_steps: steps to trace.

    Raises:
      BadInput: invalid data, settings or folder; before anything is computed.
      Halted: a signal to stop, steps that are not finite, or a checkpoint that cannot be written.
    """
    check_names(config)
    check_oracle(config)
    trackers = build_trackers(config.train.trackers)
    mesh = meshes.build_mesh(config.mesh)
    meshes.check_divisions(config, mesh)
    initial = load_initial(config, run, mesh)
    with contextlib.ExitStack() as stack:

        def open_locked():
            stack.enter_context(locked(run))
            return open_run(run, config)

        def read_followed():
            stack.enter_context(followed(run))
            return read_run(run, config)

        dataset = processes.run_primary_first(open_locked, read_followed)
        if is_primary():
            account.tell(dataset.manifest)
        some = dataset.heldout.take(np.arange(min(2, len(dataset.heldout))))
        processes.on_primary(lambda: try_oracle(config, dataset.tokenizer, some))
        _train(config, run, dataset, mesh, initial, trackers, trace_steps)


def _train(config, run, dataset, mesh, initial, trackers, trace_steps):
    started = time.monotonic()
    train, last = config.train, config.train.steps
    grace = train.grace_seconds or math.inf
    keys = run_keys(config.seed)
    vocab_size, placement = dataset.tokenizer.vocab_size, meshes.placement(mesh)
    family = build_family(config, vocab_size, placement, dataset.conditions)
    programs = build_programs(family, config, keys, mesh)
    evaluator = Evaluator(family, dataset, keys, mesh, config.eval, train.t_min)
    with Checkpoints(run, config.checkpoint) as checkpoints:
        state = checkpoints.restore_latest(programs.abstract)
        if state is None:
            state = programs.init(keys.init)
            if initial is not None:
                data = dataset.tokenizer, dataset.conditions
                state = with_weights_of(initial, state, config, *data)
        start, parameters = int(state.step), count_params(state.params)
        _announce(config, family, dataset, state, mesh)
        train_step = programs.train_step.lower(programs.abstract, *programs.batch).compile()
        processes.barrier("training step compiled")
        batches = train_batches(
            dataset.train,
            batch_size=train.batch_size,
            rows=meshes.rows_here(train.batch_size, mesh),
            seed=config.seed,
            start_step=start,
            crop=config.data.crop,
            last_step=last,
        )
        timer = StepTimer(
            start,
            last,
            tokens_per_step=train.batch_size * config.model.length,
            flops_per_step=step_flops(family, config.model, train),
            step_memory_gib=step_memory_gib(train_step),
        )
        with (
            batches,
            MetricWriter(run, start, trackers, dataclasses.asdict(config)) as writer,
            hooks.Stall(train.stall_minutes) as stall,
            hooks.Trace(run, trace_steps, start) as trace,
            StopSignal(grace) as signals,
            preemption.watched(signals.notice),
        ):

            def save(step, state, metrics):
                mirror.push(run)  # the rows up to this step are safe before the step is
                checkpoints.save(state, config)
                if is_primary():
                    history = read_history(find_records(run), step)
                    facts = RunFacts(config, parameters, dataset.tokenizer, **history)
                    write_card(run, facts, run.name)

            saves = Saves(run, save, checkpoints)
            saves.measure(state, grace)
            unit = "nats/token" if family.objective(train).per_token else "nats/sequence"
            evaluation = hooks.Evaluation(evaluator, writer)
            untimed, keep_best = timer.paused(), []
            if config.eval.oracle:
                best = KeepBest(evaluation, writer, checkpoints, config)
                keep_best = [untimed(hooks.every(config.eval.sample_every, last, best))]
            # rows are written before the save: a resumed run continues after both
            after_step: list[hooks.Hook] = [
                saves.check,
                hooks.Log(writer, timer, train, unit),
                untimed(hooks.every(config.eval.every, last, evaluation.measure)),
                untimed(hooks.every(config.eval.sample_every, last, evaluation.sample)),
                *keep_best,
                untimed(hooks.every(config.checkpoint.every, last, saves)),
                stall,
                untimed(trace),
                stop_at_signal(signals, saves),
            ]
            try:
                for step in range(start + 1, last + 1):
                    with timer.waiting():
                        rows = next(batches)
                    batch = meshes.global_rows(arguments_of(rows), train.batch_size, mesh)
                    state, metrics = train_step(state, *batch)
                    for hook in after_step:
                        hook(step, state, metrics)
            except hooks.NotFinite as error:
                saved = checkpoints.latest
                raise Halted(error.advice(dataset.train, train, config.seed, saved)) from error
            checkpoints.wait()  # while signals are still handled
    if evaluation.bound is None:  # the run was already complete
        evaluation.bound = evaluator.bound(state.ema_params)
        evaluation.samples = evaluator.samples(state.ema_params)
    _conclude(run, config, evaluation, time.monotonic() - started)


def _announce(config, family, dataset, state, mesh):
    train_split = dataset.manifest["splits"]["train"]
    print_on_primary(
        f"{count_params(state.params):,} parameters, {family.summary}, "
        f"{len(dataset.train):,} blocks of {config.model.length} tokens "
        f"({config.data.tokenizer}) from {train_split['utf8_bytes']:,} bytes, on "
        f"{jax.device_count()} {jax.devices()[0].platform} device(s)."
    )
    if len(dataset.train) < config.train.batch_size:
        warn_on_primary(
            f"config.train.batch_size is {config.train.batch_size}, but there are only "
            f"{len(dataset.train)} training blocks: a batch holds some of them several times."
        )
    print_on_primary(meshes.describe({"params": state.params}, mesh))
    if state.step:
        print_on_primary(f"Continuing after step {state.step}.")


def _conclude(run, config, evaluation, seconds):
    step = config.train.steps
    print_on_primary(f"\nDone: step {step}, after {duration(seconds)}.")
    print_on_primary(f"Held-out {bound_text(evaluation.bound)}")
    for text in evaluation.samples.shown:
        print_on_primary(f"\n--- sample ---\n{text}")
    print_on_primary(f"\nCheckpoint: {mirror.shown(run / FOLDER / str(step))}")
    options = " --trace" if config.uses_noise else ""
    options += " --trust_code" if dotted_paths(config) else ""
    named = flags_of_use(config, mirror.shown(run))
    sample = as_typed("python -m sedd_jax.sample")
    print_on_primary(f"Next:       {sample} {named}{options}")


if __name__ == "__main__":
    cli.run(main)

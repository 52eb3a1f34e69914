"""Trains a model: `python -m sedd_jax.train --config=configs/tiny.py --workdir=runs/tiny`.

The same command continues a run that was stopped. Any setting can be changed on the command line,
as in `--config.train.steps=500`.
"""

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

import jax
from absl import flags
from ml_collections import config_flags

from sedd_jax.data.pipeline import batch_blocks, train_batches
from sedd_jax.data.token_blocks import Mixture
from sedd_jax.display.table import duration
from sedd_jax.errors import BadInput, Halted
from sedd_jax.experiment import cli
from sedd_jax.experiment import mesh as sharding
from sedd_jax.experiment.build import build_components
from sedd_jax.experiment.card import Story, find_records, read_history, write_card
from sedd_jax.experiment.checkpoint import FOLDER, Checkpoints
from sedd_jax.experiment.config import Config
from sedd_jax.experiment.metrics import MetricWriter, NotFinite, PendingLosses, metric_writer
from sedd_jax.experiment.run import locked, open_run, read_run
from sedd_jax.experiment.state import TrainState, run_keys
from sedd_jax.model.score_model import count_params
from sedd_jax.system import processes
from sedd_jax.system.processes import StopSignal, is_primary, print_on_primary
from sedd_jax.training.compile import build_programs
from sedd_jax.training.evaluator import Evaluator
from sedd_jax.training.initial import load_initial, with_weights_of
from sedd_jax.training.profile import Profile
from sedd_jax.training.stall import Stall
from sedd_jax.training.step import Metrics
from sedd_jax.training.throughput import Progress, step_flops

_CONFIG = config_flags.DEFINE_config_file("config", None, "The run's config file.")
_WORKDIR = flags.DEFINE_string("workdir", None, "The run folder: made, or continued.")
_PROFILE = flags.DEFINE_integer("profile", 0, "Steps to trace, from the third on.", lower_bound=0)
_PROCESSES = cli.define_process_flags()


def main() -> None:
    """Trains as the flags say."""
    config = cli.config_from(_CONFIG)
    if not _WORKDIR.value:
        raise BadInput("--workdir=FOLDER is needed: where the run is kept.")
    processes.initialize_distributed(*(flag.value for flag in _PROCESSES))
    train(config, Path(_WORKDIR.value), _PROFILE.value)


def train(config: Config, run: Path, profile_steps: int = 0) -> None:
    """Trains from the latest checkpoint of `run`, or from the start, to `config.train.steps`.

    Raises:
      BadInput: data, settings or folder that cannot be used, before anything is computed.
      Halted: a signal to stop, steps that are not finite, or a checkpoint that cannot be written.
    """
    mesh = sharding.build_mesh(config.mesh)
    sharding.check_divisions(config, mesh)
    initial = load_initial(config, run, mesh)
    with contextlib.ExitStack() as until_end:

        def open_first():
            until_end.enter_context(locked(run))
            return open_run(run, config)

        dataset = processes.run_primary_first(open_first, lambda: read_run(run, config))
        _train(config, run, dataset, mesh, initial, profile_steps)


def _train(config, run, dataset, mesh, initial, profile_steps):
    started = time.monotonic()
    keys = run_keys(config.seed)
    components = build_components(config, dataset.tokenizer.vocab_size, sharding.placement(mesh))
    programs = build_programs(components, config, keys, mesh)
    evaluator = Evaluator(config, components, dataset, keys, mesh)
    with Checkpoints(run, config.checkpoint) as checkpoints:
        state = checkpoints.restore_latest(programs.abstract)
        if state is None:
            state = programs.init(keys.init)
            if initial is not None:
                state = with_weights_of(initial, state, config, dataset.tokenizer)
        start = int(state.step)
        _announce(config, components, dataset, state, mesh)
        train_step = programs.train_step.lower(programs.abstract, programs.batch).compile()
        processes.barrier("training step compiled")
        batches = train_batches(
            dataset.train,
            batch_size=config.train.batch_size,
            rows=sharding.rows_here(config.train.batch_size, mesh),
            seed=config.seed,
            start_step=start,
            crop=config.data.crop,
        )
        progress = Progress(
            start,
            config.train.steps,
            tokens_per_step=config.train.batch_size * config.model.length,
            flops_per_step=step_flops(components, config),
        )

        def save(state):
            checkpoints.save(state, config)
            if is_primary():
                _write_card(config, run, dataset.tokenizer, state)

        with (
            batches,
            metric_writer(run, start) as writer,
            Stall(config.train.stall_minutes) as stall,
            Profile(run, profile_steps, start) as profile,
            StopSignal() as stop,
        ):
            journal = Journal(config, writer, evaluator, checkpoints, save, progress)
            for step in range(start + 1, config.train.steps + 1):
                with progress.waiting():
                    rows = next(batches)
                batch = sharding.global_batch(rows, config.train.batch_size, mesh)
                state, metrics = train_step(state, batch)
                try:
                    journal.after(step, state, metrics)
                except NotFinite as error:
                    raise Halted(_diverged(error, config, dataset, checkpoints)) from error
                stall.progress(step)
                with progress.paused():
                    profile.after(step, metrics)
                if signal := stop.after(step):
                    save(state)
                    checkpoints.wait()
                    raise Halted(
                        f"Stopped by {signal.name} after step {step}, which is saved; the same "
                        "command goes on from there.",
                        exit_code=128 + signal,
                    )
            checkpoints.wait()  # while signals are still heeded
        if journal.bound is None:  # the run was complete already
            journal.bound = evaluator.bound(state.ema_params)
            journal.samples = evaluator.samples(state.ema_params)
    _conclude(run, config, journal, time.monotonic() - started)


class Journal:
    """What is done between the steps of a run: log, evaluate, sample, save."""

    def __init__(
        self,
        config: Config,
        writer: MetricWriter,
        evaluator: Evaluator,
        checkpoints: Checkpoints,
        save: Callable[[TrainState], None],
        progress: Progress,
    ):
        """Begins before the first step."""
        self._config, self._writer, self._save = config, writer, save
        self._evaluator, self._checkpoints, self._progress = evaluator, checkpoints, progress
        self._total = config.train.steps
        self._losses, self._first = PendingLosses(config.train.max_skipped), True
        self.bound, self.samples = None, None  # the latest

    def after(self, step: int, state: TrainState, metrics: Metrics) -> None:
        """Does what is due after `step`, in an order that a resumed run repeats: rows, then save.

        Everything is due after the last step.
        """

        def due(every):
            return step % every == 0 or step == self._total

        self._losses.add(step, metrics)
        self._checkpoints.check()
        if self._first:
            jax.block_until_ready(metrics)  # the first step fills caches: not part of the speed
            self._progress.begin(step)
            self._first = False
        if due(self._config.train.log_every):
            self._log(step)
        with self._progress.paused():
            if due(self._config.eval.every):
                self.bound = self._evaluator.bound(state.ema_params)
                self._writer.scalars(step, self.bound)
                print_on_primary(f"  held-out {_bound_text(self.bound)}")
            if due(self._config.eval.sample_every):
                self.samples = self._evaluator.samples(state.ema_params)
                for number, text in enumerate(self.samples):
                    self._writer.text(step, f"sample_{number}", text)
            if due(self._config.checkpoint.every):
                self._save(state)

    def _log(self, step):
        row = self._losses.take()  # waits for the step
        speed, left = self._progress.advance(step)
        row |= speed
        self._writer.scalars(step, row)
        loss = f"{row['loss']:.4f} nats/token" if "loss" in row else "not finite"
        pace = f"  {row['tokens_per_second']:,.0f} tokens/s  {left} left" if speed else ""
        print_on_primary(f"step {step}/{self._total}  loss {loss}{pace}")


def _announce(config, components, dataset, state, mesh):
    train_split = dataset.manifest["splits"]["train"]
    print_on_primary(
        f"{count_params(state.params):,} parameters, {_family(components, config)}, "
        f"{len(dataset.train):,} blocks of {config.model.length} "
        f"{config.data.tokenizer} tokens from {train_split['utf8_bytes']:,} bytes, on "
        f"{jax.device_count()} {jax.devices()[0].platform} device(s)."
    )
    print_on_primary(sharding.describe({"params": state.params}, mesh))
    if state.step:
        print_on_primary(f"Continuing after step {state.step}.")


def _write_card(config, run, tokenizer, state):
    story = Story(
        config=config,
        parameters=count_params(state.params),
        tokenizer=tokenizer,
        weights="averaged, and as trained",
        **read_history(find_records(run), int(state.step)),
    )
    write_card(run, story, run.name)


def _family(components, config):
    if config.family == "autoregressive":
        return f"{components.num_tokens} tokens ({config.family})"
    return f"{components.graph.num_states} states ({config.graph})"


def _diverged(error, config, dataset, checkpoints):
    sets, numbers = batch_blocks(
        dataset.train,
        batch_size=config.train.batch_size,
        seed=config.seed,
        step=error.step - 1,
    )
    mixed = isinstance(dataset.train, Mixture)  # then SET:BLOCK, in the order of data.prepared
    blocks = [f"{a}:{b}" if mixed else str(b) for a, b in zip(sets, numbers, strict=True)]
    saved = checkpoints.latest
    return (
        f"{error}. Blocks of that batch: {_abridged(blocks)}. Last good checkpoint: "
        f"{'none' if saved is None else f'step {saved}'}. Start another run with a lower learning "
        "rate, or look at these blocks."
    )


def _abridged(names, most=16):
    shown = ", ".join(names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")


def _conclude(run, config, journal, seconds):
    step = config.train.steps
    print_on_primary(f"\nDone: step {step}, after {duration(seconds)}.")
    print_on_primary(f"Held-out {_bound_text(journal.bound)}")
    for text in journal.samples:
        print_on_primary(f"\n--- sample ---\n{text}")
    print_on_primary(f"\nCheckpoint: {run / FOLDER / str(step)}")
    trace = " --trace" if config.family == "diffusion" else ""
    print_on_primary(f"Next:       python -m sedd_jax.sample --checkpoint={run}{trace}")


def _bound_text(row):
    name = "bound" if "bound" in row else "nll"
    return (
        f"{name} {row[name]:.4f} nats/token (+-{row[f'{name}_stderr']:.4f}), "
        f"perplexity {row['perplexity']:.2f}, {row['bits_per_byte']:.3f} bits/byte"
    )


if __name__ == "__main__":
    cli.run(main)

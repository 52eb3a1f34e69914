"""Trains a model: `python -m sedd_jax.train --config=configs/tiny.py --workdir=runs/tiny`.

The same command continues a run that was stopped. Any setting can be changed on the command line,
as in `--config.train.steps=500`.
"""

import time
from pathlib import Path

import jax
from absl import flags
from ml_collections import config_flags

from sedd_jax.data.pipeline import train_batches
from sedd_jax.errors import BadInput
from sedd_jax.inference.evaluator import Evaluator
from sedd_jax.model.score_model import count_params
from sedd_jax.runtime import cli, sharding
from sedd_jax.runtime.checkpoint import FOLDER, Checkpoints
from sedd_jax.runtime.components import build_components
from sedd_jax.runtime.config import Config
from sedd_jax.runtime.metrics import MetricWriter, PendingLosses, Progress, duration
from sedd_jax.runtime.run import open_run
from sedd_jax.runtime.step import (
    Metrics,
    TrainState,
    build_train_step,
    init_state,
    run_keys,
)

_CONFIG = config_flags.DEFINE_config_file("config", None, "The run's config file.")
_WORKDIR = flags.DEFINE_string("workdir", None, "The run folder: made, or continued.")


def main() -> None:
    """Trains as the flags say."""
    config = cli.config_from(_CONFIG)
    if not _WORKDIR.value:
        raise BadInput("--workdir=FOLDER is needed: where the run is kept.")
    train(config, Path(_WORKDIR.value))


def train(config: Config, run: Path) -> None:
    """Trains from the latest checkpoint of `run`, or from the start, to `config.train.steps`.

    Raises:
      BadInput: data, settings or folder that cannot be used, before anything is computed.
    """
    started = time.monotonic()
    mesh = sharding.data_mesh()
    sharding.check_batches(config, mesh)
    dataset = open_run(run, config)
    keys = run_keys(config.seed)
    components = build_components(config, dataset.tokenizer.vocab_size, sharding.placement(mesh))
    everywhere, rows = sharding.replicated(mesh), sharding.over_batch(mesh)
    train_step = jax.jit(
        build_train_step(components, config, keys.train),
        in_shardings=(everywhere, rows),
        out_shardings=(everywhere, everywhere),
        donate_argnums=0,
    )
    init = jax.jit(lambda key: init_state(key, components, config), out_shardings=everywhere)
    evaluator = Evaluator(config, components, dataset, keys, mesh)

    with Checkpoints(run, config.checkpoint) as checkpoints:
        if checkpoints.latest is None:
            state = init(keys.init)
        else:
            abstract = sharding.placed(jax.eval_shape(init, keys.init), everywhere)
            state = checkpoints.restore(checkpoints.latest, abstract)
        start = int(state.step)
        _announce(config, components, dataset, count_params(state.params), start)
        batches = train_batches(
            dataset.train,
            batch_size=config.train.batch_size,
            seed=config.seed,
            start_step=start,
            crop=config.data.crop,
        )
        with MetricWriter(run, start) as writer, batches:
            journal = Journal(config, writer, evaluator, checkpoints, start)
            for step in range(start + 1, config.train.steps + 1):
                state, metrics = train_step(state, jax.device_put(next(batches), rows))
                journal.after(step, state, metrics)
        if journal.bound is None:  # the run was complete already
            journal.bound = evaluator.bound(state.ema_params)
            journal.samples = evaluator.samples(state.ema_params)
    _conclude(run, config.train.steps, journal, time.monotonic() - started)


class Journal:
    """What is done between the steps of a run: log, evaluate, sample, save."""

    def __init__(
        self,
        config: Config,
        writer: MetricWriter,
        evaluator: Evaluator,
        checkpoints: Checkpoints,
        start: int,
    ):
        """Begins after step `start`."""
        self._config, self._writer = config, writer
        self._evaluator, self._checkpoints = evaluator, checkpoints
        self._start, self._total = start, config.train.steps
        self.bound, self.samples = None, None  # the latest
        self._losses = PendingLosses()
        tokens_per_step = config.train.batch_size * config.model.length
        self._progress = Progress(start, self._total, tokens_per_step)

    def after(self, step: int, state: TrainState, metrics: Metrics) -> None:
        """Does what is due after `step`, in an order that a resumed run repeats: rows, then save.

        Everything is due after the last step.
        """

        def due(every):
            return step % every == 0 or step == self._total

        self._losses.add(step, metrics)
        if step == self._start + 1:
            jax.block_until_ready(metrics)  # the first step compiles: not part of the speed
            self._progress.begin(step)
        if due(self._config.train.log_every):
            self._log(step)
        with self._progress.paused():
            if due(self._config.eval.every):
                self.bound = self._evaluator.bound(state.ema_params)
                self._writer.scalars(step, self.bound)
                print(f"  held-out {_bound_text(self.bound)}", flush=True)
            if due(self._config.eval.sample_every):
                self.samples = self._evaluator.samples(state.ema_params)
                for number, text in enumerate(self.samples):
                    self._writer.text(step, f"sample_{number}", text)
            if due(self._config.checkpoint.every):
                self._checkpoints.save(state, self._config)

    def _log(self, step):
        row = self._losses.take()
        row["tokens_per_second"], left = self._progress.advance(step)
        self._writer.scalars(step, row)
        print(
            f"step {step}/{self._total}  loss {row['loss']:.4f} nats/token  "
            f"{row['tokens_per_second']:,.0f} tokens/s  {left} left",
            flush=True,
        )


def _announce(config, components, dataset, parameters, start):
    train_split = dataset.manifest["splits"]["train"]
    print(
        f"{parameters:,} parameters, {components.graph.num_states} states ({config.graph}), "
        f"{len(dataset.train):,} blocks of {config.model.length} {config.data.tokenizer} tokens "
        f"from {train_split['utf8_bytes']:,} bytes, on {jax.device_count()} "
        f"{jax.devices()[0].platform} device(s).",
        flush=True,
    )
    if start:
        print(f"Continuing after step {start}.", flush=True)


def _conclude(run, step, journal, seconds):
    print(f"\nDone: step {step}, after {duration(seconds)}.")
    print(f"Held-out {_bound_text(journal.bound)}")
    for text in journal.samples:
        print(f"\n--- sample ---\n{text}")
    print(f"\nCheckpoint: {run / FOLDER / str(step)}")
    print(f"Next:       python -m sedd_jax.sample --checkpoint={run} --trace")


def _bound_text(row):
    return (
        f"bound {row['bound']:.4f} nats/token (+-{row['bound_stderr']:.4f}), "
        f"perplexity {row['perplexity']:.2f}, {row['bits_per_byte']:.3f} bits/byte"
    )


if __name__ == "__main__":
    cli.run(main)

"""Trains a model: `python -m sedd_jax.train --config=configs/tiny.py --workdir=runs/tiny`.

The same command continues a run that was stopped. Any setting can be changed on the command line,
as in `--config.train.steps=500`.
"""

import time
from pathlib import Path

import jax
from absl import flags
from jax.sharding import Mesh
from ml_collections import config_flags

from sedd_jax.data.blocks import Dataset
from sedd_jax.data.pipeline import train_batches
from sedd_jax.errors import BadInput
from sedd_jax.inference.evaluator import Evaluator
from sedd_jax.model.score_model import count_params
from sedd_jax.runtime import cli, sharding
from sedd_jax.runtime import config as configs
from sedd_jax.runtime.checkpoint import FOLDER, Checkpoints
from sedd_jax.runtime.components import build_components
from sedd_jax.runtime.config import Config
from sedd_jax.runtime.metrics import MetricWriter, PendingLosses, Progress, duration
from sedd_jax.runtime.run import open_data, open_run
from sedd_jax.runtime.step import build_train_step, init_state, run_keys

_CONFIG = config_flags.DEFINE_config_file("config", None, "The run's config file.")
_WORKDIR = flags.DEFINE_string("workdir", None, "The run folder: made, or continued.")


def main() -> None:
    """Trains as the flags say."""
    if _CONFIG.value is None or not _WORKDIR.value:
        raise BadInput("--config=FILE and --workdir=FOLDER are both needed.")
    config = configs.parse(_CONFIG.value)
    mesh = sharding.data_mesh()
    sharding.check_batches(config, mesh)
    run = Path(_WORKDIR.value)
    dataset = open_data(run, config)
    open_run(run, config)
    train(config, run, dataset, mesh)


def train(config: Config, run: Path, dataset: Dataset, mesh: Mesh) -> None:
    """Trains from the latest checkpoint of `run`, or from the start, to `config.train.steps`."""
    started = time.monotonic()
    keys = run_keys(config.seed)
    components = build_components(config, dataset.tokenizer.vocab_size)
    everywhere, rows = sharding.replicated(mesh), sharding.over_batch(mesh)
    train_step = jax.jit(
        build_train_step(components, config, keys.train),
        in_shardings=(everywhere, rows),
        out_shardings=(everywhere, everywhere),
        donate_argnums=0,
    )
    evaluator = Evaluator(config, components, dataset, keys, mesh)
    state = jax.jit(lambda key: init_state(key, components, config), out_shardings=everywhere)(
        keys.init
    )

    with Checkpoints(run, config.checkpoint) as checkpoints:
        if checkpoints.latest is not None:
            state = checkpoints.restore(checkpoints.latest, state)
        start, total = int(state.step), config.train.steps
        _announce(config, components, dataset, count_params(state.params), start)
        batches = train_batches(
            dataset.train,
            batch_size=config.train.batch_size,
            seed=config.seed,
            start_step=start,
            crop=config.data.crop,
        )
        losses = PendingLosses()
        progress = Progress(start, total, config.train.batch_size * config.model.length)
        with MetricWriter(run, start) as writer, batches:
            for step in range(start + 1, total + 1):
                state, metrics = train_step(state, jax.device_put(next(batches), rows))
                losses.add(step, metrics)
                if step == start + 1:
                    jax.block_until_ready(metrics)  # the first step compiles: not part of the speed
                    progress.begin(step)

                def due(every, step=step):
                    return step % every == 0 or step == total

                if due(config.train.log_every):
                    row = losses.take()
                    row["tokens_per_second"], left = progress.advance(step)
                    writer.scalars(step, row)
                    print(
                        f"step {step}/{total}  loss {row['loss']:.4f} nats/token  "
                        f"{row['tokens_per_second']:,.0f} tokens/s  {left} left",
                        flush=True,
                    )
                with progress.paused():
                    if due(config.eval.every):
                        row = evaluator.bound(state.ema_params)
                        writer.scalars(step, row)
                        print(f"  held-out {_bound_text(row)}", flush=True)
                    if due(config.eval.sample_every):
                        for number, text in enumerate(evaluator.samples(state.ema_params)):
                            writer.text(step, f"sample_{number}", text)
                    if due(config.checkpoint.every):
                        checkpoints.save(state, config)
    _conclude(run, evaluator, state, time.monotonic() - started)


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


def _conclude(run, evaluator, state, seconds):
    print(f"\nDone: step {int(state.step)}, after {duration(seconds)}.")
    print(f"Held-out {_bound_text(evaluator.bound(state.ema_params))}")
    for text in evaluator.samples(state.ema_params):
        print(f"\n--- sample ---\n{text}")
    print(f"\nCheckpoint: {run / FOLDER / str(int(state.step))}")
    print(f"Next:       python -m sedd_jax.sample --checkpoint={run} --trace")


def _bound_text(row):
    return (
        f"bound {row['bound']:.4f} nats/token (+-{row['bound_stderr']:.4f}), "
        f"perplexity {row['perplexity']:.2f}, {row['bits_per_byte']:.3f} bits/byte"
    )


if __name__ == "__main__":
    cli.run(main)

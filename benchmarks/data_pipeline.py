"""Times the data pipeline: tokens per second of training batches.

    python -m benchmarks.data_pipeline

The data are memory-mapped files of random token ids, read in blocks of 1024 and batches of 64, in
random order; with --bucket=gs://BUCKET/FOLDER also through the cache, after all is in it, in turn
with the files. The last column is the ratio to the training step of configs/tiny.py on this
machine.
"""

import functools
import hashlib
import os
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from absl import flags

from benchmarks.measure import check_output, report
from configs import tiny
from sedd_jax.data.bucket_blocks import BucketBlocks
from sedd_jax.data.pipeline import CROPS, train_batches
from sedd_jax.data.shard_cache import Shard
from sedd_jax.data.token_blocks import TokenBlocks
from sedd_jax.experiment import cli
from sedd_jax.experiment import mesh as meshes
from sedd_jax.experiment.config import parse
from sedd_jax.experiment.state import run_keys
from sedd_jax.inference.build import build_family
from sedd_jax.system import bucket
from sedd_jax.training.step import build_programs

_BLOCKS = flags.DEFINE_integer("blocks", 20_000, "Blocks in all files.")
_FILES = flags.DEFINE_integer("files", 8, "Number of files.")
_LENGTH = flags.DEFINE_integer("length", 1024, "Tokens in a block.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 64, "Blocks in a batch.")
_BATCHES = flags.DEFINE_integer("batches", 1000, "Batches to take.")
_ROUNDS = flags.DEFINE_integer("rounds", 1, "Times that everything is measured.")
_BUCKET = flags.DEFINE_string("bucket", None, "Address of a folder to write the files to.")
_OUTPUT = flags.DEFINE_string("output", None, "File for the results as JSON.")


def main() -> None:
    """Runs the benchmark."""
    check_output(_OUTPUT.value)
    with tempfile.TemporaryDirectory() as folder:
        tokens = np.random.default_rng(0).integers(
            0, 50_257, _BLOCKS.value * _LENGTH.value, np.uint16
        )
        paths = [Path(folder) / f"{number}.bin" for number in range(_FILES.value)]
        for path, part in zip(paths, np.array_split(tokens, _FILES.value), strict=True):
            part.tofile(path)
        sources = {"disk": TokenBlocks(paths, _LENGTH.value, "uint16")}
        if _BUCKET.value:
            os.environ["SEDD_JAX_CACHE"] = folder
            sources["cache"] = _uploaded(paths)
            sources["cache"].stream  # noqa: B018 - fetches it all
        model = _model_rate()
        rows = []
        for _ in range(_ROUNDS.value):
            for crop in CROPS:
                for source, blocks in sources.items():
                    rate = _rate(blocks, crop)
                    row = {"crop": crop, "from": source, "tokens_per_second": rate}
                    rows.append(row | {"model_tokens_per_second": model, "ratio": rate / model})
    report(rows, _OUTPUT.value)


def _uploaded(paths: list[Path]) -> BucketBlocks:
    """Copies files to the bucket and returns them as blocks."""
    folder = bucket.parse(_BUCKET.value, "--bucket")
    bucket.in_parallel([functools.partial(bucket.upload, p, folder / p.name) for p in paths])
    entries = bucket.entries(folder)
    shards = []
    for path in paths:
        digest, found = hashlib.sha256(path.read_bytes()).hexdigest(), entries[path.name]
        shards.append(Shard(folder / path.name, found.size, found.version, digest, True))
    return BucketBlocks(shards, _LENGTH.value, "uint16")


def _rate(blocks: TokenBlocks, crop: str) -> float:
    """Returns the tokens a second of training batches."""
    with train_batches(blocks, batch_size=_BATCH_SIZE.value, seed=0, crop=crop) as batches:
        next(batches)  # starts the threads
        began = time.perf_counter()
        for _ in range(_BATCHES.value):
            next(batches)
        seconds = time.perf_counter() - began
    return _BATCHES.value * _BATCH_SIZE.value * _LENGTH.value / seconds


def _model_rate(steps: int = 10) -> float:
    """Returns the tokens a second of the training step of configs/tiny.py."""
    config = parse(tiny.get_config())
    keys, mesh = run_keys(config.seed), meshes.build_mesh(config.mesh)
    family = build_family(config, config.data.vocab_size, meshes.placement(mesh))
    programs = build_programs(family, config, keys, mesh)
    shape = (config.train.batch_size, config.model.length)
    tokens = np.random.default_rng(0).integers(0, config.data.vocab_size, shape, np.int32)
    batch = meshes.global_batch(tokens, config.train.batch_size, mesh)
    state, _ = programs.train_step(programs.init(keys.init), batch)
    jax.block_until_ready(state)
    began = time.perf_counter()
    for _ in range(steps):
        state, _ = programs.train_step(state, batch)
    jax.block_until_ready(state)
    return steps * tokens.size / (time.perf_counter() - began)


if __name__ == "__main__":
    cli.run(main)

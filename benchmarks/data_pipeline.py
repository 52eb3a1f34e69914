"""Times the training batches: tokens a second that the data pipeline delivers.

    python -m benchmarks.data_pipeline

Over a memory-mapped file of random token ids, blocks of 1024 in batches of 64, in random order.
"""

import tempfile
import time
from pathlib import Path

import numpy as np
from absl import flags

from benchmarks.measure import check_output, report
from sedd_jax.data.pipeline import CROPS, train_batches
from sedd_jax.data.token_blocks import TokenBlocks
from sedd_jax.runtime import cli

_BLOCKS = flags.DEFINE_integer("blocks", 20_000, "Blocks in the file.")
_LENGTH = flags.DEFINE_integer("length", 1024, "Tokens in a block.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 64, "Blocks in a batch.")
_BATCHES = flags.DEFINE_integer("batches", 1000, "Batches to take.")
_OUTPUT = flags.DEFINE_string("output", None, "File for the results as JSON.")


def main() -> None:
    """Measures as the flags say."""
    check_output(_OUTPUT.value)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokens.bin"
        count = _BLOCKS.value * _LENGTH.value
        np.random.default_rng(0).integers(0, 50_257, count, np.uint16).tofile(path)
        blocks = TokenBlocks([path], _LENGTH.value, "uint16")
        rows = []
        for crop in CROPS:
            with train_batches(blocks, batch_size=_BATCH_SIZE.value, seed=0, crop=crop) as batches:
                next(batches)  # starts the threads
                began = time.perf_counter()
                for _ in range(_BATCHES.value):
                    next(batches)
                seconds = time.perf_counter() - began
            tokens = _BATCHES.value * _BATCH_SIZE.value * _LENGTH.value
            rows.append({"crop": crop, "tokens_per_second": tokens / seconds})
    report(rows, _OUTPUT.value)


if __name__ == "__main__":
    cli.run(main)

"""Prepared data in buckets of real servers: written, read by several processes, and killed.

python -m pytest -m slow -n 0 tests/test_bucket_data.py
"""

import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from sedd_jax.data.pipeline import train_batches
from sedd_jax.data.prepared import open_blocks
from tests.test_distributed import rows, train

pytestmark = pytest.mark.slow
LENGTH, BATCH = 512, 16
FLAGS = (
    "--config=configs/smoke.py",
    "--config.train.steps=10",
    "--config.train.log_every=1",
    "--config.eval.every=10",
    "--config.eval.num_samples=0",
    "--config.checkpoint.every=10",
)
# an epoch of some rows of the batches, as a process of a run reads them
READER = """
import sys, numpy as np
from sedd_jax.data.pipeline import train_batches
from sedd_jax.data.prepared import open_blocks
folder, output, length, batch, first, last = sys.argv[1:]
blocks = open_blocks(folder, int(length)).train
steps = len(blocks) // int(batch)
with train_batches(
    blocks, batch_size=int(batch), seed=0, rows=np.arange(int(first), int(last)), crop="random",
    last_step=steps, num_threads=1, buffer=1,
) as batches:
    np.save(output, np.stack([next(batches) for _ in range(steps)]))
"""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Three files of documents, each large enough for a file of ids."""
    folder = tmp_path_factory.mktemp("corpus")
    numbers = np.random.default_rng(0).integers(0, 10**9, (3, 200, 200))
    for name, texts in zip("abc", numbers, strict=True):
        lines = (json.dumps({"text": " ".join(map(str, text))}) for text in texts)
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    return folder


def prepare(binary, corpus, output):
    """Prepares the corpus with one worker."""
    binary.run(
        "prepare", FLAGS[0], f"--config.data.corpus={corpus}", f"--output={output}", "--workers=1"
    )


@pytest.fixture(scope="module")
def local(corpus, binary, tmp_path_factory):
    """The data on disk."""
    folder = tmp_path_factory.mktemp("local") / "data"
    prepare(binary, corpus, folder)
    return folder


@pytest.fixture
def remote(corpus, local, binary, cloud, tmp_path, monkeypatch):
    """The data in the bucket, and an empty cache."""
    monkeypatch.setenv("SEDD_JAX_CACHE", str(tmp_path / "cache"))
    prepare(binary, corpus, f"{cloud.address}/data")
    return f"{cloud.address}/data"


def reader(folder, output, first=0, last=BATCH, environment=None):
    """Starts a process that reads an epoch of rows [first, last)."""
    arguments = map(str, (folder, output, LENGTH, BATCH, first, last))
    command = [sys.executable, "-c", READER, *arguments]
    return subprocess.Popen(command, env={**os.environ, **(environment or {})})


def epoch(folder):
    """The same in this process, from disk."""
    blocks = open_blocks(folder, LENGTH).train
    with train_batches(blocks, batch_size=BATCH, seed=0, crop="random") as batches:
        return np.stack([next(batches) for _ in range(len(blocks) // BATCH)])


def test_two_processes_with_caches_of_their_own_train_to_the_bits_of_a_disk(
    binary, local, remote, tmp_path, monkeypatch
):
    start, losses = binary.start, []
    caches = [tmp_path / f"cache{number}" for number in range(4)]
    unused = iter(caches)

    def starting(*arguments, **options):
        monkeypatch.setenv("SEDD_JAX_CACHE", str(next(unused)))
        return start(*arguments, **options)

    monkeypatch.setattr(binary, "start", starting)
    for name, place in (("here", local), ("there", remote)):
        flags = (*FLAGS, f"--config.data.prepared={place}")
        train(binary, tmp_path / name, flags, processes=2, devices=1)
        losses.append([(r.get("loss"), r.get("bound")) for r in rows(tmp_path / name)])
    assert losses[0] == losses[1] and len(losses[0]) >= 10
    used = [cache.exists() and any((cache / "shards").iterdir()) for cache in caches]
    assert used == [False, False, True, True]


def test_each_of_four_processes_fetches_at_most_0_3_of_the_data(cloud, local, remote, tmp_path):
    size = sum(path.stat().st_size for path in local.glob("train-*.bin"))
    started = []
    for number in range(4):
        proxy = cloud.another_proxy()
        environment = cloud.environment_of(proxy)
        environment["SEDD_JAX_CACHE"] = str(tmp_path / f"cache{number}")
        first = number * BATCH // 4
        output = tmp_path / f"{number}.npy"
        process = reader(remote, output, first, first + BATCH // 4, environment)
        started.append((process, proxy, output))
    parts = []
    for process, proxy, output in started:
        assert process.wait() == 0
        parts.append(np.load(output))
        ids = [each for each in proxy.requests if ".bin" in each.path]
        share = sum(each.received for each in ids) / size
        others = len(proxy.requests) - len(ids)
        print(f"{share:.3f} of the training data by {len(ids)} requests, and {others} others")
        assert 0.2 < share <= 0.3 and others <= 4
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), epoch(local))


def test_processes_that_share_a_cache_are_killed_at_any_time(local, remote, tmp_path):
    right, moments = epoch(local), random.Random(0)
    killed = 0
    for turn in range(8):
        started = [reader(remote, tmp_path / f"{turn}-{n}.npy", n, BATCH) for n in range(2)]
        cache = tmp_path / "cache" / "shards"
        while not (cache.is_dir() and any(cache.iterdir())):
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 2.5))
        started[turn % 2].kill()
        codes = [process.wait() for process in started]
        killed += -signal.SIGKILL in codes
        assert codes[1 - turn % 2] == 0
        for number, code in enumerate(codes):
            if code == 0:
                read = np.load(tmp_path / f"{turn}-{number}.npy")
                np.testing.assert_array_equal(read, right[:, number:])
        if turn % 3 == 2:
            for path in cache.iterdir():
                path.unlink()
    assert killed > 3


def test_data_that_change_during_a_run_end_it_with_a_sentence(
    binary, cloud, local, remote, tmp_path
):
    from sedd_jax.system import bucket

    blocks = open_blocks(remote, LENGTH).train
    blocks[0]
    place = bucket.parse(remote) / "train-00000.bin"
    bucket.upload(local / "train-00001.bin", place)
    with pytest.raises(ValueError, match="train-00000.bin has changed since it was opened"):
        blocks[len(blocks) // 4]
    flags = (*FLAGS, f"--config.data.prepared={remote}", f"--workdir={tmp_path / 'run'}")
    assert "train-00000.bin is damaged" in binary.refuse("train", *flags)

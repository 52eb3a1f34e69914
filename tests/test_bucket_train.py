"""Runs in buckets give the bits of runs in folders; how few requests they make at the start.

python -m pytest -m slow -n 0 -s tests/test_bucket_train.py
"""

import json
import re
from urllib.parse import unquote

import chex
import portpicker
import pytest

import sedd_jax as sedd
from sedd_jax.experiment.metrics import FILE
from sedd_jax.system import mirror

CONFIG = ("--config=configs/smoke.py", "--config.train.trackers=", "--config.eval.sample_every=20")
# of process 0 before the first step, besides data and the objects of a checkpoint that is restored
MOST_REQUESTS = {"new": 14, "resumed": 16}
TIMED = ("tokens_per_second", "step_seconds", "waiting_for_data", "flops_utilization")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """A cache of data that no other test has filled."""
    monkeypatch.setenv("SEDD_JAX_CACHE", str(tmp_path / "cache"))


def rows(folder):
    """The rows of the metrics, without times."""
    lines = (folder / FILE).read_text().splitlines()
    kept = [{k: v for k, v in json.loads(line).items() if k not in TIMED} for line in lines]
    return kept


def assert_same_run(address, folder):
    """The same weights and rows."""
    for ema in (True, False):
        chex.assert_trees_all_equal(
            sedd.load(address, ema=ema).params, sedd.load(folder, ema=ema).params
        )
    assert rows(mirror.local(address)) == rows(folder)


@pytest.fixture(scope="session")
def prepared(binary, tmp_path_factory):
    """Prepared data."""
    folder = tmp_path_factory.mktemp("prepared") / "owt"
    binary.run("prepare", CONFIG[0], f"--output={folder}", "--workers=1")
    return folder


@pytest.fixture(scope="session")
def straight(binary, prepared, tmp_path_factory):
    """A run in a folder."""
    run = tmp_path_factory.mktemp("straight") / "run"
    binary.run("train", *CONFIG, f"--config.data.prepared={prepared}", f"--workdir={run}")
    return run


@pytest.mark.slow
def test_a_run_in_a_bucket_stopped_and_resumed_is_that_of_a_folder(
    binary, cloud, prepared, straight
):
    data, run = f"{cloud.address}/owt", f"{cloud.address}/runs/a"
    binary.run("prepare", CONFIG[0], f"--output={data}", "--workers=1")
    where = (f"--config.data.prepared={data}", f"--workdir={run}")
    binary.run("train", *CONFIG, *where, "--config.train.steps=20")
    cloud.proxy.requests.clear()
    out = binary.run("train", *CONFIG, *where)
    assert "Continuing after step 20." in out
    assert f"Checkpoint: {run}/checkpoints/40" in out
    assert f"--checkpoint={run}" in out  # the next command
    assert_same_run(run, straight)


@pytest.mark.slow
def test_a_run_with_a_corpus_of_its_own_keeps_its_data_in_the_bucket(binary, cloud, straight):
    run = f"{cloud.address}/runs/own"
    binary.run("train", *CONFIG, f"--workdir={run}", "--config.train.steps=20")
    binary.run("train", *CONFIG, f"--workdir={run}")
    assert_same_run(run, straight)


@pytest.mark.slow
@pytest.mark.parametrize("kind", MOST_REQUESTS)
def test_few_requests_before_the_first_step(binary, cloud, kind, monkeypatch):
    monkeypatch.setenv("SEDD_JAX_LEASE_SECONDS", "600")  # a slow start renews it in no case
    data, run = f"{cloud.address}/owt", f"{cloud.address}/runs/few"
    binary.run("prepare", CONFIG[0], f"--output={data}", "--workers=1")
    where = (f"--config.data.prepared={data}", f"--workdir={run}")
    if kind == "resumed":
        binary.run("train", *CONFIG, *where, "--config.train.steps=20")
    cloud.proxy.requests.clear()
    every = ("--config.train.log_every=1", "--config.checkpoint.every=1000")
    process = binary.start("train", *CONFIG, *where, *every)
    for line in process.stdout:
        if line.startswith("step "):
            made = list(cloud.proxy.requests)
            break
    process.communicate()
    besides_data = [f"{each.method} {each.path}" for each in made if not is_data(each)]
    print(f"\n{len(besides_data)} requests besides data:", *besides_data, sep="\n")
    assert len(besides_data) <= MOST_REQUESTS[kind]


def is_data(exchange):
    """Token ids, and a checkpoint that is restored."""
    path = unquote(exchange.path)
    return path.partition("?")[0].endswith(".bin") or re.search(r"checkpoints/\d", path)


@pytest.mark.slow
def test_two_processes_with_caches_of_their_own(binary, gcs, straight, tmp_path, monkeypatch):
    """Each reads its rows of the bucket, and both write one checkpoint."""
    data, run = f"{gcs.address}/owt", f"{gcs.address}/runs/two"
    binary.run("prepare", CONFIG[0], f"--output={data}", "--workers=1")
    flags = (*CONFIG, f"--config.data.prepared={data}", f"--workdir={run}", "--distributed=yes")
    address = f"--coordinator=localhost:{portpicker.pick_unused_port()}"
    started = []
    for number in range(2):
        monkeypatch.setenv("SEDD_JAX_CACHE", str(tmp_path / f"cache{number}"))
        numbers = ("--num_processes=2", f"--process_id={number}")
        started.append(binary.start("train", *flags, address, *numbers))
    outputs = [process.communicate() for process in started]
    assert [process.returncode for process in started] == [0, 0], outputs
    chex.assert_trees_all_close(sedd.load(run).params, sedd.load(straight).params, atol=1e-4)

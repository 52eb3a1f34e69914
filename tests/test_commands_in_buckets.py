"""The commands with addresses of buckets in the place of paths: the same bits, and one sentence."""

import contextlib
import json
import subprocess
import sys
import time

import numpy as np
import portpicker
import pytest

import sedd_jax as sedd
from sedd_jax.evaluation.record import read_records
from sedd_jax.system import bucket, lease, mirror
from sedd_jax.system.bucket import parse
from tests.proxy import WRITES, lose_answer, refuse, reset
from tests.test_exact import SMALLEST

LINES = '{"template": "A[MASK:3]"}\n{"length": 4, "id": "x"}\n{"prefix": "The ", "length": 9}\n'


def upload(folder, address):
    """Copies a folder into a bucket."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            bucket.upload(path, parse(f"{address}/{path.relative_to(folder).as_posix()}"))


@pytest.fixture
def run(cloud, smoke_run):
    """The address of a finished run."""
    address = f"{cloud.address}/runs/smoke"
    upload(smoke_run, address)
    cloud.proxy.requests.clear()
    return address


def read(address):
    return bucket.read(parse(address))[0].decode()


def rows(text):
    records = [json.loads(line) for line in text.splitlines()]
    return {record["id"]: record | {"seconds": None} for record in records}


@pytest.mark.slow
def test_a_sampling_job_gives_the_same_rows_and_continues(run, cloud, smoke_run, binary, tmp_path):
    (tmp_path / "in.jsonl").write_text(LINES)
    bucket.upload(tmp_path / "in.jsonl", parse(f"{cloud.address}/in.jsonl"))
    local = tmp_path / "out.jsonl"
    binary.run(
        "sample", f"--checkpoint={smoke_run}", f"--input={tmp_path}/in.jsonl", f"--output={local}",
        "--steps=4",
    )  # fmt: skip
    flags = (f"--checkpoint={run}", f"--input={cloud.address}/in.jsonl", "--steps=4")
    there = f"{cloud.address}/out.jsonl"
    out = binary.run("sample", *flags, f"--output={there}")
    assert f"all valid ones are in {there}." in out and "/sedd_jax-" not in out + binary.err
    expected = rows(local.read_text())
    assert rows(read(there)) == expected
    assert set(bucket.entries(parse(cloud.address))) >= {"in.jsonl", "out.jsonl"}
    assert not any(name.endswith(".lock") for name in bucket.entries(parse(cloud.address)))
    kept = read(there).encode().splitlines(keepends=True)[0]
    bucket.write(parse(there), kept + b'{"ind')  # as a killed job leaves it
    out = binary.run("sample", *flags, f"--output={there}")
    assert "3 rows: 1 drawn before" in out
    assert rows(read(there)) == expected and read(there).encode().startswith(kept)
    # with local weights: TensorStore says on stderr that it has a token for testing
    flags = (f"--checkpoint={smoke_run}", *flags[1:], "--seed=1")
    line = binary.refuse("sample", *flags, f"--output={there}")
    assert f"{there} was drawn with another seed" in line
    page = f"{cloud.address}/page.html"
    binary.run("sample", f"--checkpoint={run}", "--steps=4", "--num_samples=1", f"--html={page}")
    assert "<script" in read(page)
    line = binary.refuse("sample", f"--checkpoint={run}", f"--html={page}")
    assert f"{page} exists already" in line


@pytest.mark.slow
def test_passing_faults_change_nothing(run, cloud, smoke_run, binary, tmp_path):
    local, flags = tmp_path / "out.txt", ("--steps=4", "--num_samples=3", f"--checkpoint={run}")
    binary.run("sample", *flags[:2], f"--checkpoint={smoke_run}", f"--output={local}")
    cloud.proxy.inject(lose_answer, methods=WRITES, times=1)  # of the probe
    cloud.proxy.inject(refuse(503), times=3)
    cloud.proxy.inject(reset, times=2)
    binary.run("sample", *flags, f"--output={cloud.address}/some/a.txt")
    cloud.proxy.heal()
    lost = cloud.proxy.inject(lose_answer, methods="POST PUT", skip=1, times=1)  # of the file
    binary.run("sample", *flags, f"--output={cloud.address}/some/b.txt")
    assert lost.met == 3  # the probe, the file, and the file again
    assert bucket.entries(parse(f"{cloud.address}/some")).keys() == {"a.txt", "b.txt"}
    for name in "ab":
        assert read(f"{cloud.address}/some/{name}.txt") == local.read_text()


# the command, with uploads every half second
_OFTEN = """
import runpy, sys
from sedd_jax.system import mirror
mirror.PUSH_SECONDS = 0.5
sys.argv[0] = "sample"
runpy.run_module("sedd_jax.sample", run_name="__main__")
"""


@pytest.mark.slow
def test_a_killed_job_continues_on_two_hosts_with_what_was_uploaded(
    run, cloud, smoke_run, binary, tmp_path
):
    lines = "".join(f'{{"template": "{number}[MASK:8]"}}\n' for number in range(100))
    (tmp_path / "in.jsonl").write_text(lines)
    bucket.upload(tmp_path / "in.jsonl", parse(f"{cloud.address}/in.jsonl"))
    settings, output = ("--steps=64", "--batch_size=2"), f"{cloud.address}/out.jsonl"
    flags = (f"--checkpoint={run}", f"--input={cloud.address}/in.jsonl", *settings)
    flags += (f"--output={output}",)
    environment = binary.environment | {"JAX_NUM_CPU_DEVICES": "1"}
    killed = subprocess.Popen([sys.executable, "-c", _OFTEN, *flags], env=environment)

    def uploaded():
        with contextlib.suppress(FileNotFoundError):
            return rows(read(output).rpartition("\n")[0])
        return {}

    while len(uploaded()) < 2:
        assert killed.poll() is None
        time.sleep(0.2)
    killed.kill()
    killed.wait()
    kept = uploaded()
    assert 2 <= len(kept) < 100
    bucket.delete(parse(f"{output}.lock"))  # as if its lease had run out
    job = (f"--coordinator=localhost:{portpicker.pick_unused_port()}", "--num_processes=2")
    hosts = [binary.start("sample", *flags, *job, f"--process_id={number}") for number in range(2)]
    for host in hosts:
        _, err = host.communicate()
        assert host.returncode == 0, err
    local = (f"--checkpoint={smoke_run}", f"--input={tmp_path}/in.jsonl", *settings)
    binary.run("sample", *local, f"--output={tmp_path}/out.jsonl")
    expected = rows((tmp_path / "out.jsonl").read_text())
    found = rows(read(output))
    assert found.keys() == expected.keys() and len(found) == 100
    assert all(found[name]["tokens"] == it["tokens"] for name, it in expected.items())
    assert all(found[name] == it for name, it in kept.items())


@pytest.mark.slow
def test_an_evaluation_gives_the_same_figures_and_continues(
    run, cloud, smoke_run, binary, tmp_path
):
    text = tmp_path / "data/ptb.test.txt"
    text.parent.mkdir()
    text.write_text("one line of text\nand another one , which is longer than a block\n" * 4)
    upload(text.parent, f"{cloud.address}/data")
    flags = ("--suite=heldout,ptb", "--draws=2", "--batch_size=4", "--max_blocks=4")
    local = f"--checkpoint={smoke_run}", f"--data={text.parent}", f"--output={tmp_path}/out"
    binary.run("evaluate", *flags, *local)
    there = f"--checkpoint={run}", f"--data={cloud.address}/data"
    out = binary.run("evaluate", *flags, *there)
    assert f"Records, summary and plots: {run}/evaluations" in out
    assert "/sedd_jax-" not in out + binary.err
    binary.run("evaluate", *flags, *there)
    assert "ptb: known from" in binary.err
    found = read_records(mirror.local(f"{run}/evaluations"))
    expected = read_records(tmp_path / "out")

    def without_seconds(records):
        return [(it.file, it.figures | {"seconds": None}) for it in records]

    assert len(found) == 2 and without_seconds(found) == without_seconds(expected)
    page = f"{cloud.address}/report.html"
    assert f"Wrote {page}." in binary.run("report", run, f"--output={page}")
    assert f"--checkpoint={run}" in read(page)


@pytest.mark.slow
def test_a_model_is_loaded_with_its_bits(run, smoke_run):
    here, there = sedd.load(smoke_run), sedd.load(run)
    assert here.identity == there.identity and here.name == there.name
    xt = np.zeros((1, here.config.model.length), np.int32)
    sigma = np.ones(1, np.float32)
    assert np.array_equal(here.log_score(xt, sigma), there.log_score(xt, sigma))


def checked(binary, workdir):
    """Prints what a check of the maths says that is as small as can be, and so fails a claim."""
    process = binary.start("exact", *SMALLEST, "--objective=score_entropy", f"--workdir={workdir}")
    out, err = process.communicate()
    assert process.returncode == 1, err
    assert f"the report is in {workdir}." in err
    return out


@pytest.fixture(scope="module")
def local_check(binary, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exact")
    return checked(binary, folder), (folder / "report.json").read_text()


@pytest.mark.slow
def test_a_report_on_the_maths_is_the_same(cloud, binary, local_check):
    there = f"{cloud.address}/exact"
    assert (checked(binary, there), read(f"{there}/report.json")) == local_check
    line = binary.refuse("exact", *SMALLEST, f"--workdir={there}")
    assert f"{there}/report.json exists already" in line


@pytest.mark.slow
def test_what_cannot_be_is_a_sentence(run, cloud, binary):
    nothing, output = f"{cloud.address}/nothing", f"--output={cloud.address}/out.jsonl"
    missing = f"{cloud.address}-not-there/out.jsonl"
    for flags, words in (
        ((f"--checkpoint={nothing}",), f"There is nothing in {nothing}"),
        ((f"--checkpoint={run}/data",), f"{run}/data holds neither"),
        ((f"--checkpoint={run}", f"--output={missing}"), "There is no bucket"),
        ((f"--checkpoint={run.replace('//', '/')}",), "begins with gs://BUCKET/"),
        ((f"--checkpoint={run}", f"--input={nothing}", output), f"{nothing} does not exist"),
    ):
        assert words in binary.refuse("sample", *flags), flags
    line = binary.refuse("evaluate", "--suite=heldout", f"--checkpoint={run}/data")
    assert f"{run}/data is no run folder" in line
    line = binary.refuse("report", f"{run}/data", f"--output={cloud.address}/report.html")
    assert f"{run}/data is no run" in line
    lock = parse(f"{cloud.address}/in.jsonl.lock")
    bucket.write(parse(f"{cloud.address}/in.jsonl"), LINES.encode())
    job = (f"--input={cloud.address}/in.jsonl", f"--output={cloud.address}/in.jsonl")
    with lease.exclusive(lock, "", "", seconds=3):
        process = binary.start("sample", f"--checkpoint={run}", *job)
        _, err = process.communicate()
    assert process.returncode == 2, err
    assert f"{cloud.address}/in.jsonl is in use by process" in err
    cloud.proxy.inject(refuse(403), methods=WRITES)
    line = binary.refuse("sample", f"--checkpoint={run}", output)
    assert f"--output: {cloud.address}/.probe" in line and "refuses the access" in line

"""The binary that prepares text: a kill at any point, any number of workers, bad input."""

import dataclasses
import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sedd_jax.data.prepared import open_blocks
from sedd_jax.experiment.run import open_run

SMOKE = "--config=configs/smoke.py"


@pytest.fixture
def corpus(tmp_path):
    """A dozen files of documents, each large enough for a part of its own."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for i in range(12):
        lines = (json.dumps({"text": f"File {i}, line {j}. " * 400}) for j in range(40))
        (folder / f"{i:02}.jsonl").write_text("\n".join(lines))
    return folder


def _contents(folder):
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def _flags(corpus, output, *more):
    return (SMOKE, f"--config.data.corpus={corpus}/*.jsonl", f"--output={output}", *more)


def test_prepared_data_can_be_trained_on(tmp_path, corpus, binary, smoke_config):
    output = tmp_path / "made" / "data"
    out = binary.run("prepare", *_flags(corpus, output, "--workers", "1"))
    counts = open_blocks(output, 32).manifest["splits"]
    assert sum(split["documents"] for split in counts.values()) == 12 * 40
    for split in ("train", "heldout"):
        line = next(line for line in out.splitlines() if line.startswith(split))
        assert f"{counts[split]['documents']:,} documents, {counts[split]['tokens']:,} tok" in line
        assert f"{counts[split]['bytes_per_token']:.3f} bytes a token" in line
    (command,) = [line for line in out.splitlines() if "sedd_jax.train" in line]
    assert f"--config.data.prepared={output}" in command and SMOKE in command
    assert "--workers" not in command and "--output" not in command

    again = binary.run("prepare", *_flags(corpus, output)).splitlines()[0]
    assert again == f"{output} was prepared before; its 24 files of ids hold what was written."

    data = dataclasses.replace(smoke_config.data, prepared=str(output))
    dataset = open_run(tmp_path / "run", dataclasses.replace(smoke_config, data=data))
    assert dataset.manifest["splits"] == counts


@pytest.mark.slow
@pytest.mark.unsteady
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_killed_at_any_time_the_same_command_goes_on_to_the_same_bytes(
    tmp_path, corpus, binary, workers
):
    straight, output = tmp_path / "straight", tmp_path / "data"
    staging = tmp_path / ".data.staging"
    binary.run("prepare", *_flags(corpus, straight, "--workers=1"))
    # in the survey, in the middle of tokenising, and when all that is left is the manifest
    for place in ("survey/00003.json", "shards/00005.json", "shards/00011.json"):
        process = binary.start("prepare", *_flags(corpus, output, f"--workers={workers}"))
        while not (staging / place).exists() and process.poll() is None:
            time.sleep(0.0005)
        process.kill()
        process.communicate()
        assert process.returncode in (0, -signal.SIGKILL)
        # it may have been quick enough to come to its end, but never from the first place
        assert staging.exists() or (output.exists() and place != "survey/00003.json")
    binary.run("prepare", *_flags(corpus, output, f"--workers={workers}"))
    assert _contents(output) == _contents(straight)
    assert not staging.exists()


def _status(pid):
    """State and parent of a process; a dead one is as good as a zombie."""
    try:
        state, parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
    except OSError:
        return "Z", None
    return state, int(parent)


def _children(pid):
    found = (int(path.name) for path in Path("/proc").glob("[0-9]*"))
    return [other for other in found if _status(other)[1] == pid]


def _alive(pid):
    return _status(pid)[0] != "Z"


def _await_end(pids):
    deadline = time.monotonic() + 10
    while any(map(_alive, pids)):
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="reads /proc")
def test_no_worker_outlives_a_killed_parent(tmp_path, binary):
    for i in range(40):
        (tmp_path / f"{i:02}.txt").write_text("some words to be read " * 20_000)
    flags = (SMOKE, f"--config.data.corpus={tmp_path}/*.txt", f"--output={tmp_path}/data")
    process = binary.start("prepare", *flags, "--workers=2")
    while not (tmp_path / ".data.staging" / "survey" / "00001.json").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.001)
    workers = _children(process.pid)
    assert len(workers) >= 2
    process.kill()
    process.wait()
    _await_end(workers)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="reads /proc")
@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_stops_at_once_and_the_same_command_goes_on(tmp_path, corpus, binary, workers):
    line = json.dumps({"text": "words " * 300}) + "\n"
    with gzip.open(corpus / "99.jsonl.gz", "wt", compresslevel=1) as file:
        file.write(line * 80_000)  # seconds of work for one worker
    flags = (SMOKE, f"--config.data.corpus={corpus}", f"--output={tmp_path}/data")
    # a job in the background, as CI may be, passes on that it ignores Ctrl-C; a handler it does not
    ours = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = binary.start("prepare", *flags, f"--workers={workers}")
    signal.signal(signal.SIGINT, ours)
    while not (tmp_path / ".data.staging" / "survey" / "00011.json").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.001)
    workers = _children(process.pid)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130
    assert err.splitlines()[-1] == "error: Stopped; the same command continues from there."
    assert "Traceback" not in err
    _await_end(workers)
    surveyed = {path.name for path in (tmp_path / ".data.staging" / "survey").iterdir()}
    assert "00011.json" in surveyed and "00012.json" not in surveyed  # it was not waited for


def test_workers_do_without_jax():
    code = "import sys, sedd_jax.prepare; print([m for m in ('jax', 'grain') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((SMOKE,), "--output=FOLDER is needed"),
        ((SMOKE, "--output=OUT", "--config.data.corpus=absent.txt"), "no corpus at absent.txt"),
        ((SMOKE, "--output=OUT", "--config.data.prepared=x"), "leave it out here"),
        ((SMOKE, "--output=OUT:3"), "data:3 cannot be named in config.data.prepared"),
    ],
)
def test_bad_input_is_one_line_and_a_failure(tmp_path, binary, flags, message):
    output = tmp_path / "data"
    flags = [flag.replace("OUT", str(output)) for flag in flags]
    assert message in binary.refuse("prepare", *flags)
    assert os.listdir(tmp_path) == []

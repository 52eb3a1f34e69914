import os
import socket
import subprocess
import sys

import pytest

from sedd_jax.errors import BadInput
from sedd_jax.experiment.lock import locked
from sedd_jax.experiment.run import CONFIG_FILE, LOCK_FILE, open_run

HOLD = """
import sys
from pathlib import Path
from sedd_jax.experiment.lock import locked
with locked(Path(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process, which has tmp_path/run until it is killed or its input ends."""
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout.readline() == "locked\n"
        yield process
        process.kill()


def test_a_second_process_is_refused_until_the_first_is_dead(tmp_path, smoke_config, holder):
    run = tmp_path / "run"
    with (
        pytest.raises(BadInput, match=f"{run} is in use by process {holder.pid} on") as refused,
        locked(run),
    ):
        pass
    assert socket.gethostname() in str(refused.value)
    holder.kill()
    holder.wait()
    # A dead process leaves the file, which is in nobody's way, not even in a folder of nothing else
    assert [path.name for path in run.iterdir()] == [LOCK_FILE]
    with locked(run):
        assert (run / LOCK_FILE).read_text() == f"process {os.getpid()} on {socket.gethostname()}"
        open_run(run, smoke_config)
    assert not (run / LOCK_FILE).exists()


def test_a_lock_that_ends_in_peace_can_be_taken_again(tmp_path, holder):
    holder.communicate()
    assert holder.returncode == 0
    assert not (tmp_path / "run").exists()
    with locked(tmp_path / "run"):
        pass


def test_bad_input_leaves_no_folder_that_was_not_there(tmp_path):
    run = tmp_path / "runs" / "first"
    with pytest.raises(BadInput, match="the corpus"), locked(run):
        assert (run / LOCK_FILE).exists()
        raise BadInput("the corpus")
    assert list(tmp_path.iterdir()) == []
    run.mkdir(parents=True)
    with locked(run):
        pass
    assert list(tmp_path.rglob("*")) == [run.parent, run]  # what was there stays
    with locked(run):
        (run / CONFIG_FILE).write_text("{}")
    assert [path.name for path in run.iterdir()] == [CONFIG_FILE]


def test_a_folder_of_something_else_is_not_touched(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    before = tmp_path.stat().st_mtime_ns
    for other in (tmp_path, tmp_path / "thesis.tex"):
        with pytest.raises(BadInput, match="is not a run folder"), locked(other):
            pass
    assert tmp_path.stat().st_mtime_ns == before

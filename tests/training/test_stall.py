import subprocess
import sys
import threading
import time

import pytest

from sedd_jax.training.stall import Stall

PATIENCE = 0.2  # seconds


@pytest.fixture
def report(tmp_path):
    with (tmp_path / "stderr").open("w+") as file:
        yield file


def text(file):
    file.seek(0)
    return file.read()


def wait_for(file, words, count=1):
    deadline = time.monotonic() + 30
    while text(file).count(words) < count:
        assert time.monotonic() < deadline, text(file)
        time.sleep(0.01)


def test_a_run_that_moves_is_left_alone(report):
    patience = 1.0  # a busy machine may take its time for a step that does nothing
    with Stall(patience / 60, report) as stall:
        began, step = time.monotonic(), 0
        while time.monotonic() < began + 1.5 * patience:
            step += 1
            stall.progress(step)
            time.sleep(0.01)
    assert text(report) == ""


def test_a_stall_is_reported_with_the_stacks_of_all_threads(report):
    with Stall(PATIENCE / 60, report) as stall:
        stall.progress(41)
        stall.progress(42)
        wait_for(report, "No step was done for 0 s, since step 42, at 20")
        wait_for(report, "another process of the job has died")
        wait_for(report, "most recent call first", count=2)
        wait_for(report, "in wait_for")  # where this thread is


def test_a_start_that_takes_too_long_is_a_stall(report):
    with Stall(PATIENCE / 60, report):
        wait_for(report, "since the run started")


def test_reports_come_at_doubling_intervals_until_the_run_goes_on(report):
    unit = PATIENCE / 4
    began = time.monotonic()
    with Stall(unit / 60, report) as stall:
        wait_for(report, "No step was done", count=3)
        assert time.monotonic() - began >= 4 * unit  # after 1, 2 and 4 units
        stall.progress(7)
        wait_for(report, "The run goes on: step 7 is done, after 0 s.")
        wait_for(report, "since step 7")


def test_the_watch_ends_with_the_run(report):
    with Stall(1.0, report):
        assert "stall" in {thread.name for thread in threading.enumerate()}
    assert "stall" not in {thread.name for thread in threading.enumerate()}


def test_a_process_ends_though_it_is_watched():
    program = "from sedd_jax.training.stall import Stall; Stall(9.0).__enter__()"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)

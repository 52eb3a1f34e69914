import ctypes
import math
import threading
import time

import jax
import jax.numpy as jnp
import pytest

from sedd_jax.experiment.state import Skipped, TrainState
from sedd_jax.training.hooks import NotFinite, PendingLosses, Stall, Trace, every

STATE = jax.eval_shape(
    lambda: TrainState(jnp.int32(0), {}, (), {}, Skipped(jnp.int32(0), jnp.int32(0)))
)


def test_a_hook_is_called_at_its_interval_and_after_the_last_step():
    called = []
    hook = every(3, 7, lambda step, state, metrics: called.append((step, state, metrics)))
    for step in range(1, 8):
        hook(step, STATE, {})
    assert called == [(step, STATE, {}) for step in (3, 6, 7)]


def metrics(loss, grad_norm=1.0, skipped=0, in_row=0):
    return {
        "loss": jnp.float32(loss),
        "grad_norm": jnp.float32(grad_norm),
        "skipped": jnp.int32(skipped),
        "skipped_in_row": jnp.int32(in_row),
    }


def test_losses_are_averaged_since_the_last_row():
    losses = PendingLosses(max_skipped=3)
    for step, loss in ((1, 1.0), (2, 3.0)):
        losses.add(step, metrics(loss, grad_norm=2 * loss))
    assert losses.take() == {"loss": 2.0, "grad_norm": 6.0, "skipped": 0}
    losses.add(3, metrics(5.0, grad_norm=10.0))
    assert losses.take() == {"loss": 5.0, "grad_norm": 10.0, "skipped": 0}


def test_a_skipped_step_is_told_of_and_left_out_of_the_mean(capsys):
    losses = PendingLosses(max_skipped=3)
    losses.add(7, metrics(math.nan, skipped=4, in_row=1))
    assert capsys.readouterr().out == ""  # not read yet: the device does not wait
    losses.add(8, metrics(9.0, grad_norm=math.inf, skipped=5, in_row=2))
    losses.add(9, metrics(3.0, skipped=5))
    row = losses.take()
    assert row == {"loss": 3.0, "grad_norm": 1.0, "skipped": 5}
    assert type(row["skipped"]) is int
    assert capsys.readouterr().out.splitlines() == [
        "step 7: the loss is nan; the update was skipped (4 so far)",
        "step 8: the grad_norm is inf; the update was skipped (5 so far)",
    ]


def test_a_row_without_a_finite_loss_has_none():
    losses = PendingLosses(max_skipped=3)
    losses.add(7, metrics(math.nan, skipped=1, in_row=1))
    losses.add(8, metrics(math.nan, math.nan, skipped=2, in_row=2))
    assert losses.take() == {"skipped": 2}
    losses.add(9, metrics(4.0, skipped=2))
    assert losses.take() == {"loss": 4.0, "grad_norm": 1.0, "skipped": 2}


def test_too_many_skipped_steps_in_a_row_stop_the_run_one_step_late():
    losses = PendingLosses(max_skipped=2)
    losses.add(7, metrics(math.nan, skipped=1, in_row=1))
    losses.add(8, metrics(1.0, grad_norm=math.inf, skipped=2, in_row=2))
    with pytest.raises(NotFinite, match="2 steps in a row .* grad_norm of step 8 is inf") as caught:
        losses.add(9, metrics(1.0, skipped=2))
    error = caught.value
    assert (error.step, error.in_row, error.name, error.value) == (8, 2, "grad_norm", math.inf)


def test_only_one_process_tells_of_a_skipped_step(monkeypatch, capsys):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    losses = PendingLosses(max_skipped=3)
    losses.add(7, metrics(math.nan, skipped=1, in_row=1))
    losses.take()
    assert capsys.readouterr().out == ""


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
            stall(step, STATE, {})
            time.sleep(0.01)
    assert text(report) == ""


def test_a_stall_is_reported_with_the_stacks_of_all_threads(report):
    with Stall(PATIENCE / 60, report) as stall:
        stall(41, STATE, {})
        waiting = threading.Event()
        threading.Thread(target=waiting.wait, daemon=True).start()
        wait_for(report, "most recent call first", count=2)
        wait_for(report, "in wait_for")  # where this thread is
        waiting.set()


def test_reports_are_repeated_until_the_run_continues(report):
    with Stall(PATIENCE / 60, report) as stall:
        wait_for(report, "Timeout (0:00:00", count=3)  # a start that takes too long is a stall too
        stall(7, STATE, {})
        wait_for(report, "The run continues: step 7 is done, after 1 s.")
        wait_for(report, "Timeout (0:00:00", count=4)
        stall(8, STATE, {})
    count = text(report).count("Timeout")
    time.sleep(2 * PATIENCE)
    assert text(report).count("Timeout") == count  # the watch ends with the run


def test_a_thread_that_keeps_the_interpreter_lock_is_a_stall_too(report):
    with Stall(PATIENCE / 60, report):
        ctypes.PyDLL(None).usleep(int(3e6 * PATIENCE))  # PyDLL: the lock is not released
    assert "Timeout (0:00:00" in text(report)
    assert "in test_a_thread_that_keeps_the_interpreter_lock" in text(report)


def run_steps(trace, first, last):
    with trace:
        for step in range(first, last + 1):
            trace(step, STATE, {"loss": jnp.ones(()) * step})


@pytest.fixture
def traces(monkeypatch):
    """What is asked of the profiler, which takes a while to do it."""
    calls = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: calls.append("start"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append("stop"))
    return calls


@pytest.mark.slow
def test_a_trace_is_written_and_its_place_told(tmp_path, capsys):
    run_steps(Trace(tmp_path, steps=1, start=0), 1, 4)
    assert list(tmp_path.glob("profile/plugins/profile/*/*.xplane.pb"))
    assert f"xprof --logdir {tmp_path / 'profile'}" in capsys.readouterr().out


def test_the_trace_begins_with_the_third_step_after_the_start(tmp_path, traces):
    with Trace(tmp_path, steps=2, start=100) as trace:
        for step, state in enumerate([0, 1, 1, 2, 2], start=101):
            trace(step, STATE, {})
            assert len(traces) == state, step
    assert traces == ["start", "stop"]


def test_a_run_that_ends_early_stops_its_trace(tmp_path, traces):
    with pytest.raises(KeyError), Trace(tmp_path, steps=5, start=0) as trace:
        for step in range(1, 4):
            trace(step, STATE, {})
        raise KeyError
    assert traces == ["start", "stop"]


def test_a_run_that_ends_before_the_trace_says_so(tmp_path, traces, capsys):
    run_steps(Trace(tmp_path, steps=5, start=0), 1, 1)
    assert traces == []
    assert "the run ended before step 3" in capsys.readouterr().out


def test_no_steps_no_trace(tmp_path, traces, capsys):
    run_steps(Trace(tmp_path, steps=0, start=0), 1, 5)
    assert (traces, capsys.readouterr().out) == ([], "")


def test_one_process_tells_where_the_trace_is(tmp_path, traces, capsys, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    run_steps(Trace(tmp_path, steps=1, start=0), 1, 4)
    assert (traces, capsys.readouterr().out) == (["start", "stop"], "")

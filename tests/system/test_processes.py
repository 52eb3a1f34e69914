import hashlib
import os
import signal
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils

from sedd_jax.errors import BadInput, Halted
from sedd_jax.system import processes


def test_alone_the_first_turn_is_the_only_one():
    assert processes.run_primary_first(lambda: 1, lambda: 2) == 1
    with pytest.raises(BadInput, match="broken"):
        processes.run_primary_first(refuse, lambda: 2)


def test_alone_all_facts_are_the_same():
    processes.assert_equal_across_processes("mine", "data")
    assert processes.on_primary(lambda: 1) == 1


@pytest.mark.parametrize("number", [0, 1])
def test_facts_that_differ_end_all_processes(monkeypatch, number):
    monkeypatch.setattr("jax.process_count", lambda: 2)

    def check(mine, other):
        def gathered(digest):
            others = np.frombuffer(hashlib.sha256(other.encode()).digest(), np.uint8)
            return np.stack([digest, others] if number == 0 else [others, digest])

        monkeypatch.setattr(multihost_utils, "process_allgather", gathered)
        processes.assert_equal_across_processes(mine, "data")

    check("same", "same")
    with pytest.raises(BadInput, match="Process 1 of the job has other data than process 0"):
        check("same", "other")


@pytest.mark.parametrize("number", [0, 1])
def test_where_process_0_fails_at_its_work_all_end(monkeypatch, number):
    monkeypatch.setattr("jax.process_count", lambda: 2)
    monkeypatch.setattr("jax.process_index", lambda: number)
    monkeypatch.setattr(multihost_utils, "process_allgather", lambda _: np.array([True, False]))
    monkeypatch.setattr(processes, "barrier", lambda _: None)
    with pytest.raises(
        (BadInput, Halted)[number], match=("broken", "Process 0 of the job")[number]
    ):
        processes.on_primary(refuse)


@pytest.mark.parametrize("count", [1, 2])
def test_where_another_process_has_ended_this_one_ends_too(monkeypatch, capsys, count):
    monkeypatch.setattr("jax.process_count", lambda: count)
    codes = []
    monkeypatch.setattr("os._exit", codes.append)
    gone = jax.errors.JaxRuntimeError("Gloo: closed\nand 90 more lines")
    if count == 1:  # nobody else
        with pytest.raises(jax.errors.JaxRuntimeError), processes.abort_with_peers("go on."):
            raise gone
        return
    with processes.abort_with_peers("go on."):
        raise gone
    assert codes == [1]
    (_, line) = capsys.readouterr().err.splitlines()
    assert line == "error: another process of the job seems to have ended (Gloo: closed); go on."


def refuse():
    raise BadInput("broken")


@pytest.mark.parametrize("number", [0, 1])
def test_where_one_process_fails_all_end(monkeypatch, number):
    """What one of two processes sees, when process 0 fails and when process 1 does."""
    monkeypatch.setattr("jax.process_count", lambda: 2)
    monkeypatch.setattr("jax.process_index", lambda: number)
    for failing in (0, 1):
        heard = iter([np.array([failing == 0, False]), np.array([False, failing == 1])])
        monkeypatch.setattr(multihost_utils, "process_allgather", lambda _, h=heard: next(h))
        monkeypatch.setattr(processes, "barrier", lambda _: None)
        turns = [lambda: "done", lambda: "done"]
        turns[failing] = refuse
        wanted = (
            (BadInput, "broken") if number == failing else (Halted, f"Process {failing} of the job")
        )
        with pytest.raises(wanted[0], match=wanted[1]):
            processes.run_primary_first(*turns)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_heeded_after_the_step(number, capfd):
    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)}
    with processes.StopSignal() as stop:
        assert stop.after(1) is None
        os.kill(os.getpid(), number)
        assert stop.after(2) is stop.after(3) is number
        assert f"{number.name}: stopping after this step" in capfd.readouterr().err
        # another one ends the process at once
        assert all(signal.getsignal(each) == signal.SIG_DFL for each in before)
    assert {each: signal.getsignal(each) for each in before} == before


def test_outside_the_main_thread_nothing_is_changed():
    before, seen = signal.getsignal(signal.SIGTERM), []

    def run():
        with processes.StopSignal() as stop:
            seen.append((stop.after(1), signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [(None, before)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_safe_work_inside_a_call_into_c(number):
    """One that would last for hours, and in which Python runs no handler."""
    program = (
        "import hashlib\n"
        "from sedd_jax.system.processes import end_on_signal\n"
        "with end_on_signal():\n"
        "    print('begun', flush=True)\n"
        "    hashlib.pbkdf2_hmac('sha256', b'', b'', 2**31 - 1)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "begun\n"
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == -number


def test_after_safe_work_the_handlers_are_restored():
    def handlers():
        return [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]

    before = handlers()
    with processes.end_on_signal():
        assert handlers() == [signal.SIG_DFL] * 2
    assert handlers() == before

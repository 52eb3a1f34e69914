import os
import signal
import subprocess
import sys
import threading

import pytest

from sedd_jax.system.signals import StopSignal, ends_at_once


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_heeded_after_the_step(number, capfd):
    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)}
    with StopSignal() as stop:
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
        with StopSignal() as stop:
            seen.append((stop.after(1), signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [(None, before)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_work_that_is_safe_ends_in_the_middle(number):
    """A call into C that would last for hours, and in which Python runs no handler."""
    program = (
        "import hashlib\n"
        "from sedd_jax.system.signals import ends_at_once\n"
        "with ends_at_once('stopped.'):\n"
        "    print('begun', flush=True)\n"
        "    hashlib.pbkdf2_hmac('sha256', b'', b'', 2**31 - 1)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "begun\n"
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (128 + number, f"\n{number.name}: stopped.\n")


def test_after_the_work_signals_do_what_they_did():
    def state():
        descriptor = signal.set_wakeup_fd(-1)
        signal.set_wakeup_fd(descriptor)
        return [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)], descriptor

    before, threads = state(), threading.active_count()
    with ends_at_once("stopped."):
        assert state() != before
    assert state() == before
    for thread in threading.enumerate()[threads:]:
        thread.join(10)
    assert threading.active_count() == threads

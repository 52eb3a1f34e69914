import os
import signal
import threading

import pytest

from sedd_jax.runtime.stop import StopSignal


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

import math
import re
import signal
import time

import jax.numpy as jnp
import pytest

from sedd_jax.errors import Halted
from sedd_jax.experiment.checkpoint import Checkpoints
from sedd_jax.experiment.state import Skipped, TrainState
from sedd_jax.system.processes import StopSignal
from sedd_jax.training.stopping import Saves, stop_at_signal

COUNT = jnp.int32(0)
STATE = TrainState(
    COUNT, {"table": jnp.ones((2**18 - 3, 1))}, (), (), Skipped(COUNT, COUNT)
)  # 1 MiB


class Slow(Checkpoints):
    """Saves that take as long as the test says."""

    saving = saved = None

    def __init__(self):
        pass

    def save(self, step, state, metrics):
        self.saving = step

    def check(self):
        pass

    def finish(self):
        self.saved, self.saving = self.saving or self.saved, None

    @property
    def latest(self):
        self.finish()
        return self.saved


class Signal(StopSignal):
    """One that has come."""

    def after(self, step):
        return signal.SIGTERM

    def seconds_left(self):
        return self.left


@pytest.fixture
def saves(tmp_path):
    checkpoints = Slow()
    return Saves(tmp_path, checkpoints.save, checkpoints)


def stopped(saves, step, left):
    """What is said at a step when a signal asks to stop."""
    signals = Signal()
    signals.left = left
    with pytest.raises(Halted) as halted:
        stop_at_signal(signals, saves)(step, STATE, {})
    assert halted.value.exit_code == 143
    return str(halted.value)


def test_the_time_of_a_save_is_printed_from_a_measured_speed(saves, tmp_path, capsys):
    saves.measure(STATE, grace_seconds=math.inf)
    line = r"A save of 1 MiB takes about 1 s, at [\d.e+]+ [MG]iB/s\.\n"
    assert re.fullmatch(line, capsys.readouterr().out)
    assert list(tmp_path.iterdir()) == []
    saves.measure(STATE, grace_seconds=1.0)
    assert "config.train.grace_seconds is 1, which may be too short" in capsys.readouterr().err


def test_the_last_save_tells_how_long_the_next_one_takes(saves, monkeypatch):
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    saves(1, STATE, {})
    now += 40
    saves.check(1, STATE, {})
    assert saves.seconds == 1
    saves.checkpoints.finish()
    saves.check(2, STATE, {})
    assert saves.seconds == 40
    assert saves.fit(60.0) and not saves.fit(59.0)
    saves(3, STATE, {})
    now += 30  # of 40: the save under way comes first
    assert saves.fit(75.0) and not saves.fit(74.0)


@pytest.mark.parametrize("left", [math.inf, 2.0])
def test_a_run_saves_before_it_stops_if_there_is_time(saves, left):
    said = "Stopped by SIGTERM after step 7, which is saved; the same command continues from there."
    assert stopped(saves, 7, left) == said
    assert saves.checkpoints.saved == 7


def test_a_run_that_has_no_time_says_how_old_the_last_save_is(saves):
    saves.seconds = 40.0
    assert stopped(saves, 7, 25.0) == (
        "Stopped by SIGTERM after step 7. There is no save yet, since another takes about 40 s, "
        "and 25 s were left; the same command starts again."
    )
    saves(10, STATE, {})  # under way: it is waited for
    assert (
        "The last save is 2 steps old, since another takes about 40 s, and 25 s were left; the "
        "same command continues from step 10." in stopped(saves, 12, 25.0)
    )
    saves(20, STATE, {})
    assert "after step 20, which is saved" in stopped(saves, 20, 0.0)


def test_a_sigterm_after_a_notice_is_the_first(capfd):
    with StopSignal(grace_seconds=20.0) as signals:
        assert signals.seconds_left() == math.inf
        signals.notice(30.0)
        assert signals.after(1) is signal.SIGTERM
        assert 20 < signals.seconds_left() <= 30
        signal.raise_signal(signal.SIGTERM)  # of the shutdown; another one would end this process
        assert 10 < signals.seconds_left() <= 20


def test_after_an_interrupt_there_is_time(capfd):
    with StopSignal(grace_seconds=20.0) as signals:
        signal.raise_signal(signal.SIGINT)
        assert (signals.after(1), signals.seconds_left()) == (signal.SIGINT, math.inf)

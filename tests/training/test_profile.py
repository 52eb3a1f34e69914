import jax
import jax.numpy as jnp
import pytest

from sedd_jax.training.profile import Profile


def run_steps(profile, first, last):
    with profile:
        for step in range(first, last + 1):
            profile.after(step, {"loss": jnp.ones(()) * step})


@pytest.fixture
def traces(monkeypatch):
    """What is asked of the profiler, which takes a while to do it."""
    calls = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: calls.append("start"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append("stop"))
    return calls


def test_a_trace_is_written_and_its_place_told(tmp_path, capsys):
    run_steps(Profile(tmp_path, steps=1, start=0), 1, 4)
    assert list(tmp_path.glob("profile/plugins/profile/*/*.xplane.pb"))
    assert f"xprof --logdir {tmp_path / 'profile'}" in capsys.readouterr().out


def test_the_trace_begins_with_the_third_step_after_the_start(tmp_path, traces):
    with Profile(tmp_path, steps=2, start=100) as profile:
        for step, state in enumerate([0, 1, 1, 2, 2], start=101):
            profile.after(step, {})
            assert len(traces) == state, step
    assert traces == ["start", "stop"]


def test_a_run_that_ends_early_stops_its_trace(tmp_path, traces):
    with pytest.raises(KeyError), Profile(tmp_path, steps=5, start=0) as profile:
        for step in range(1, 4):
            profile.after(step, {})
        raise KeyError
    assert traces == ["start", "stop"]


def test_a_run_that_ends_before_the_trace_says_so(tmp_path, traces, capsys):
    run_steps(Profile(tmp_path, steps=5, start=0), 1, 1)
    assert traces == []
    assert "the run ended before step 3" in capsys.readouterr().out


def test_no_steps_no_trace(tmp_path, traces, capsys):
    run_steps(Profile(tmp_path, steps=0, start=0), 1, 5)
    assert (traces, capsys.readouterr().out) == ([], "")


def test_one_process_tells_where_the_trace_is(tmp_path, traces, capsys, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    run_steps(Profile(tmp_path, steps=1, start=0), 1, 4)
    assert (traces, capsys.readouterr().out) == (["start", "stop"], "")

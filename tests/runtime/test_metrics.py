import json

import jax.numpy as jnp
import pytest

from sedd_jax.runtime.metrics import FILE, MetricWriter, PendingLosses, Progress, duration


def rows(run):
    return [json.loads(line) for line in (run / FILE).read_text().splitlines()]


def test_rows_after_the_restored_step_are_dropped(tmp_path):
    with MetricWriter(tmp_path, 0) as writer:
        for step in (1, 2, 3):
            writer.scalars(step, {"loss": float(step)})
    with (tmp_path / FILE).open("a") as file:
        file.write('{"step": 4, "lo')  # killed while writing
    with MetricWriter(tmp_path, 2) as writer:
        writer.text(3, "sample_0", "text")
    assert rows(tmp_path) == [
        {"step": 1, "loss": 1.0},
        {"step": 2, "loss": 2.0},
        {"step": 3, "sample_0": "text"},
    ]


def test_scalars_reach_the_event_files(tmp_path):
    pytest.importorskip("tensorboardX", reason="the optional extra [tensorboard]")
    with MetricWriter(tmp_path, 0) as writer:
        writer.scalars(1, {"loss": 1.0})
    (events,) = (tmp_path / "tensorboard").glob("events.*")
    assert b"loss" in events.read_bytes()


def metrics(loss):
    return {"loss": jnp.float32(loss), "grad_norm": jnp.float32(2 * loss)}


def test_losses_are_averaged_since_the_last_row():
    losses = PendingLosses()
    for step, loss in ((1, 1.0), (2, 3.0)):
        losses.add(step, metrics(loss))
    assert losses.take() == {"loss": 2.0, "grad_norm": 6.0}
    losses.add(3, metrics(5.0))
    assert losses.take() == {"loss": 5.0, "grad_norm": 10.0}


def test_a_loss_that_is_not_finite_stops_the_run_one_step_late():
    losses = PendingLosses()
    losses.add(7, metrics(float("nan")))
    with pytest.raises(FloatingPointError, match="The loss of step 7 is nan"):
        losses.add(8, metrics(1.0))
    losses = PendingLosses()
    losses.add(9, metrics(1.0) | {"grad_norm": jnp.float32(float("inf"))})
    with pytest.raises(FloatingPointError, match="The grad_norm of step 9 is inf"):
        losses.take()


def test_progress_leaves_pauses_out(monkeypatch):
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    progress = Progress(0, 10, tokens_per_step=100)
    now = 2.0
    with progress.paused():
        now = 50.0
    assert progress.advance(2) == (100.0, "8 s")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.6, "1 min 00 s"), (185.0, "3 min 05 s"), (7 * 3600 + 725.0, "7 h 12 min")],
)
def test_duration(seconds, text):
    assert duration(seconds) == text

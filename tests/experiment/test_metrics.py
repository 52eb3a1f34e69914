import json
import math
import resource

import jax
import jax.numpy as jnp
import pytest

from sedd_jax.errors import Halted
from sedd_jax.experiment.metrics import FILE, MetricWriter, NotFinite, PendingLosses, metric_writer


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


def test_values_that_are_not_finite_are_left_out(tmp_path):
    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    with MetricWriter(tmp_path, 0) as writer:
        writer.scalars(1, {"bound": 2.0, "bound_stderr": math.nan, "perplexity": math.inf})
    row = json.loads((tmp_path / FILE).read_text(), parse_constant=refuse)
    assert row == {"step": 1, "bound": 2.0}


def test_a_disk_without_room_stops_the_run(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with MetricWriter(tmp_path, 0) as writer:
        writer.scalars(1, {"loss": 1.0})
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
        try:
            with pytest.raises(Halted, match="cannot be written: File too large"):
                writer.scalars(2, {"loss": 1.0})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_board_that_writes_no_more_stops_the_run(tmp_path):
    """On a full disk its thread ends, and what it is given then waits for ever."""
    with MetricWriter(tmp_path, 0) as writer:
        writer.scalars(1, {"loss": 1.0})
        worker = writer._board.file_writer.event_writer._worker
        worker.stop()
        worker.join()
        with pytest.raises(Halted, match="the thread that writes has ended"):
            writer.scalars(2, {"loss": 1.0})


def test_one_process_writes(tmp_path, monkeypatch):
    run = tmp_path / "run"
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with metric_writer(run, 0) as writer:
        writer.scalars(1, {"loss": 1.0})
        writer.text(1, "sample_0", "text")
    assert not run.exists()
    run.mkdir()
    monkeypatch.setattr(jax, "process_index", lambda: 0)
    with metric_writer(run, 0) as writer:
        writer.scalars(1, {"loss": 1.0})
    assert rows(run) == [{"step": 1, "loss": 1.0}]


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

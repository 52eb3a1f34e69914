import json
import math
import resource

import jax
import pytest

from sedd_jax.errors import Halted
from sedd_jax.experiment.metrics import FILE, MetricWriter, read_rows


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


@pytest.mark.parametrize(
    "damage", [b"5", b"[1]", b"{}", b"\0\0\0", b'{"step": 2, "l\xff', b'{"step": "x"}']
)
def test_damaged_rows_are_counted_and_left_out(tmp_path, capsys, damage):
    (tmp_path / FILE).write_bytes(b'{"step": 1}\n' + damage + b'\n{"step": 3}\n{"step": 4}\n{"st')
    assert read_rows(tmp_path / FILE, 4) == [{"step": 1}, {"step": 3}, {"step": 4}]
    with MetricWriter(tmp_path, 3):
        told = capsys.readouterr()
    assert "1 rows of " in told.err and "are damaged and left out.\n" in told.err
    assert "2 rows after step 3 will be written again." in told.out
    assert rows(tmp_path) == [{"step": 1}, {"step": 3}]


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


def test_one_process_writes(tmp_path, monkeypatch):
    run = tmp_path / "run"
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with MetricWriter(run, 0) as writer:
        writer.scalars(1, {"loss": 1.0})
        writer.text(1, "sample_0", "text")
    assert not run.exists()
    run.mkdir()
    monkeypatch.setattr(jax, "process_index", lambda: 0)
    with MetricWriter(run, 0) as writer:
        writer.scalars(1, {"loss": 1.0})
    assert rows(run) == [{"step": 1, "loss": 1.0}]

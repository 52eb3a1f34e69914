"""Trackers get what the JSON lines get, and can neither stop nor delay a run."""

import importlib.util
import json
import threading
import time

import jax
import pytest

from sedd_jax.errors import BadInput
from sedd_jax.experiment.metrics import FILE, MetricWriter
from sedd_jax.experiment.trackers import background
from sedd_jax.experiment.trackers.tracker import build_trackers

SETTINGS = {"seed": 3, "model": {"length": 8}}


class Kept:
    """Keeps its calls; those named in `fails` raise, those in `hangs` wait for `freed`."""

    def __init__(self, fails: str = "", hangs: str = ""):
        self.calls, self.threads, self.freed = [], set(), threading.Event()
        self._fails, self._hangs = fails, hangs

    def _called(self, name, *arguments):
        if name == self._hangs:
            self.freed.wait()
        self.calls.append((name, *arguments))
        self.threads.add(threading.current_thread().name)
        if name == self._fails:
            raise ConnectionError("the server is gone\nin two lines")

    def start(self, run, settings, last_step):
        self._called("start", run, settings, last_step)

    def scalars(self, step, values):
        self._called("scalars", step, values)

    def text(self, step, name, value):
        self._called("text", step, name, value)

    def close(self):
        self._called("close")


def write(run, **trackers):
    with MetricWriter(run, 2, trackers, SETTINGS) as writer:
        writer.scalars(3, {"loss": 1.5, "stderr": float("nan")})
        writer.text(3, "sample_0", "words")
        writer.scalars(4, {"loss": 1.25})


def rows(run):
    return [json.loads(line) for line in (run / FILE).read_text().splitlines()]


def test_a_tracker_is_told_all_in_order_in_a_thread_of_its_own(tmp_path):
    write(tmp_path, one=(one := Kept()), other=(other := Kept()))
    assert one.calls == other.calls
    assert one.calls == [
        ("start", tmp_path, SETTINGS, 2),
        ("scalars", 3, {"loss": 1.5}),
        ("text", 3, "sample_0", "words"),
        ("scalars", 4, {"loss": 1.25}),
        ("close",),
    ]
    assert one.threads == {"tracker one"}


def test_process_0_alone_starts_trackers(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    write(tmp_path, own=(own := Kept()))
    assert own.calls == []


@pytest.mark.parametrize("method", ["start", "scalars", "close"])
def test_a_tracker_that_fails_is_named_once_and_the_run_goes_on(tmp_path, capsys, method):
    write(tmp_path, gone=(gone := Kept(fails=method)), whole=(whole := Kept()))
    assert capsys.readouterr().err == (
        "warning: The tracker gone has stopped (ConnectionError: the server is gone); the run goes "
        "on without it, and metrics.jsonl has every row.\n"
    )
    assert [name for name, *_ in gone.calls].count(method) == 1
    assert len(rows(tmp_path)) == 3 and len(whole.calls) == 5


def test_a_tracker_that_hangs_delays_neither_rows_nor_the_end(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(background, "CLOSE_SECONDS", 0.1)
    began = time.monotonic()
    write(tmp_path, slow=(slow := Kept(hangs="scalars")))
    assert time.monotonic() - began < 5
    assert "slow has stopped (it has not ended after 0.1 s)" in capsys.readouterr().err
    assert len(rows(tmp_path)) == 3
    slow.freed.set()


def test_a_tracker_for_which_rows_pile_up_is_given_up(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(background, "WAITING", 2)
    hung = Kept(hangs="start")
    with MetricWriter(tmp_path, 0, {"hung": hung}) as writer:
        for step in range(1, 9):
            writer.scalars(step, {"loss": 1.0})
    assert capsys.readouterr().err.count("has stopped (2 rows wait for it)") == 1
    assert len(rows(tmp_path)) == 8
    hung.freed.set()


def test_names_of_trackers(monkeypatch):
    own = f"{__name__}:Kept(fails='x, y')"
    assert list(build_trackers(f"{own}, {__name__}:Kept")) == [own, f"{__name__}:Kept"]
    assert build_trackers("") == {}
    for name, message in [
        ("tensorbord", "config.train.trackers must be one of tensorboard, wandb, mlflow, or"),
        ("wandb(speed=2)", "wandb has the options project, entity, got speed"),
        (f"{__name__}:Kept,{__name__}:Kept", "Kept twice"),
        (f"{__name__}:threading.Event", "must be one of"),
    ]:
        with pytest.raises(BadInput, match=message):
            build_trackers(name)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert build_trackers("auto") == {}
    for name in ("tensorboard", "wandb", "mlflow"):
        missing = rf'The tracker {name} needs the package .*: pip install "sedd_jax\[{name}\]"'
        with pytest.raises(BadInput, match=missing):
            build_trackers(name)


def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboardX", reason="the optional extra [tensorboard]")
    write(tmp_path, **build_trackers("auto"))
    (events,) = (tmp_path / "tensorboard").glob("events.*")
    assert b"loss" in events.read_bytes() and b"sample_0/text_summary" in events.read_bytes()


def test_an_event_file_that_cannot_be_written_is_told(tmp_path, monkeypatch, capsys):
    """The JSON lines can, since /dev/full takes the place of the event file alone."""
    record_writer = pytest.importorskip(
        "tensorboardX", reason="the optional extra [tensorboard]"
    ).record_writer
    monkeypatch.setattr(record_writer, "open_file", lambda path: open("/dev/full", "wb"))  # noqa: SIM115
    write(tmp_path, **build_trackers("tensorboard"))
    told = capsys.readouterr().err
    assert told.count("tensorboard has stopped (OSError: [Errno 28] No space left on device)") == 1
    assert len(rows(tmp_path)) == 3


def test_wandb_offline_and_again_the_same_run(tmp_path, monkeypatch, capsys):
    pytest.importorskip("wandb", reason="the optional extra [wandb]")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    for _ in range(2):
        write(tmp_path, **build_trackers("wandb"))
        time.sleep(1.1)  # folders are named by the second
    identity = (tmp_path / "wandb" / "run_id").read_text()
    sessions = list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    assert [path.name for path in sessions] == [f"run-{identity}.wandb"] * 2
    assert all(b"sample_0" in path.read_bytes() for path in sessions)
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("NETRC", str(tmp_path / "nobody"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    assert capsys.readouterr().err == ""
    write(tmp_path, **build_trackers("wandb"))
    assert "wandb has stopped (nobody is logged in: run `wandb" in capsys.readouterr().err


def test_mlflow_in_the_folder_and_again_the_same_run(tmp_path, monkeypatch, capsys):
    tracking = pytest.importorskip("mlflow.tracking", reason="the optional extra [mlflow]")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run = tmp_path / "run"
    run.mkdir()
    for _ in range(2):
        write(run, **build_trackers("mlflow"))
    assert capsys.readouterr().err == ""
    client = tracking.MlflowClient(f"sqlite:///{run / 'mlflow' / 'mlflow.db'}")
    (kept,) = client.search_runs(["1"])
    assert kept.info.run_id == (run / "mlflow" / "run_id").read_text()
    assert kept.data.params == {"seed": "3", "model.length": "8"}
    history = client.get_metric_history(kept.info.run_id, "loss")
    assert sorted((it.step, it.value) for it in history) == [
        (3, 1.5),
        (3, 1.5),
        (4, 1.25),
        (4, 1.25),
    ]
    assert next(run.glob("mlflow/*/artifacts/sample_0/step_3.txt")).read_text() == "words"
    write(run.rename(tmp_path / "moved"), **build_trackers("mlflow"))
    assert "mlflow has stopped (the folder of the run was moved" in capsys.readouterr().err

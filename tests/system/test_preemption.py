import datetime
import queue
import time

import pytest

from sedd_jax.system import preemption
from sedd_jax.system.preemption import watched
from tests.metadata import metadata_server

PREEMPTED = "/computeMetadata/v1/instance/preempted"
MAINTENANCE = "/computeMetadata/v1/instance/maintenance-event"


@pytest.fixture
def server(monkeypatch):
    """A metadata server without notices, and its host."""
    monkeypatch.setattr(preemption, "_PAUSE_SECONDS", 0.01)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")  # that must not be used
    with metadata_server() as (values, host):
        values.set("preempted", "FALSE")
        values.set("maintenance-event", "NONE")
        yield values, host


@pytest.fixture
def google(server, monkeypatch):
    monkeypatch.setenv("GCE_METADATA_HOST", server[1])
    return server[0]


@pytest.fixture
def amazon(server, monkeypatch):
    monkeypatch.delenv("AWS_EC2_METADATA_DISABLED")
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", f"http://{server[1]}/")
    return server[0]


@pytest.mark.parametrize(
    ("key", "value", "seconds"),
    [("preempted", "TRUE", 30), ("maintenance-event", "TERMINATE_ON_HOST_MAINTENANCE", 60)],
)
def test_a_notice_of_google_is_passed_on_once(google, capsys, key, value, seconds):
    heard = queue.Queue()
    with watched(heard.put):
        for path in (PREEMPTED, MAINTENANCE):
            google.wait_for(f"GET {path}", 2)  # the second one waits for a change
        google.set("maintenance-event", "MIGRATE_ON_HOST_MAINTENANCE")
        google.wait_for(f"GET {MAINTENANCE}", 3)
        assert heard.empty()
        google.set(key, value)
        assert heard.get(timeout=60) == seconds
        google.set("preempted", "TRUE" if key != "preempted" else "FALSE")
        time.sleep(0.05)
    assert heard.empty()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("Google ") and line.endswith(
        f"in {seconds} s: stopping after this step."
    )


def test_on_a_machine_that_waits_for_its_maintenance_a_run_goes_on(google, capsys):
    google.set("maintenance-event", "TERMINATE_ON_HOST_MAINTENANCE")
    heard = queue.Queue()
    with watched(heard.put):
        google.wait_for(f"GET {MAINTENANCE}", 2)
    assert heard.empty()
    assert "is about to stop this machine for maintenance" in capsys.readouterr().err


def test_a_notice_of_amazon_is_passed_on(amazon, capsys):
    heard = queue.Queue()
    with watched(heard.put):
        amazon.wait_for("GET /latest/meta-data/spot/instance-action", 2)
        assert heard.empty()
        end = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=100)
        amazon.set("instance-action", f'{{"action": "stop", "time": "{end:%Y-%m-%dT%H:%M:%SZ}"}}')
        assert 90 < heard.get(timeout=60) <= 100
    assert "Amazon is going to stop this machine in " in capsys.readouterr().err


def test_a_server_that_does_not_answer_is_given_up_with_a_warning(amazon, monkeypatch, capsys):
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://127.0.0.1:1")
    said = queue.Queue()
    monkeypatch.setattr(preemption, "warn", said.put)
    with watched(print):
        assert "no notice of a preemption can be had here (" in said.get(timeout=60)
    assert amazon.asked == []


@pytest.mark.parametrize(
    ("vendor", "asked"),
    [("Google", 2), ("Amazon EC2", 1), ("LENOVO", 0), (None, 0)],
)
def test_only_machines_of_clouds_are_watched(tmp_path, monkeypatch, vendor, asked):
    for name in ("NO_GCE_CHECK", "AWS_EC2_METADATA_DISABLED"):
        monkeypatch.delenv(name)
    monkeypatch.setattr(preemption, "_VENDOR", tmp_path / "sys_vendor")
    if vendor:
        (tmp_path / "sys_vendor").write_text(f"{vendor}\n")
    assert len(preemption._Watch(print).sources()) == asked
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    assert preemption._Watch(print).sources() == []

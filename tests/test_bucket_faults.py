"""Faults of a bucket put into real runs, and what the user sees.

python -m pytest -m slow -n 0 -s tests/test_bucket_faults.py
"""

import time

import pytest

from tests.disturbed import COMMAND, ends_like, report
from tests.proxy import (
    ALL,
    WRITES,
    cut_answer,
    cut_upload,
    delay,
    hide,
    lose_answer,
    refuse,
    reset,
)

pytestmark = pytest.mark.slow
LIMIT = 400  # seconds of a run


@pytest.fixture(autouse=True)
def little_patience(monkeypatch):
    monkeypatch.setenv("SEDD_JAX_BUCKET_PATIENCE", "10")  # instead of two minutes
    monkeypatch.setenv("SEDD_JAX_LEASE_SECONDS", "30")  # instead of a minute


@pytest.fixture
def run(cloud):
    return f"{cloud.address}/runs/a"


def start(binary, run):
    return binary.start("train", *COMMAND, f"--workdir={run}")


def ended(process, fault, run):
    """The exit code, what was printed, and the lines about something wrong, which are shown."""
    out, err = process.communicate(timeout=LIMIT)
    lines = [line for line in err.splitlines() if line.startswith(("warning: ", "error: "))]
    report(f"{fault}, {run[:2]}", process.returncode, "\n".join(lines))
    assert "Traceback" not in err, err
    return process.returncode, out, lines


OFTEN = {"every": 25}  # requests; a save takes about 200
PASSING = {
    "slow answers": [(delay(0.05), {})],
    "429, 500, 503": [
        (refuse(429), {"every": 90}),
        (refuse(500), {"every": 90, "skip": 30}),
        (refuse(503), {"every": 90, "skip": 60}),
    ],
    "reset connections": [(reset, OFTEN)],
    "half-written uploads": [(cut_upload, OFTEN | {"methods": "PUT POST"})],
    # not of resumable uploads: fake-gcs-server forgets one that is done; Google says it is done
    "lost answers": [(lose_answer, OFTEN | {"methods": WRITES, "path": "uploadType=m|^/bucket-"})],
    "half an answer": [(cut_answer, OFTEN | {"methods": "GET"})],
}


@pytest.mark.parametrize("fault", PASSING)
def test_what_passes_changes_nothing(binary, cloud, run, straight, fault):
    faults = [cloud.proxy.inject(action, **when) for action, when in PASSING[fault]]
    process = start(binary, run)
    code, _, _ = ended(process, fault, run)
    cloud.proxy.heal()
    assert code == 0 and all(each.met > 25 for each in faults)
    ends_like(run, straight)


LASTING = {
    "expired credentials": (refuse(401), ALL),
    "read-only": (refuse(403), WRITES),
    "deleted": (refuse(404), ALL),
    "503": (refuse(503), ALL),
    "no answers": (delay(1000), ALL),
}


def in_the_save_of_40(process, proxy, action, methods=ALL):
    """Waits for a request of this save, which meets the fault, as do all from then on."""
    fault = proxy.inject(action, methods, "checkpoints/40/.*params")
    end = time.monotonic() + LIMIT
    while not fault.met:
        assert process.poll() is None and time.monotonic() < end, process.communicate()
        time.sleep(0.01)
    proxy.inject(action, methods)


def goes_on(binary, run, straight):
    """Starts the run again, now that all is well."""
    code, out, _ = ended(start(binary, run), "then", run)
    assert code == 0 and "Continuing after step 20." in out
    ends_like(run, straight)


@pytest.mark.unsteady
@pytest.mark.parametrize("fault", LASTING)
def test_what_lasts_ends_the_run_with_a_sentence(binary, cloud, run, straight, fault):
    process = start(binary, run)
    in_the_save_of_40(process, cloud.proxy, *LASTING[fault])
    began = time.monotonic()
    code, _, lines = ended(process, fault, run)
    print(f"  after {time.monotonic() - began:.0f} s")
    cloud.proxy.heal()
    errors = [line for line in lines if line.startswith("error: ")]
    assert code == 1 and len(errors) == 1 and run in errors[0]
    goes_on(binary, run, straight)


@pytest.mark.unsteady
def test_an_outage_of_ten_seconds(binary, cloud, run, straight):
    process = start(binary, run)
    in_the_save_of_40(process, cloud.proxy, refuse(503))
    time.sleep(10)
    cloud.proxy.heal()
    assert ended(process, "503 for 10 s", run)[0] == 0
    ends_like(run, straight)


@pytest.mark.unsteady
def test_killed_in_a_save(binary, cloud, run, straight):
    process = start(binary, run)

    async def kill(exchange):
        process.kill()
        exchange.reset()

    in_the_save_of_40(process, cloud.proxy, kill, WRITES)
    assert process.wait() == -9
    process.communicate()
    cloud.proxy.heal()
    goes_on(binary, run, straight)


@pytest.mark.unsteady
def test_late_listings(binary, cloud, run, straight):
    """Orbax merges those parts of a checkpoint that are listed: this one is found incomplete."""
    cloud.proxy.inject(hide("checkpoints/60", 5))
    assert ended(start(binary, run), "late listings", run)[0] == 0
    cloud.proxy.heal()
    time.sleep(5)
    code, out, _ = ended(start(binary, run), "then", run)
    assert code == 0 and ("Continuing after step 40." in out or "Continuing after step 60." in out)
    ends_like(run, straight)


@pytest.mark.parametrize("fault", ["expired credentials", "read-only", "deleted"])
def test_at_the_start(binary, cloud, run, fault):
    action, methods = LASTING[fault]
    cloud.proxy.inject(action, methods)
    line = binary.refuse("train", *COMMAND, f"--workdir={run}")
    report(f"{fault} at the start, {run[:2]}", 2, line)
    assert cloud.address in line

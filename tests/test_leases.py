"""One run folder in a bucket, and several who want it.

python -m pytest -m slow -n 0 -s tests/test_leases.py
"""

import signal
import time

import pytest

from tests.disturbed import COMMAND, after_line, ends_like, report
from tests.test_faults import LONG, two

pytestmark = [pytest.mark.slow, pytest.mark.unsteady]
SECONDS = 6


@pytest.fixture(autouse=True)
def _short_leases(monkeypatch):
    monkeypatch.setenv("SEDD_JAX_LEASE_SECONDS", str(SECONDS))


def test_a_run_that_wakes_up_after_another_has_gone_on_ends(binary, gcs, straight):
    """The other one ends with the bits of an undisturbed run."""
    folder = f"{gcs.address}/run"
    first = binary.start("train", *LONG, f"--workdir={folder}")
    after_line(first, "step 40/")  # 20 is saved
    first.send_signal(signal.SIGSTOP)
    second = binary.start("train", *COMMAND, f"--workdir={folder}")
    after_line(second, "Continuing")
    first.send_signal(signal.SIGCONT)
    _, err = first.communicate(timeout=60)
    assert first.returncode == 1
    report("a suspended process wakes up", 1, err)
    _, err = second.communicate(timeout=120)
    assert second.returncode == 0, err
    report("the one after it", 0, err)
    ends_like(folder, straight)


def test_where_process_0_hangs_the_others_of_the_job_end_with_it(binary, gcs):
    folder = f"{gcs.address}/two"
    lead, other = two(binary, folder, LONG)
    after_line(lead, "step 20/")
    lead.send_signal(signal.SIGSTOP)
    began = time.monotonic()
    try:
        _, err = other.communicate(timeout=100)
        assert other.returncode == 1
        assert time.monotonic() - began < 2 * SECONDS
        report("process 0 hangs", 1, err)
    finally:
        lead.kill()
        other.kill()

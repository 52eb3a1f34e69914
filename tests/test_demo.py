"""The demo as its user meets it."""

import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "--checkpoint=FOLDER is needed"),
        (("--checkpoint=RUN", "--host=192.0.2.1", "--port=0"), "Cannot listen on --host=192.0.2.1"),
        (("--checkpoint=RUN", "--port=70000"), "70000"),
    ],
)
def test_bad_input_is_one_line_and_a_failure(smoke_run, binary, flags, message):
    assert message in binary.refuse(
        "demo", *(flag.replace("RUN", str(smoke_run)) for flag in flags)
    )


def test_a_package_that_is_missing_is_named(binary, tmp_path):
    (tmp_path / "uvicorn.py").write_text("raise ImportError")
    done = subprocess.run(
        [sys.executable, "-m", "sedd_jax.demo", "--checkpoint=absent"],
        cwd=binary.root,
        env=binary.environment | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    error = 'error: The demo needs the package uvicorn: pip install "sedd_jax[demo]"\n'
    assert (done.returncode, done.stderr) == (2, error)


@pytest.mark.slow
@pytest.mark.unsteady
def test_it_ends_at_once_while_it_compiles(smoke_run, binary):
    process = binary.start("demo", f"--checkpoint={smoke_run}", "--port=0")
    # its handlers are there as soon as it listens and compiles: until then a signal ends it too
    while not _listens(process.pid):
        time.sleep(0.05)
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    out, err = process.communicate(timeout=60)
    assert time.monotonic() - began < 2
    assert (process.returncode, out, err) == (-signal.SIGTERM, "", "")


def _listens(pid):
    """Whether a process has a socket that listens."""
    links = (os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink())
    sockets = {link.split("[")[1].rstrip("]") for link in links if link.startswith("socket:")}
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    return any(it.split()[3] == "0A" and it.split()[9] in sockets for it in lines)


@pytest.mark.slow
@pytest.mark.unsteady
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_until_it_is_told_to_end(smoke_run, binary, number):
    process = binary.start("demo", f"--checkpoint={smoke_run}", "--port=0")
    url = process.stdout.readline().split()[1].rstrip(";")
    with urllib.request.urlopen(url) as answer:
        assert b"Fill in the holes" in answer.read()
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0 and err == "Ended.\n"

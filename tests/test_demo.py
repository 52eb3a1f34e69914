"""The demo as its user meets it."""

import signal
import urllib.request

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


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_until_it_is_told_to_end(smoke_run, binary, number):
    process = binary.start("demo", f"--checkpoint={smoke_run}", "--port=0")
    url = process.stdout.readline().split()[1].rstrip(";")
    with urllib.request.urlopen(url) as answer:
        assert b"Fill in the holes" in answer.read()
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0 and err == "Ended.\n"

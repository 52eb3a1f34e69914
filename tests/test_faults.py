"""Faults put into real runs, and what the user sees.

python -m pytest -m slow -n 0 -s tests/test_faults.py
"""

import re
import shutil
import signal
import subprocess
import time

import portpicker
import pytest

from sedd_jax.experiment.checkpoint_folder import FOLDER
from tests.disturbed import COMMAND, after_line, ends_like, report
from tests.metadata import metadata_server

pytestmark = [pytest.mark.slow, pytest.mark.unsteady]

LONG = (*COMMAND, "--config.train.steps=100000")


def killed_after(step, straight, tmp_path):
    """A copy of the run as a kill -9 after the checkpoint of a step would leave it."""
    run = tmp_path / "run"
    shutil.copytree(straight, run)
    for checkpoint in (run / FOLDER).iterdir():
        if int(checkpoint.name) > step:
            shutil.rmtree(checkpoint)
    return run


def data_file(checkpoint):
    """The largest file of the parameters."""
    return max(checkpoint.glob("params/**/*"), key=lambda path: path.stat().st_size)


def flip(checkpoint):
    path = data_file(checkpoint)
    data = bytearray(path.read_bytes())
    for i in range(len(data) // 2, len(data) // 2 + 64):
        data[i] ^= 0xFF
    path.write_bytes(data)


def truncate(checkpoint):
    path = data_file(checkpoint)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("damage", [flip, truncate])
def test_a_damaged_checkpoint(binary, straight, tmp_path, damage):
    run = killed_after(60, straight, tmp_path)
    damage(run / FOLDER / "60")
    out = binary.run("train", *COMMAND, f"--workdir={run}")
    (warning,) = [line for line in binary.err.splitlines() if "warning: " in line]
    assert "60 is damaged" in warning and "Going back to step 40 instead." in warning
    assert "Continuing after step 40." in out
    ends_like(run, straight)
    report(f"{damage.__name__} 64 bytes or half of a file of the checkpoint", 0, warning)


def mounted(folder, *options):
    """Mounts a file system of memory on a folder, if this user may."""
    command = ["mount", "-t", "tmpfs", *options, "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting needs rights")


@pytest.mark.parametrize(
    ("fault", "reason"),
    [("read-only", "Read-only file system"), ("full", "No space left on device")],
)
def test_a_disk_that_takes_no_more(binary, straight, tmp_path, fault, reason):
    run = killed_after(40, straight, tmp_path)
    kept = (run / FOLDER).rename(tmp_path / "kept")
    (run / FOLDER).mkdir()
    mounted(run / FOLDER, "-o", "size=4m")
    try:
        shutil.copytree(kept, run / FOLDER, dirs_exist_ok=True)
        if fault == "full":
            free = shutil.disk_usage(run / FOLDER).free
            (run / FOLDER / "ballast").write_bytes(bytes(free - 100_000))
        else:
            subprocess.run(["mount", "-o", "remount,ro", str(run / FOLDER)], check=True)
        process = binary.start("train", *COMMAND, f"--workdir={run}")
        _, err = process.communicate()
        (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
        assert process.returncode == 1
        assert f"Saving the checkpoint of step 60 in {run / FOLDER} failed: {reason}" in line
        assert "the last good one is 40" in line
        report(f"checkpoints/ is {fault}", 1, line)
        if fault == "full":
            (run / FOLDER / "ballast").unlink()
            binary.run("train", *COMMAND, f"--workdir={run}")
            ends_like(run, straight)
    finally:
        subprocess.run(["umount", str(run / FOLDER)], check=True)


def test_ctrl_c(binary, straight, tmp_path):
    run = killed_after(20, straight, tmp_path)
    process = binary.start("train", *LONG, f"--workdir={run}")
    after_line(process, "step")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 128 + signal.SIGINT
    assert "Stopped by SIGINT after step" in err
    report("Ctrl-C", process.returncode, err)


def test_a_second_process(binary, straight, tmp_path):
    run = killed_after(20, straight, tmp_path)
    process = binary.start("train", *LONG, f"--workdir={run}")
    after_line(process, "Continuing")
    line = binary.refuse("train", *LONG, f"--workdir={run}")
    process.kill()
    process.communicate()
    assert "is in use by process" in line
    report("a second process in the same folder", 2, line)


def two(binary, run, flags):
    """Starts two processes of one job."""
    job = f"--coordinator=localhost:{portpicker.pick_unused_port()}"
    return [
        binary.start(
            "train", *flags, f"--workdir={run}", job, "--num_processes=2", f"--process_id={number}",
            devices=2,
        )
        for number in range(2)
    ]  # fmt: skip


def test_a_check_that_fails_in_one_of_two_processes_is_told_and_the_others_follow(binary, tmp_path):
    (tmp_path / "1").mkdir()
    (tmp_path / "1/letters.txt").write_text("no run")
    job = f"--coordinator=localhost:{portpicker.pick_unused_port()}"
    lead, other = [
        binary.start(
            "train", "--check", COMMAND[0], f"--workdir={tmp_path / number}", job,
            "--num_processes=2", f"--process_id={number}",
        )
        for number in "01"
    ]  # fmt: skip
    out, _ = lead.communicate(timeout=120)
    told, _ = other.communicate(timeout=120)
    assert "FAULT    run folder: process 1 found it so" in out and "memory: a step holds" in out
    assert f"Process 1: {tmp_path}/1 exists and is not a run folder" in told
    assert lead.returncode == other.returncode == 1
    report("process 1 of 2 finds a fault before the run", 1, out)


def test_one_of_two_processes_gets_sigterm(binary, tmp_path):
    run = tmp_path / "run"
    lead, other = two(binary, run, LONG)
    after_line(lead, "step 20/")
    other.terminate()
    said = [process.communicate(timeout=120)[1] for process in (lead, other)]
    assert [process.returncode for process in (lead, other)] == [143, 143], said
    (line,) = [line for line in said[0].splitlines() if line.startswith("error: ")]
    step = int(line.split("after step ")[1].split(",")[0])
    assert (run / FOLDER / str(step)).is_dir()
    report("SIGTERM to process 1 of 2", 143, line)
    lead, other = two(binary, run, LONG)
    assert int(after_line(lead, "Continuing").split()[-1].strip(".")) == step
    for process in (lead, other):
        process.kill()
        process.communicate()


@pytest.mark.parametrize("processes", [1, 2])
def test_a_notice_of_preemption(binary, straight, tmp_path, monkeypatch, processes):
    """From a metadata server such as Google's; the SIGTERM of the shutdown follows it."""
    run = killed_after(20, straight, tmp_path) if processes == 1 else tmp_path / "run"
    with metadata_server() as (values, host):
        values.set("preempted", "FALSE")
        monkeypatch.setenv("GCE_METADATA_HOST", host)
        if processes == 1:
            all_of_them = [binary.start("train", *LONG, f"--workdir={run}")]
        else:
            all_of_them = two(binary, run, LONG)
        after_line(all_of_them[0], "step")
        values.set("preempted", "TRUE")
        time.sleep(0.2)
        all_of_them[0].terminate()
        said = [process.communicate(timeout=120)[1] for process in all_of_them]
    assert [process.returncode for process in all_of_them] == [143] * processes, said
    (notice,) = [line for line in said[0].splitlines() if line.startswith("Google ")]
    (line,) = [line for line in said[0].splitlines() if line.startswith("error: ")]
    step = int(line.split("after step ")[1].split(",")[0])
    assert (run / FOLDER / str(step)).is_dir()
    report(f"a notice of preemption to {processes}", 143, f"{notice}\n{line}")


def test_a_preemption_without_time_to_save(binary, straight, tmp_path):
    run = killed_after(20, straight, tmp_path)
    flags = (*LONG, "--config.checkpoint.every=100000", "--config.train.grace_seconds=0.1")
    process = binary.start("train", *flags, f"--workdir={run}")
    after_line(process, "step")
    process.terminate()
    _, err = process.communicate()
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert process.returncode == 143
    assert re.search(r"The last save is \d+ steps old, .* continues from step 20\.", line)
    assert [path.name for path in (run / FOLDER).iterdir()] == ["20"]
    report("SIGTERM 0.1 s before the end", process.returncode, err)


def test_one_of_two_processes_fails_alone(binary, tmp_path):
    """The rows cannot be written, which process 0 alone does."""
    run = tmp_path / "run"
    run.mkdir()
    mounted(run, "-o", "size=4m")
    try:
        lead, other = two(binary, run, (*LONG, "--config.checkpoint.every=100000"))
        after_line(lead, "step 20/")
        (run / "ballast").write_bytes(bytes(shutil.disk_usage(run).free))
        began = time.monotonic()
        said = [process.communicate(timeout=200)[1] for process in (lead, other)]
        assert lead.returncode != 0 and other.returncode != 0, said
        (line,) = [line for line in said[0].splitlines() if line.startswith("error: ")]
        assert "cannot be written" in line
        waited = f"both ended after {time.monotonic() - began:.0f} s\n{line}"
        report("no room for the rows of process 0 of 2", lead.returncode, waited)
    finally:
        subprocess.run(["umount", str(run)], check=True)


def test_one_of_two_processes_is_killed(binary, tmp_path):
    lead, other = two(binary, tmp_path / "run", LONG)
    after_line(lead, "step 20/")
    other.kill()
    began = time.monotonic()
    _, err = lead.communicate(timeout=300)
    other.communicate()
    assert lead.returncode != 0
    reason = next(
        line for line in err.splitlines() if "heartbeat" in line.lower() or "peer" in line
    )
    waited = f"(after {time.monotonic() - began:.0f} s) {reason[:300]}"
    report("kill -9 of process 1 of 2; process 0", lead.returncode, waited)


def test_one_of_two_processes_has_other_settings(binary, tmp_path):
    job = f"--coordinator=localhost:{portpicker.pick_unused_port()}"
    flags = [COMMAND, (*COMMAND, "--config.seed=1")]
    processes = [
        binary.start(
            "train", *flags[number], f"--workdir={tmp_path / 'run'}", job, "--num_processes=2",
            f"--process_id={number}", devices=2,
        )
        for number in range(2)
    ]  # fmt: skip
    said = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [1, 2], said
    lines = [next(x for x in err.splitlines() if x.startswith("error: ")) for err in said]
    assert "Process 1 of the job ended with an error; see there." in lines[0]
    assert "seed" in lines[1]
    report("process 1 of 2 with another seed", [1, 2], "\n".join(lines))

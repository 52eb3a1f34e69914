"""The scripts in launch/: what they would run, what they run, what they refuse."""

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

LAUNCH = Path(__file__).parents[1] / "launch"
FLAGS = ["--checkpoint=a run", "--input=in.jsonl", '--prefix=it\'s $HOME; "x"\\']
NEEDED = {
    "sample_tpu.sh": ["--tpu=pod", "--zone=europe-west4-b"],
    "sample_slurm.sh": [],
}
SCRIPTS = pytest.mark.parametrize("script", NEEDED)


def launch(script, *arguments, path=""):
    environment = os.environ | {"PATH": f"{path}:{os.environ['PATH']}"}
    command = [LAUNCH / script, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def printed(script, *options):
    """The command of a dry run, as a shell reads it."""
    done = launch(script, "--dry-run", *NEEDED[script], *options, "--", *FLAGS)
    assert (done.returncode, done.stderr) == (0, "")
    return shlex.split(done.stdout)


def test_a_slice_runs_the_module_on_all_hosts():
    *gcloud, command = printed("sample_tpu.sh", "--project=p", "--folder=my folder")
    assert gcloud == [
        *("gcloud", "compute", "tpus", "tpu-vm", "ssh", "pod", "--zone=europe-west4-b"),
        *("--project=p", "--worker=all"),
    ]
    assert command.startswith("--command=cd my\\ folder && PYTHONUNBUFFERED=1 exec python3 -m ")
    assert shlex.split(command)[-4:] == ["sedd_jax.sample", *FLAGS]


def test_slurm_runs_a_task_for_each_gpu():
    assert printed("sample_slurm.sh", "--nodes=2", "--gpus=4", "--python=venv/bin/python") == [
        *("srun", "--kill-on-bad-exit=1", "--nodes=2", "--ntasks-per-node=4"),
        "--gpus-per-node=4",
        *("venv/bin/python", "-m", "sedd_jax.sample", *FLAGS),
    ]


@SCRIPTS
def test_flags_arrive_as_they_were_given(script, tmp_path):
    """With a gcloud that obeys on this host, an srun that has one task, and a Python that tells."""
    (tmp_path / "gcloud").write_text('#!/bin/bash\nfor it; do :; done\neval "${it#--command=}"\n')
    (tmp_path / "srun").write_text('#!/bin/bash\nshift 4\n"$@"\n')
    (tmp_path / "tells").write_text('#!/bin/bash\nprintf "%s\\n" "$PYTHONUNBUFFERED" "$@"\n')
    for path in tmp_path.iterdir():
        path.chmod(0o755)
    options = [*NEEDED[script], f"--python={tmp_path / 'tells'}"]
    options += [f"--folder={tmp_path}"] if script == "sample_tpu.sh" else []
    done = launch(script, *options, "--", *FLAGS, path=tmp_path)
    assert done.stdout.splitlines() == ["1", "-m", "sedd_jax.sample", *FLAGS], done.stderr


@SCRIPTS
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps=3"], "--steps=3 is no option of this script; flags of sedd_jax.sample come"),
        (["NEEDED"], "flags of sedd_jax.sample are needed, after --"),
        (["NEEDED", "--"], "flags of sedd_jax.sample are needed, after --"),
        (["NEEDED", "--", "--steps=3", "--inputs=x"], "--input is needed among the flags of"),
        (["NEEDED", "--python="], "--python= is no option"),
    ],
)
def test_bad_use_is_one_line(script, arguments, message):
    given = [
        part for each in arguments for part in (NEEDED[script] if each == "NEEDED" else [each])
    ]
    done = launch(script, *given)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {message}")


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("sample_tpu.sh", ["--tpu=pod"], "--tpu=NAME and --zone=ZONE are needed"),
        (
            "sample_slurm.sh",
            ["--nodes=two", "--", "--steps=3"],
            "--nodes=two must be a whole number",
        ),
        ("sample_slurm.sh", ["--gpus=0", "--", "--steps=3"], "--gpus=0 must be a whole number"),
    ],
)
def test_bad_use_of_one_script(script, arguments, message):
    done = launch(script, *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {message}")


@SCRIPTS
def test_help_and_what_is_lacking(script, tmp_path):
    done = launch(script, "-h")
    assert done.returncode == 0
    assert done.stdout.startswith(f"Usage: launch/{script} ")
    tool = {"sample_tpu.sh": "gcloud", "sample_slurm.sh": "srun"}[script]
    if not shutil.which(tool):
        lacking = launch(script, *NEEDED[script], "--", "--input=x")
        assert (lacking.returncode, lacking.stderr.count("\n")) == (2, 1)
        assert f"there is no {tool} here" in lacking.stderr


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="there is no shellcheck here")
def test_the_scripts_are_clean():
    done = subprocess.run(
        ["shellcheck", "-x", *LAUNCH.glob("*.sh")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout

"""How processes find each other: whom they wait for, and what they say when nobody comes."""

import os
import socket
import subprocess
import sys

import pytest

from sedd_jax.errors import BadInput
from sedd_jax.system import joining


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch):
    for name in [name for name in os.environ if name.startswith(("SLURM_", "OMPI_"))]:
        monkeypatch.delenv(name)


@pytest.fixture
def joined(monkeypatch):
    """What JAX was asked to join; nothing is joined."""
    calls = []
    monkeypatch.setattr("jax.distributed.initialize", lambda *args, **_: calls.append(args))
    return calls


def test_alone_there_is_nothing_to_join(joined):
    joining.initialize_distributed()
    assert not joined


def test_the_processes_that_are_named(joined):
    joining.initialize_distributed("auto", "host:1", 2, 0)
    assert joined == [("host:1", 2, 0)]


SLURM = {"SLURM_NTASKS": "2", "SLURM_STEP_NODELIST": "host[1-2]", "SLURM_PROCID": "0"}
OPEN_MPI = {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "0"}


def set_environment(monkeypatch, environment):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("environment", "count"),
    [
        (SLURM, 2),
        (SLURM | {"SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "3"}, 3),
        (OPEN_MPI, 4),
        (OPEN_MPI | {"SLURM_NTASKS": "", "SLURM_STEP_NODELIST": "", "SLURM_PROCID": ""}, 4),
    ],
)
def test_the_processes_that_the_environment_names(monkeypatch, joined, environment, count):
    set_environment(monkeypatch, environment)
    joining.initialize_distributed()
    assert joined == [(None, count, None)]
    joining.initialize_distributed("no")
    assert len(joined) == 1


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        # a batch script, not in a step, and the shell of an allocation, in a step of its own
        ({"SLURM_NTASKS": "8", "SLURM_PROCID": "0"}, "SLURM_NTASKS=8, but this process is alone"),
        (SLURM | {"SLURM_STEP_NUM_TASKS": "1"}, "SLURM_NTASKS=2, but this process is alone"),
        ({"SLURM_NTASKS": "1", "SLURM_STEP_NODELIST": "host1"}, ""),
        (dict.fromkeys(SLURM | OPEN_MPI, ""), ""),
    ],
)
def test_a_script_or_a_single_task_is_no_job_of_several(
    monkeypatch, joined, capsys, environment, said
):
    set_environment(monkeypatch, environment)
    joining.initialize_distributed()
    assert not joined
    err = capsys.readouterr().err
    assert said in err if said else not err


def test_what_is_no_number_or_empty_in_the_environment_is_named(monkeypatch):
    set_environment(monkeypatch, SLURM | {"SLURM_NTASKS": "2(x2)"})
    with pytest.raises(BadInput, match=r"SLURM_NTASKS=2\(x2\) in the environment is no number"):
        joining.initialize_distributed()
    set_environment(monkeypatch, SLURM | {"SLURM_JOB_ID": "", "SLURM_LOCALID": "0"})
    with pytest.raises(BadInput, match="do not find each other .*; empty: SLURM_JOB_ID"):
        joining.initialize_distributed()


@pytest.mark.parametrize(
    ("environment", "flags", "said"),
    [
        (SLURM, (), "2 processes (SLURM_NTASKS=2); --distributed=no runs this one alone."),
        ({}, ("host:1", 3, 0), "3 processes (--num_processes=3); check --coordinator."),
    ],
)
def test_it_is_said_at_once_who_is_waited_for(
    monkeypatch, joined, capsys, environment, flags, said
):
    set_environment(monkeypatch, environment)
    joining.initialize_distributed("auto", *flags)
    assert capsys.readouterr().err == f"Waiting for {said}\n"


def test_alone_in_a_job_of_two_the_last_line_is_an_error():
    """Where JAX would abort the process: as process 0, whom the others ask, and as process 1."""
    program = (
        "import sys; from sedd_jax.system.joining import initialize_distributed\n"
        "initialize_distributed('auto', sys.argv[1], 2, int(sys.argv[2]), patience=1)"
    )
    for number, process in enumerate([start_alone(program, number) for number in (0, 1)]):
        _, err = process.communicate()
        assert process.returncode == 1
        *before, last = err.splitlines()
        assert last == (
            "error: Of 2 processes (--num_processes=2) not all came within 1 s; "
            "--patience=SECONDS waits longer, check --coordinator."
        )
        assert len(before) == (number == 0)


def start_alone(program, number):
    with socket.create_server(("localhost", 0)) as server:  # closed again, its port is free
        address = f"localhost:{server.getsockname()[1]}"
    command = [sys.executable, "-c", program, address, str(number)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def test_a_tpu_host_without_a_cluster_goes_on_alone(monkeypatch, capsys):
    def initialize(*_, **__):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr("jax.distributed.initialize", initialize)
    monkeypatch.setattr(joining, "_is_tpu_host", lambda: True)
    joining.initialize_distributed()
    assert "continues alone" in capsys.readouterr().err
    with pytest.raises(BadInput, match="do not find"):
        joining.initialize_distributed("yes")


def test_when_asked_the_cluster_is_looked_for(joined):
    joining.initialize_distributed("yes")
    assert joined == [(None, None, None)]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"coordinator": "host:1"}, "go together"),
        (
            {"coordinator": "host:1", "num_processes": 2, "process_id": 0, "mode": "no"},
            "--distributed=no contradicts",
        ),
        # JAX itself refuses, before it waits for anybody
        ({"coordinator": "host:1", "num_processes": 2, "process_id": 2}, "do not find each other"),
    ],
)
def test_settings_that_contradict_each_other(given, message):
    with pytest.raises(BadInput, match=message):
        joining.initialize_distributed(**given)

"""The checks before a run: what is fine, what is not, and that nothing stays."""

import dataclasses
import itertools
import os
from types import SimpleNamespace

import pytest

from sedd_jax.experiment import mesh as meshes
from sedd_jax.training import machine
from sedd_jax.training.machine import FAULT, OK, WARNING, check_machines

BEFORE_MEMORY = 7  # the last check compiles


def checked(config, run, count=BEFORE_MEMORY):
    lines = list(itertools.islice(check_machines(config, run), count))
    return {line.what: line for line in lines}


def faults(lines):
    return {what for what, line in lines.items() if line.verdict == FAULT}


def changed(config, **parts):
    new = {name: dataclasses.replace(getattr(config, name), **of) for name, of in parts.items()}
    return dataclasses.replace(config, **new)


def test_a_new_run_is_fine_and_leaves_nothing(smoke_config, tmp_path):
    lines = checked(smoke_config, tmp_path / "run")
    assert faults(lines) == set()
    assert "a new run, written at" in lines["run folder"].found
    assert "will be prepared at the start" in lines["data"].found
    assert list(tmp_path.iterdir()) == []


def test_a_run_continues_and_its_rows_are_read(smoke_run, smoke_config):
    before = sorted(smoke_run.rglob("*"))
    lines = checked(smoke_config, smoke_run)
    assert faults(lines) == set()
    assert "continues after step " in lines["run folder"].found
    assert "training blocks; 2 files hold what was written; " in lines["data"].found
    assert sorted(smoke_run.rglob("*")) == before


def test_every_fault_is_told_and_the_rest_is_checked(smoke_config, tmp_path):
    (tmp_path / "letters.txt").write_text("no run")
    config = changed(smoke_config, mesh={"tensor": 3}, data={"corpus": str(tmp_path / "none.txt")})
    lines = checked(config, tmp_path)
    assert faults(lines) == {"mesh", "run folder", "data"}
    assert "is not a run folder" in lines["run folder"].found
    assert "none.txt" in lines["data"].found


def test_other_settings_than_those_of_the_run_are_found(smoke_run, smoke_config):
    lines = checked(changed(smoke_config, model={"num_blocks": 3}), smoke_run)
    assert "model.num_blocks: 2 -> 3" in lines["run folder"].found
    assert "run folder" in faults(lines)


def test_ids_that_the_tokenizer_lacks_are_found(smoke_run, smoke_config, monkeypatch):
    monkeypatch.setattr(machine, "arguments_of", lambda rows: (rows + 200,))
    assert "hold ids up to" in checked(smoke_config, smoke_run)["data"].found


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_a_fault(smoke_config, tmp_path):
    tmp_path.chmod(0o500)
    assert faults(checked(smoke_config, tmp_path / "run")) == {"run folder"}


@pytest.mark.parametrize(("share", "verdict"), [(0.5, OK), (0.97, WARNING), (1.5, FAULT)])
def test_the_memory_of_a_step(share, verdict, smoke_config, tmp_path, monkeypatch):
    step = SimpleNamespace(lower=lambda *arguments: step, compile=lambda: step)
    programs = SimpleNamespace(train_step=step, abstract=None, batch=())
    monkeypatch.setattr(machine, "build_programs", lambda *arguments: programs)
    monkeypatch.setattr(machine, "step_memory_gib", lambda step: share)
    monkeypatch.setattr(machine, "_memory", lambda: 2**30)
    lines = checked(smoke_config, tmp_path / "run", count=8)
    assert lines["memory"].verdict == verdict
    assert "of the 1 GiB of a device" in lines["memory"].found


def test_a_mesh_is_that_of_the_run(smoke_config, tmp_path):
    lines = checked(changed(smoke_config, mesh={"data": 4, "fsdp": 2}), tmp_path / "run")
    assert lines["mesh"].found == "data 4 x fsdp 2"
    assert meshes.build_mesh(smoke_config.mesh).size == 8

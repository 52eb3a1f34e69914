"""Several processes, other devices, another mesh: a run goes on with the same numbers.

    python -m pytest -m slow -n 0 -s tests/test_distributed.py

prints how far the losses and parameters of a run that goes on elsewhere are from those of the run
that was not stopped.
"""

import json
import shutil

import numpy as np
import portpicker
import pytest

import sedd_jax as sedd
from sedd_jax.runtime.checkpoint import FOLDER
from sedd_jax.runtime.metrics import FILE

FLAGS = (
    "--config=configs/smoke.py",
    "--config.train.log_every=1",
    "--config.eval.sample_every=1000",
    "--config.eval.num_samples=0",
    "--config.eval.every=1000",
    "--config.model.num_heads=4",
)
SHORT = (*FLAGS, "--config.train.steps=6", "--config.checkpoint.every=3")
LONG = (*FLAGS, "--config.train.steps=40", "--config.checkpoint.every=10")


def train(binary, run, flags, processes, devices):
    """Trains with some processes of some devices each, to the end."""
    job = ()
    if processes > 1:
        port = portpicker.pick_unused_port()
        job = (f"--coordinator=localhost:{port}", f"--num_processes={processes}")
    started = [
        binary.start(
            "train",
            *flags,
            f"--workdir={run}",
            *job,
            *([f"--process_id={number}"] if job else []),
            devices=devices,
        )
        for number in range(processes)
    ]
    said = [process.communicate() for process in started]
    for process, (_, err) in zip(started, said, strict=True):
        assert process.returncode == 0, err
    return [out for out, _ in said]


def going_on(run, step, folder):
    """A copy of a run that was killed after the checkpoint of a step."""
    shutil.copytree(run, folder)
    for checkpoint in (folder / FOLDER).iterdir():
        if int(checkpoint.name) > step:
            shutil.rmtree(checkpoint)
    return folder


def rows(run):
    return [json.loads(line) for line in (run / FILE).read_text().splitlines()]


def differences(run, straight):
    """The largest relative differences: of the losses, the held-out bound, the parameters."""
    numbers = [
        np.array([row[name] for row in rows(folder) if name in row])
        for name in ("loss", "bound")
        for folder in (run, straight)
    ]
    loss, bound = (np.max(np.abs(a / b - 1)) for a, b in (numbers[:2], numbers[2:]))
    import jax

    params = max(
        np.abs(a - b).max() / np.abs(b).max()
        for a, b in zip(
            *(jax.tree.leaves(jax.device_get(sedd.load(f).params)) for f in (run, straight)),
            strict=True,
        )
    )
    return {"loss": loss, "bound": bound, "params": params}


def test_two_processes_go_on_with_the_run_of_one(binary, tmp_path):
    """From a checkpoint of one process with four devices; and they lie in other parts."""
    straight = tmp_path / "straight"
    (out,) = train(binary, straight, SHORT, processes=1, devices=4)
    assert "on 4 cpu device(s).\nMesh: data 4, 1 process(es)" in out
    run = going_on(straight, 3, tmp_path / "two")
    lead, other = train(binary, run, (*SHORT, "--config.mesh.fsdp=4"), processes=2, devices=2)
    assert "Mesh: fsdp 4, 2 process(es)" in lead and "Continuing after step 3." in lead
    assert "step 6/6" in lead and "step" not in other  # the lead speaks for both
    found = differences(run, straight)
    assert max(found["loss"], found["bound"]) < 1e-5, found
    # a gradient near zero turns rounding into AdamW's whole step; measured 2e-5
    assert found["params"] < 1e-3, found
    assert [row["step"] for row in rows(run) if "loss" in row] == [1, 2, 3, 4, 5, 6]


@pytest.mark.slow
@pytest.mark.parametrize("graph", ["absorb", "uniform"])
def test_a_run_goes_on_on_any_devices(binary, tmp_path, graph):
    flags = (*LONG, f"--config.graph={graph}", f"--config.model.scale_by_sigma={graph == 'absorb'}")
    straight = tmp_path / "straight"
    train(binary, straight, flags, processes=1, devices=4)
    print(f"\n{graph}: largest relative difference, steps 11 to 40, from data=4 in one process")
    for processes, devices, mesh in (
        (1, 4, ""),
        (1, 1, ""),
        (1, 2, ""),
        (1, 8, ""),
        (1, 8, "data=1 fsdp=8"),
        (1, 8, "data=2 tensor=4"),
        (1, 8, "slice=2 data=1 fsdp=2 tensor=2"),
        (2, 2, ""),
        (2, 2, "data=1 fsdp=4"),
        (2, 2, "data=1 fsdp=2 tensor=2"),
        (2, 2, "data=1 tensor=4"),
    ):
        run = going_on(straight, 10, tmp_path / f"{processes} {devices} {mesh}")
        layout = [f"--config.mesh.{size}" for size in mesh.split()]
        train(binary, run, (*flags, *layout), processes, devices)
        found = differences(run, straight)
        name = mesh or f"data={processes * devices}"
        values = ", ".join(f"{key} {value:.1e}" for key, value in found.items())
        print(f"  {processes} process(es), {name}: {values}")
        if (processes, devices, mesh) == (1, 4, ""):
            assert not any(found.values())  # the same devices: the same bits
        assert max(found["loss"], found["bound"]) < 1e-5

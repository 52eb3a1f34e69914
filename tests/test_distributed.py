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
from sedd_jax.experiment.checkpoint_folder import FOLDER
from sedd_jax.experiment.metrics import FILE

FLAGS = (
    "--config=configs/smoke.py",
    "--config.train.log_every=1",
    "--config.eval.sample_every=1000",
    "--config.eval.num_samples=0",
    "--config.eval.every=1000",
    "--config.model.num_heads=4",
)
LONG = (
    *FLAGS,
    "--config.train.steps=40",
    "--config.checkpoint.every=10",
    "--config.checkpoint.keep=4",
)


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


@pytest.mark.slow
def test_two_processes_go_on_with_the_run_of_one(binary, smoke_run, tmp_path):
    """From the checkpoint of one process with eight devices; and the parts are others."""
    run = going_on(smoke_run, 10, tmp_path / "two")
    flags = (
        "--config=configs/smoke.py",
        "--config.train.steps=20",
        "--config.train.log_every=5",
        "--config.eval.every=10",
        "--config.eval.num_samples=0",
        "--config.checkpoint.every=10",
        "--config.mesh.fsdp=4",
    )
    lead, other = train(binary, run, flags, processes=2, devices=2)
    assert "on 4 cpu device(s).\nMesh: fsdp 4, 2 process(es)" in lead
    assert "Continuing after step 10." in lead
    assert "step 20/20" in lead and "step" not in other  # the lead speaks for both
    found = differences(run, smoke_run)
    assert max(found["loss"], found["bound"]) < 1e-5, found
    # a gradient near zero turns rounding into AdamW's whole step
    assert found["params"] < 1e-3, found
    assert [row["step"] for row in rows(run) if "loss" in row] == [5, 10, 15, 20]


# processes, devices of each, mesh: the first is that of the run they go on with
PLACES = [
    (1, 4, "data=4"),
    (1, 1, "data=1"),
    (1, 2, "data=2"),
    (1, 8, "data=8"),
    (1, 8, "data=1 fsdp=8"),
    (1, 8, "data=2 tensor=4"),
    (1, 8, "slice=2 data=1 fsdp=2 tensor=2"),
    (2, 2, "data=4"),
    (2, 2, "data=1 fsdp=4"),
    (2, 2, "data=1 fsdp=2 tensor=2"),
    (2, 2, "data=1 tensor=4"),
]


def flags_of(kind, folder):
    """The flags of a kind of run: its graph, or that it is told of its rows."""
    if kind != "conditional":
        return (f"--config.graph={kind}", f"--config.model.scale_by_sigma={kind == 'absorb'}")
    corpus, rng = folder / "told.jsonl", np.random.default_rng(0)
    with corpus.open("w") as file:
        for row in range(300):
            told = {"class": "xy"[row % 2], "size": row / 300, "place": [row % 7, -1.5]}
            text = "".join(rng.choice(list("abcd"[row % 2 : row % 2 + 3]), 32))
            file.write(json.dumps({"text": text, **told}) + "\n")
    return (
        f"--config.data.corpus={corpus}",
        "--config.data.wrap=False",
        "--config.data.crop=blocks",
        "--config.data.condition=class,size:number,place:vector",
        "--config.data.heldout_fraction=0.2",
        "--config.eval.batch_size=32",  # so that every mesh scores the same blocks
        "--config.eval.max_blocks=32",
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "places"),
    [
        ("absorb", PLACES),
        ("uniform", [PLACES[0], *PLACES[3::3]]),
        ("conditional", [PLACES[0], PLACES[1], *PLACES[6::3]]),
    ],
)
def test_a_run_goes_on_on_any_devices(binary, tmp_path, kind, places):
    flags = (*LONG, *flags_of(kind, tmp_path))
    straight = tmp_path / "straight"
    train(binary, straight, flags, processes=1, devices=4)
    print(f"\n{kind}: largest relative difference, steps 11 to 40, from data=4 in one process")
    for processes, devices, mesh in places:
        run = going_on(straight, 10, tmp_path / f"{processes} {mesh}")
        layout = [f"--config.mesh.{size}" for size in mesh.split()]
        lead, *_ = train(binary, run, (*flags, *layout), processes, devices)
        assert "Continuing after step 10." in lead
        found = differences(run, straight)
        values = ", ".join(f"{key} {value:.1e}" for key, value in found.items())
        print(f"  {processes} process(es), {mesh}: {values}")
        if (processes, devices, mesh) == PLACES[0]:
            assert not any(found.values())  # the same devices: the same bits
        assert max(found["loss"], found["bound"]) < 1e-5

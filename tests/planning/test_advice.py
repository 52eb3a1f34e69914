"""What is recommended, of figures by hand: 4 devices, a batch of 64, a chip of 1000 bytes."""

import dataclasses
import shlex
from types import SimpleNamespace

import jax
import pytest

from sedd_jax.experiment.config import Config, MeshConfig, parse
from sedd_jax.experiment.mesh import build_mesh
from sedd_jax.planning.advice import for_idle_memory, to_fit, train_command
from sedd_jax.planning.hlo_cost.memory import Memory
from sedd_jax.system.settings import flatten

OWN = flatten(dataclasses.asdict(Config()))


def config_of(microbatches, remat="products"):
    config = Config()
    return dataclasses.replace(
        config,
        train=dataclasses.replace(config.train, batch_size=64, microbatches=microbatches),
        model=dataclasses.replace(config.model, remat=remat),
    )


def outlook_of(arguments, temporaries):
    mesh = build_mesh(MeshConfig(data=4), jax.devices()[:4])
    kept = {"parameters": arguments, "batch": 0}
    return SimpleNamespace(
        program=SimpleNamespace(mesh=mesh, kept=kept),
        memory=Memory(1000.0, {"arguments": arguments, "temporaries": temporaries}, {}),
    )


@pytest.mark.parametrize(
    ("temporaries", "said"),
    [
        # at 8 microbatches of 2 a chip; 800 are left, of what is filled at most
        (40.0, "microbatches=1 would hold 16 sequences"),
        (150.0, "microbatches=2 would hold 8 sequences"),
        (300.0, "microbatches=4 would hold 4 sequences"),
        (401.0, None),  # less than half is free
    ],
)
def test_idle_memory_takes_more_sequences_at_a_time(temporaries, said):
    found = for_idle_memory(config_of(8), outlook_of(100.0, temporaries))
    assert (said is None and found is None) or f"--config.train.{said}" in found


def test_a_batch_in_one_part_takes_no_more():
    assert for_idle_memory(config_of(1), outlook_of(100.0, 10.0)) is None


def test_the_larger_part_is_divided_first():
    state = to_fit(config_of(1), outlook_of(1500.0, 200.0), training=True)
    made = to_fit(config_of(1), outlook_of(500.0, 900.0), training=True)
    mesh, rows = "--config.mesh.data=1 --config.mesh.fsdp=4 divides", "microbatches="
    assert state.index(mesh) < state.index(rows)
    assert made.index(mesh) > made.index(rows)
    # 400 are left for 900 / 4 = 225; 2 microbatches still make 450
    assert "microbatches=4 would hold 4 sequences of a chip" in made
    assert "remat=blocks" in made and made.endswith("--search tries them.")
    assert "remat" not in to_fit(config_of(1, "blocks"), outlook_of(500.0, 900.0), training=True)


def test_where_nothing_fits_a_sequence_at_a_time_is_the_least():
    found = to_fit(config_of(1), outlook_of(1500.0, 900.0), training=True)
    assert "microbatches=16 would hold 1 sequence of a chip" in found


def test_a_sampler_takes_fewer_sequences():
    found = to_fit(config_of(1), outlook_of(500.0, 900.0), training=False)
    assert found.startswith("--per_chip takes fewer sequences; --config.mesh.data=1")
    assert "microbatches" not in found and "--search" not in found


def test_the_command_gives_the_config():
    config = config_of(8, "blocks")
    words = shlex.split(train_command("a config.py:x", config, OWN))
    assert words[:4] == ["python", "-m", "sedd_jax.train", "--config=a config.py:x"]
    assert words[-1] == "--workdir=FOLDER"
    values = dataclasses.asdict(Config())
    for flag in words[4:-1]:
        key, value = flag.removeprefix("--config.").split("=")
        group, name = key.split(".")
        values[group][name] = type(values[group][name])(value)
    assert parse(values) == config


def test_the_file_of_a_command_has_its_own_settings():
    assert train_command("a.py", Config(), OWN).endswith("--config=a.py --workdir=FOLDER")

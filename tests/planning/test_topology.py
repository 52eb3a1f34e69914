"""Topologies by name, and the errors where there is no compiler for them."""

import importlib.util
import itertools
import os

import jax
import pytest

from sedd_jax.errors import BadInput
from sedd_jax.experiment.config import MeshConfig
from sedd_jax.experiment.mesh import build_mesh
from sedd_jax.planning.topology import (
    CHIPS,
    gpu_target_config,
    parse_topology,
    topology_devices,
)

LIBTPU = importlib.util.find_spec("libtpu")
CUDA = importlib.util.find_spec("jax_plugins")


@pytest.mark.parametrize(
    ("text", "chip", "shape", "slices", "devices"),
    [
        ("v5e:8x8", "v5e", (8, 8), 1, 64),
        ("2*v5e:4x4", "v5e", (4, 4), 2, 32),
        ("v5p:2x2x4", "v5p", (2, 2, 4), 1, 16),
        ("tpu7x:2x2x1", "tpu7x", (2, 2, 1), 1, 8),  # two devices a chip
        ("h100:4x8", "h100", (4, 8), 1, 32),
        ("2*V5E:4X4", "v5e", (4, 4), 2, 32),
    ],
)
def test_a_machine_has_a_name(text, chip, shape, slices, devices):
    topology = parse_topology(text)
    assert topology == (text.lower(), CHIPS[chip], shape, slices)
    assert topology.num_devices == devices


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("v9:2x2", "CHIP one of v4, v5e"),
        ("v5e", "CHIP:SHAPE"),
        ("v5e:", "CHIP:SHAPE"),
        ("v5e:8x", "CHIP:SHAPE"),
        ("v5e:8x8x8", "v5e takes 2 sizes"),
        ("v5p:4x4", "as in v5p:2x2x2"),
        ("v5e:0x8", "at least 1"),
        ("0*v5e:2x2", "at least 1"),
        ("h100:8", "nodes x GPUs of a node, as in h100:1x8"),
        ("h100-64", "h100:8x8"),
        ("v5litepod-64", "as in v5e:8x8 for 64 chips"),
        ("v5e-32", "v5e:4x8"),
        ("V5E:2", "v5e takes 2 sizes.* v5e:1x2"),
        ("v5p-128", "as in v5p:4x4x4 for 64 chips"),  # counts cores
        ("v4-8", "as in v4:2x2x1 for 4 chips"),
        ("tpu7x-8", "as in tpu7x:2x2x1 for 4 chips"),
        ("v4:16", "v4:2x2x4"),
        ("v9-64", "CHIP:SHAPE"),
        ("v5e-8x8", "CHIP:SHAPE"),
        ("2*h100:1x8", "not slices"),
    ],
)
def test_what_is_not_a_topology_is_refused(text, said):
    with pytest.raises(BadInput, match=said):
        parse_topology(text)


@pytest.mark.parametrize(
    ("text", "missing", "command"),
    [
        pytest.param(
            "v5e:2x2",
            "libtpu",
            r"sedd_jax\[tpu\]",
            marks=pytest.mark.skipif(bool(LIBTPU), reason="is there"),
        ),
        pytest.param(
            "h100:1x8",
            "plugin",
            r"sedd_jax\[cuda\]",
            marks=pytest.mark.skipif(bool(CUDA), reason="is there"),
        ),
    ],
)
def test_a_missing_compiler_is_named(text, missing, command):
    with pytest.raises(BadInput, match=f"{missing}.*{command}"):
        topology_devices(parse_topology(text))


@pytest.fixture
def compiler(monkeypatch):
    """Says what the compiler answers when it is asked for a machine."""

    def answers(answer):
        monkeypatch.setattr("sedd_jax.planning.topology.topologies.get_topology_desc", answer)

    for name in ("TPU_ACCELERATOR_TYPE", "TPU_LOG_DIR", "TPU_SKIP_MDS_QUERY"):
        monkeypatch.setenv(name, "the user's")
    for name in ("TPU_WORKER_HOSTNAMES", "ALLOW_MULTIPLE_LIBTPU_LOAD"):
        monkeypatch.setenv(name, "the user's")
    return answers


def test_a_slice_that_the_compiler_refuses_is_one_line(compiler):
    def refuse(*_, **__):
        raise jax.errors.JaxRuntimeError("INVALID_ARGUMENT: no such bounds\nand a long tale")

    compiler(refuse)
    with pytest.raises(BadInput, match=r"^v5e:3x5 cannot be planned for: no such bounds$"):
        topology_devices(parse_topology("v5e:3x5"))


def test_a_chip_that_the_compiler_takes_for_two_is_refused(compiler):
    compiler(lambda *_, **__: jax.experimental.topologies.TopologyDescription(jax.devices()))
    with pytest.raises(BadInput, match="8 devices in v4:2x2x1, where a run has 4"):
        topology_devices(parse_topology("v4:2x2x1"))


def test_the_users_settings_stay_and_a_part_of_a_host_has_its_bounds(compiler, monkeypatch):
    asked = []
    monkeypatch.delenv("TPU_ACCELERATOR_TYPE")

    def answer(name, **options):
        asked.append((name, options))
        return jax.experimental.topologies.TopologyDescription(jax.devices()[:1])

    compiler(answer)
    topology_devices(parse_topology("v5e:1x1"))
    assert os.environ["TPU_ACCELERATOR_TYPE"] == "v5litepod-1"
    assert os.environ["TPU_WORKER_HOSTNAMES"] == "the user's"
    options = {"platform": "tpu", "num_slices": 1, "chips_per_host_bounds": (1, 1, 1)}
    assert asked == [("v5e:1x1", options)]


@pytest.mark.parametrize("name", [chip.name for chip in CHIPS.values() if chip.platform == "gpu"])
def test_every_gpu_is_described(name):
    text = gpu_target_config(CHIPS[name])
    assert text.count("{") == text.count("}")
    assert CHIPS[name].device_kind in text
    memory = int(text.partition("device_memory_size: ")[2].split()[0])
    assert 0.9 < CHIPS[name].hbm_bytes / memory <= 1  # what the driver leaves


@pytest.mark.skipif(not CUDA, reason="needs JAX's CUDA plugin")
@pytest.mark.parametrize("text", ["a100:1x8", "h100:2x4", "h200:1x2", "b200:1x1"])
def test_gpus_can_be_compiled_for(text):
    topology = parse_topology(text)
    devices = topology_devices(topology)
    assert {device.device_kind for device in devices} == {topology.chip.device_kind}
    assert len({device.process_index for device in devices}) == topology.shape[0]


@pytest.mark.skipif(not LIBTPU, reason="needs libtpu")
@pytest.mark.parametrize(
    "text", ["v4:2x2x1", "v5e:1x1", "v5e:8x8", "2*v5e:2x2", "v5p:2x2x2", "v6e:4x4", "tpu7x:2x2x2"]
)
def test_tpus_can_be_compiled_for(text):
    topology = parse_topology(text)
    devices = topology_devices(topology)
    assert {device.device_kind for device in devices} == {topology.chip.device_kind}
    assert len({getattr(device, "slice_index", 0) for device in devices}) == topology.slices


@pytest.mark.skipif(not LIBTPU, reason="needs libtpu")
def test_an_axis_may_take_a_part_of_a_side_of_the_slice():
    devices = topology_devices(parse_topology("v5p:4x4x4"))
    mesh = build_mesh(MeshConfig(data=8, fsdp=8), devices)
    assert sorted(mesh.devices.flat, key=id) == sorted(devices, key=id)
    for row in mesh.devices.reshape(8, 8):
        for here, there in itertools.pairwise(row):  # next to each other, or one corner away
            assert sum(abs(a - b) for a, b in zip(here.coords, there.coords, strict=True)) <= 2

import dataclasses
import types

import chex
import jax
import numpy as np
import pytest

from sedd_jax.errors import BadInput
from sedd_jax.experiment import mesh as meshes
from sedd_jax.experiment.config import MeshConfig
from sedd_jax.experiment.state import run_keys
from sedd_jax.inference.build import build_family


@pytest.mark.parametrize(
    ("sizes", "shape"),
    [
        ({}, (1, 8, 1, 1)),
        ({"fsdp": 4}, (1, 2, 4, 1)),
        ({"data": 1, "fsdp": -1, "tensor": 2}, (1, 1, 4, 2)),
        ({"slice": 2, "data": 2, "fsdp": 1, "tensor": 2}, (2, 2, 1, 2)),
    ],
)
def test_the_mesh_has_the_sizes_of_the_config(sizes, shape):
    mesh = meshes.build_mesh(MeshConfig(**sizes))
    assert mesh.axis_names == ("slice", "data", "fsdp", "tensor")
    assert mesh.devices.shape == shape
    assert len({device.id for device in mesh.devices.flat}) == 8


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"data": 0}, "'data': 0, .*sizes must be positive"),
        ({"fsdp": -2}, "'fsdp': -2, .*sizes must be positive"),
        ({"data": -1, "tensor": -1}, "and one of them may be -1"),
        ({"tensor": 3}, "needs a multiple of 3 devices, and there are 8"),
        ({"data": 2, "fsdp": 2}, "data=2, fsdp=2, tensor=1\\) needs 4 devices, and there are 8"),
    ],
)
def test_sizes_that_do_not_fit_the_devices_are_refused(sizes, message):
    with pytest.raises(BadInput, match=message):
        meshes.build_mesh(MeshConfig(**sizes))


def test_a_slice_of_tpus_is_never_cut():
    devices = [
        types.SimpleNamespace(id=i, process_index=0, slice_index=i % 4, platform="tpu")
        for i in range(8)
    ]
    with pytest.raises(BadInput, match="slice is 2, but the devices are in 4 slices; set it to 4"):
        meshes.build_mesh(MeshConfig(slice=2), devices)


def test_hosts_of_gpus_are_no_slices():
    """XLA numbers hosts of GPUs in the attribute that has the slice of a TPU."""
    device = types.SimpleNamespace(slice_index=3, platform="gpu")
    assert meshes._slice_of(device) == 0
    device.platform = "tpu"
    assert meshes._slice_of(device) == 3


def test_processes_together_give_the_whole_batch(monkeypatch):
    mesh = meshes.build_mesh(MeshConfig(fsdp=2, tensor=2))
    rows = np.arange(8 * 3).reshape(8, 3)
    assert (meshes.rows_here(8, mesh) == np.arange(8)).all()
    batch = meshes.global_batch(rows, 8, mesh)
    np.testing.assert_array_equal(batch, rows)
    assert batch.sharding.is_equivalent_to(meshes.over_batch(mesh), 2)
    # a process that holds rows 2, 3, 6 and 7 alone, as wiring may order them
    monkeypatch.setattr(meshes, "rows_here", lambda *_: np.array([2, 3, 6, 7]))
    parts = {}

    def take(shape, placed, part):
        parts.update({i: part((slice(i, i + 2), slice(None))) for i in (2, 6)})
        return batch

    monkeypatch.setattr(jax, "make_array_from_callback", take)
    meshes.global_batch(rows[[2, 3, 6, 7]], 8, mesh)
    for first, part in parts.items():
        np.testing.assert_array_equal(part, rows[first : first + 2])


def test_a_tree_is_placed_by_one_sharding_or_by_many():
    mesh = meshes.build_mesh()
    tree = {"a": np.zeros((8, 2)), "b": np.zeros(8)}
    everywhere, rows = meshes.replicated(mesh), meshes.over_batch(mesh)
    one = meshes.placed(tree, rows)
    assert one["a"].sharding == one["b"].sharding == rows
    many = meshes.placed(tree, {"a": rows, "b": everywhere})
    assert (many["a"].sharding, many["b"].sharding) == (rows, everywhere)
    chex.assert_trees_all_equal_shapes_and_dtypes(one, tree)


def test_batches_divide_over_all_but_the_tensor_axis(smoke_config):
    def check(batch_size, mesh):
        train = dataclasses.replace(smoke_config.train, batch_size=batch_size)
        meshes.check_divisions(dataclasses.replace(smoke_config, train=train), mesh)

    check(4, meshes.build_mesh(MeshConfig(fsdp=2, tensor=2)))
    with pytest.raises(BadInput, match="is 4, which 8 parts .* a multiple of 8"):
        check(4, meshes.build_mesh(MeshConfig(fsdp=2)))


def test_heads_divide_over_the_tensor_axis(smoke_config):
    mesh = meshes.build_mesh(MeshConfig(data=1, tensor=-1))
    with pytest.raises(BadInput, match="num_heads is 2, which config.mesh.tensor=8 does not"):
        meshes.check_divisions(smoke_config, mesh)


def test_the_mesh_in_words(smoke_config):
    params = jax.eval_shape(build_family(smoke_config, 257).model.init, run_keys(0).init)
    assert meshes.describe(params, meshes.build_mesh()) == (
        "Mesh: data 8, 1 process(es). Every device holds all parameters."
    )
    lines = meshes.describe(params, meshes.build_mesh(MeshConfig(fsdp=2, tensor=4)))
    assert lines.startswith("Mesh: fsdp 2 x tensor 4, 1 process(es).\n")
    assert "axis 0 over tensor, axis 1 over fsdp: embedding/table" in lines
    assert "axis 1 over fsdp (its axis of 2 is no multiple of tensor=4): blocks/qkv/kernel" in lines
    why = "no larger than an activation of one token"
    assert f"whole on every device, {why}: blocks/attention_norm/scale, " in lines

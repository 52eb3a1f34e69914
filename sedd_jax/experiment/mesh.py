"""The mesh of devices, and how the state and the batch are sharded over it."""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from sedd_jax.errors import BadInput
from sedd_jax.experiment.config import Config, MeshConfig
from sedd_jax.model.sharding import AXES, BATCH_AXES, Placement, num_batch_shards, param_layouts

SMALL = ", no larger than an activation of one token"  # why some parameters are not split


def build_mesh(
    config: MeshConfig = MeshConfig(),  # noqa: B008
    devices: Sequence[Any] | None = None,
) -> Mesh:
    """Returns the mesh of all devices, those of a slice side by side.

    Args:
      config: sizes of the axes.
      devices: by default all of the job; those of a topology that is only compiled for will do.

    Raises:
      BadInput: invalid sizes, or a product other than the number of devices, or a TPU slice would
        be cut.
    """
    devices = sorted(
        jax.devices() if devices is None else devices,
        key=lambda device: (_slice_of(device), device.process_index, device.id),
    )
    slices, *inner = _sizes(config, len(devices))
    parts = np.array_split(np.asarray(devices), slices)
    found = len({_slice_of(device) for device in devices})
    if found > 1 and slices != found:
        raise BadInput(
            f"config.mesh.slice is {slices}, but the devices are in {found} slices; set it to "
            f"{found}."
        )
    axis_types = (AxisType.Auto,) * len(AXES)
    # create_device_mesh knows the wiring inside a slice; an axis that no product of sides equals,
    # such as 8 of 4 x 4 x 4, takes parts of sides.
    meshes = [
        mesh_utils.create_device_mesh(inner, list(part), allow_split_physical_axes=True)
        for part in parts
    ]
    return Mesh(np.stack(meshes), AXES, axis_types=axis_types)


def placement(mesh: Mesh) -> Placement:
    """Returns how the activations of a batch are sharded over the mesh."""
    return Placement(mesh, batch=BATCH_AXES, tensor="tensor", fsdp="fsdp")


def replicated(mesh: Mesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def over_batch(mesh: Mesh) -> NamedSharding:
    """Rows of a batch, split over all axes but "tensor"."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def jit_replicated(function: Callable[..., Any], mesh: Mesh | None) -> Callable[..., Any]:
    """Returns the function jitted, with replicated results: every process has all of them."""
    return jax.jit(function, out_shardings=None if mesh is None else replicated(mesh))


def placed(tree: Any, shardings: Any) -> Any:
    """Returns the shapes and types of `tree` with placements, as restoring a checkpoint wants.

    Args:
      tree: arrays, or what has their shape and type.
      shardings: one for every array, or one for all.
    """

    def place(x, sharding):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    if isinstance(shardings, jax.sharding.Sharding):
        shardings = jax.tree.map(lambda _: shardings, tree)
    return jax.tree.map(place, tree, shardings)


def rows_here(batch_size: int, mesh: Mesh) -> np.ndarray:
    """Returns which rows of a batch the devices of this process hold, in increasing order."""
    indices = over_batch(mesh).addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([np.arange(batch_size)[index] for index in indices]))


def global_batch(rows: np.ndarray, batch_size: int, mesh: Mesh) -> Array:
    """Returns the batch, over the devices of all processes.

    Args:
      rows: [R, ...], the rows of this process, see `rows_here`.
      batch_size: B, the rows of all processes.
      mesh: the devices.
    """
    here = rows_here(batch_size, mesh)

    def part(index):
        return rows[np.searchsorted(here, np.arange(batch_size)[index[0]])]

    shape = (batch_size, *rows.shape[1:])
    return jax.make_array_from_callback(shape, over_batch(mesh), part)


def global_rows(tree: Any, batch_size: int, mesh: Mesh) -> Any:
    """Returns a tree of arrays as batches over the devices of all processes.

    Args:
      tree: of arrays [R, ...], the rows of this process.
      batch_size: B, the rows of all processes.
      mesh: the devices.
    """
    return jax.tree.map(lambda rows: global_batch(rows, batch_size, mesh), tree)


def shard_batch(rows: np.ndarray, mesh: Mesh | None) -> Array:
    """Returns rows [B, ...], the same on every process, split over the devices of the mesh."""
    if mesh is None:
        return jnp.asarray(rows)
    return global_batch(rows[rows_here(len(rows), mesh)], len(rows), mesh)


def check_heads(config: Config, mesh: Mesh) -> None:
    """Raises BadInput unless the heads of `config` divide over the devices."""
    heads, tensor = config.model.num_heads, mesh.shape["tensor"]
    if config.model.trunk == "transformer" and heads % tensor:
        raise BadInput(
            f"config.model.num_heads is {heads}, which config.mesh.tensor={tensor} does not divide "
            "evenly."
        )


def check_divisions(config: Config, mesh: Mesh) -> None:
    """Raises BadInput unless batches and heads of `config` divide over the devices."""
    check_heads(config, mesh)
    parts = num_batch_shards(mesh)
    part = config.train.batch_size // config.train.microbatches
    for name, size in (
        ("config.train.batch_size / config.train.microbatches", part),
        ("config.eval.batch_size", config.eval.batch_size),
    ):
        if size % parts:
            raise BadInput(
                f"{name} is {size}, which {parts} parts of the mesh (slice x data x fsdp) do not "
                f"divide evenly; make it a multiple of {parts}."
            )


def describe(params: Any, mesh: Mesh) -> str:
    """Returns the mesh and the layout of the parameters as text: which are split, and why not.

    Args:
      params: the parameters, or their shapes.
      mesh: the devices.
    """
    sizes = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items() if size > 1)
    lines = [f"Mesh: {sizes or 'one device'}, {jax.process_count()} process(es)."]
    if mesh.shape["fsdp"] * mesh.shape["tensor"] == 1:
        return lines[0] + " Every device holds all parameters."
    groups = defaultdict(list)
    for path, found in param_layouts(params, mesh).items():
        axes = ", ".join(f"axis {i} over {axis}" for i, axis in enumerate(found.spec) if axis)
        note = f" ({'; '.join(found.unsharded_reasons)})" if found.unsharded_reasons else ""
        groups[(axes or "whole on every device") + (note or ("" if axes else SMALL))].append(path)
    lines += [f"  {how}: {', '.join(paths)}" for how, paths in groups.items()]
    return "\n".join(lines)


def _sizes(config, devices):
    """The sizes of the axes, with -1 replaced."""
    config.check()
    sizes = [getattr(config, axis) for axis in AXES]
    given = math.prod(size for size in sizes if size != -1)
    named = ", ".join(f"{axis}={size}" for axis, size in zip(AXES, sizes, strict=True))
    if devices % given or (-1 not in sizes and devices != given):
        raise BadInput(
            f"config.mesh ({named}) needs {'a multiple of ' if -1 in sizes else ''}{given} devices,"
            f" and there are {devices}."
        )
    return [devices // given if size == -1 else size for size in sizes]


def _slice_of(device):
    # XLA numbers the hosts of GPUs in the same attribute: there a slice is what the config says
    return getattr(device, "slice_index", 0) if device.platform == "tpu" else 0

"""Devices: the mesh, and where the state and the batch lie on it."""

from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, Sharding

from sedd_jax.errors import BadInput
from sedd_jax.model.placement import Placement
from sedd_jax.runtime.config import Config


def data_mesh() -> Mesh:
    """Returns the mesh of all devices along the one axis "data"."""
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


def placement(mesh: Mesh) -> Placement:
    """Returns how the activations of a batch lie on the mesh."""
    return Placement(mesh, batch=("data",))


def replicated(mesh: Mesh) -> NamedSharding:
    """Placement of parameters and optimizer state: a copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def over_batch(mesh: Mesh) -> NamedSharding:
    """Placement of a batch: rows split over the devices."""
    return NamedSharding(mesh, PartitionSpec("data"))


def placed(tree: Any, sharding: Sharding) -> Any:
    """Returns the shapes and types of `tree` with a placement, as restoring a checkpoint wants."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def check_batches(config: Config, mesh: Mesh) -> None:
    """Raises BadInput unless the batches of `config` divide over the devices."""
    devices = mesh.shape["data"]
    part = config.train.batch_size // config.train.microbatches
    for name, size in (
        ("config.train.batch_size / config.train.microbatches", part),
        ("config.eval.batch_size", config.eval.batch_size),
    ):
        if size % devices:
            raise BadInput(f"{name} is {size}, which {devices} devices do not divide evenly.")

"""Where parameters lie on the mesh: one ordered table from their paths to their axes.

The batch is split over "slice", "data" and "fsdp", and so are the activations. A parameter is split
over "fsdp" to save memory alone: it is gathered for use, one block at a time. Over "tensor" it is
split for good: every device works with its own heads, columns of the MLP and tokens of the table.
"""

import functools
import math
import re
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sedd_jax.model.placement import Placement

AXES = ("slice", "data", "fsdp", "tensor")
BATCH_AXES = AXES[:3]

# Ends of paths, the first that fits counts; mesh axes of the array's last axes: blocks are stacked
# in front. Optimiser state and averages are named like the parameters they belong to.
RULES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    ("embedding/table", ("tensor", "fsdp")),
    ("embedding/positions", (None, "fsdp")),
    ("blocks/qkv/kernel", ("fsdp", None, "tensor", None)),
    ("blocks/qkv/bias", (None, "tensor", None)),
    ("blocks/attention_out/kernel", ("tensor", None, "fsdp")),
    ("blocks/mlp_in/kernel", ("fsdp", "tensor")),
    ("blocks/mlp_in/bias", ("tensor",)),
    ("blocks/mlp_out/kernel", ("tensor", "fsdp")),
    ("modulation/kernel", (None, None, "fsdp")),
    ("head/kernel", ("fsdp", "tensor")),
    ("head/bias", ("tensor",)),
    # no larger than an activation of one token: every device has them
    ("sigma/(inner|outer)/(kernel|bias)", ()),
    (r"(\w*norm/(scale|bias)|(attention_out|mlp_out|modulation)/bias)", ()),
)


class Layout(NamedTuple):
    """How one array lies on a mesh.

    Attributes:
      spec: the mesh axis of every axis of the array.
      whole: why axes that the table would split are not, a sentence for each.
    """

    spec: PartitionSpec
    whole: tuple[str, ...]


def layout(path: str, shape: tuple[int, ...], mesh: Mesh) -> Layout:
    """Returns how an array of the training state lies on the mesh.

    An axis that the mesh does not divide evenly stays whole. Axes of one device split nothing.

    Args:
      path: names from the root to the array, as in "params/blocks/qkv/kernel".
      shape: of the array; scalars lie everywhere.
      mesh: with some or all of `AXES`.

    Raises:
      KeyError: the table says nothing about this path.
    """
    if not shape:
        return Layout(PartitionSpec(), ())
    rule = _rule(path)
    axes, whole = [None] * (len(shape) - len(rule)), []
    for size, axis in zip(shape[len(axes) :], rule, strict=True):
        parts = mesh.shape.get(axis, 1)
        if size % parts:
            whole.append(f"its axis of {size} is no multiple of {axis}={parts}")
        axes.append(axis if parts > 1 and size % parts == 0 else None)
    return Layout(PartitionSpec(*axes), tuple(whole))


def leaves_by_path(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Returns the leaves of a tree by their paths, as in "params/embedding/table"."""
    return {
        prefix + jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def layouts(tree: Any, mesh: Mesh, prefix: str = "") -> dict[str, Layout]:
    """Returns the layout of every array of a tree by its path, which `prefix` goes before."""
    return {
        path: layout(path, leaf.shape, mesh) for path, leaf in leaves_by_path(tree, prefix).items()
    }


def shardings(tree: Any, mesh: Mesh) -> Any:
    """Returns the sharding of every array of a tree, such as the state of training."""
    found = [NamedSharding(mesh, each.spec) for each in layouts(tree, mesh).values()]
    return jax.tree.structure(tree).unflatten(found)


def num_batch_shards(mesh: Mesh) -> int:
    """Returns into how many shards the devices split a batch."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def gathered(params: Any, placement: Placement, prefix: str) -> Any:
    """Returns parameters as they are used: whole along "fsdp", and still split along "tensor"."""
    mesh = placement.mesh
    if mesh is None:
        return params

    def use(array, found):
        whole = PartitionSpec(*(axis if axis == "tensor" else None for axis in found.spec))
        return _gather(NamedSharding(mesh, whole), NamedSharding(mesh, found.spec), array)

    leaves, structure = jax.tree.flatten(params)
    return structure.unflatten(map(use, leaves, layouts(params, mesh, prefix).values()))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _gather(whole, split, array):
    return jax.lax.with_sharding_constraint(array, whole)


def _gather_forward(whole, split, array):
    return _gather(whole, split, array), None


def _gather_backward(whole, split, _, cotangent):
    # a constraint's own gradient is whole too: a sum over all devices where a scattered one will do
    if "fsdp" in split.spec[1:]:
        # the last axis: as the first one of a matrix, since of others a TPU's compiler sums all
        # parts on every chip and then cuts, which sends twice as much
        tensor, *_, fsdp = split.spec
        parts = NamedSharding(split.mesh, PartitionSpec(fsdp, tensor))
        matrix = cotangent.reshape(-1, cotangent.shape[-1]).T
        matrix = jax.lax.with_sharding_constraint(matrix, parts)
        cotangent = matrix.T.reshape(cotangent.shape)
    return (jax.lax.with_sharding_constraint(cotangent, split),)


_gather.defvjp(_gather_forward, _gather_backward)


def _rule(path):
    for pattern, axes in RULES:
        if re.search(f"(^|/){pattern}$", path):
            return axes
    raise KeyError(f"The table of layouts has no rule for {path}.")

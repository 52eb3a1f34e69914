"""How parameters and activations are sharded over the mesh.

The batch is split over "slice", "data" and "fsdp", and so are the activations. A parameter is split
over "fsdp" only to save memory: it is all-gathered for use, one block at a time. Over "tensor" it
stays split: every device works with its own heads, MLP columns and vocabulary entries.
"""

import functools
import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

AXES = ("slice", "data", "fsdp", "tensor")
BATCH_AXES = AXES[:3]

# Path suffix -> mesh axes of the array's last axes; the first match counts. Blocks have a leading
# axis of their own. Optimiser state and averages are named like the parameters they belong to.
RULES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    ("embedding/table", ("tensor", "fsdp")),
    ("embedding/positions", (None, "fsdp")),
    ("blocks/qkv/kernel", ("fsdp", None, "tensor", None)),
    ("blocks/qkv/bias", (None, "tensor", None)),
    ("blocks/attention_out/kernel", ("tensor", None, "fsdp")),
    ("blocks/mlp_in/kernel", ("fsdp", "tensor")),
    ("blocks/mlp_in/bias", ("tensor",)),
    ("blocks/mlp_out/kernel", ("tensor", "fsdp")),
    ("blocks/convolution/kernel", ("fsdp", None, "tensor")),
    ("blocks/convolution/bias", ("tensor",)),
    ("modulation/kernel", (None, None, "fsdp")),
    ("head/kernel", ("fsdp", "tensor")),
    ("head/bias", ("tensor",)),
    # no larger than an activation of one token: replicated
    ("times/(total|draws)", ()),
    ("given/table", ()),
    ("sigma/(inner|outer)/(kernel|bias)", ()),
    (r"condition/column_\d+/((inner|outer)/)?(table|kernel|bias)", ()),
    ("input/kernel", ()),
    ("schedule/(ends|inner|shift|outer)", ()),
    (r"(\w*norm/(scale|bias)|(attention_out|mlp_out|modulation)/bias)", ()),
)


class Placement(NamedTuple):
    """How activations are sharded over a mesh.

    Sharding constraints are set at the borders of blocks, and `shard_map` around the kernels that
    the compiler cannot split.

    Attributes:
      mesh: the devices; None: one device, or as the compiler chooses.
      batch: mesh axes that split the batch.
      tensor: mesh axis that splits the heads and the vocabulary, None for none.
      fsdp: batch axis that also splits stored parameters, None for none.
    """

    mesh: Mesh | None = None
    batch: tuple[str, ...] = ()
    tensor: str | None = None
    fsdp: str | None = None

    @property
    def platform(self) -> str:
        """One of cpu, gpu and tpu: that of the mesh, which may be a compilation target only."""
        if self.mesh is None:
            return jax.default_backend()
        return self.mesh.devices.flat[0].platform

    def batch_axes(self, size: int) -> tuple[str, ...]:
        """Returns the mesh axes that split a batch of `size`: none if they do not divide it.

        The two samples shown while training on eight devices are such a batch.
        """
        if self.mesh is None:
            return ()
        parts = [self.mesh.shape[axis] for axis in self.batch]
        return () if size % math.prod(parts) else self.batch

    def shard_batch(self, x: Array) -> Array:
        """Returns activations [B, ...] constrained to be split along the batch and nowhere else.

        Without the constraint the compiler may split the hidden axis like the parameters, and
        gather whole batches instead.
        """
        if self.mesh is None:
            return x
        spec = PartitionSpec(self.batch_axes(len(x)) or None)
        return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, spec))

    def row_major(self, x: Array) -> Array:
        """Returns activations [B, L, D] constrained to a row-major layout in memory.

        Without the constraint a TPU's compiler may make the position the minor axis in the forward
        pass, and transpose everything in the backward pass.
        """
        spec = PartitionSpec(self.batch_axes(len(x)) or None)
        rows = Layout(tuple(range(x.ndim)))
        return self.per_device(lambda x: with_layout_constraint(x, rows), (spec,), spec)(x)

    def per_device(self, f: Callable, in_specs: Any, out_specs: Any) -> Callable[..., Any]:
        """Returns `f` run on every device's own shard, or `f` itself where there is no mesh.

        Mosaic kernels carry no varying-axes types, so these are not checked.

        Args:
          f: a function of arrays.
          in_specs: tuple of partition specs, one (or a tree of them) per argument.
          out_specs: those of the result.
        """
        if self.mesh is None:
            return f
        return jax.shard_map(
            f, mesh=self.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
        )


ANYWHERE = Placement()  # no mesh: one device, or as the compiler chooses


class ParamLayout(NamedTuple):
    """How one array is sharded over a mesh.

    Attributes:
      spec: the mesh axis of every axis of the array.
      unsharded_reasons: a sentence for every axis that its rule would split and the mesh does not.
    """

    spec: PartitionSpec
    unsharded_reasons: tuple[str, ...]


def param_layout(path: str, shape: tuple[int, ...], mesh: Mesh) -> ParamLayout:
    """Returns how an array of the training state is sharded over the mesh.

    An axis that the mesh does not divide evenly is not split. Mesh axes of one device split
    nothing.

    Args:
      path: names from the root to the array, as in "params/blocks/qkv/kernel".
      shape: of the array; scalars are replicated.
      mesh: with some or all of `AXES`.

    Raises:
      KeyError: no rule matches this path.
    """
    if not shape:
        return ParamLayout(PartitionSpec(), ())
    rule = _rule(path)
    axes, reasons = [None] * (len(shape) - len(rule)), []
    for size, axis in zip(shape[len(axes) :], rule, strict=True):
        parts = mesh.shape.get(axis, 1)
        if size % parts:
            reasons.append(f"its axis of {size} is no multiple of {axis}={parts}")
        axes.append(axis if parts > 1 and size % parts == 0 else None)
    return ParamLayout(PartitionSpec(*axes), tuple(reasons))


def _rule(path):
    for pattern, axes in RULES:
        if re.search(f"(^|/){pattern}$", path):
            return axes
    raise KeyError(f"The table of layouts has no rule for {path}.")


def leaves_by_path(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Returns the leaves of a tree by `prefix` and path, as in "params/embedding/table"."""
    return {
        prefix + jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def param_layouts(tree: Any, mesh: Mesh, prefix: str = "") -> dict[str, ParamLayout]:
    """Returns the layout of every array of a tree by its path.

    Args:
      tree: arrays or their shapes.
      mesh: with some or all of `AXES`.
      prefix: of every path.
    """
    return {
        path: param_layout(path, leaf.shape, mesh)
        for path, leaf in leaves_by_path(tree, prefix).items()
    }


def shardings(tree: Any, mesh: Mesh) -> Any:
    """Returns the sharding of every array of a tree, such as the training state."""
    found = [NamedSharding(mesh, each.spec) for each in param_layouts(tree, mesh).values()]
    return jax.tree.structure(tree).unflatten(found)


def num_batch_shards(mesh: Mesh) -> int:
    """Returns into how many shards the devices split a batch."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def all_gathered(params: Any, placement: Placement, prefix: str) -> Any:
    """Returns parameters as they are used: all-gathered over "fsdp", still split over "tensor".

    Args:
      params: a tree of arrays.
      placement: with the mesh; without one the parameters are returned as they are.
      prefix: of their paths.
    """
    mesh = placement.mesh
    if mesh is None:
        return params

    def gather(array, layout):
        used = PartitionSpec(*(axis if axis == "tensor" else None for axis in layout.spec))
        return _all_gather(NamedSharding(mesh, used), NamedSharding(mesh, layout.spec), array)

    leaves, structure = jax.tree.flatten(params)
    return structure.unflatten(map(gather, leaves, param_layouts(params, mesh, prefix).values()))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _all_gather(used, stored, array):
    return jax.lax.with_sharding_constraint(array, used)


def _all_gather_forward(used, stored, array):
    return _all_gather(used, stored, array), None


def _all_gather_backward(used, stored, _, cotangent):
    # The constraint's own gradient is not split: an all-reduce where a reduce-scatter suffices.
    if "fsdp" in stored.spec[1:]:
        # "fsdp" is made the first axis of a matrix, since for other axes a TPU's compiler
        # all-reduces and then slices, which sends twice as much.
        tensor, *_, fsdp = stored.spec
        parts = NamedSharding(stored.mesh, PartitionSpec(fsdp, tensor))
        matrix = cotangent.reshape(-1, cotangent.shape[-1]).T
        matrix = jax.lax.with_sharding_constraint(matrix, parts)
        cotangent = matrix.T.reshape(cotangent.shape)
    return (jax.lax.with_sharding_constraint(cotangent, stored),)


_all_gather.defvjp(_all_gather_forward, _all_gather_backward)

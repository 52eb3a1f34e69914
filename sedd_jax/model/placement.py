"""Where activations lie on the devices."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array


class Placement(NamedTuple):
    """How activations lie on a mesh.

    The compiler is told at the borders of blocks, and at the kernels that it cannot split itself.

    Attributes:
      mesh: the devices; None: one device, or whatever the compiler does.
      batch: mesh axes that split the batch.
      tensor: mesh axis that splits the heads and the vocabulary; None: no axis does.
      fsdp: axis of the batch that also splits parameters where they are kept; None: no axis does.
    """

    mesh: jax.sharding.Mesh | None = None
    batch: tuple[str, ...] = ()
    tensor: str | None = None
    fsdp: str | None = None

    @property
    def platform(self) -> str:
        """One of cpu, gpu and tpu: of the mesh, whose devices may be only compiled for."""
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

    def over_batch(self, x: Array) -> Array:
        """Returns activations [B, ...], to be split along the batch and nowhere else.

        Left to itself the compiler may split the hidden axis like the parameters, and gather whole
        batches instead.
        """
        if self.mesh is None:
            return x
        spec = PartitionSpec(self.batch_axes(len(x)) or None)
        return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, spec))

    def in_rows(self, x: Array) -> Array:
        """Returns activations [B, L, D], to lie with the numbers of a position side by side.

        Left to itself a TPU's compiler may put positions side by side on the way forward, and turn
        everything around on the way back.
        """
        spec = PartitionSpec(self.batch_axes(len(x)) or None)
        rows = Layout(tuple(range(x.ndim)))
        return self.per_device(lambda x: with_layout_constraint(x, rows), (spec,), spec)(x)

    def per_device(self, f: Callable, in_specs: Any, out_specs: Any) -> Callable[..., Any]:
        """Returns `f` to be run on every device's own part, or `f` itself where there is no mesh.

        Mosaic kernels carry no varying-axes types, so those are not checked.
        """
        if self.mesh is None:
            return f
        return jax.shard_map(
            f, mesh=self.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
        )


ANYWHERE = Placement()  # no mesh: one device, or as the compiler likes

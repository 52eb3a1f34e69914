"""Checksums of arrays, the same wherever the arrays lie."""

import hashlib
import json
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt32

from sedd_jax.model.sharding import leaves_by_path

_WORDS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}


def checksums(tree: Any) -> dict[str, int]:
    """Returns 32 bits for each leaf, by its path, as in "params/embedding/table".

    An array has the same checksum on any mesh, split in any way; it is computed where the parts
    lie. One changed element always changes it; other changes (more elements, elements that changed
    places) go unseen with a chance of 2^-32. With several processes all must call this.

    Args:
      tree: arrays of whole or real numbers of 8, 16 or 32 bits.
    """
    sums = jax.device_get(_on_device(tree))
    return {path: int(value) for path, value in leaves_by_path(sums).items()}


def fingerprint(tree: Any) -> str:
    """Returns 64 bits of all `checksums` together, as 16 hexadecimal digits."""
    sums = json.dumps(checksums(tree), sort_keys=True)
    return hashlib.sha256(sums.encode()).hexdigest()[:16]


def not_finite(tree: Any) -> list[str]:
    """Returns the paths of the leaves with numbers that are not finite; as `checksums` else."""
    finite = leaves_by_path(jax.device_get(_finite(tree)))
    return [path for path, value in finite.items() if not value]


@jax.jit
def _finite(tree):
    return jax.tree.map(lambda x: jnp.isfinite(x).all(), tree)


@jax.jit
def _on_device(tree):
    return jax.tree.map(_checksum, tree)  # scalars: every process has them all


def _checksum(x: Array) -> UInt32[Array, ""]:
    """Returns the sum over i of mix(bits(x_i) + i K), modulo 2^32.

    The index comes from an iota for each axis, since flattening a sharded array would gather it.
    The mixing is what makes two changes not cancel: in a weighted sum of the bits, without it, any
    two flipped signs do (2^31 odd + 2^31 odd = 0), and so do x and -x that changed places.
    """
    bits = jax.lax.bitcast_convert_type(x, _WORDS[x.dtype.itemsize]).astype(jnp.uint32)
    for axis in range(x.ndim):
        stride = math.prod(x.shape[axis + 1 :]) * 2654435761 % 2**32  # K: 2^32 / golden ratio
        bits += jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis) * np.uint32(stride)
    return jnp.sum(_mix(bits), dtype=jnp.uint32)


def _mix(bits):
    # the finalizer of MurmurHash3: one to one, and every bit in stirs every bit out
    bits = (bits ^ (bits >> 16)) * np.uint32(0x85EBCA6B)
    bits = (bits ^ (bits >> 13)) * np.uint32(0xC2B2AE35)
    return bits ^ (bits >> 16)

"""Checksums of the arrays of a checkpoint, and verified reading.

Beside its arrays and its settings a checkpoint has an item "meta", JSON: the shape and the checksum
of every array, since Orbax does not notice bytes that changed on disk, and the count of skipped
steps.
"""

import errno
import hashlib
import json
import math
import re
import zlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jaxtyping import Array, UInt32

from sedd_jax.errors import BadInput, Halted, errno_of, reason
from sedd_jax.model.sharding import leaves_by_path
from sedd_jax.system.bucket import is_address
from sedd_jax.system.processes import failure_of_any_process, warn_on_primary

_WORDS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}
# the file is missing or changed: not an error of the disk or the network
_OF_A_FILE = (None, errno.ENOENT, errno.ENOTDIR, errno.EISDIR)


class Damaged(BadInput):
    """A checkpoint whose files differ from what was saved."""


def checksums(tree: Any) -> dict[str, int]:
    """Returns 32 bits for each leaf, by its path, as in "params/embedding/table".

    An array has the same checksum on any mesh, split in any way; each device computes that of its
    part. One changed element always changes it; other changes (more elements, elements that changed
    places) are missed with a probability of 2^-32. With several processes all must call this.

    Args:
      tree: arrays of whole or real numbers of 8, 16 or 32 bits.
    """
    sums = jax.device_get(_on_device(tree))
    return {path: int(value) for path, value in leaves_by_path(sums).items()}


def fingerprint(tree: Any) -> str:
    """Returns 64 bits of all `checksums` together, as 16 hexadecimal digits."""
    sums = json.dumps(checksums(tree), sort_keys=True)
    return hashlib.sha256(sums.encode()).hexdigest()[:16]


def nonfinite_paths(tree: Any) -> list[str]:
    """Returns the paths of the leaves with NaN or Inf; with several processes all must call it."""
    finite = leaves_by_path(jax.device_get(_finite(tree)))
    return [path for path, value in finite.items() if not value]


def describe_saved(arrays: Any, settings: dict[str, Any], skipped: list[int]) -> dict[str, Any]:
    """Returns the item "meta" of a checkpoint.

    Args:
      arrays: its trees by the names of their items.
      settings: its item "config".
      skipped: the counts of skipped steps.
    """
    facts = {
        "shapes": {path: _shape(leaf) for path, leaf in leaves_by_path(arrays).items()},
        "skipped": skipped,
    }
    texts = {"config": _text_checksum(settings), "meta": _text_checksum(facts)}
    return facts | {"checksums": checksums(arrays) | texts}


def read_verified(
    path: Path | epath.Path, wanted: dict[str, Any]
) -> tuple[dict[str, Any], list[int]]:
    """Returns items of a checkpoint and its counts of skipped steps, all verified.

    With several processes all must call this, and all find the same.

    Args:
      path: the folder of the step.
      wanted: the shapes, types and placements of the arrays, by the names of their items.

    Raises:
      Damaged: it differs from what was saved.
      BadInput: it is of another shape.
      Halted: it cannot be read, for a reason other than damage.
    """
    meta = _read_meta(path)
    if meta is not None:
        for name, leaf in leaves_by_path(wanted).items():
            if (saved := meta["shapes"].get(name)) != _shape(leaf):
                raise BadInput(
                    f"The checkpoint {path} is of another shape than its settings say: {name} is "
                    f"{saved or 'absent'}, not {_shape(leaf)}."
                )
    items = _read(path, **{name: ocp.args.StandardRestore(tree) for name, tree in wanted.items()})
    if meta is None:
        warn_on_primary(
            f"The checkpoint {path} was saved without checksums, by an older version: damage would "
            "not be noticed."
        )
        return items, [0, 0]
    found, saved = checksums(items), meta["checksums"]
    _check_unchanged(path, [name for name in found if found[name] != saved.get(name)])
    return items, meta["skipped"]


def read_settings(path: Path | epath.Path) -> dict[str, Any]:
    """Returns the item "config" of a checkpoint, verified; as `read_verified` otherwise."""
    meta = _read_meta(path)
    saved = _read(path, config=ocp.args.JsonRestore())["config"]
    if meta is not None:
        changed = meta["checksums"].get("config") != _text_checksum(saved)
        _check_unchanged(path, ["config"] if changed else [])
    return saved


def _read_meta(path):
    """Returns the item "meta", None for a checkpoint of a version that had none."""
    listing = path / "_CHECKPOINT_METADATA"  # an item that is listed and gone is damage
    listed = listing.is_file() and b'"meta"' in listing.read_bytes()
    if not listed and not (path / "meta").exists():
        return None
    meta = _read(path, meta=ocp.args.JsonRestore())["meta"]
    facts = {name: meta.get(name) for name in ("shapes", "skipped")}
    whole = meta.get("checksums", {}).get("meta") == _text_checksum(facts)
    _check_unchanged(path, [] if whole else ["meta"])
    return meta


def _read(path, **items):
    read, damage, cause = None, None, None
    # not by a CheckpointManager: its restore ends with a barrier, where the other processes would
    # wait for one that cannot read its part
    reader = ocp.CompositeCheckpointHandler()
    try:
        read = reader.restore(path, args=ocp.args.Composite(**items))
    except (MemoryError, jax.errors.JaxRuntimeError):
        raise  # an error of the machine, not of the file
    except Exception as error:  # of any type: for a file cut short it is Exception itself
        damage, cause = f"it cannot be read ({reason(error)})", error
    finally:
        reader.close()
    trouble = None if cause is None or _is_of_a_file(cause, path) else damage
    if trouble := failure_of_any_process(trouble):
        raise Halted(
            f"The checkpoint {path} may be whole, but {trouble}. Fix the cause and run the same "
            "command again."
        ) from cause
    _agree(path, damage, cause)
    return dict(read.items())


def _is_of_a_file(cause, path):
    """Whether an error says that a file is missing or damaged, and not that nobody answers."""
    if not is_address(path):
        return errno_of(cause) in _OF_A_FILE
    if isinstance(cause, FileNotFoundError):
        return True
    everything = f"{cause}\n{cause.__cause__}\n{cause.__context__}"
    return re.search(r"\b(NOT_FOUND|DATA_LOSS|OUT_OF_RANGE|FAILED_PRECONDITION)\b", everything)


def _check_unchanged(path, changed):
    more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
    names = f"{', '.join(changed[:3])}{more}"
    _agree(path, f"the data on disk changed since it was saved (in {names})" if changed else None)


def _agree(path, damage, cause=None):
    """Raises Damaged in all processes if one has found damage."""
    if damage := failure_of_any_process(damage):
        raise Damaged(f"The checkpoint {path} is damaged: {damage}.") from cause


def _shape(leaf):
    return f"{leaf.dtype}{list(leaf.shape)}"


def _text_checksum(settings):
    return zlib.crc32(json.dumps(settings, sort_keys=True).encode())


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
    # the finalizer of MurmurHash3: one to one, and every input bit affects every output bit
    bits = (bits ^ (bits >> 16)) * np.uint32(0x85EBCA6B)
    bits = (bits ^ (bits >> 13)) * np.uint32(0xC2B2AE35)
    return bits ^ (bits >> 16)

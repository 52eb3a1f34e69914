"""Reads the tensors of a PyTorch `.bin` or `.pth` file without PyTorch and without trusting it.

Such a file is a zip with a pickle that names storages and a member for each storage's bytes. Only
the globals that tensors are made of are allowed, and every stride is checked against its storage.
"""

import collections
import io
import math
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from sedd_jax.errors import BadInput

_STORAGES = {
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}


class StoredTensor(NamedTuple):
    """A tensor whose numbers are still in the file."""

    storage: "_Held"
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def read(self) -> np.ndarray:
        """Returns the numbers, in memory of their own; raises BadInput if they are not there."""
        storage, offset, size, stride = self.storage.read(), self.offset, self.shape, self.stride
        if len(size) != len(stride) or offset < 0 or min((*size, *stride), default=0) < 0:
            raise BadInput("a tensor has a negative or mismatched shape or stride.")
        if math.prod(size) > len(storage):
            raise BadInput("a tensor has more elements than its storage.")
        last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
        if 0 not in size and last >= len(storage):
            raise BadInput("a tensor reaches past the end of its storage.")
        strides = [s * storage.itemsize for s in stride]
        return np.array(np.lib.stride_tricks.as_strided(storage[offset:], size, strides))


def load_torch_file(
    path: Path, pick: Callable[[Any], Any] = lambda contents: contents
) -> dict[str, np.ndarray]:
    """Returns the state dict in `path`, name to array.

    Args:
      path: of the file.
      pick: maps the contents, with a `StoredTensor` for each tensor, to the state dict; no other
        tensors are read.

    Raises:
      BadInput: not such a file, a global that tensors do not need, a tensor outside its storage,
        or contents that are not a flat dict of tensors.
    """
    with path.open("rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                picked = pick(_contents(archive))
                _check_flat(picked)
                return {name: tensor.read() for name, tensor in picked.items()}
        except BadInput as error:
            raise BadInput(f"{path}: {error}") from error
        except Exception as error:  # damage can surface anywhere in zipfile, pickle and numpy
            raise BadInput(f"{path} is not a readable PyTorch file: {error!r}.") from error


def _check_flat(picked):
    if not isinstance(picked, dict) or not all(
        isinstance(name, str) and isinstance(tensor, StoredTensor)
        for name, tensor in picked.items()
    ):
        more = isinstance(picked, dict) and "model" in picked
        raise BadInput(
            "it does not hold a flat dict of tensors"
            + (", but a dict with the key model: save that state dict alone." if more else ".")
        )


def _contents(archive):
    names = [name for name in archive.namelist() if name.endswith("/data.pkl")]
    if len(names) != 1:
        raise BadInput(f"it has {len(names)} data.pkl, a PyTorch file has one.")
    root = names[0].removesuffix("data.pkl")
    if f"{root}byteorder" in archive.namelist():
        order = archive.read(f"{root}byteorder")
        if order != b"little":
            raise BadInput(f"its byte order is {order!r}, only b'little' is read.")

    def storage_bytes(key):
        return archive.read(f"{root}data/{key}")

    return _Unpickler(io.BytesIO(archive.read(names[0])), storage_bytes).load()


class _Storage:
    def __init__(self, name):
        self.dtype = np.dtype(_STORAGES[name])


class _Held(NamedTuple):
    """A storage in the file."""

    storage_bytes: Callable[[str], bytes]
    key: str
    dtype: np.dtype
    count: int

    def read(self):
        data = self.storage_bytes(self.key)
        if not 0 <= self.count * self.dtype.itemsize <= len(data):
            raise BadInput(f"storage {self.key} does not have the size that the file says.")
        return np.frombuffer(data, self.dtype, count=self.count)


def _rebuild_tensor(storage, offset, size, stride, *_):
    if not isinstance(storage, _Held):
        raise BadInput("a tensor has no storage.")
    return StoredTensor(storage, offset, tuple(size), tuple(stride))


def _rebuild_parameter(tensor, *_):
    return tensor


class _Unpickler(pickle.Unpickler):
    def __init__(self, file, storage_bytes):
        super().__init__(file)
        self._storage_bytes = storage_bytes

    def persistent_load(self, pid):
        kind, storage, key, _, count = pid
        if kind != "storage" or not isinstance(storage, _Storage):
            raise BadInput(f"the pickle asks for {kind!r}, which is not a storage.")
        return _Held(self._storage_bytes, key, storage.dtype, count)

    def find_class(self, module, name):
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild_tensor
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return _rebuild_parameter
        if module in ("torch", "torch.storage") and name in _STORAGES:
            return _Storage(name)
        raise BadInput(f"the pickle asks for {module}.{name}, which no tensor needs: refused.")

"""Reads the tensors of a PyTorch `.bin` or `.pth` file without PyTorch and without trusting it.

Such a file is a zip with a pickle that names storages and a member for each storage's bytes. Only
the globals that tensors are made of are allowed, and every stride is checked against its storage.
"""

import collections
import io
import math
import pickle
import zipfile
from pathlib import Path

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


def load_torch_file(path: Path) -> dict[str, np.ndarray]:
    """Returns the state dict in `path`, name to array.

    Raises:
      BadInput: not such a file, a global that tensors do not need, a tensor outside its storage,
        or contents that are not a flat dict of tensors.
    """
    with path.open("rb") as file:
        try:
            loaded = _load(file)
        except BadInput as error:
            raise BadInput(f"{path}: {error}") from error
        except Exception as error:  # damage can surface anywhere in zipfile, pickle and numpy
            raise BadInput(f"{path} is not a readable PyTorch file: {error!r}.") from error
    if not isinstance(loaded, dict) or not all(
        isinstance(name, str) and isinstance(tensor, np.ndarray) for name, tensor in loaded.items()
    ):
        raise BadInput(f"{path} does not hold a flat dict of tensors.")
    return dict(loaded)


def _load(file):
    with zipfile.ZipFile(file) as archive:
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


def _rebuild_tensor(storage, offset, size, stride, *_):
    if len(size) != len(stride) or offset < 0 or min((*size, *stride), default=0) < 0:
        raise BadInput("a tensor has a negative or mismatched shape or stride.")
    if math.prod(size) > len(storage):
        raise BadInput("a tensor has more elements than its storage.")
    last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
    if 0 not in size and last >= len(storage):
        raise BadInput("a tensor reaches past the end of its storage.")
    strides = [s * storage.itemsize for s in stride]
    return np.array(np.lib.stride_tricks.as_strided(storage[offset:], size, strides))


class _Unpickler(pickle.Unpickler):
    def __init__(self, file, storage_bytes):
        super().__init__(file)
        self._storage_bytes = storage_bytes

    def persistent_load(self, pid):
        kind, storage, key, _, count = pid
        if kind != "storage" or not isinstance(storage, _Storage):
            raise BadInput(f"the pickle asks for {kind!r}, which is not a storage.")
        data = self._storage_bytes(key)
        if not 0 <= count * storage.dtype.itemsize <= len(data):
            raise BadInput(f"storage {key} does not have the size that the file says.")
        return np.frombuffer(data, storage.dtype, count=count)

    def find_class(self, module, name):
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild_tensor
        if module in ("torch", "torch.storage") and name in _STORAGES:
            return _Storage(name)
        raise BadInput(f"the pickle asks for {module}.{name}, which no tensor needs: refused.")

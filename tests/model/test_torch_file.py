"""Files of torch are composed here opcode by opcode, so that torch need not be installed."""

import collections
import pathlib
import pickle
import shutil
import zipfile

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from sedd_jax.errors import BadInput
from sedd_jax.inference.load import load
from sedd_jax.model.torch_file import load_torch_file

PUBLISHED = pathlib.Path(__file__).parents[1] / "golden" / "absorb_small" / "published"
STORAGES = {
    np.dtype(np.float32): "FloatStorage",
    np.dtype(np.float64): "DoubleStorage",
    np.dtype(np.float16): "HalfStorage",
    np.dtype(ml_dtypes.bfloat16): "BFloat16Storage",
    np.dtype(np.int64): "LongStorage",
    np.dtype(np.int32): "IntStorage",
    np.dtype(np.uint8): "ByteStorage",
    np.dtype(np.bool_): "BoolStorage",
}


def literal(value):
    """The opcodes that push a plain value: a pickle without its PROTO and STOP."""
    return pickle.dumps(value, 2)[2:-1]


def named(module, name):
    return b"c" + f"{module}\n{name}\n".encode()


def many(*items):
    return b"(" + b"".join(items) + b"t"


def storage(key, dtype, count):
    """A persistent id ("storage", type, key, device, count), as torch writes it."""
    kind = named("torch", STORAGES[np.dtype(dtype)])
    return many(literal("storage"), kind, literal(key), literal("cpu"), literal(count)) + b"Q"


def tensor(held, offset, size, stride):
    hooks = named("collections", "OrderedDict") + b")R"
    place = [literal(x) for x in (offset, tuple(size), tuple(stride), False)]
    return named("torch._utils", "_rebuild_tensor_v2") + many(held, *place, hooks) + b"R"


def state_dict(tensors):
    """An OrderedDict of names to opcodes."""
    items = b"".join(literal(name) + value for name, value in tensors.items())
    return b"\x80\x02" + named("collections", "OrderedDict") + b")R(" + items + b"u."


def write_zip(path, data_pkl, storages):
    with zipfile.ZipFile(path, "w") as archive:
        if data_pkl is not None:
            archive.writestr("archive/data.pkl", data_pkl)
        for key, data in storages.items():
            archive.writestr(f"archive/data/{key}", data)
        archive.writestr("archive/version", "3\n")
    return path


def contiguous(shape):
    return [int(np.prod(shape[i + 1 :])) for i in range(len(shape))]


def write_torch(path, arrays):
    """Writes arrays as torch.save(state_dict) does, a storage for each."""
    tensors = {
        name: tensor(storage(str(i), x.dtype, x.size), 0, x.shape, contiguous(x.shape))
        for i, (name, x) in enumerate(arrays.items())
    }
    data = {str(i): x.tobytes() for i, x in enumerate(arrays.values())}
    return write_zip(path, state_dict(tensors), data)


def write_one(path, offset=0, size=(2, 3), stride=(3, 1), count=6, data=6):
    """Writes a tensor "w" with a storage that claims `count` numbers and has `data`."""
    numbers = np.arange(data, dtype=np.float32)
    held = storage("0", np.float32, count)
    return write_zip(
        path, state_dict({"w": tensor(held, offset, size, stride)}), {"0": numbers.tobytes()}
    )


@pytest.fixture
def path(tmp_path):
    return tmp_path / "pytorch_model.bin"


@pytest.mark.parametrize("dtype", STORAGES, ids=str)
def test_every_dtype_is_read_exactly(path, dtype):
    x = np.arange(-3, 3).reshape(2, 3).astype(dtype)
    read = load_torch_file(write_torch(path, {"w": x}))
    assert read["w"].dtype == dtype
    np.testing.assert_array_equal(read["w"], x)


def test_shapes_offsets_and_strides(path):
    held = storage("0", np.float32, 12)
    tensors = {
        "scalar": tensor(held, 5, (), ()),
        "transposed": tensor(held, 0, (3, 4), (1, 3)),
        "shared_rows": tensor(held, 2, (2, 3), (3, 1)),
        "repeated": tensor(held, 11, (2, 2), (0, 0)),
        "empty": tensor(held, 12, (0, 4), (4, 1)),
    }
    numbers = np.arange(12, dtype=np.float32)
    read = load_torch_file(write_zip(path, state_dict(tensors), {"0": numbers.tobytes()}))
    assert list(read) == list(tensors)
    np.testing.assert_array_equal(read["scalar"], 5)
    np.testing.assert_array_equal(read["transposed"], numbers.reshape(4, 3).T)
    np.testing.assert_array_equal(read["shared_rows"], numbers[2:8].reshape(2, 3))
    np.testing.assert_array_equal(read["repeated"], np.full((2, 2), 11))
    assert read["empty"].shape == (0, 4)
    read["transposed"][:] = 0  # its own memory: nothing else changes
    np.testing.assert_array_equal(read["shared_rows"], numbers[2:8].reshape(2, 3))


@pytest.mark.parametrize(
    ("message", "changes"),
    [
        ("reaches past the end", {"stride": (4, 1)}),
        ("reaches past the end", {"offset": 1}),
        ("more elements than its storage", {"size": (3, 3)}),
        ("reaches past the end", {"size": (1, 1), "offset": 2**62}),
        ("negative", {"stride": (-3, 1)}),
        ("negative", {"offset": -1}),
        ("negative", {"size": (-2, 3)}),
        ("mismatched", {"size": (6,)}),
        ("storage 0 does not have the size", {"data": 5}),
        ("storage 0 does not have the size", {"count": 2**62}),
        ("storage 0 does not have the size", {"count": -1}),
    ],
)
def test_a_tensor_outside_its_storage_is_refused(path, message, changes):
    assert load_torch_file(write_one(path))["w"].shape == (2, 3)
    with pytest.raises(BadInput, match=message):
        load_torch_file(write_one(path, **changes))


@pytest.mark.parametrize(
    ("module", "name"),
    [("os", "system"), ("builtins", "eval"), ("torch", "load"), ("numpy", "ndarray")],
)
def test_a_foreign_global_is_refused_by_name(path, tmp_path, module, name):
    witness = tmp_path / "witness"
    call = named(module, name) + many(literal(f"touch {witness}")) + b"R"
    write_zip(path, state_dict({"w": call}), {})
    with pytest.raises(BadInput, match=f"{module}.{name}.*refused"):
        load_torch_file(path)
    assert not witness.exists()


def test_a_file_that_is_no_zip(path):
    path.write_bytes(pickle.dumps({"w": 1}))
    with pytest.raises(BadInput, match="pytorch_model.bin is not a readable PyTorch file"):
        load_torch_file(path)


def test_a_zip_without_pickle(path):
    with pytest.raises(BadInput, match="it has 0 data.pkl"):
        load_torch_file(write_zip(path, None, {"0": b""}))


def test_a_missing_storage(path):
    held = storage("7", np.float32, 1)
    with pytest.raises(BadInput, match="data/7"):
        load_torch_file(write_zip(path, state_dict({"w": tensor(held, 0, (1,), (1,))}), {}))


@pytest.mark.parametrize(
    "value",
    [
        {"model": {"w": 1}},
        {"step": 3},
        {1: 2},
        [1, 2],
        None,
    ],
    ids=str,
)
def test_what_is_no_flat_dict_of_tensors(path, value):
    with pytest.raises(BadInput, match="flat dict of tensors"):
        load_torch_file(write_zip(path, pickle.dumps(value, 2), {}))


def test_a_nested_dict_of_tensors(path):
    inner = state_dict({"w": tensor(storage("0", np.float32, 1), 0, (1,), (1,))})[2:-1]
    with pytest.raises(BadInput, match="flat dict of tensors"):
        load_torch_file(write_zip(path, state_dict({"model": inner}), {"0": bytes(4)}))


def test_a_persistent_id_that_is_no_storage(path):
    pid = many(*map(literal, ("module", "a", "b", "c", 1))) + b"Q"
    with pytest.raises(BadInput, match="'module', which is not a storage"):
        load_torch_file(write_zip(path, state_dict({"w": pid}), {}))


def test_a_truncated_pickle(path):
    data = state_dict({"w": tensor(storage("0", np.float32, 1), 0, (1,), (1,))})
    for keep in range(len(data)):
        with pytest.raises(BadInput):
            load_torch_file(write_zip(path, data[:keep], {"0": bytes(4)}))


def malformed_pickles():
    whole = state_dict({"weight": tensor(storage("0", np.float32, 6), 0, (2, 3), (3, 1))})
    short_id = many(literal("storage"), named("torch", "FloatStorage")) + b"Q"
    deep = tensor(storage("0", np.float32, 1), 0, (1,) * 65, (1,) * 65)
    # Stride 0 repeats one number, so the storage is no limit to what would be allocated: 4 PiB.
    repeated = tensor(storage("0", np.float32, 6), 0, (2**50,), (0,))
    return {
        "name not UTF-8": whole.replace(b"weight", b"w\xe9ight"),
        "storage id too short": state_dict({"w": short_id}),
        "more axes than numpy has": state_dict({"w": deep}),
        "repeated beyond memory": state_dict({"w": repeated}),
        "memo never written": whole.replace(literal("0"), b"h\x63"),
        "stack too short": b"\x80\x02R.",
        "an odd item": b"\x80\x02}(" + literal("w") + b"u.",
    }


@pytest.mark.parametrize("case", malformed_pickles())
def test_a_malformed_pickle(path, case):
    with pytest.raises(BadInput):
        load_torch_file(write_zip(path, malformed_pickles()[case], {"0": bytes(24)}))


def damaged_zips(path):
    """A compressed file with one thing changed in the zip's own fields or data."""
    data = state_dict({"w": tensor(storage("0", np.float32, 6), 0, (2, 3), (3, 1))})
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/data/0", bytes(24))
    whole = path.read_bytes()
    start = 30 + len("archive/data.pkl")  # the local header is 30 bytes and the name
    entry = whole.index(b"PK\x01\x02")  # in the directory: flags at 8, compression method at 10

    def changed(place, value):
        return whole[:place] + bytes([value]) + whole[place + 1 :]

    return {
        "compressed data": changed(start, 0xFF),
        "checksum": changed(entry + 16, whole[entry + 16] ^ 1),
        "encrypted": changed(entry + 8, 1),
        "unknown compression": changed(entry + 10, 77),
        "cut": whole[:-30],
    }


@pytest.mark.parametrize(
    "case", ["compressed data", "checksum", "encrypted", "unknown compression", "cut"]
)
def test_a_damaged_zip(path, case):
    path.write_bytes(damaged_zips(path)[case])
    with pytest.raises(BadInput):
        load_torch_file(path)


def test_bin_and_safetensors_give_the_same_parameters(path):
    weights = load_file(PUBLISHED / "model.safetensors")
    # A compiled model trained on several devices was saved with this prefix.
    write_torch(path, {f"_orig_mod.module.{name}": x for name, x in weights.items()})
    shutil.copyfile(PUBLISHED / "config.json", path.parent / "config.json")
    jax.tree.map(np.testing.assert_array_equal, load(path.parent).params, load(PUBLISHED).params)


def test_a_file_that_torch_wrote(path):
    torch = pytest.importorskip("torch")
    base = torch.arange(12.0).reshape(3, 4)
    tensors = collections.OrderedDict(
        whole=base,
        transposed=base.T,
        part=base[1:, 2:],
        low=base.to(torch.bfloat16),
        integer=torch.arange(5),
        scalar=torch.tensor(2.5),
    )
    torch.save(tensors, path)
    read = load_torch_file(path)
    assert list(read) == list(tensors)
    for name, x in tensors.items():
        np.testing.assert_array_equal(read[name].astype(np.float64), x.to(torch.float64).numpy())


def test_a_file_of_the_other_byte_order(path):
    data = state_dict({"w": tensor(storage("0", np.float32, 1), 0, (1,), (1,))})
    write_zip(path, data, {"0": bytes(4)})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/byteorder", b"big")
    with pytest.raises(BadInput, match="its byte order is b'big'"):
        load_torch_file(path)

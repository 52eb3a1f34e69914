import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from sedd_jax.experiment.integrity import _on_device, checksums, fingerprint, nonfinite_paths

TYPES = ("float32", "bfloat16", "int32", "int8")


def numbers(dtype, shape=(8, 12)):
    return jnp.asarray(np.random.default_rng(0).permutation(np.prod(shape)).reshape(shape), dtype)


def flipped(x, position, bit):
    bits = np.array(x).view(f"uint{8 * x.dtype.itemsize}")
    bits[position] ^= np.array(1 << bit, bits.dtype)
    return jnp.asarray(bits.view(x.dtype))


def checksum(x):
    return checksums({"x": x})["x"]


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)


@pytest.mark.parametrize(
    "spec", [(), ("data",), (None, "model"), ("data", "model"), ("model", "data")], ids=str
)
def test_a_sharded_array_has_the_checksum_of_the_whole(mesh, spec):
    tree = {name: numbers(name) for name in TYPES}
    split = jax.device_put(tree, NamedSharding(mesh, PartitionSpec(*spec)))
    assert checksums(split) == checksums(tree)


def test_no_array_is_gathered(mesh):
    split = jax.device_put(numbers("bfloat16"), NamedSharding(mesh, PartitionSpec("data", "model")))
    program = _on_device.lower(split).compile().as_text()
    assert "all-reduce" in program
    assert not any(word in program for word in ("all-gather", "all-to-all", "collective-permute"))


def test_the_formula():
    """mix is the 32-bit finalizer of MurmurHash3, here in whole numbers without a limit."""
    total = 0
    values = [1.5, -0.0, 3e38, 7.0, 1e-40, -2.0]
    for index, value in enumerate(values):
        word = int(np.float32(value).view(np.uint32)) + index * 2654435761
        for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
            word %= 2**32
            word = (word ^ (word >> shift)) * factor
        total += word
    assert checksum(jnp.array(values, jnp.float32).reshape(2, 3)) == total % 2**32


@pytest.mark.parametrize("dtype", TYPES)
def test_any_flipped_bit_is_seen(dtype):
    x = numbers(dtype)
    size = 8 * x.dtype.itemsize
    seen = {checksum(flipped(x, place, bit)) for place in ((0, 0), (5, 7)) for bit in range(size)}
    assert len(seen | {checksum(x)}) == 2 * size + 1


@pytest.mark.parametrize("dtype", TYPES)
def test_elements_that_changed_places_are_seen(dtype):
    x = numbers(dtype).at[2, 3].set(-1).at[2, 4].set(1)
    for other in ((2, 4), (7, 3), (0, 0)):
        swapped = x.at[2, 3].set(x[other]).at[other].set(x[2, 3])
        assert checksum(swapped) != checksum(x)


def test_two_flipped_signs_do_not_cancel():
    x = numbers("float32")
    assert checksum(flipped(flipped(x, (1, 2), 31), (6, 5), 31)) != checksum(x)


def test_a_scalar_and_an_empty_array():
    assert checksum(jnp.float32(1)) != checksum(jnp.float32(2))
    assert checksum(jnp.zeros((0, 3))) == 0


def test_an_array_longer_than_a_16_bit_index():
    x = jnp.zeros((3, 50_000))
    sums = {checksum(x.at[0, place].set(1)) for place in (0, 1, 2**15)}
    sums |= {checksum(x.at[1, place].set(1)) for place in (0, 2**16 - 50_000)}
    assert len(sums | {checksum(x)}) == 6


def test_leaves_are_named_by_their_paths():
    assert checksums({"a": {"b": jnp.ones(2)}, "c": (jnp.ones(2),)}).keys() == {"a/b", "c/0"}


def test_leaves_that_are_not_finite_are_named():
    tree = {name: numbers(name) for name in TYPES} | {"a": {"b": jnp.array([[1.0, jnp.inf]])}}
    assert nonfinite_paths(tree) == ["a/b"]
    tree["bfloat16"] = tree["bfloat16"].at[3, 4].set(jnp.nan)
    assert nonfinite_paths(tree) == ["a/b", "bfloat16"]


def test_a_fingerprint_tells_trees_apart():
    tree = {"a": numbers("float32"), "b": numbers("int32")}
    prints = {
        fingerprint(each)
        for each in (tree, dict(reversed(tree.items())), {"a": tree["b"], "b": tree["a"]},
                     tree | {"a": flipped(tree["a"], (1, 2), 3)}, {"a": tree["a"]})
    }  # fmt: skip
    assert len(prints) == 4
    assert all(len(each) == 16 for each in prints)

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from sedd_jax.model.attention import (
    rotary_attention_for,
    rotary_tables,
    xla_rotary_attention,
)
from sedd_jax.model.fused_attention import fits, fused_rotary_attention
from sedd_jax.model.sharding import Placement


class OnTpu(Placement):
    platform = "tpu"


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def naive(qkv, heads, lengths):
    """Softmax attention of rotated queries and keys in float64, one head at a time."""
    _, batch, length, features = qkv.shape
    width = features // heads
    out = np.zeros((batch, length, features))
    angles = np.arange(length)[:, None] * 10_000.0 ** (-2 * np.arange(width // 2) / width)
    for b, h in np.ndindex(batch, heads):
        query, key, value = qkv[:, b, :, h * width : (h + 1) * width].astype(np.float64)
        pairs = [(x[:, : width // 2] + 1j * x[:, width // 2 :]) for x in (query, key)]
        query, key = (z * np.exp(1j * angles) for z in pairs)
        logits = (query @ key.conj().T).real / np.sqrt(width)
        logits[:, lengths[b] :] = -np.inf
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        out[b, :, h * width : (h + 1) * width] = weights @ value
    return out


# heads, their width, length: two, one and four heads a tile; one block of queries, and three
@pytest.mark.parametrize(
    ("heads", "width", "length", "padded"),
    [(2, 64, 384, True), (1, 128, 128, False), (4, 32, 128, False)],
)
def test_fused_attention_is_attention_of_rotated_heads(heads, width, length, padded):
    qkv, weight = normal(0, 3, 2, length, heads * width), normal(1, 2, length, heads * width)
    lengths = np.array([length - 5, 3]) if padded else np.array([length, length])
    text = np.arange(length)[None] < lengths[:, None]
    weight = np.where(text[..., None], weight, 0)  # as a loss over text weighs
    tables = rotary_tables(length, width)
    given = jnp.asarray(lengths) if padded else None

    @jax.jit
    def both(qkv):
        return [
            (out, back(jnp.asarray(weight))[0])
            for out, back in (
                jax.vjp(lambda x, f=f: f(x, tables, given), qkv)
                for f in (xla_rotary_attention, fused_rotary_attention(Placement()))
            )
        ]

    (_, wanted), (out, found) = both(jnp.asarray(qkv))
    np.testing.assert_allclose(out, naive(qkv, heads, lengths), atol=3e-5)  # of the angles
    np.testing.assert_allclose(found, wanted, atol=2e-5)
    assert np.asarray(found)[:, text].any() and not np.asarray(found)[1:, ~text].any()


def test_fused_attention_of_bfloat16_is_off_by_roundings():
    qkv = jnp.asarray(normal(0, 3, 1, 128, 128)).astype(jnp.bfloat16)
    tables = rotary_tables(128, 64)
    out = jax.jit(fused_rotary_attention(Placement()))(qkv, tables)
    assert out.dtype == jnp.bfloat16
    wanted = naive(np.asarray(qkv, np.float32), 2, [128])
    np.testing.assert_allclose(out.astype(jnp.float32), wanted, rtol=2**-7, atol=2**-7)


def test_a_mesh_splits_rows_and_heads():
    mesh = jax.make_mesh((4, 2), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)
    placement = Placement(mesh, ("data",), "tensor")
    qkv = normal(0, 3, 4, 128, 256)
    split = NamedSharding(mesh, PartitionSpec(None, "data", None, "tensor"))
    attend = jax.jit(fused_rotary_attention(placement))
    out = attend(jax.device_put(qkv, split), rotary_tables(128, 64))
    np.testing.assert_allclose(out, naive(qkv, 4, [128] * 4), atol=5e-6)
    wanted = NamedSharding(mesh, PartitionSpec("data", None, "tensor"))
    assert out.sharding.is_equivalent_to(wanted, out.ndim)


@pytest.mark.parametrize(
    ("length", "features", "width", "kernel"),
    [(128, 128, 64, "rotary_attention"), (128, 64, 64, "splash"), (100, 128, 64, None)],
)
def test_auto_on_a_tpu_is_the_fused_kernel_where_it_can_be(length, features, width, kernel):
    qkv = jax.ShapeDtypeStruct((3, 2, length, features), jnp.bfloat16)
    tables = jax.eval_shape(lambda: rotary_tables(length, width))
    traced = jax.jit(rotary_attention_for("auto", OnTpu())).trace(qkv, tables)
    text = traced.lower(lowering_platforms=("tpu",)).as_text()
    assert ("tpu_custom_call" in text) == (kernel is not None)
    assert kernel is None or kernel in text
    assert ("splash" in text) == (kernel == "splash")


def test_what_the_fused_kernel_takes():
    assert fits(1024, 1024, 64) and fits(2048, 2048, 128) and fits(128, 128, 32)
    assert not fits(1000, 1024, 64) and not fits(4096, 1024, 64)
    assert not fits(1024, 64, 64) and not fits(1024, 1536, 96)


def test_auto_elsewhere_rotates_apart():
    qkv, tables = jnp.asarray(normal(0, 3, 2, 8, 32)), rotary_tables(8, 16)
    out = rotary_attention_for("auto", Placement())(qkv, tables)
    np.testing.assert_allclose(out, naive(np.asarray(qkv), 2, [8, 8]), atol=2e-6)


def test_unknown_implementation():
    with pytest.raises(KeyError, match="flash"):
        rotary_attention_for("flash", Placement())

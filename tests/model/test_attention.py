import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from sedd_jax.model.attention import attention_for, rotary_tables, rotate
from sedd_jax.model.sharding import Placement


class OnGpu(Placement):
    platform = "gpu"


class OnTpu(Placement):
    platform = "tpu"


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def inputs(*shape, dtype=jnp.float32):
    return [normal(seed, *shape).astype(dtype) for seed in range(3)]


def naive_attention(query, key, value, causal=False):
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    out = np.zeros_like(value)
    for b, h in np.ndindex(query.shape[0], query.shape[2]):
        logits = query[b, :, h] @ key[b, :, h].T / math.sqrt(query.shape[-1])
        if causal:
            logits[np.triu_indices(len(logits), 1)] = -np.inf
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        out[b, :, h] = weights / weights.sum(-1, keepdims=True) @ value[b, :, h]
    return out


def naive_gradients(query, key, value, weight, causal=False):
    """The gradients of sum(weight * attention), written out."""
    query, key, value, weight = (np.asarray(x, np.float64) for x in (query, key, value, weight))
    found = [np.zeros_like(query) for _ in range(3)]
    scale = 1 / math.sqrt(query.shape[-1])
    for b, h in np.ndindex(query.shape[0], query.shape[2]):
        q, k, v, w = (x[b, :, h] for x in (query, key, value, weight))
        p = np.exp(q @ k.T * scale)
        p = np.tril(p) if causal else p
        p = p / p.sum(-1, keepdims=True)
        of_p = w @ v.T
        of_logits = p * (of_p - (p * of_p).sum(-1, keepdims=True))
        parts = (of_logits @ k * scale, of_logits.T @ q * scale, p.T @ w)
        for gradient, part in zip(found, parts, strict=True):
            gradient[b, :, h] = part
    return found


def values_and_gradients(attention, operands, weight):
    """Compiled as training would: the output, and the gradients of its weighted sum."""

    def weighted(*operands):
        out = attention(*operands)
        return jnp.sum(weight * out), out

    (_, out), gradients = jax.jit(jax.value_and_grad(weighted, (0, 1, 2), has_aux=True))(*operands)
    return out, gradients


def check_against_naive(attention, operands, weight, causal=False):
    out, gradients = values_and_gradients(attention, operands, weight)
    np.testing.assert_allclose(out, naive_attention(*operands, causal), atol=2e-6)
    for found, wanted in zip(gradients, naive_gradients(*operands, weight, causal), strict=True):
        np.testing.assert_allclose(found, wanted, atol=5e-6)
    return out


@pytest.mark.parametrize("scale", [1, 40])  # at 40, exp of a logit overflows float32
def test_xla_is_softmax_attention(scale):
    query, key, value = inputs(2, 7, 3, 16)
    out = jax.jit(attention_for("xla", Placement()))(query * scale, key, value)
    np.testing.assert_allclose(out, naive_attention(query * scale, key, value), atol=1e-5 * scale)


def test_gradients_of_xla():
    check_against_naive(
        attention_for("xla", Placement()), inputs(2, 7, 3, 16), normal(3, 2, 7, 3, 16)
    )


@pytest.mark.parametrize(("implementation", "length"), [("xla", 7), ("splash", 128)])
def test_causal_attention_sees_no_later_position(implementation, length):
    attention = attention_for(implementation, Placement(), causal=True)
    shape = (2, length, 2, 16)
    check_against_naive(attention, inputs(*shape), normal(3, *shape), causal=True)


@pytest.mark.parametrize(("implementation", "length"), [("xla", 7), ("splash", 128)])
def test_keys_in_the_padding_are_seen_by_none(implementation, length):
    attention = attention_for(implementation, Placement())
    operands, weight = inputs(2, length, 1, 16), normal(3, 2, length, 1, 16)
    lengths = jnp.array([length - 3, 1])
    text = jnp.arange(length)[None] < lengths[:, None]
    weight = jnp.where(text[..., None, None], weight, 0)  # as a loss over text weighs

    @jax.jit
    def padded(*operands):
        out, back = jax.vjp(lambda *x: attention(*x, lengths), *operands)
        return out, back(weight)

    out, gradients = padded(*operands)
    for row, n in enumerate(lengths.tolist()):
        alone = [x[row : row + 1, :n] for x in operands]
        np.testing.assert_allclose(out[row : row + 1, :n], naive_attention(*alone), atol=2e-6)
        wanted = naive_gradients(*alone, weight[row : row + 1, :n])
        for found, of_text in zip(gradients, wanted, strict=True):
            np.testing.assert_allclose(found[row : row + 1, :n], of_text, atol=5e-6)
            assert not found[row, n:].any()
    other = [jnp.where(text[..., None, None], x, 100 * x + 1) for x in operands]
    again, _ = padded(*other)
    np.testing.assert_array_equal(again[text], out[text])


@pytest.mark.parametrize("implementation", ["xla", "splash"])
def test_bfloat16_is_off_by_roundings_of_inputs_and_weights_only(implementation):
    operands = inputs(1, 128, 2, 64, dtype=jnp.bfloat16)
    out = jax.jit(attention_for(implementation, Placement()))(*operands)
    assert out.dtype == jnp.bfloat16
    # Weights and result are rounded to 8 bits, relative 2^-9 each, values are up to 4.
    wanted = naive_attention(*operands)
    np.testing.assert_allclose(out.astype(jnp.float32), wanted, rtol=2**-7, atol=2**-7)


@pytest.mark.parametrize("implementation", ["xla", "splash"])
def test_softmax_is_float32_for_bfloat16_inputs(implementation):
    """A logit of 64 and one of 64.25 are the same number in bfloat16."""
    query = jnp.zeros((1, 128, 1, 64), jnp.bfloat16).at[..., 0].set(8).at[..., 1].set(1)
    key = jnp.zeros_like(query).at[..., 0].set(64).at[:, 64:, :, 1].set(2)
    value = jnp.zeros_like(query).at[:, 64:].set(1)
    out = jax.jit(attention_for(implementation, Placement()))(query, key, value)
    wanted = 1 / (1 + math.exp(-0.25))  # 0.562, against 0.5 if the logits were rounded
    np.testing.assert_allclose(out.astype(jnp.float32), wanted, rtol=2**-8)


@pytest.mark.parametrize("length", [128, 384])  # one block; three
def test_splash_is_softmax_attention(length):
    shape = (1, length, 2, 64)
    check_against_naive(attention_for("splash", Placement()), inputs(*shape), normal(3, *shape))


def test_splash_scales_by_any_head_dimension():
    operands = inputs(1, 128, 1, 32)
    out = jax.jit(attention_for("splash", Placement()))(*operands)
    np.testing.assert_allclose(out, naive_attention(*operands), atol=2e-6)


@pytest.fixture(scope="module")
def placement():
    mesh = jax.make_mesh((4, 2), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)
    return Placement(mesh, ("data",), "tensor")


@pytest.mark.parametrize("implementation", ["xla", "splash"])
def test_a_mesh_splits_rows_and_heads(implementation, placement):
    split = NamedSharding(placement.mesh, PartitionSpec("data", None, "tensor"))
    operands = jax.device_put(inputs(4, 128, 2, 64), split)
    attention = attention_for(implementation, placement)
    out = check_against_naive(attention, operands, normal(3, 4, 128, 2, 64))
    assert out.sharding.is_equivalent_to(split, out.ndim)


def test_splash_splits_rows_only_where_there_is_no_tensor_axis():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    split = NamedSharding(mesh, PartitionSpec("data"))
    operands = jax.device_put(inputs(8, 128, 1, 64), split)
    out = jax.jit(attention_for("splash", Placement(mesh, ("data",))))(*operands)
    np.testing.assert_allclose(out, naive_attention(*operands), atol=2e-6)
    assert out.sharding.is_equivalent_to(split, out.ndim)


def test_splash_takes_a_batch_that_the_mesh_does_not_divide(placement):
    operands = inputs(3, 128, 2, 64)
    out = jax.jit(attention_for("splash", placement))(*operands)
    np.testing.assert_allclose(out, naive_attention(*operands), atol=2e-6)


def test_per_device_without_a_mesh_is_the_function_itself():
    f = lambda x: x  # noqa: E731
    assert Placement().per_device(f, None, None) is f


def test_platform_is_that_of_the_mesh_or_of_the_default_device(placement):
    assert placement.platform == Placement().platform == "cpu"


def lowered(implementation, placement, platform, shape, dtype, causal=False, padded=False):
    """The program for another platform, which needs no such device."""
    operand = jax.ShapeDtypeStruct(shape, dtype)
    lengths = jax.ShapeDtypeStruct(shape[:1], jnp.int32) if padded else None
    attention = attention_for(implementation, placement, causal=causal)
    traced = jax.jit(attention).trace(operand, operand, operand, lengths)
    return traced.lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("length", [128, 100])
def test_auto_on_a_tpu_is_splash_where_it_can_be(length):
    text = lowered("auto", OnTpu(), "tpu", (2, length, 2, 64), jnp.bfloat16)
    assert ("tpu_custom_call" in text) == (length == 128)


GPU_CASES = {
    "bfloat16": (64, jnp.bfloat16, True),
    "float16": (64, jnp.float16, True),
    "float32": (64, jnp.float32, False),
    "narrow": (12, jnp.bfloat16, False),
    "wide": (136, jnp.bfloat16, False),
}


@pytest.mark.parametrize("case", GPU_CASES)
def test_auto_on_a_gpu_is_cudnn_where_it_can_be(case, monkeypatch):
    # JAX asks the machine for the version of cuDNN, and this one has none.
    monkeypatch.setattr(
        "jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", lambda: 91_000
    )
    width, dtype, fits = GPU_CASES[case]
    text = lowered("auto", OnGpu(), "cuda", (2, 100, 2, width), dtype)
    assert ("__cudnn$fmha" in text) == fits


@pytest.mark.parametrize(
    ("causal", "padded", "mask"),
    [(False, False, "NO_MASK"), (True, False, "CAUSAL"), (False, True, "PADDING")],
)
def test_the_mask_of_cudnn(causal, padded, mask, monkeypatch):
    monkeypatch.setattr(
        "jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", lambda: 91_000
    )
    text = lowered("auto", OnGpu(), "cuda", (2, 100, 2, 64), jnp.bfloat16, causal, padded)
    assert f"mask_type\\22: \\22{mask}\\22" in text


def test_auto_on_a_cpu_is_xla():
    operands = inputs(2, 128, 2, 64)
    programs = [
        str(jax.make_jaxpr(attention_for(name, Placement()))(*operands)) for name in ("auto", "xla")
    ]
    assert programs[0] == programs[1]


def test_splash_refuses_other_lengths():
    with pytest.raises(ValueError, match=r"multiples of 128, got 100: .*model.attention=xla"):
        attention_for("splash", Placement())(*inputs(1, 100, 1, 64))


def test_cudnn_refuses_float32():
    with pytest.raises(ValueError, match=r"float32: set model.dtype=bfloat16"):
        attention_for("cudnn", Placement())(*inputs(1, 8, 1, 64))


def test_unknown_implementation():
    with pytest.raises(KeyError, match="flash"):
        attention_for("flash", Placement())


@pytest.mark.parametrize("width", [2, 4, 16])
def test_rotary_multiplies_complex_pairs_by_unit_numbers(width):
    x = normal(0, 2, 7, 3, width)
    rotated = rotate(jnp.asarray(x), *rotary_tables(7, width))
    half = width // 2
    for position in range(7):
        for pair in range(half):
            angle = position * 10_000.0 ** (-2 * pair / width)
            z = x[:, position, :, pair] + 1j * x[:, position, :, pair + half]
            z = z * np.exp(1j * angle)
            np.testing.assert_allclose(rotated[:, position, :, pair], z.real, atol=2e-6)
            np.testing.assert_allclose(rotated[:, position, :, pair + half], z.imag, atol=2e-6)


def test_rotary_products_depend_on_the_distance_alone():
    query, key = (jnp.broadcast_to(normal(seed, 8), (1, 9, 1, 8)) for seed in (0, 1))
    query, key = (rotate(x, *rotary_tables(9, 8))[0, :, 0] for x in (query, key))
    products = np.asarray(query @ key.T)
    for distance in range(-8, 9):
        diagonal = np.diagonal(products, distance)
        np.testing.assert_allclose(diagonal, diagonal[0], atol=5e-6)
    assert np.ptp(products) > 0.1


def test_rotary_keeps_bfloat16():
    x = jnp.asarray(normal(0, 1, 3, 1, 4))
    low = rotate(x.astype(jnp.bfloat16), *rotary_tables(3, 4))
    assert low.dtype == jnp.bfloat16
    exact = rotate(x, *rotary_tables(3, 4))
    np.testing.assert_allclose(low.astype(jnp.float32), exact, atol=2**-7 * float(abs(x).max()))

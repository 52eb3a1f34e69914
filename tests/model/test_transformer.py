import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sedd_jax.model import trunk
from sedd_jax.model.attention import rotary_tables, rotate
from sedd_jax.model.config import ModelConfig, TransformerConfig
from sedd_jax.model.dropout import dropout, dropout_masks
from sedd_jax.model.fused_attention import fused_rotary_attention
from sedd_jax.model.score_model import Head, SigmaEmbedding, score_model, sigma_features
from sedd_jax.model.sharding import Placement
from sedd_jax.model.transformer import (
    Dense,
    Embedding,
    LayerNorm,
    gelu,
)
from sedd_jax.model.trunk import Block

CONFIG = TransformerConfig(
    ModelConfig(hidden_size=16, cond_dim=8, num_blocks=1, num_heads=2, dropout=0.0),
    num_states=11,
    dtype=jnp.dtype("float32"),
)
BFLOAT16 = dataclasses.replace(CONFIG, dtype=jnp.dtype("bfloat16"))


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


# Most of the time goes into compiling, so little of it goes into fast code.
jit = functools.partial(
    jax.jit,
    compiler_options={
        "xla_backend_optimization_level": 0,
        "xla_llvm_disable_expensive_passes": True,
    },
)


@functools.cache
def built(module, *args, **options):
    """A layer at its start. Shared: do not change it."""

    def build():
        return module(*args, **options, rngs=nnx.Rngs(0))

    structure = nnx.split(nnx.eval_shape(build))[0]
    return nnx.merge(structure, jit(lambda: nnx.state(build(), nnx.Param))())


def filled(module, *args, scale):
    """A layer with random weights, none of which is zero."""
    structure, state = nnx.split(nnx.eval_shape(lambda: module(*args, rngs=nnx.Rngs(0))))
    leaves, tree = jax.tree.flatten(state)
    leaves = [jnp.asarray(scale * normal(i, *leaf.shape)) for i, leaf in enumerate(leaves)]
    return nnx.merge(structure, jax.tree.unflatten(tree, leaves))


def naive_attention(query, key, value):
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    out = np.zeros_like(value)
    for b, h in np.ndindex(query.shape[0], query.shape[2]):
        logits = query[b, :, h] @ key[b, :, h].T / math.sqrt(query.shape[-1])
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        out[b, :, h] = weights / weights.sum(-1, keepdims=True) @ value[b, :, h]
    return out


def test_sigma_features():
    sigma = np.array([1e-4, 0.1, 1.0, 6.9, 20.0], np.float32)
    frequencies = np.exp(-np.log(10_000) * np.arange(128) / 128)
    angles = sigma.astype(np.float64)[:, None] * frequencies
    wanted = np.concatenate([np.cos(angles), np.sin(angles)], -1)
    np.testing.assert_allclose(sigma_features(jnp.asarray(sigma)), wanted, atol=4e-6)


def silu(x):
    return x / (1 + np.exp(-x))


def test_sigma_embedding_is_an_mlp_in_float32_whatever_the_config():
    sigma = jnp.asarray([1e-4, 0.3, 9.0])
    module = built(SigmaEmbedding, BFLOAT16)
    weights = [np.asarray(layer.kernel[...]) for layer in (module.inner, module.outer)]
    biases = [np.asarray(layer.bias[...]) for layer in (module.inner, module.outer)]
    x = np.asarray(sigma_features(sigma), np.float64)
    for weight, bias in zip(weights, biases, strict=True):
        x = silu(x @ weight + bias)
    out = module(sigma)
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out, x, atol=2e-6)


DENSE_AXES = {
    "plain": ((16,), (5,), "blD,De->ble"),
    "split": ((16,), (3, 2, 4), "blD,Dijk->blijk"),
    "join": ((4, 8), (6,), "blij,ijD->blD"),
}


@pytest.mark.parametrize("case", DENSE_AXES)
def test_dense_is_einsum(case):
    inputs, outputs, letters = DENSE_AXES[case]
    dense = built(Dense, inputs, outputs, CONFIG)
    x = normal(0, 2, 3, *inputs)
    wanted = np.einsum(letters, x.astype(np.float64), np.asarray(dense.kernel[...], np.float64))
    np.testing.assert_allclose(
        dense(jnp.asarray(x)), wanted + np.asarray(dense.bias[...]), atol=1e-5
    )


@pytest.mark.parametrize(("inputs", "outputs"), [((64,), (3, 40)), ((4, 16), (100,))])
def test_dense_starts_uniform_on_its_range(inputs, outputs):
    dense = built(Dense, inputs, outputs, CONFIG)
    kernel, bias = np.asarray(dense.kernel[...]), np.asarray(dense.bias[...])
    bound = math.prod(inputs) ** -0.5
    for leaf in (kernel, bias):
        assert np.abs(leaf).max() <= bound
        assert np.abs(leaf).max() > 0.95 * bound
        assert abs(leaf.mean()) < 0.2 * bound
    np.testing.assert_allclose(kernel.std(), bound / math.sqrt(3), rtol=0.03)
    assert len(np.unique(kernel)) > 0.99 * kernel.size


def test_dense_can_start_at_zero_and_without_bias():
    assert not built(Dense, (4,), (3,), CONFIG, zero=True).kernel[...].any()
    assert not built(Dense, (4,), (3,), CONFIG, zero=True).bias[...].any()
    assert built(Dense, (4,), (3,), CONFIG, use_bias=False).bias is None


def test_dense_multiplies_in_the_dtype_of_the_config_and_keeps_float32_weights():
    dense = built(Dense, (16,), (5,), BFLOAT16)
    out = dense(jnp.ones((2, 16)))
    assert out.dtype == jnp.bfloat16
    assert dense.kernel[...].dtype == dense.bias[...].dtype == jnp.float32


@pytest.mark.parametrize(
    ("num_states", "padded"), [(1, 128), (128, 128), (129, 256), (50_258, 50_304)]
)
def test_padded_states_round_up_to_128(num_states, padded):
    assert dataclasses.replace(CONFIG, num_states=num_states).padded_states == padded


def test_embedding_looks_up_rows_of_a_padded_table():
    embedding = built(Embedding, CONFIG)
    table = np.asarray(embedding.table[...])
    assert table.shape == (128, 16) and np.abs(table).max() <= 16**-0.5
    xt = jnp.asarray([[0, 10, 3]])
    np.testing.assert_array_equal(embedding(xt), table[[[0, 10, 3]]])


def test_head_starts_at_zero_and_ends_the_padding():
    head = built(Head, BFLOAT16)
    out = head(jnp.asarray(normal(0, 2, 3, 16)), jnp.asarray(normal(1, 2, 8)))
    assert out.shape == (2, 3, 11) and out.dtype == jnp.float32
    assert not out.any()


def test_head_sums_bfloat16_products_in_float32():
    """Against the exact sum of the same rounded numbers: only the order of summation differs."""
    head = filled(Head, BFLOAT16, scale=0.3)
    for leaf in (head.modulation.kernel, head.modulation.bias):
        leaf[...] = jnp.zeros_like(leaf[...])
    x, cond = jnp.asarray(normal(90, 2, 3, 16)), jnp.zeros((2, 8))
    h, kernel = (np.asarray(y.astype(jnp.bfloat16)) for y in (head.norm(x), head.kernel[...]))
    wanted = h.astype(np.float64) @ kernel.astype(np.float64) + np.asarray(head.bias[...])
    np.testing.assert_allclose(head(x, cond), wanted[..., :11], atol=1e-5)


@functools.partial(jit, static_argnums=0)
def run_structure(structure, state, x, cond, key):
    width = CONFIG.model.hidden_size // CONFIG.model.num_heads
    return nnx.merge(structure, state)(x, cond, rotary_tables(x.shape[1], width), key)


def run_block(block, x, cond, key=None):
    return run_structure(*nnx.split(block), x, cond, key)


def test_block_starts_as_the_identity():
    x, cond = jnp.asarray(normal(0, 2, 5, 16)), jnp.asarray(normal(1, 2, 8))
    np.testing.assert_array_equal(run_block(built(Block, CONFIG), x, cond), x)


def attention_only(rate):
    """A block whose modulation is fixed: the attention branch at gate 1, the other branch shut."""
    config = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, dropout=rate))
    structure, state = nnx.split(built(Block, config))
    block = nnx.merge(structure, state)
    block.modulation.bias[...] = jnp.asarray(np.arange(6) == 2, jnp.float32)[:, None] * jnp.ones(
        (1, 16)
    )
    return block


def test_dropout_zeroes_a_share_of_the_branch_and_keeps_its_mean():
    rate, draws = 0.25, 4000
    x, cond = jnp.asarray(normal(0, 1, 5, 16)), jnp.zeros((1, 8))
    branch = np.asarray(run_block(attention_only(0.0), x, cond) - x)
    block = attention_only(rate)
    keys = jax.random.split(jax.random.key(0), draws)
    dropped = jax.vmap(lambda key: run_block(block, x, cond, key) - x)(keys)
    kept = np.abs(np.asarray(dropped)) > 1e-6
    # A share of 0.25 over 4000 * 80 draws has a standard error of 8e-4.
    np.testing.assert_allclose(1 - kept.mean(), rate, atol=4e-3)
    # x + branch - x is off by a rounding of x.
    scaled = np.broadcast_to(branch / (1 - rate), kept.shape)
    np.testing.assert_allclose(dropped[kept], scaled[kept], atol=2e-6)
    # The mean of a kept-or-zero entry has a standard error of |branch| sqrt(1/3 / 4000).
    error = np.abs(np.asarray(dropped).mean(0) - branch)
    assert np.all(error <= 5 * np.abs(branch) * math.sqrt(rate / (1 - rate) / draws) + 1e-6)


def test_without_a_key_nothing_is_dropped():
    x, cond = jnp.asarray(normal(0, 2, 5, 16)), jnp.zeros((2, 8))
    with_rate = run_block(attention_only(0.5), x, cond)
    np.testing.assert_array_equal(with_rate, run_block(attention_only(0.0), x, cond))
    key = jax.random.key(0)
    without_rate = run_block(attention_only(0.0), x, cond, key)
    np.testing.assert_array_equal(without_rate, run_block(attention_only(0.0), x, cond))


def test_block_is_the_formula_of_the_paper():
    """Against float64 numpy, with all six parts of the modulation different."""
    block = filled(Block, CONFIG, scale=0.3)
    x, cond = normal(90, 2, 5, 16), normal(91, 2, 8)

    def weight(layer):
        return np.asarray(layer.kernel[...], np.float64)

    def norm(x, layer):
        centred = x - x.mean(-1, keepdims=True)
        spread = np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
        return centred / spread * np.asarray(layer.scale[...])

    def rotated(x):
        return np.asarray(rotate(jnp.asarray(x, jnp.float32), *rotary_tables(5, 8)))

    parts = np.einsum("bc,cpd->pbd", cond, weight(block.modulation))
    parts = parts + np.asarray(block.modulation.bias[...])[:, None]
    shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = parts[:, :, None]
    h = norm(x, block.attention_norm) * (1 + scale_a) + shift_a
    query, key, value = np.einsum("bld,dphk->pblhk", h, weight(block.qkv))
    h = naive_attention(rotated(query), rotated(key), value)
    wanted = x + gate_a * np.einsum("blhk,hkd->bld", h, weight(block.attention_out))
    h = norm(wanted, block.mlp_norm) * (1 + scale_m) + shift_m
    h = h @ weight(block.mlp_in) + np.asarray(block.mlp_in.bias[...])
    h = 0.5 * h * (1 + np.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))
    h = h @ weight(block.mlp_out) + np.asarray(block.mlp_out.bias[...])
    wanted = wanted + gate_m * h
    out = run_block(block, jnp.asarray(x), jnp.asarray(cond))
    np.testing.assert_allclose(out, wanted, atol=1e-5 * np.abs(wanted).max())


def test_layer_norm_has_the_published_epsilon():
    """On inputs of variance 1e-6 an epsilon of 1e-5 is most of the divisor."""
    block = built(Block, CONFIG)
    x = 1e-3 * normal(0, 3, 16)
    centred = x - x.mean(-1, keepdims=True)
    wanted = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    for norm in (block.attention_norm, block.mlp_norm, built(Head, CONFIG).norm):
        np.testing.assert_allclose(norm(jnp.asarray(x)), wanted, rtol=1e-4)


def test_the_gradient_of_a_bias_is_a_float32_sum():
    layer = filled(Dense, (16,), (16,), BFLOAT16, scale=1.0)
    structure, state = nnx.split(layer)
    x = jnp.asarray(normal(1, 4, 4096, 16))
    d_y = jnp.asarray(normal(2, 4, 4096, 16) + 0.5, jnp.bfloat16)

    def output(state):
        return nnx.merge(structure, state)(x)

    got = jit(lambda state: jax.vjp(output, state)[1](d_y)[0])(state)["bias"][...]
    expected = np.asarray(d_y, np.float64).sum((0, 1))
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_gelu_is_rounded_once():
    x = jnp.linspace(-4, 4, 1001).astype(jnp.bfloat16)
    y = np.asarray(x, np.float64)
    inner = np.sqrt(2 / np.pi) * (y + 0.044715 * y**3)
    expected = (y / (1 + np.exp(-2 * inner))).astype(jnp.bfloat16)
    far = np.asarray(gelu(x), np.float64) - np.asarray(expected, np.float64)
    assert np.abs(far).max() < 1e-2
    assert (far == 0).mean() > 0.99


def test_layer_norm_has_the_gradient_of_its_formula():
    """Though mean and variance hide parts of it from one another; scaled, shifted and given."""
    norm = filled(LayerNorm, CONFIG, scale=0.5)
    x, weight = normal(90, 2, 5, 16) + 3, normal(91, 2, 5, 16)
    shift, scale = (jnp.asarray(normal(seed, 2, 1, 16)) for seed in (92, 93))

    def formula(x, shift, scale):
        spread = jnp.sqrt(x.var(-1, keepdims=True) + 1e-5)
        own = norm.scale[...][None, None]
        return (x - x.mean(-1, keepdims=True)) / spread * own * (1 + scale) + shift

    def made(x, shift, scale):
        return norm(x, shift, scale, norm.mean(x))

    found, wanted = (
        jit(jax.grad(lambda *a, f=f: jnp.sum(weight * f(*a)), (0, 1, 2)))(x, shift, scale)
        for f in (made, formula)
    )
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_the_masks_of_both_branches_are_independent_and_have_the_rate():
    keep = np.asarray(dropout_masks(jax.random.key(3), 0.25, (400, 1000)))
    # 400,000 draws: standard errors of 7e-4 of a share, 1.6e-3 of a correlation
    np.testing.assert_allclose(keep.mean((1, 2)), 0.75, atol=4e-3)
    assert abs(np.corrcoef(keep[0].ravel(), keep[1].ravel())[0, 1]) < 8e-3
    for mask in keep:
        assert abs(np.corrcoef(mask[:, 1:].ravel(), mask[:, :-1].ravel())[0, 1]) < 8e-3


def test_dropout_scales_by_the_rate_that_it_has():
    """A rate of 0.1 is 6554 of 2^16, 0.100006; the scale is float32 whatever the input."""
    x = jnp.ones((1, 3), jnp.bfloat16)
    out = dropout(x, 0.1, jnp.array([[True, False, True]]))
    np.testing.assert_allclose(
        out, [[2**16 / (2**16 - 6554), 0, 2**16 / (2**16 - 6554)]], rtol=1e-7
    )


@pytest.mark.parametrize("case", DENSE_AXES)
def test_gradients_of_dense(case):
    inputs, outputs, letters = DENSE_AXES[case]
    dense = built(Dense, inputs, outputs, CONFIG)
    structure, state = nnx.split(dense)
    x, weight = normal(0, 2, 3, *inputs), normal(1, 2, 3, *outputs)

    def weighted(state, x):
        return jnp.sum(weight * nnx.merge(structure, state)(x))

    d_state, d_x = jax.grad(weighted, (0, 1))(state, jnp.asarray(x))
    into, out = letters.split("->")
    left, right = into.split(",")
    np.testing.assert_allclose(
        d_x, np.einsum(f"{out},{right}->{left}", weight, dense.kernel[...]), atol=1e-5
    )
    np.testing.assert_allclose(
        d_state["kernel"][...], np.einsum(f"{left},{out}->{right}", x, weight), atol=1e-5
    )
    np.testing.assert_allclose(d_state["bias"][...], weight.sum((0, 1)), atol=1e-5)


STACK_SIZES = ModelConfig(hidden_size=128, cond_dim=8, num_blocks=1, num_heads=2, dropout=0.3)


def network(remat="none"):
    sizes = dataclasses.replace(STACK_SIZES, remat=remat)
    return score_model(TransformerConfig(sizes, 11, jnp.dtype("float32")))


@functools.cache
def stack_params():
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(network().init, jax.random.key(0))
    return jax.tree.map(lambda x: jnp.float32(0.1 * rng.standard_normal(x.shape)), shapes)


def compiled(remat):
    """The gradient by the parameters of a weighted sum of the log-scores, with dropout."""
    model = network(remat)
    xt = jnp.asarray(np.random.default_rng(1).integers(0, 11, (2, 128)))

    def weighted(params):
        out = model.apply(params, xt, jnp.array([0.3, 2.0]), jax.random.key(5))
        return jnp.sum(out * jnp.cos(jnp.arange(out.size)).reshape(out.shape))

    return jit(jax.grad(weighted)).lower(stack_params()).compile()


def with_fused_attention(remat):
    """The program of the gradient, and the gradient."""
    with pytest.MonkeyPatch.context() as patch:
        fused = fused_rotary_attention(Placement())
        patch.setattr(trunk, "rotary_attention_for", lambda *_: fused)
        program = compiled(remat)
    return program.as_text(), program(stack_params())


@pytest.mark.slow
def test_products_keep_the_fused_attention_and_blocks_recompute_it():
    (kept, found), (recomputed, wanted) = map(with_fused_attention, ("products", "blocks"))
    assert "rematted_computation/rotary_attention/" not in kept
    assert "rematted_computation/rotary_attention/" in recomputed

    def same(found, wanted):
        np.testing.assert_allclose(found, wanted, atol=1e-5 * max(1, abs(wanted).max()))

    jax.tree.map(same, found, wanted)

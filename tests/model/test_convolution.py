"""The convolutional trunk against loops over positions, in float64."""

import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from sedd_jax.errors import BadInput
from sedd_jax.experiment.config import MeshConfig, default_config, parse
from sedd_jax.experiment.mesh import build_mesh, placement
from sedd_jax.model.config import ModelConfig, TransformerConfig
from sedd_jax.model.convolution import dilated_convolution
from sedd_jax.model.score_model import forward_flops, score_model, sigma_features
from sedd_jax.model.sharding import param_layouts, shardings

STATES, LENGTH, WIDTH, DILATIONS = 4, 14, 3, (1, 3)
CONFIG = TransformerConfig(
    ModelConfig(
        trunk="convolution",
        hidden_size=16,
        cond_dim=8,
        num_blocks=4,
        kernel_width=WIDTH,
        dilations="1,3",
        dropout=0.3,
        scale_by_sigma=False,
    ),
    num_states=STATES,
    dtype=jnp.dtype("float32"),
)
REACH = 2 * sum(DILATIONS)  # of four blocks
SIGMA = np.array([1e-3, 0.7, 6.9], np.float32)
MODEL = score_model(CONFIG)
apply = jax.jit(MODEL.apply)


@functools.cache
def random_params():
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: np.float32(0.3 * rng.standard_normal(x.shape)),
        jax.eval_shape(MODEL.init, jax.random.key(0)),
    )


def tokens(batch=3):
    return np.random.default_rng(1).integers(0, STATES, (batch, LENGTH))


def norm(x, scale):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * scale


def dense(layer, x):
    return np.tensordot(x, layer["kernel"], 1) + layer["bias"]


def silu(x):
    return x / (1 + np.exp(-x))


def gelu(x):
    return x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2


def by_loops(params, row, sigma):
    """The log-scores [L, V] of one row."""
    params = jax.tree.map(np.float64, params)
    cond = np.float64(sigma_features(jnp.array([sigma])))[0]
    cond = silu(dense(params["sigma"]["outer"], silu(dense(params["sigma"]["inner"], cond))))
    x = params["embedding"]["table"][row]
    for number in range(4):
        layer = jax.tree.map(lambda leaf, number=number: leaf[number], params["blocks"])
        shift, scale, gate = dense(layer["modulation"], cond)
        h = gelu(norm(x, layer["norm"]["scale"]) * (1 + scale) + shift)
        kernel, out = layer["convolution"]["kernel"], np.zeros_like(x)
        for i in range(len(row)):
            for tap in range(WIDTH):
                j = i + (tap - WIDTH // 2) * DILATIONS[number % 2]
                if 0 <= j < len(row):
                    out[i] += h[j] @ kernel[:, tap]
        x = x + gate * (out + layer["convolution"]["bias"])
    head = params["head"]
    shift, scale = dense(head["modulation"], cond)
    logits = dense(head, norm(x, head["norm"]["scale"]) * (1 + scale) + shift)[:, :STATES]
    return np.where(row[:, None] == np.arange(STATES), 0, logits)


def test_log_scores_are_those_of_loops_over_positions():
    found = np.asarray(apply(random_params(), tokens(), SIGMA))
    for row, sigma, each in zip(tokens(), SIGMA, found, strict=True):
        wanted = by_loops(random_params(), row, sigma)
        assert np.abs(wanted).max() > 0.5
        np.testing.assert_allclose(each, wanted, atol=2e-5)


def test_the_entry_at_the_current_token_is_exactly_zero():
    xt = tokens()
    at_xt = xt[..., None] == np.arange(STATES)
    found = np.asarray(apply(random_params(), xt, SIGMA))
    assert (found[at_xt] == 0).all() and (found[~at_xt] != 0).all()


def test_a_padded_row_is_the_row_alone():
    params, lengths = random_params(), np.array([LENGTH, 6, 1])
    padded = np.asarray(apply(params, tokens(), SIGMA, lengths=lengths))
    for row, sigma, length, each in zip(tokens(), SIGMA, lengths, padded, strict=True):
        np.testing.assert_allclose(each[:length], by_loops(params, row[:length], sigma), atol=2e-5)
    text = np.arange(LENGTH) < lengths[:, None]
    other = np.asarray(apply(params, np.where(text, tokens(), 0), SIGMA, lengths=lengths))
    np.testing.assert_array_equal(other[text], padded[text])


def test_a_position_sees_its_neighbourhood_and_nothing_else():
    xt = tokens(batch=2)
    moved = xt.copy()
    moved[0, 0] = (xt[0, 0] + 1) % STATES
    before, after = (np.asarray(apply(random_params(), x, SIGMA[:2])) for x in (xt, moved))
    seen = (np.abs(after - before) > 1e-7).any(-1)
    np.testing.assert_array_equal(seen[0], np.arange(LENGTH) <= REACH)
    assert not seen[1].any()


def test_the_streamed_score_is_that_of_apply():
    xt, params = jnp.asarray(tokens()), random_params()
    x0 = jnp.asarray(tokens()[::-1].copy())
    ratios = jax.jit(lambda *args: MODEL.score(*args).at(x0))(params, xt, jnp.asarray(SIGMA))
    log_score = np.asarray(apply(params, xt, SIGMA))
    wanted = np.take_along_axis(log_score, np.asarray(x0)[..., None], -1)[..., 0]
    np.testing.assert_allclose(np.log(ratios), wanted, atol=1e-5)


def test_dropout_differs_between_keys_and_between_layers_of_a_round():
    first, second = (
        np.asarray(apply(random_params(), tokens(), SIGMA, key=jax.random.key(i))) for i in (0, 1)
    )
    assert np.abs(first - second).max() > 1e-2
    model = score_model(changed(num_blocks=2, dropout=0.5))
    params = jax.tree.map(
        lambda x: np.zeros(x.shape, x.dtype), jax.eval_shape(model.init, jax.random.key(0))
    )
    params["blocks"]["convolution"]["bias"][:] = 1
    params["blocks"]["modulation"]["bias"][:, 2] = 1  # gates
    params["head"]["norm"]["scale"][:] = 1
    params["head"]["kernel"][:STATES] = np.eye(STATES, 128)
    found = jax.jit(model.apply)(
        params, jnp.asarray(tokens()), jnp.asarray(SIGMA), key=jax.random.key(0)
    )
    # two masks that differ leave 0, 2 or 4 in a row of 16; the norm makes few values of them
    assert len(np.unique(np.round(np.asarray(found)[0], 3))) > 3


def changed(**settings):
    return dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, **settings))


def test_products_in_bfloat16_stay_near():
    params = jax.tree.map(lambda x: x / 2, random_params())
    config = dataclasses.replace(CONFIG, dtype=jnp.dtype("bfloat16"))
    low = jax.jit(score_model(config).apply)(params, tokens(), SIGMA)
    assert low.dtype == jnp.float32
    assert 1e-5 < np.abs(low - apply(params, tokens(), SIGMA)).max() < 0.03


def products(jaxpr):
    """FLOPs of matrix products and convolutions, those of a scan's body once for every turn."""
    total = 0
    for eqn in jaxpr.eqns:
        out = eqn.outvars[0].aval
        if eqn.primitive.name == "dot_general":
            ((contracted, _), _) = eqn.params["dimension_numbers"]
            total += 2 * out.size * math.prod(eqn.invars[0].aval.shape[axis] for axis in contracted)
        if eqn.primitive.name == "conv_general_dilated":
            total += 2 * out.size * eqn.invars[1].aval.size // out.shape[-1]
        inner = [leaf for leaf in jax.tree.leaves(eqn.params, is_leaf=is_jaxpr) if is_jaxpr(leaf)]
        total += sum(map(products, inner)) * eqn.params.get("length", 1)
    return total


def is_jaxpr(leaf):
    return hasattr(leaf, "eqns")


def test_the_formula_counts_every_product_of_a_forward_pass():
    abstract = jax.eval_shape(MODEL.init, jax.random.key(0))
    program = jax.make_jaxpr(MODEL.apply)(abstract, tokens(1), SIGMA[:1])
    sizes = {"hidden_size": 16, "cond_dim": 8, "num_blocks": 4, "kernel_width": WIDTH}
    counted = forward_flops(**sizes, num_states=128, length=LENGTH)  # padded columns are computed
    assert products(program.jaxpr) == counted


def test_a_mesh_divides_kernels_and_changes_no_number():
    mesh = build_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    params = random_params()
    found = param_layouts(params, mesh)
    assert found["blocks/convolution/kernel"].spec == PartitionSpec(None, "fsdp", None, "tensor")
    assert found["blocks/convolution/bias"].spec == PartitionSpec(None, "tensor")
    sharded = jax.device_put(params, shardings(params, mesh))
    network = score_model(CONFIG, placement(mesh))
    xt, sigma = np.repeat(tokens(), 4, 0), np.repeat(SIGMA, 4)
    np.testing.assert_allclose(
        jax.jit(network.apply)(sharded, xt, sigma), apply(params, xt, sigma), atol=2e-5
    )


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("kernel_width", 4, "kernel_width must be odd, with as many positions on either side, got"),
        ("dilations", "1,0", "dilations must be whole numbers from 1 on with commas between them"),
        ("dilations", "1, 2", "as in 1,1,4,16, got '1, 2'"),
        ("num_blocks", 12, r"num_blocks \(12\) must be a multiple of the number of .*1,1,4,16,64"),
        ("trunk", "transformer", "dilations is for config.model.trunk=convolution: leave it at"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(setting, value, message):
    config = default_config()
    config.model.trunk, config.model.num_blocks = "convolution", 20
    config.model.num_heads = 7  # means nothing to it
    parse(config)
    if setting == "trunk":
        config.model.dilations, config.model.num_heads = "1,2", 12
    config.model[setting] = value
    with pytest.raises(BadInput, match=message):
        parse(config)


@pytest.mark.parametrize("dilation", [1, 5])  # with 5 the outer taps are outside for most positions
def test_derivatives_are_those_of_a_sum_over_taps(dilation):
    rng, shapes = np.random.default_rng(3), [(2, 14, 3), (5, 3, 4), (2, 14, 4)]

    def taps(x, kernel):
        reach = 2 * dilation
        padded = jnp.pad(x, ((0, 0), (reach, reach), (0, 0)))
        return sum(padded[:, k * dilation : k * dilation + 14] @ kernel[k] for k in range(5))

    with jax.enable_x64(True):
        x, kernel, dy = (jnp.asarray(rng.normal(size=shape)) for shape in shapes)
        value, pull = jax.vjp(lambda *at: dilated_convolution(*at, dilation), x, kernel)
        expected, pull_taps = jax.vjp(taps, x, kernel)
        np.testing.assert_allclose(value, expected, rtol=1e-12, atol=1e-12)
        for ours, theirs in zip(pull(dy), pull_taps(dy), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-12)


def test_on_a_cpu_all_convolutions_of_a_loop_have_the_order_of_axes_that_is_fast_there():
    def network(x, kernels):
        return jax.lax.scan(lambda x, k: (dilated_convolution(x, k, 2), None), x, kernels)[0].sum()

    shapes = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((2, 14, 8), (3, 5, 8, 8)))
    text = jax.jit(jax.grad(network, argnums=(0, 1))).lower(*shapes).compile().as_text()
    orders = re.findall(r"dim_labels=(\w+->\w+)", text)
    assert len(orders) == 3 and set(orders) == {"b0f_0io->b0f"}, orders

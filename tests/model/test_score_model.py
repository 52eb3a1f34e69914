import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sedd_jax.diffusion import graph as graphs
from sedd_jax.diffusion.score import DenseScore
from sedd_jax.diffusion.score_entropy import target
from sedd_jax.model.autoregressive import CausalModel
from sedd_jax.model.config import ModelConfig, TransformerConfig
from sedd_jax.model.context import Context
from sedd_jax.model.score_model import count_params, forward_flops, score_model

STATES = 131  # not a multiple of 128, and more than one
CONFIG = TransformerConfig(
    ModelConfig(hidden_size=16, cond_dim=8, num_blocks=2, num_heads=2, dropout=0.3, remat="none"),
    num_states=STATES,
    dtype=jnp.dtype("float32"),
)


def changed(**settings):
    return dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, **settings))


LOW = dataclasses.replace(CONFIG, dtype=jnp.dtype("bfloat16"))
SIGMA = np.array([1e-3, 0.7, 6.9], np.float32)
MODEL = score_model(CONFIG)
# Most of the time goes into compiling, so little of it goes into fast code.
jit = functools.partial(
    jax.jit,
    compiler_options={
        "xla_backend_optimization_level": 0,
        "xla_llvm_disable_expensive_passes": True,
    },
)
init, apply = jit(MODEL.init), jit(MODEL.apply)
apply_unscaled = jit(score_model(changed(scale_by_sigma=False)).apply)


@functools.cache
def initial():
    return init(jax.random.key(0))


@functools.cache
def random_params():
    """Weights none of which is zero, so that every path matters; padding included."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: np.float32(0.3 * rng.standard_normal(x.shape)),
        jax.eval_shape(MODEL.init, jax.random.key(0)),
    )


def tokens(batch=3, length=7):
    return jnp.asarray(np.random.default_rng(1).integers(0, STATES, (batch, length)))


def at_xt(xt):
    return np.asarray(xt)[..., None] == np.arange(STATES)


def test_parameters_are_float32_and_blocks_are_stacked():
    params = initial()
    assert set(params) == {"embedding", "sigma", "blocks", "head"}
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
    assert all(leaf.shape[0] == 2 for leaf in jax.tree.leaves(params["blocks"]))
    assert params["blocks"]["qkv"]["kernel"].shape == (2, 16, 3, 2, 8)
    assert params["embedding"]["table"].shape == (256, 16)
    assert params["head"]["kernel"].shape == (16, 256)
    low = jax.eval_shape(score_model(LOW).init, jax.random.key(0))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(low))
    assert count_params(params) == sum(np.size(leaf) for leaf in jax.tree.leaves(params))


def test_init_is_a_function_of_the_key_and_blocks_differ():
    params, again = initial(), init(jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, params, again)
    kernel = params["blocks"]["qkv"]["kernel"]
    other = init(jax.random.key(1))["blocks"]["qkv"]["kernel"]
    assert (kernel[0] != kernel[1]).all() and (kernel != other).mean() > 0.99


def test_output_and_modulation_start_at_zero():
    params = initial()
    for layer in (params["head"], params["head"]["modulation"], params["blocks"]["modulation"]):
        assert not layer["kernel"].any() and not layer["bias"].any()
    assert (params["blocks"]["attention_norm"]["scale"] == 1).all()


def test_scaled_output_starts_as_a_uniform_guess():
    xt = tokens()
    log_score = np.asarray(apply(initial(), xt, SIGMA))
    wanted = -np.log(np.expm1(np.float64(SIGMA))) - np.log(STATES - 1)
    wanted = np.where(at_xt(xt), 0, wanted[:, None, None])
    np.testing.assert_allclose(log_score, wanted, rtol=1e-6, atol=1e-6)


def test_unscaled_output_starts_at_zero():
    log_score = apply_unscaled(initial(), tokens(), jnp.asarray(SIGMA))
    assert log_score.shape == (3, 7, STATES) and not log_score.any()


def test_scaling_shifts_all_but_the_current_token():
    xt, params = tokens(), random_params()
    unscaled = np.asarray(apply_unscaled(params, xt, jnp.asarray(SIGMA)))
    shift = np.log(np.expm1(np.float64(SIGMA))) + np.log(STATES - 1)
    wanted = np.where(at_xt(xt), 0, unscaled - shift[:, None, None])
    np.testing.assert_allclose(apply(params, xt, SIGMA), wanted, atol=1e-5)


def test_a_network_is_told_which_tokens_are_given_by_a_table_that_starts_at_zero():
    told = score_model(dataclasses.replace(CONFIG, told_given=True))
    params = jit(told.init)(jax.random.key(0))
    assert not params.pop("given")["table"].any()
    jax.tree.map(np.testing.assert_array_equal, params, initial())  # the rest as without it
    apply_told = jit(told.apply)
    xt = tokens()
    given = Context(given=xt % 2 == 0)
    rows = {"table": jnp.stack([jnp.zeros(16), jnp.sin(jnp.arange(16.0))])}
    zero, one = (
        np.asarray(apply_told(random_params() | {"given": table}, xt, SIGMA, context=given))
        for table in (jax.tree.map(jnp.zeros_like, rows), rows)
    )
    np.testing.assert_array_equal(zero, apply(random_params(), xt, SIGMA))
    assert (zero != one).mean() > 0.9


def test_every_position_may_have_noise_of_its_own():
    xt, params = tokens(), random_params()
    sigma = jnp.broadcast_to(jnp.asarray(SIGMA)[:, None], xt.shape)
    np.testing.assert_allclose(
        apply(params, xt, sigma), apply(params, xt, jnp.asarray(SIGMA)), rtol=1e-4, atol=1e-4
    )
    # the streamed loss is that of all log-scores, which the noise of another position moves
    graph = graphs.absorbing(STATES - 1)
    sigma = sigma.at[:, 2].set(0.3)
    xt = xt.at[:, 1:].set(graph.mask_id)
    x0 = jnp.zeros_like(xt)

    def losses(params, xt, sigma):
        ratios = target(graph, sigma, xt, x0)
        dense = DenseScore(xt, MODEL.apply(params, xt, sigma))
        return [
            score.weighted_entropy(ratios, 1 + sigma)
            for score in (dense, MODEL.score(params, xt, sigma))
        ]

    dense, streamed = jit(losses)(params, xt, sigma)
    np.testing.assert_allclose(streamed, dense, rtol=1e-5)
    other, _ = jit(losses)(params, xt, sigma.at[:, 2].set(3.0))
    assert abs(other - dense) > 1e-3 * abs(dense)


def test_entry_at_the_current_token_is_exactly_zero():
    xt = tokens()
    log_score = np.asarray(apply(random_params(), xt, SIGMA))
    assert log_score.dtype == np.float32
    assert (log_score[at_xt(xt)] == 0).all()
    assert np.abs(log_score[~at_xt(xt)]).min() > 0


@functools.cache
def gradient_of(config):
    """The program of a gradient by all parameters, and its result."""

    def loss(params):
        return jnp.exp(score_model(config).apply(params, tokens(), jnp.asarray(SIGMA))).sum()

    program = jit(jax.grad(loss)).lower(random_params()).compile()
    return program.as_text(), program(random_params())


def test_padding_of_the_vocabulary_is_never_seen():
    params, xt = random_params(), tokens()
    moved = jax.tree.map(np.array, params)
    moved["embedding"]["table"][STATES:] += 100
    moved["head"]["kernel"][:, STATES:] += 100
    moved["head"]["bias"][STATES:] += 100
    np.testing.assert_array_equal(apply(moved, xt, SIGMA), apply(params, xt, SIGMA))

    grads = gradient_of(CONFIG)[1]
    head, table = grads["head"], np.asarray(grads["embedding"]["table"])
    assert not table[STATES:].any()
    assert not head["kernel"][:, STATES:].any() and not head["bias"][STATES:].any()
    assert np.asarray(head["kernel"])[:, :STATES].all() and np.asarray(head["bias"])[:STATES].all()
    np.testing.assert_array_equal(table.any(-1), np.isin(np.arange(256), xt))


def test_every_position_sees_every_position_of_its_own_row():
    batch, length = 2, 5
    xt = jnp.arange(batch * length).reshape(batch, length)  # a token for every position
    weights = np.random.default_rng(2).standard_normal(STATES).astype(np.float32)

    def outputs(table):
        params = random_params() | {"embedding": {"table": table}}
        return MODEL.apply(params, xt, jnp.asarray(SIGMA[:batch])) @ weights

    slopes = jit(jax.jacrev(outputs))(random_params()["embedding"]["table"])
    depends = np.abs(slopes[:, :, : batch * length]).max(-1).reshape(batch, length, batch, length)
    for row in range(batch):
        assert (depends[row, :, row] > 1e-4).all()
        assert (depends[row, :, 1 - row] == 0).all()


def test_length_and_batch_are_not_fixed():
    params, xt = random_params(), tokens(3, 12)
    long = apply(params, xt, SIGMA)
    assert long.shape == (3, 12, STATES)
    short = apply(params, xt[:, :7], SIGMA)
    assert np.isfinite(short).all()
    # The rest of the sequence is context: the same tokens alone score differently.
    assert np.abs(long[:, :7] - short).max() > 1e-3
    one = apply(params, xt[1:2], SIGMA[1:2])
    np.testing.assert_allclose(one[0], long[1], atol=2e-5)


def test_a_padded_row_is_the_row_alone():
    params, xt, lengths = random_params(), tokens(), jnp.array([7, 4, 1])
    padded = np.asarray(apply(params, xt, SIGMA, lengths=lengths))
    for row, length in enumerate(lengths.tolist()):
        one = slice(row, row + 1)
        alone = apply(params, xt[one, :length], SIGMA[one])
        np.testing.assert_allclose(padded[one, :length], alone, atol=2e-5)
    text = np.arange(7) < np.array(lengths)[:, None]
    other = apply(params, jnp.where(text, xt, 5), SIGMA, lengths=lengths)
    np.testing.assert_array_equal(np.asarray(other)[text], padded[text])


def test_dropout_is_a_function_of_the_key():
    params, xt = random_params(), tokens()
    first, second = jax.random.split(jax.random.key(0))
    without = np.asarray(apply(params, xt, SIGMA))
    dropped = np.asarray(apply(params, xt, SIGMA, key=first))
    np.testing.assert_array_equal(apply(params, xt, SIGMA, key=first), dropped)
    assert np.abs(apply(params, xt, SIGMA, key=second) - dropped).max() > 1e-2
    assert np.abs(without - dropped).max() > 1e-2
    np.testing.assert_array_equal(apply(params, xt, SIGMA), without)
    rate_zero = score_model(changed(dropout=0.0))
    np.testing.assert_array_equal(jit(rate_zero.apply)(params, xt, SIGMA), without)


def test_dropout_differs_between_blocks_and_branches():
    """Every branch adds 1 everywhere to a stream that starts at 0: the sum counts survivors."""
    model = score_model(changed(num_blocks=2, dropout=0.5, scale_by_sigma=False))
    abstract = jax.eval_shape(model.init, jax.random.key(0))
    params = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), abstract)
    blocks, head = params["blocks"], params["head"]
    blocks["qkv"]["kernel"][:] = blocks["attention_out"]["kernel"][:] = 1 / 16
    blocks["mlp_out"]["bias"][:] = 1
    shift_attention, gate_attention, gate_mlp = 0, 2, 5
    blocks["modulation"]["bias"][:, [shift_attention, gate_attention, gate_mlp]] = 1
    head["norm"]["scale"][:] = 1
    head["kernel"][:] = np.eye(16, 256)
    xt = jnp.full((1, 40), STATES - 1)
    out = jit(model.apply)(params, xt, np.ones(1, np.float32), key=jax.random.key(0))
    survivors = max(len(np.unique(np.round(row, 3))) for row in np.asarray(out)[0, :, :16])
    # Four masks that differ leave 0, 2, 4, 6 or 8; if two are the same, fewer sums can occur.
    assert survivors == 5


def test_bfloat16_stays_near_float32():
    params = jax.tree.map(lambda x: x / 2, random_params())  # entries of order 1
    low = jit(score_model(LOW).apply)(params, tokens(), SIGMA)
    exact = apply(params, tokens(), SIGMA)
    assert low.dtype == jnp.float32 and np.isfinite(low).all()
    error = np.abs(low - exact).max()
    assert 1e-5 < error < 0.03  # some 2^-8 of entries of order 1; less would not be bfloat16


@pytest.mark.parametrize("with_key", [False, True])
def test_program_does_not_grow_with_depth(with_key):
    sizes = {}
    for num_blocks in (3, 12):  # not 2: its split of the key is shared with that within a block
        model = score_model(changed(num_blocks=num_blocks))
        params = jax.eval_shape(model.init, jax.random.key(0))
        key = jax.random.key(0) if with_key else None
        lowered = jax.jit(model.apply).lower(params, tokens(), jnp.asarray(SIGMA), key=key)
        sizes[num_blocks] = len(lowered.as_text())
    assert sizes[3] > 5_000
    assert abs(sizes[12] - sizes[3]) < 0.01 * sizes[3]


def test_unrolled_blocks_are_the_same_and_still_recompute():
    kept, recomputed = (
        gradient_of(dataclasses.replace(changed(remat=remat), unroll=True))
        for remat in ("products", "blocks")
    )
    # or XLA keeps what "blocks" is there to save
    more = recomputed[0].count(" dot(") - kept[0].count(" dot(")
    assert more >= 3 * CONFIG.model.num_blocks
    _, wanted = gradient_of(CONFIG)  # of a loop that keeps everything

    def same(found, wanted):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5 * np.abs(wanted).max())

    for _, found in (kept, recomputed):
        jax.tree.map(same, found, wanted)


def test_only_learned_positions_tell_equal_tokens_apart():
    masks = jnp.full((3, 7), STATES - 1)

    def spread(apply, params):
        """How far the answers at the masks of a row are apart."""
        answers = apply(params, masks, jnp.ones(3))[0]
        return float(jnp.abs(answers - answers[:1]).max())

    params = random_params()
    assert spread(apply_unscaled, params) < 1e-4
    learned = score_model(dataclasses.replace(changed(scale_by_sigma=False), max_length=7))
    positions = np.random.default_rng(3).standard_normal((7, 16)).astype(np.float32)
    embedding = params["embedding"] | {"positions": positions}
    assert spread(jit(learned.apply), params | {"embedding": embedding}) > 0.1


LENGTH = 24
SIZES = {"hidden_size": 48, "num_blocks": 3}
FLOPS = functools.partial(forward_flops, **SIZES, num_states=128, length=LENGTH)


def jaxprs_in(eqn):
    """The jaxprs among the parameters of an equation, as of a scan or a jitted function."""
    leaves = jax.tree.leaves(eqn.params, is_leaf=lambda x: hasattr(x, "eqns"))
    return [leaf for leaf in leaves if hasattr(leaf, "eqns")]


def product_flops(jaxpr):
    """FLOPs of the matrix products of a jaxpr, those of a scan's body once for every turn."""
    total = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            ((contracted, _), _) = eqn.params["dimension_numbers"]
            depth = math.prod(eqn.invars[0].aval.shape[axis] for axis in contracted)
            total += 2 * depth * eqn.outvars[0].aval.size
        assert eqn.primitive.name != "while", "the number of turns is not known"
        inner = sum(map(product_flops, jaxprs_in(eqn)))
        total += inner * eqn.params.get("length", 1) if eqn.primitive.name == "scan" else inner
    return total


def sizes(max_length=None):
    # as many states as columns: no padding to count
    model = ModelConfig(**SIZES, cond_dim=16, num_heads=4, remat="none")
    return TransformerConfig(model, 128, jnp.dtype("float32"), max_length)


@pytest.fixture(scope="module")
def network():
    model = score_model(sizes())
    return model, jax.eval_shape(model.init, jax.random.key(0))


def counted(answered):
    return FLOPS(cond_dim=16, head_share=answered)


def inputs(rows):
    return jnp.zeros((rows, LENGTH), jnp.int32), jnp.ones(rows)


@pytest.mark.parametrize("rows", [1, 2])
def test_the_formula_counts_every_product_of_a_forward_pass(network, rows):
    model, params = network
    program = jax.make_jaxpr(model.apply)(params, *inputs(rows))
    assert product_flops(program.jaxpr) == rows * counted(1.0)


def test_a_backward_pass_costs_two_forward_passes(network):
    model, params = network

    def loss(params, xt, sigma):
        return model.apply(params, xt, sigma).sum()

    program = jax.make_jaxpr(jax.grad(loss))(params, *inputs(2))
    # but for the gradient by the features of sigma, which nothing asks for
    assert product_flops(program.jaxpr) == pytest.approx(3 * 2 * counted(1.0), rel=0.01)


def test_the_head_costs_what_it_answers():
    assert counted(1.0) - counted(0.25) == 0.75 * 2 * LENGTH * 48 * 128


def test_the_causal_network_is_one_without_a_condition():
    model = CausalModel(sizes(LENGTH))
    params = jax.eval_shape(model.init, jax.random.key(0))
    program = jax.make_jaxpr(model.apply)(params, inputs(2)[0])
    assert product_flops(program.jaxpr) == 2 * FLOPS(cond_dim=0)

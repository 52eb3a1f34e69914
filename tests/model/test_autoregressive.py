"""The autoregressive network against formulas written out, on one device and on meshes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf, log_softmax, softmax

from sedd_jax.experiment import mesh as meshes
from sedd_jax.experiment.config import MeshConfig
from sedd_jax.model import autoregressive
from sedd_jax.model.autoregressive import CausalModel
from sedd_jax.model.config import ModelConfig, TransformerConfig
from sedd_jax.model.sharding import shardings

STATES, POSITIONS = 131, 12  # more than 128: the table has padding, and parts all of padding
CONFIG = TransformerConfig(
    ModelConfig(hidden_size=16, num_blocks=2, num_heads=4, dropout=0.3, remat="none"),
    num_states=STATES,
    dtype=jnp.dtype("float32"),
    max_length=POSITIONS,
)
MODEL = CausalModel(CONFIG)


def changed(**settings):
    return dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, **settings))


@functools.cache
def random_params():
    """Weights none of which is zero, so that every path matters; padding included."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: jnp.asarray(0.3 * rng.standard_normal(x.shape), jnp.float32),
        jax.eval_shape(MODEL.init, jax.random.key(0)),
    )


def tokens(batch=3, length=7):
    return jnp.asarray(np.random.default_rng(1).integers(0, STATES, (batch, length)), jnp.int32)


def norm(x, layer):
    centred = x - x.mean(-1, keepdims=True)
    return (
        centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * layer["scale"]
        + layer["bias"]
    )


def gelu(x):
    """The tanh approximation, written with exp."""
    return x / (1 + np.exp(-2 * np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def written_out(params, row):
    """GPT-2 for one row [L] in float64 numpy: logits [L, V]."""
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    table = params["embedding"]["table"][:STATES]
    x = table[row] + params["embedding"]["positions"][: len(row)]
    for i in range(CONFIG.model.num_blocks):
        block = jax.tree.map(lambda leaf, i=i: leaf[i], params["blocks"])
        h = norm(x, block["attention_norm"])
        qkv = np.einsum("ld,dchk->clhk", h, block["qkv"]["kernel"]) + block["qkv"]["bias"][:, None]
        logits = np.einsum("qhk,shk->hqs", qkv[0], qkv[1]) / np.sqrt(qkv.shape[-1])
        logits = np.where(np.tri(len(row), dtype=bool), logits, -np.inf)
        attended = np.einsum("hqs,shk->qhk", softmax(logits, -1), qkv[2])
        out = block["attention_out"]
        x = x + np.einsum("lhk,hkd->ld", attended, out["kernel"]) + out["bias"]
        h = norm(x, block["mlp_norm"]) @ block["mlp_in"]["kernel"] + block["mlp_in"]["bias"]
        x = x + gelu(h) @ block["mlp_out"]["kernel"] + block["mlp_out"]["bias"]
    return norm(x, params["head"]["norm"]) @ table.T


def test_the_gelu_above_is_near_the_exact_one():
    x = np.linspace(-3, 3, 13)
    np.testing.assert_allclose(gelu(x), x * (1 + erf(x / np.sqrt(2))) / 2, atol=1e-3)


def test_logits_are_those_of_the_formulas():
    logits = jax.jit(MODEL.apply)(random_params(), tokens())
    assert logits.shape == (3, 7, STATES) and logits.dtype == jnp.float32
    for row, found in zip(np.asarray(tokens()), logits, strict=True):
        np.testing.assert_allclose(found, written_out(random_params(), row), rtol=1e-5, atol=1e-5)


def dense_nll(params, x0, key=None):
    """By the outputs written out: the sequence, shifted right behind the start token."""
    before = jnp.concatenate([jnp.full((len(x0), 1), STATES - 1), x0[:, :-1]], axis=1)
    log_probs = jax.nn.log_softmax(MODEL.apply(params, before, key=key))
    return -jnp.take_along_axis(log_probs, x0[..., None], -1)[..., 0].sum(-1)


def loss_and_gradients(nll, params, x0, **shardings):
    """Of a weighted mean: sequences must not be mixed up."""
    weights = jnp.arange(1.0, len(x0) + 1)

    def loss(params, x0):
        nats = nll(params, x0)
        return (weights * nats).sum(), nats

    return jax.jit(jax.grad(loss, has_aux=True), **shardings)(params, x0)


def assert_same(found, wanted):
    for got, expected in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-5 * np.abs(expected).max())


def test_every_token_is_scored_the_first_after_the_start():
    assert MODEL.start == STATES - 1
    row = np.asarray(tokens())[0]
    logits = written_out(random_params(), np.array([STATES - 1, *row[:-1]]))
    wanted = -sum(log_softmax(logits, -1)[i, token] for i, token in enumerate(row))
    found = jax.jit(MODEL.nll)(random_params(), tokens()[:1])
    np.testing.assert_allclose(found, [wanted], rtol=1e-5)


def test_tokens_are_scored_one_by_one_after_any_others():
    row, following = np.asarray(tokens())[0], np.asarray(tokens())[1]
    logits = log_softmax(written_out(random_params(), row), -1)
    wanted = -logits[np.arange(len(row)), following]
    found = jax.jit(MODEL.token_nll)(random_params(), tokens()[:1], tokens()[1:2])
    np.testing.assert_allclose(found, [wanted], rtol=2e-5)


def test_features_project_to_the_logits_of_their_position():
    last = jnp.array([6, 0, 3])
    features = jax.jit(MODEL.features)(random_params(), tokens(), last)
    logits = jax.jit(MODEL.apply)(random_params(), tokens())[jnp.arange(3), last]
    table = random_params()["embedding"]["table"][:STATES]
    np.testing.assert_allclose(features @ table.T, logits, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def dense():
    return loss_and_gradients(dense_nll, random_params(), tokens(8, 9))


def test_likelihood_and_gradients_are_those_of_the_dense_formula(dense, monkeypatch):
    monkeypatch.setattr(autoregressive, "ROWS", 5)  # the last part is filled up
    assert_same(loss_and_gradients(MODEL.nll, random_params(), tokens(8, 9)), dense)
    padding = dense[0]["embedding"]["table"][STATES:]
    assert padding.size and not np.any(padding)


@pytest.mark.parametrize(
    "sizes",
    [
        pytest.param(MeshConfig(data=2, fsdp=2, tensor=2), id="mixed"),
        pytest.param(MeshConfig(), id="data", marks=pytest.mark.slow),
        pytest.param(MeshConfig(data=1, fsdp=8), id="fsdp", marks=pytest.mark.slow),
        pytest.param(MeshConfig(data=2, tensor=4), id="tensor", marks=pytest.mark.slow),
    ],
)
def test_likelihood_and_gradients_do_not_depend_on_the_mesh(dense, sizes, monkeypatch):
    monkeypatch.setattr(autoregressive, "ROWS", 4)
    mesh = meshes.build_mesh(sizes)
    model = CausalModel(changed(remat="blocks"), meshes.placement(mesh))
    layout = shardings(random_params(), mesh)
    rows = meshes.over_batch(mesh)
    params = jax.device_put(random_params(), layout)
    found = loss_and_gradients(
        model.nll, params, tokens(8, 9), in_shardings=(layout, rows), out_shardings=(layout, rows)
    )
    assert_same(found, dense)


@pytest.mark.slow
def test_a_batch_that_the_mesh_does_not_divide_is_whole_on_every_device():
    mesh = meshes.build_mesh(MeshConfig(data=4, tensor=2))
    model = CausalModel(CONFIG, meshes.placement(mesh))
    found = jax.jit(model.nll)(random_params(), tokens())
    np.testing.assert_allclose(found, jax.jit(dense_nll)(random_params(), tokens()), rtol=1e-5)


def test_the_cache_gives_what_the_whole_sequence_gives():
    params, x = random_params(), tokens()
    wanted = jax.jit(MODEL.apply)(params, x)
    cache, decode = MODEL.empty_cache(3, 10), jax.jit(MODEL.decode)  # longer than what is read
    for position in range(x.shape[1]):
        logits, cache = decode(params, cache, x[:, position], jnp.int32(position))
        np.testing.assert_allclose(logits, wanted[:, position], rtol=1e-5, atol=1e-5)


def test_no_position_sees_a_later_one():
    other = tokens().at[:, 4].add(1) % STATES
    one, other = (jax.jit(MODEL.apply)(random_params(), x) for x in (tokens(), other))
    np.testing.assert_array_equal(one[:, :4], other[:, :4])
    assert (np.abs(one - other)[:, 4:].max(-1) > 1e-4).all()


def test_dropout_is_a_function_of_the_key():
    params, x = random_params(), tokens()
    nll = jax.jit(MODEL.nll)
    first, second = (nll(params, x, key=key) for key in jax.random.split(jax.random.key(0)))
    np.testing.assert_array_equal(first, nll(params, x, key=jax.random.split(jax.random.key(0))[0]))
    assert np.abs(first - second).min() > 1e-2
    # none where no key is given: then it is the dense formula, as above
    still = CausalModel(changed(dropout=0.0))
    np.testing.assert_array_equal(
        jax.jit(still.nll)(params, x, key=jax.random.key(0)), jax.jit(MODEL.nll)(params, x)
    )


def test_the_start_is_gpt_2_s():
    wide = changed(hidden_size=64, num_blocks=8)
    params = jax.jit(CausalModel(wide).init)(jax.random.key(0))
    assert not any(np.any(params["blocks"][name]["bias"]) for name in ("qkv", "mlp_in", "mlp_out"))
    assert (params["blocks"]["mlp_norm"]["scale"] == 1).all()
    for leaf in (*params["embedding"].values(), params["blocks"]["qkv"]["kernel"]):
        assert np.std(leaf) == pytest.approx(0.02, rel=0.05)
    for name in ("attention_out", "mlp_out"):
        assert np.std(params["blocks"][name]["kernel"]) == pytest.approx(0.02 / 4, rel=0.05)
    blocks = params["blocks"]["mlp_in"]["kernel"]
    assert np.abs(np.corrcoef(blocks[0].ravel(), blocks[1].ravel())[0, 1]) < 0.05


def test_bfloat16_stays_near_float32(dense):
    low = CausalModel(dataclasses.replace(CONFIG, dtype=jnp.dtype("bfloat16")))
    found = jax.jit(low.nll)(random_params(), tokens(8, 9))
    error = np.abs(found - dense[1]).max()
    assert found.dtype == jnp.float32
    assert 1e-4 < error < 0.5  # of 9 tokens: some 2^-8 of logits of order 4
    gradients = jax.eval_shape(jax.grad(lambda p: low.nll(p, tokens()).sum()), random_params())
    assert {leaf.dtype for leaf in jax.tree.leaves(gradients)} == {jnp.dtype("float32")}


def test_more_positions_than_learned_are_refused():
    with pytest.raises(ValueError, match="has learned 12 positions, got 13"):
        MODEL.apply(random_params(), tokens(1, 13))
    with pytest.raises(ValueError, match="has learned 12 positions, got 13"):
        MODEL.empty_cache(1, 13)


def test_padding_at_the_end_is_not_scored():
    nll, lengths = jax.jit(MODEL.nll), jnp.array([7, 4, 1], jnp.int32)
    padded = nll(random_params(), tokens(), lengths=lengths)
    for row, length in enumerate(lengths.tolist()):
        alone = nll(random_params(), tokens()[row : row + 1, :length])
        np.testing.assert_allclose(padded[row : row + 1], alone, rtol=1e-5)
    other = jnp.where(jnp.arange(7)[None] < lengths[:, None], tokens(), 5)
    np.testing.assert_array_equal(nll(random_params(), other, lengths=lengths), padded)

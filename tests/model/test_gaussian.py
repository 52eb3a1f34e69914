"""The network of Gaussian diffusion against formulas written out, on one device and on a mesh."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sedd_jax.experiment import mesh as meshes
from sedd_jax.experiment.config import MeshConfig
from sedd_jax.inference.build import build_family
from sedd_jax.inference.gaussian import NoiseDraw, sequence_bound
from sedd_jax.model import gaussian
from sedd_jax.model.sharding import shardings

V, LENGTH, E = 11, 6, 16
KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def config(smoke_config):
    sizes = {"hidden_size": 16, "num_blocks": 1, "dropout": 0.0, "attention": "xla"}
    model = dataclasses.replace(smoke_config.model, length=LENGTH, **sizes)
    return dataclasses.replace(smoke_config, family="gaussian", model=model)


@pytest.fixture(scope="module")
def model(config):
    return build_family(config, V).model


@pytest.fixture(scope="module")
def params(model):
    """Random weights, of everything: those of a new network are 0 in part."""
    rng = np.random.default_rng(0)
    found = jax.tree.map(
        lambda x: jnp.asarray(0.5 * rng.standard_normal(x.shape), jnp.float32),
        jax.eval_shape(model.init, KEY),
    )
    schedule = found["schedule"] | {"ends": jnp.array([-3.0, 4.0])}
    found["schedule"] = jax.tree.map(lambda x: x / gaussian.FASTER, schedule)
    return found


def noisy(batch):
    gamma = jnp.linspace(-2.0, 3.0, batch)
    return jax.random.normal(KEY, (batch, LENGTH, E)), gamma


def test_the_schedule_rises_from_0_to_1_at_its_stated_rate(model, params):
    t = np.linspace(0, 1, 2001).astype(np.float32)
    wild = params | {"schedule": jax.tree.map(lambda x: 4 * x, params["schedule"])}
    for each in (params, wild):
        level, rate = jax.jit(model.levels)(each, t)
        np.testing.assert_allclose((level[0], level[-1]), (0, 1), atol=1e-5)
        assert (rate > 0).all() and (np.diff(level) > 0).all()
        between = np.diff(level) / np.diff(t)
        np.testing.assert_allclose((rate[1:] + rate[:-1]) / 2, between, rtol=0.02)


def dense(model, params, z, gamma):
    """The distribution of every token given z, materialised."""
    head, hidden = model._body(params, z, gamma, None, None)
    logits = (hidden @ head.kernel[...] + head.bias[...][None, None])[..., :V]
    table = params["embedding"]["table"][:V]
    table = table / jnp.linalg.norm(table, axis=-1, keepdims=True)
    snr = jnp.exp(-gamma)
    a, variance = jnp.sqrt(snr / (1 + snr)), 1 / (1 + snr)
    seen = (a / variance)[:, None, None] * z @ table.T
    return jax.nn.softmax(logits + seen), jax.nn.softmax(seen), table


@pytest.mark.slow
def test_blocks_of_rows_give_what_the_whole_gives_with_its_gradient(model, params, monkeypatch):
    monkeypatch.setattr(gaussian, "ROWS", 5)  # the last block is filled up
    (z, gamma), tokens = noisy(3), jax.random.randint(KEY, (3, LENGTH), 0, V)
    weight = jax.random.normal(jax.random.key(1), z.shape)

    def streamed(params, z):
        nll = model.token_nll(params, z, gamma, tokens)
        return (weight * model.denoised(params, z, gamma)).sum() + nll.sum()

    def whole(params, z):
        given, own, table = dense(model, params, z, gamma)
        nll = -jnp.log(jnp.take_along_axis(own, tokens[..., None], -1))
        return (weight * (given @ table)).sum() + nll.sum()

    value, grads = jax.jit(jax.value_and_grad(streamed, (0, 1)))(params, z)
    wanted, of_whole = jax.jit(jax.value_and_grad(whole, (0, 1)))(params, z)
    np.testing.assert_allclose(value, wanted, rtol=1e-5)
    chex.assert_trees_all_close(grads, of_whole, rtol=1e-3, atol=1e-3)


def test_tokens_are_drawn_from_the_distribution_that_is_scored(model, params):
    count = 4000
    z = jnp.broadcast_to(jax.random.normal(KEY, (1, 1, E)), (count, 1, E))
    gamma = jnp.full(count, 0.5)
    keys = jax.random.split(KEY, count)
    drawn = np.bincount(model.draw(params, keys, z, gamma)[:, 0], minlength=V) / count
    every = jnp.arange(V)[:, None]
    probs = np.exp(-model.token_nll(params, z[:V], gamma[:V], every))[:, 0]
    np.testing.assert_allclose(probs.sum(), 1, rtol=1e-5)
    assert np.abs(drawn - probs).sum() / 2 < 0.03


@pytest.mark.parametrize(
    "sizes", [{"fsdp": 2, "tensor": 2}, pytest.param({"fsdp": 4}, marks=pytest.mark.slow)]
)
def test_a_mesh_gives_the_loss_and_gradient_of_one_device(config, model, params, sizes):
    mesh = meshes.build_mesh(MeshConfig(**sizes))
    placed = build_family(config, V, meshes.placement(mesh)).model
    x0 = jax.random.randint(KEY, (8, LENGTH), 0, V)
    eps, first = jax.random.normal(KEY, (2, 8, LENGTH, E))
    noise = NoiseDraw(jnp.linspace(0.05, 0.95, 8), eps, first)

    def step(model):
        return jax.value_and_grad(lambda params: sequence_bound(model, params, noise, x0).mean())

    one = jax.jit(step(model))(params)
    sharded = jax.device_put(params, shardings(params, mesh))
    several = jax.jit(step(placed))(sharded)
    np.testing.assert_allclose(several[0], one[0], rtol=1e-5)
    chex.assert_trees_all_close(several[1], one[1], rtol=2e-3, atol=2e-3)

"""One training step, whatever the mesh: the same loss and gradients as on one device."""

import dataclasses

import chex
import jax
import numpy as np
import pytest

from sedd_jax.experiment import mesh as sharding
from sedd_jax.experiment.build import build_components
from sedd_jax.experiment.config import MeshConfig
from sedd_jax.experiment.state import run_keys
from sedd_jax.model.sharding import layouts
from sedd_jax.training.compile import build_programs

VOCAB_SIZE, LENGTH = 257, 32
pytestmark = pytest.mark.usefixtures("quick_compilation")

MIXED = MeshConfig(slice=2, data=1, fsdp=2, tensor=2)
# the mixed mesh has every axis but data, which the tests of the step have
MESHES = [
    pytest.param(MIXED, id="slice x fsdp x tensor"),
    pytest.param(MeshConfig(), id="data", marks=pytest.mark.slow),
    pytest.param(MeshConfig(data=1, fsdp=8), id="fsdp", marks=pytest.mark.slow),
    pytest.param(MeshConfig(data=2, tensor=4), id="data x tensor", marks=pytest.mark.slow),
]


@pytest.fixture(scope="module")
def config(smoke_config):
    model = dataclasses.replace(smoke_config.model, num_heads=4)
    train = dataclasses.replace(smoke_config.train, batch_size=16, microbatches=2)
    return dataclasses.replace(smoke_config, model=model, train=train)


def opened(params):
    """Parameters at which everything has a gradient: gates and head start at zero."""
    key = jax.random.key(5)
    return jax.tree.map(lambda x: x + 0.1 * jax.random.normal(key, x.shape, x.dtype), params)


def first_step(config, mesh):
    """The metrics of a step, and what it made of the gradients: AdamW's first averages."""
    components = build_components(config, VOCAB_SIZE, sharding.placement(mesh))
    keys = run_keys(config.seed)
    programs = build_programs(components, config, keys, mesh)
    state = programs.init(keys.init)
    placed = jax.tree.map(lambda x: x.sharding, state.params)
    state = state._replace(params=jax.jit(opened, out_shardings=placed)(state.params))
    rows = np.random.default_rng(0).integers(0, VOCAB_SIZE, (16, LENGTH)).astype(np.int32)
    after, metrics = programs.train_step(state, sharding.global_batch(rows, 16, mesh))
    return after, jax.device_get((metrics, after.opt_state[1][0].mu))


@pytest.fixture(scope="module")
def of_one_device(config):
    return first_step(config, sharding.build_mesh(devices=jax.devices()[:1]))[1]


@pytest.mark.parametrize("sizes", MESHES)
def test_loss_and_gradients_do_not_depend_on_the_mesh(config, of_one_device, sizes):
    mesh = sharding.build_mesh(sizes)
    state, found = first_step(config, mesh)
    assert found[0]["skipped"] == 0
    for got, wanted in zip(jax.tree.leaves(found), jax.tree.leaves(of_one_device), strict=True):
        scale = np.abs(wanted).max()
        assert np.abs(got - wanted).max() <= 1e-5 * scale
    assert min(np.abs(x).max() for x in jax.tree.leaves(of_one_device[1])) > 0
    # and the state lies as the table says
    for leaf, found in zip(jax.tree.leaves(state), layouts(state, mesh).values(), strict=True):
        wanted = jax.sharding.NamedSharding(mesh, found.spec)
        assert leaf.sharding.is_equivalent_to(wanted, leaf.ndim)


def test_the_first_state_is_made_in_parts_and_the_same_on_every_mesh(config):
    keys, states = run_keys(config.seed), []
    for mesh in (
        sharding.build_mesh(devices=jax.devices()[:1]),
        sharding.build_mesh(MeshConfig(data=1, fsdp=8)),
    ):
        components = build_components(config, VOCAB_SIZE, sharding.placement(mesh))
        programs = build_programs(components, config, keys, mesh)
        init = programs.init.lower(keys.init).compile()
        state = init(keys.init)
        states.append(jax.device_get(state))
    chex.assert_trees_all_equal(*states)
    memory = init.memory_analysis()
    leaves = jax.tree.leaves(state)
    here = sum(leaf.addressable_shards[0].data.nbytes for leaf in leaves)
    all_bytes = sum(leaf.nbytes for leaf in leaves)
    assert here < all_bytes / 4  # of so small a network much is norms and biases
    # what it holds in between is no more than one more set of parts
    assert memory.output_size_in_bytes <= 1.02 * here
    assert memory.temp_size_in_bytes < here

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from sedd_jax.experiment.config import MeshConfig
from sedd_jax.experiment.mesh import build_mesh
from sedd_jax.experiment.state import run_keys
from sedd_jax.inference.build import build_family
from sedd_jax.model.sharding import (
    ANYWHERE,
    Placement,
    all_gathered,
    param_layout,
    param_layouts,
    shardings,
)
from sedd_jax.training.step import init_state


@pytest.fixture(scope="module")
def mesh():
    return build_mesh(MeshConfig(fsdp=2, tensor=4))


def state_of(config):
    components = build_family(config, 257)
    return jax.eval_shape(lambda: init_state(run_keys(0).init, components, config.optim))


@pytest.fixture(scope="module")
def state(smoke_config):
    return state_of(smoke_config)


def test_every_array_of_the_state_has_a_rule(state, mesh):
    found = param_layouts(state, mesh)
    assert len(found) == len(jax.tree.leaves(state))
    for part in ("opt_state/1/0/mu", "opt_state/1/0/nu", "ema_params"):
        for path in param_layouts(state.params, mesh, "params/"):
            there = path.replace("params", part, 1)
            assert found[there].spec == found[path].spec, there


def test_what_the_table_says(state, mesh):
    found = param_layouts(state.params, mesh)
    assert found["embedding/table"].spec == PartitionSpec("tensor", "fsdp")
    assert found["head/kernel"].spec == PartitionSpec("fsdp", "tensor")
    assert found["blocks/mlp_in/kernel"].spec == PartitionSpec(None, "fsdp", "tensor")
    assert found["blocks/mlp_out/kernel"].spec == PartitionSpec(None, "tensor", "fsdp")
    assert found["blocks/mlp_norm/scale"].spec == PartitionSpec(None, None)
    # two heads over four devices: the axis is not split, and the reason names it
    assert found["blocks/qkv/kernel"].spec == PartitionSpec(None, "fsdp", None, None, None)
    assert found["blocks/qkv/kernel"].unsharded_reasons == (
        "its axis of 2 is no multiple of tensor=4",
    )
    assert found["blocks/mlp_in/kernel"].unsharded_reasons == ()


def test_biases_of_the_baseline_lie_with_what_they_are_added_to(smoke_config):
    mesh = build_mesh(MeshConfig(fsdp=4, tensor=2))
    config = dataclasses.replace(smoke_config, family="autoregressive")
    found = param_layouts(state_of(config).params, mesh)
    assert found["blocks/qkv/kernel"].spec == PartitionSpec(None, "fsdp", None, "tensor", None)
    assert found["blocks/qkv/bias"].spec == PartitionSpec(None, None, "tensor", None)
    assert found["embedding/positions"].spec == PartitionSpec(None, "fsdp")
    assert not any(found["blocks/attention_out/bias"].spec)
    assert not any(found["head/norm/bias"].spec)


def test_a_slice_of_a_stack_lies_like_the_stack(mesh):
    stack = param_layout("blocks/mlp_in/kernel", (7, 32, 128), mesh)
    one = param_layout("blocks/mlp_in/kernel", (32, 128), mesh)
    assert stack.spec == PartitionSpec(None, *one.spec)


def test_an_unknown_parameter_is_an_error(mesh):
    with pytest.raises(KeyError, match="no rule for params/blocks/gate/kernel"):
        param_layout("params/blocks/gate/kernel", (4, 4), mesh)
    with pytest.raises(KeyError):  # an end of a path, not of a name
        param_layout("params/overhead/kernel", (4, 4), mesh)


def test_bytes_of_a_device(mesh):
    tree = {
        "embedding": {"table": jnp.zeros((128, 6))},  # in eight parts
        "head": {"norm": {"scale": jnp.zeros(6)}},  # whole
        "blocks": {"mlp_out": {"kernel": jnp.zeros((2, 4, 3), jnp.bfloat16)}},  # 3: tensor only
    }
    placed = jax.tree.leaves(jax.device_put(tree, shardings(tree, mesh)))
    held = sum(leaf.addressable_shards[0].data.nbytes for leaf in placed)
    assert held == 128 * 6 * 4 // 8 + 6 * 4 + 2 * 4 * 3 * 2 // 4


def test_gathered_is_whole_along_fsdp_alone(mesh):
    kernel = jnp.arange(32 * 128.0).reshape(32, 128)
    place = Placement(mesh, batch=("data", "fsdp"), tensor="tensor")
    use = jax.jit(lambda x: all_gathered({"mlp_in": {"kernel": x}}, place, "blocks/"))
    out = use(kernel)["mlp_in"]["kernel"]
    assert out.sharding.shard_shape(out.shape) == (32, 32)
    assert (out == kernel).all()
    assert all_gathered(kernel, ANYWHERE, "blocks/mlp_in/kernel") is kernel

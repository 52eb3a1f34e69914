import dataclasses

import chex
import jax
import jax.numpy as jnp
import pytest

from sedd_jax.errors import BadInput
from sedd_jax.runtime import sharding
from sedd_jax.runtime.checkpoint import FOLDER, Checkpoints
from sedd_jax.runtime.components import build_components
from sedd_jax.runtime.config import CheckpointConfig
from sedd_jax.runtime.step import init_state, run_keys


@pytest.fixture(scope="module")
def state(smoke_config):
    mesh = sharding.build_mesh()
    components = build_components(smoke_config, 257)
    state = init_state(run_keys(0).init, components, smoke_config)
    distinct = jax.tree.map(lambda x: x + jnp.ones((), x.dtype), state.ema_params)
    return jax.device_put(state._replace(ema_params=distinct), sharding.replicated(mesh))


def at_step(state, step):
    return state._replace(step=jnp.int32(step))


def abstract(tree):
    return sharding.placed(tree, sharding.replicated(sharding.build_mesh()))


def save(run, state, steps, config, keep=2):
    with Checkpoints(run, CheckpointConfig(keep=keep)) as checkpoints:
        for step in steps:
            checkpoints.save(at_step(state, step), config)


def test_a_state_comes_back_bit_for_bit(tmp_path, state, smoke_config):
    save(tmp_path, state, [3], smoke_config)
    with Checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore(3, abstract(state))
        chex.assert_trees_all_equal(restored, at_step(state, 3))
        assert checkpoints.config(3) == smoke_config
        for ema, weights in ((True, state.ema_params), (False, state.params)):
            loaded = checkpoints.restore_weights(3, abstract(state.params), ema=ema)
            chex.assert_trees_all_equal(loaded, weights)


def test_the_latest_are_kept(tmp_path, state, smoke_config):
    save(tmp_path, state, [1, 2, 3], smoke_config)
    names = {path.name for path in (tmp_path / FOLDER).iterdir()}
    assert {"2", "3"} <= names
    assert "1" not in names


def test_a_step_that_is_there_is_not_written_again(tmp_path, state, smoke_config):
    save(tmp_path, state, [4], smoke_config)
    changed = state._replace(params=jax.tree.map(jnp.zeros_like, state.params))
    save(tmp_path, changed, [4], smoke_config)
    with Checkpoints(tmp_path) as checkpoints:
        chex.assert_trees_all_equal(checkpoints.restore(4, abstract(state)), at_step(state, 4))


def test_what_a_killed_save_leaves_is_not_taken_for_a_checkpoint(tmp_path, state, smoke_config):
    save(tmp_path, state, [1], smoke_config)
    (tmp_path / FOLDER / "2.orbax-checkpoint-tmp").mkdir()
    with Checkpoints(tmp_path, CheckpointConfig()) as checkpoints:
        assert checkpoints.latest == 1
        checkpoints.save(at_step(state, 2), smoke_config)
    with Checkpoints(tmp_path) as checkpoints:
        chex.assert_trees_all_equal(checkpoints.restore(2, abstract(state)), at_step(state, 2))


def test_a_donated_state_does_not_reach_the_file(tmp_path, state, smoke_config):
    """The save goes on in the background while the next step reuses the buffers."""
    spoil = jax.jit(lambda tree: jax.tree.map(lambda x: x * 0 - 1, tree), donate_argnums=0)
    mine = jax.tree.map(jnp.copy, at_step(state, 5))
    with Checkpoints(tmp_path, CheckpointConfig()) as checkpoints:
        checkpoints.save(mine, smoke_config)
        spoil(mine)
    with Checkpoints(tmp_path) as checkpoints:
        chex.assert_trees_all_equal(checkpoints.restore(5, abstract(state)), at_step(state, 5))


def test_a_missing_step_is_named_with_those_there(tmp_path, state, smoke_config):
    save(tmp_path, state, [1, 2], smoke_config)
    with (
        Checkpoints(tmp_path) as checkpoints,
        pytest.raises(BadInput, match="no checkpoint of step 9; it has: 1, 2"),
    ):
        checkpoints.restore_weights(9, abstract(state.params), ema=True)


def test_another_shape_is_one_sentence(tmp_path, state, smoke_config):
    save(tmp_path, state, [1], smoke_config)
    wider = dataclasses.replace(
        smoke_config, model=dataclasses.replace(smoke_config.model, hidden_size=64)
    )
    components = build_components(wider, 257)
    params = abstract(jax.eval_shape(components.model.init, jax.random.key(0)))
    with (
        Checkpoints(tmp_path) as checkpoints,
        pytest.raises(BadInput, match="of another shape than its settings say"),
    ):
        checkpoints.restore_weights(1, params, ema=True)

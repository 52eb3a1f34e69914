import dataclasses
import functools
import types

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sedd_jax.experiment import mesh as meshes
from sedd_jax.experiment.build import compute_dtype, unrolled
from sedd_jax.experiment.config import MeshConfig, ModelConfig
from sedd_jax.experiment.state import run_keys
from sedd_jax.inference.build import build_family
from sedd_jax.inference.family import BatchLoss
from sedd_jax.inference.score_based import ScoreBased
from sedd_jax.model.sharding import Placement, param_layouts
from sedd_jax.training.step import (
    build_programs,
    build_train_step,
    init_state,
    mean_over_microbatches,
)

VOCAB_SIZE, LENGTH = 257, 32


@pytest.fixture(scope="module")
def setup(smoke_config):
    config = dataclasses.replace(
        smoke_config, model=dataclasses.replace(smoke_config.model, dropout=0.0)
    )
    components = build_family(config, VOCAB_SIZE)
    state = init_state(run_keys(0).init, components, config.optim)
    tokens = jax.random.randint(jax.random.key(7), (16, 32), 0, VOCAB_SIZE)
    return config, state, tokens


@functools.cache
def compiled(config):
    components = build_family(config, VOCAB_SIZE)
    return jax.jit(
        lambda key, state, tokens: build_train_step(components, config.train, config.optim, key)(
            state, tokens
        )
    )


def run(config, state, tokens, steps=1, seed=0):
    step = functools.partial(compiled(config), run_keys(seed).train)
    for _ in range(steps):
        state, metrics = step(state, tokens)
    return state, metrics


@pytest.fixture(scope="module")
def after_one(setup):
    return run(*setup)


def test_a_step_is_a_function_of_state_and_seed(setup, after_one):
    again = run(*setup)
    chex.assert_trees_all_equal(after_one, again)
    other_seed = run(*setup, seed=1)
    assert float(other_seed[1]["loss"]) != float(after_one[1]["loss"])


def test_the_same_tokens_are_noised_anew_at_every_step(setup, after_one):
    config, state, tokens = setup
    later, metrics = run(config, state._replace(step=jnp.int32(5)), tokens)
    assert int(later.step) == 6
    assert float(metrics["loss"]) != float(after_one[1]["loss"])


def test_microbatches_give_the_whole_batch_s_step(setup, after_one):
    config, state, tokens = setup
    split = dataclasses.replace(config, train=dataclasses.replace(config.train, microbatches=4))
    parts, metrics = run(split, state, tokens)
    np.testing.assert_allclose(metrics["loss"], after_one[1]["loss"], rtol=1e-5)
    np.testing.assert_allclose(metrics["grad_norm"], after_one[1]["grad_norm"], rtol=1e-5)
    chex.assert_trees_all_close(
        parts.opt_state[1][0].mu, after_one[0].opt_state[1][0].mu, atol=1e-6
    )


def test_microbatches_have_their_own_keys():
    def value_and_grad(params, x, key):
        return jax.random.uniform(key), params

    keys = []

    def record(params, x, key):
        keys.append(key)
        return value_and_grad(params, x, key)

    total = mean_over_microbatches(record, 2)(jnp.ones(1), (jnp.ones(4),), jax.random.key(0))[0]
    single = [jax.random.uniform(k) for k in jax.random.split(jax.random.key(0), 2)]
    np.testing.assert_allclose(total, np.mean(single), rtol=1e-6)
    assert single[0] != single[1]


def test_microbatches_are_summed_in_float32():
    def loss(params, x, key):
        product = x.astype(jnp.bfloat16) @ params["kernel"].astype(jnp.bfloat16)
        return jnp.sum(product.astype(jnp.float32))

    params, x = {"kernel": jnp.zeros((3, 2))}, jnp.ones((512, 3))
    mean = mean_over_microbatches(jax.value_and_grad(loss), 512)
    _, grads = mean(params, (x,), jax.random.key(0))
    # all 512 gradients are 1; a sum in bfloat16 would stay at 256, and this mean be 0.5
    chex.assert_trees_all_equal(grads, {"kernel": jnp.ones((3, 2))})


@pytest.mark.slow
def test_eight_devices_give_the_step_of_one(setup, after_one):
    config, state, tokens = setup
    mesh = meshes.build_mesh()
    assert mesh.size == 8
    everywhere, rows = meshes.replicated(mesh), meshes.over_batch(mesh)
    step = jax.jit(
        build_train_step(
            build_family(config, VOCAB_SIZE), config.train, config.optim, run_keys(0).train
        ),
        in_shardings=(everywhere, rows),
        out_shardings=(everywhere, everywhere),
    )
    state, metrics = step(jax.device_put(state, everywhere), jax.device_put(tokens, rows))
    np.testing.assert_allclose(metrics["loss"], after_one[1]["loss"], rtol=1e-5)
    np.testing.assert_allclose(metrics["grad_norm"], after_one[1]["grad_norm"], rtol=1e-5)
    assert state.params["head"]["kernel"].sharding.is_equivalent_to(everywhere, 2)


def test_dropout_is_on_and_new_at_every_step(setup, after_one):
    config, state, tokens = setup
    noisy = dataclasses.replace(config, model=dataclasses.replace(config.model, dropout=0.5))
    # gates and head start at zero and hide the branches that drop: open them
    params = jax.tree.map(jnp.copy, state.params)
    params["blocks"]["modulation"]["bias"] += 0.5
    params["head"]["kernel"] += 0.1 * jax.random.normal(
        jax.random.key(1), params["head"]["kernel"].shape
    )
    opened = state._replace(params=params)
    off, on = (run(c, opened, tokens) for c in (config, noisy))
    assert abs(float(on[1]["loss"]) - float(off[1]["loss"])) > 1e-4


def test_training_on_one_batch_lowers_its_loss(setup):
    config, state, tokens = setup
    constant = jnp.full_like(tokens, 3)  # a text of one letter is learnt in a few steps
    first = run(config, state, constant)[1]["loss"]
    last = run(config, state, constant, steps=40)[1]["loss"]
    assert float(last) < 0.5 * float(first)


def test_moments_stay_in_the_type_they_are_kept_in(setup):
    config, _, tokens = setup
    optim = dataclasses.replace(config.optim, first_moment="bfloat16", second_moment="bfloat16")
    narrow = dataclasses.replace(config, optim=optim)
    components, keys = build_family(narrow, VOCAB_SIZE), run_keys(0)
    state = jax.eval_shape(lambda: init_state(keys.init, components, narrow.optim))
    after, _ = jax.eval_shape(
        build_train_step(components, narrow.train, narrow.optim, keys.train), state, tokens
    )
    chex.assert_trees_all_equal_shapes_and_dtypes(after, state)
    moments = (state.opt_state[1][0].mu, state.opt_state[1][0].nu)
    assert {leaf.dtype for leaf in jax.tree.leaves(moments)} == {jnp.dtype("bfloat16")}


def test_the_four_keys_of_a_run_differ():
    data = [tuple(np.asarray(jax.random.key_data(key))) for key in run_keys(3)]
    assert len(set(data)) == 4


def test_compute_type():
    assert compute_dtype("auto", "cpu") == jnp.float32
    assert compute_dtype("auto", "tpu") == jnp.bfloat16
    assert compute_dtype("bfloat16", "cpu") == jnp.bfloat16


def test_blocks_are_unrolled_where_a_gpu_gains_by_it():
    def on(platform, fsdp=1):
        device = types.SimpleNamespace(platform=platform)
        mesh = types.SimpleNamespace(devices=np.array([device]), shape={"fsdp": fsdp})
        return Placement(mesh, ("data",), fsdp="fsdp")

    products = ModelConfig()
    assert unrolled(products, on("gpu"))
    assert not unrolled(ModelConfig(remat="blocks"), on("gpu"))
    assert not unrolled(products, on("gpu", 2))
    assert not unrolled(products, on("tpu"))
    assert not unrolled(products, on("cpu"))
    assert unrolled(ModelConfig(remat="blocks", unroll="yes"), on("cpu"))
    assert not unrolled(ModelConfig(unroll="no"), on("gpu"))


def test_a_step_that_is_not_finite_changes_nothing_but_the_counts(setup, after_one):
    config, state, tokens = setup
    broken = jax.tree.map(jnp.copy, state.params)
    broken["head"]["bias"] = broken["head"]["bias"].at[3].set(jnp.nan)
    state = state._replace(params=broken)
    after, metrics = run(config, state, tokens, steps=2)
    assert not np.isfinite(metrics["loss"])
    assert (int(after.step), int(after.skipped.total), int(after.skipped.in_row)) == (2, 2, 2)
    for name in ("params", "opt_state", "ema_params"):
        chex.assert_trees_all_equal(getattr(after, name), getattr(state, name))
    # mended, the next step is the first update, but for its data and noise
    mended = after._replace(params=after_one[0].params, ema_params=after_one[0].params)
    again, metrics = run(config, mended, tokens)
    assert int(again.skipped.total) == int(metrics["skipped"]) == 2
    assert int(again.skipped.in_row) == int(metrics["skipped_in_row"]) == 0
    assert float(metrics["learning_rate"]) == float(after_one[1]["learning_rate"])
    decay = 2 / 11  # of the average at its first update
    chex.assert_trees_all_close(
        again.ema_params,
        jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, mended.params, again.params),
        atol=1e-6,
    )


@pytest.fixture(
    scope="module",
    params=[
        ("ratio", "score_entropy"),
        pytest.param(("denoiser", "cross_entropy"), marks=pytest.mark.slow),
    ],
    ids=str,
)
def learning(setup, request):
    """The config and the state of a run whose times are learned, and its first step."""
    config, state, tokens = setup
    output, objective = request.param
    train = dataclasses.replace(
        config.train, times="learned(cells=8)", low_discrepancy=False, objective=objective
    )
    model = dataclasses.replace(config.model, output=output)
    config = dataclasses.replace(config, train=train, model=model)
    components = build_family(config, VOCAB_SIZE)
    first = jax.jit(lambda key: init_state(key, components, config.optim, train))(run_keys(0).init)
    state = state._replace(times=first.times)
    return config, state, run(config, state, tokens)


def test_learned_times_get_the_squared_loss_of_every_row(setup, learning):
    config, state, (after, metrics) = learning
    *_, tokens = setup
    objective = build_family(config, VOCAB_SIZE).objective(config.train)

    @jax.jit
    def losses_of_rows(key):
        time_key, noise_key, dropout_key, _ = jax.random.split(jax.random.fold_in(key, 0), 4)
        batch = objective.draw(time_key, noise_key, tokens, state.times)

        def alone(rows):
            batch, x0 = jax.tree.map(lambda x: x[None], rows)
            return objective.loss(state.params, batch, x0, dropout_key)

        return batch, jax.lax.map(alone, (batch._replace(weight=jnp.ones(16)), tokens))

    batch, losses = jax.device_get(losses_of_rows(run_keys(0).train))
    np.testing.assert_allclose(metrics["loss"], np.mean(batch.weight * losses) / 32, rtol=1e-5)
    assert np.unique(batch.weight).size == 1  # uniform at first
    cell = np.int32((batch.t - config.train.t_min) / (1 - config.train.t_min) * 8)
    total, draws = np.zeros(8), np.bincount(cell, minlength=8)
    np.add.at(total, cell, losses**2)
    np.testing.assert_array_equal(after.times.draws, draws)
    np.testing.assert_allclose(after.times.total, total, rtol=1e-4)
    # later draws follow them, and the state alone says how
    later = run(config, after, tokens)
    moved = run(config, after._replace(times=state.times), tokens)
    assert float(later[1]["loss"]) != float(moved[1]["loss"])


@pytest.mark.slow
def test_microbatches_learn_the_times_of_the_whole_batch(setup, learning):
    config, state, (after, metrics) = learning
    split = dataclasses.replace(config, train=dataclasses.replace(config.train, microbatches=4))
    parts, of_parts = run(split, state, setup[2])
    np.testing.assert_allclose(of_parts["grad_norm"], metrics["grad_norm"], rtol=1e-5)
    chex.assert_trees_all_close(parts.times, after.times, rtol=1e-5)


def test_a_step_that_is_not_finite_teaches_no_times(setup, learning):
    config, _, (after, _) = learning
    broken = jax.tree.map(jnp.copy, after.params)
    broken["head"]["bias"] = broken["head"]["bias"].at[3].set(jnp.nan)
    again, _ = run(config, after._replace(params=broken), setup[2])
    assert int(again.skipped.total) == 1
    chex.assert_trees_all_equal(again.times, after.times)


class Kinked(ScoreBased):
    """Has a loss of 0 with a gradient of 0 / 0."""

    def objective(self, config):
        def loss(params, draw, x0, key):
            return jnp.sqrt(0 * params["head"]["bias"].sum())

        return BatchLoss(lambda *_: (), loss)


def test_a_gradient_that_is_not_finite_is_skipped_where_the_loss_is(setup):
    config, state, tokens = setup
    family = Kinked(*build_family(config, VOCAB_SIZE))
    step = jax.jit(build_train_step(family, config.train, config.optim, run_keys(0).train))
    after, metrics = step(state, tokens)
    assert (float(metrics["loss"]), int(after.skipped.total)) == (0, 1)
    chex.assert_trees_all_equal(after.params, state.params)


MIXED = MeshConfig(slice=2, data=1, fsdp=2, tensor=2)
# the mixed mesh has every axis but data, which the tests of the step have
MESHES = [
    pytest.param(MIXED, id="slice x fsdp x tensor"),
    pytest.param(MeshConfig(), id="data", marks=pytest.mark.slow),
    pytest.param(MeshConfig(data=1, fsdp=8), id="fsdp", marks=pytest.mark.slow),
    pytest.param(MeshConfig(data=2, tensor=4), id="data x tensor", marks=pytest.mark.slow),
]


@pytest.fixture(scope="module")
def split_config(smoke_config):
    model = dataclasses.replace(smoke_config.model, num_heads=4)
    train = dataclasses.replace(smoke_config.train, batch_size=16, microbatches=2)
    return dataclasses.replace(smoke_config, model=model, train=train)


def opened(params):
    """Parameters at which everything has a gradient: gates and head start at zero."""
    key = jax.random.key(5)
    return jax.tree.map(lambda x: x + 0.1 * jax.random.normal(key, x.shape, x.dtype), params)


def first_step(config, mesh):
    """The metrics of a step, and what it made of the gradients: AdamW's first averages."""
    components = build_family(config, VOCAB_SIZE, meshes.placement(mesh))
    keys = run_keys(config.seed)
    programs = build_programs(components, config, keys, mesh)
    state = programs.init(keys.init)
    placed = jax.tree.map(lambda x: x.sharding, state.params)
    state = state._replace(params=jax.jit(opened, out_shardings=placed)(state.params))
    rows = np.random.default_rng(0).integers(0, VOCAB_SIZE, (16, LENGTH)).astype(np.int32)
    after, metrics = programs.train_step(state, meshes.global_batch(rows, 16, mesh))
    return after, jax.device_get((metrics, after.opt_state[1][0].mu))


@pytest.fixture(scope="module")
def of_one_device(split_config):
    return first_step(split_config, meshes.build_mesh(devices=jax.devices()[:1]))[1]


@pytest.mark.slow
@pytest.mark.parametrize("sizes", MESHES)
def test_loss_and_gradients_do_not_depend_on_the_mesh(split_config, of_one_device, sizes):
    mesh = meshes.build_mesh(sizes)
    state, found = first_step(split_config, mesh)
    assert found[0]["skipped"] == 0
    for got, wanted in zip(jax.tree.leaves(found), jax.tree.leaves(of_one_device), strict=True):
        scale = np.abs(wanted).max()
        assert np.abs(got - wanted).max() <= 1e-5 * scale
    assert min(np.abs(x).max() for x in jax.tree.leaves(of_one_device[1])) > 0
    # and the state lies as the table says
    for leaf, found in zip(
        jax.tree.leaves(state), param_layouts(state, mesh).values(), strict=True
    ):
        wanted = jax.sharding.NamedSharding(mesh, found.spec)
        assert leaf.sharding.is_equivalent_to(wanted, leaf.ndim)


@pytest.mark.slow
def test_times_of_positions_are_drawn_alike_on_every_mesh(split_config):
    train = dataclasses.replace(
        split_config.train, times="positions(order='monotone')", hold="mixed", microbatches=1
    )
    config = dataclasses.replace(split_config, train=train)
    one, found = (
        first_step(config, mesh)[1]
        for mesh in (meshes.build_mesh(devices=jax.devices()[:1]), meshes.build_mesh(MIXED))
    )
    assert found[0]["skipped"] == 0
    for got, wanted in zip(jax.tree.leaves(found), jax.tree.leaves(one), strict=True):
        assert np.abs(got - wanted).max() <= 1e-5 * np.abs(wanted).max()


@pytest.mark.slow
def test_the_first_state_is_made_in_parts_and_the_same_on_every_mesh(split_config):
    config = split_config
    keys, states = run_keys(config.seed), []
    for mesh in (
        meshes.build_mesh(devices=jax.devices()[:1]),
        meshes.build_mesh(MeshConfig(data=1, fsdp=8)),
    ):
        components = build_family(config, VOCAB_SIZE, meshes.placement(mesh))
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

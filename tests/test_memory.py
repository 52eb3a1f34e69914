"""No program holds a number for every position and token: read off what the compiler makes."""

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import pytest

from sedd_jax.experiment import mesh as meshes
from sedd_jax.experiment.config import MeshConfig
from sedd_jax.experiment.state import run_keys
from sedd_jax.inference.build import build_family
from sedd_jax.inference.prompt import empty_prompt
from sedd_jax.inference.sampling import Sampling
from sedd_jax.inference.score_based import sequence_loss
from sedd_jax.model import tiles
from sedd_jax.model.sharding import shardings
from sedd_jax.training.step import build_train_step, init_state

# Two chunks of the CPU's tiling, the last of which reaches back. On each of 8 devices a bound of
# 2 * 32 positions is twice the 32 hidden numbers of a column of the table and its optimizer state.
VOCAB, BATCH, LENGTH, HIDDEN = 3100, 16, 32, 32
OUTPUTS = BATCH * LENGTH * VOCAB


def largest(f, *args, compiled, **shardings):
    """The most elements of any array in a program, inside fusions too.

    Args:
      f: the program.
      args: its arguments, or their shapes.
      compiled: read what the compiler makes of it, which takes seconds; else what was traced.
      shardings: of arguments and results.
    """
    # nothing is run: no time for fast loops
    options = {
        "xla_backend_optimization_level": 0,
        "xla_llvm_disable_expensive_passes": True,
    }
    traced = jax.jit(f, compiler_options=options, **shardings).trace(*args)
    text = traced.lower().compile().as_text() if compiled else str(traced.jaxpr)
    shapes = re.findall(r"\b[a-z]+\d*\[([\d,]*)\]", text)
    assert len(shapes) > 100
    return max(math.prod(int(n) for n in shape.split(",") if n) for shape in shapes)


@pytest.fixture(params=["absorb", "uniform"])
def config(request, smoke_config):
    model = dataclasses.replace(smoke_config.model, num_blocks=1, hidden_size=HIDDEN)
    noise = smoke_config.noise
    if request.param == "uniform":
        noise = dataclasses.replace(noise, schedule="geometric")
    return dataclasses.replace(smoke_config, graph=request.param, model=model, noise=noise)


def abstract(*shape, dtype=jnp.int32):
    return jax.ShapeDtypeStruct(shape, dtype)


def params_of(components):
    return jax.eval_shape(components.model.init, jax.random.key(0))


TOKENS = abstract(BATCH, LENGTH)


def train_step(config, components):
    step = build_train_step(components, config.train, config.optim, run_keys(0).train)
    state = jax.eval_shape(lambda key: init_state(key, components, config.optim), jax.random.key(0))
    return step, state


# Compiling takes most of the time: of every kind of program one is compiled, with one graph.


def test_a_training_step_holds_no_number_for_every_position_and_token(config):
    step, state = train_step(config, build_family(config, VOCAB))
    assert largest(step, state, TOKENS, compiled=config.graph == "absorb") < OUTPUTS


@pytest.mark.slow
def test_nor_does_a_device_of_eight_for_its_part_of_the_batch(config):
    mesh = meshes.build_mesh()
    assert mesh.size == 8
    components = build_family(config, VOCAB, meshes.placement(mesh))
    step, state = train_step(config, components)
    everywhere, rows = meshes.replicated(mesh), meshes.over_batch(mesh)
    most = largest(
        step,
        state,
        TOKENS,
        compiled=config.graph == "uniform",
        in_shardings=(everywhere, rows),
        out_shardings=(everywhere, everywhere),
    )
    assert most < OUTPUTS / 8


@pytest.mark.parametrize(
    ("output", "objective"),
    [("denoiser", "cross_entropy"), ("leave_one_out", "score_entropy"), ("denoiser", "d3pm")],
)
def test_nor_does_the_step_of_a_softmax(config, monkeypatch, output, objective):
    monkeypatch.setattr("sedd_jax.model.tiles.CPU", tiles.CPU._replace(kept=128 * 2 * VOCAB))
    config = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, output=output),
        train=dataclasses.replace(config.train, objective=objective),
    )
    step, state = train_step(config, build_family(config, VOCAB))
    assert 64 * VOCAB <= largest(step, state, TOKENS, compiled=False) < OUTPUTS / 2


@pytest.fixture
def baseline_config(smoke_config, monkeypatch):
    monkeypatch.setattr("sedd_jax.model.autoregressive.ROWS", 32)
    model = dataclasses.replace(smoke_config.model, num_blocks=1, hidden_size=HIDDEN)
    return dataclasses.replace(smoke_config, family="autoregressive", model=model)


def gradient_of(model):
    return jax.grad(lambda params, x0: model.nll(params, x0).mean())


def test_nor_does_the_gradient_of_the_baseline(baseline_config):
    components = build_family(baseline_config, VOCAB)
    most = largest(gradient_of(components.model), params_of(components), TOKENS, compiled=False)
    assert 32 * VOCAB <= most < OUTPUTS / 4


def test_nor_does_a_device_of_eight_for_its_part_of_the_baseline_s(baseline_config):
    mesh = meshes.build_mesh(MeshConfig(data=4, tensor=2))
    components = build_family(baseline_config, VOCAB, meshes.placement(mesh))
    layout, rows = shardings(params_of(components), mesh), meshes.over_batch(mesh)
    most = largest(
        gradient_of(components.model),
        params_of(components),
        TOKENS,
        compiled=True,
        in_shardings=(layout, rows),
        out_shardings=layout,
    )
    assert 32 * VOCAB / 2 <= most < OUTPUTS / 8  # a device has a quarter of the rows


def test_nor_do_the_step_and_the_sampler_of_gaussian_diffusion(baseline_config, monkeypatch):
    monkeypatch.setattr("sedd_jax.model.gaussian.ROWS", 32)
    config = dataclasses.replace(baseline_config, family="gaussian")
    components = build_family(config, VOCAB)
    step, state = train_step(config, components)
    assert 32 * VOCAB <= largest(step, state, TOKENS, compiled=False) < OUTPUTS / 4
    generator = components.generator(components.sampling(steps=4), t_min=1e-3)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), BATCH))
    clamp = jax.eval_shape(lambda: empty_prompt(BATCH, LENGTH))
    arrays = params_of(components), keys, clamp
    most = largest(lambda *args: generator(*args)[0], *arrays, compiled=False)
    assert 32 * VOCAB <= most < OUTPUTS / 4


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(4, "tweedie"),
        Sampling(4, "euler"),
        Sampling(4, "tweedie", temperature=0.7, top_p=0.9),
        Sampling(None, "first_hitting"),
        Sampling(4, "gibbs"),
        Sampling(4, "gibbs(order='unlikely')"),
        Sampling(4, "forward_backward"),
        Sampling(4, "psi"),
        Sampling(4, "remdm_loop"),
        Sampling(4, "spaced"),
        Sampling(4, "entropy_bounded"),
        Sampling(4, "confidence"),
        Sampling(4, "theta_trapezoidal"),
        Sampling(4, "tweedie", temperature=0.3, top_p=0.9, tempering="conditional"),
    ],
    ids=lambda sampling: f"{sampling.sampler}-{sampling.top_p:g}-{sampling.tempering}",
)
def test_sampling_holds_no_number_for_every_position_and_token(config, sampling):
    if (config.graph, sampling.tempering) == ("absorb", "conditional"):
        pytest.skip("needs the uniform graph")
    components = build_family(config, VOCAB)
    if not sampling.method.serves(components.graph):
        pytest.skip("needs a mask")
    generator = components.generator(sampling, t_min=1e-3)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), BATCH))
    clamp = jax.eval_shape(lambda: empty_prompt(BATCH, LENGTH))
    compiled = (config.graph, sampling) in [
        ("absorb", Sampling(4, "euler")),
        ("uniform", Sampling(4, "tweedie")),
    ]
    most = largest(
        lambda *args: generator(*args)[0], params_of(components), keys, clamp, compiled=compiled
    )
    assert most < OUTPUTS


@pytest.mark.slow
def test_nor_does_a_program_under_the_hybrid_graph(smoke_config):
    """Its ratios and cuts depend on the state."""
    model = dataclasses.replace(
        smoke_config.model, num_blocks=1, hidden_size=HIDDEN, scale_by_sigma=False
    )
    config = dataclasses.replace(smoke_config, graph="hybrid(mask=0.5)", model=model)
    components = build_family(config, VOCAB)
    step, state = train_step(config, components)
    assert largest(step, state, TOKENS, compiled=True) < OUTPUTS
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), BATCH))
    clamp = jax.eval_shape(lambda: empty_prompt(BATCH, LENGTH))
    for sampler in ("tweedie", "theta_trapezoidal"):
        generator = components.generator(Sampling(4, sampler), t_min=1e-3)
        arrays = params_of(components), keys, clamp
        most = largest(lambda *args, draw=generator: draw(*args)[0], *arrays, compiled=False)
        assert most < OUTPUTS


def test_the_bound_holds_no_number_for_every_position_and_token(config):
    components = build_family(config, VOCAB)
    loss = sequence_loss(components, components.training_proposal(config.train))
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), BATCH))
    args = params_of(components), keys, abstract(BATCH, dtype=jnp.float32), TOKENS
    assert largest(loss, *args, compiled=config.graph == "absorb") < OUTPUTS


def test_the_final_step_of_the_bound_holds_no_number_for_every_position_and_token(config):
    loss = build_family(config, VOCAB).reconstruction_loss(1e-3)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), BATCH))
    args = params_of(build_family(config, VOCAB)), keys, TOKENS
    assert largest(loss, *args, compiled=config.graph == "uniform") < OUTPUTS


@pytest.mark.parametrize("compiled", [True, False])
def test_the_outputs_written_out_are_found(config, compiled):
    """What the other tests look for, where it must be."""
    components = build_family(config, VOCAB)
    args = params_of(components), TOKENS, abstract(BATCH, dtype=jnp.float32)
    assert largest(components.model.apply, *args, compiled=compiled) >= OUTPUTS


def test_outputs_of_a_device_of_eight_are_found(smoke_config):
    """As above: the parts of a batch, written out, in a program for the mesh."""
    mesh = meshes.build_mesh()
    components = build_family(smoke_config, VOCAB, meshes.placement(mesh))
    params, sigma = params_of(components), abstract(BATCH, dtype=jnp.float32)
    everywhere, rows = meshes.replicated(mesh), meshes.over_batch(mesh)
    most = largest(
        components.model.apply,
        params,
        TOKENS,
        sigma,
        compiled=True,
        in_shardings=(everywhere, rows, rows),
        out_shardings=rows,
    )
    assert OUTPUTS / 8 <= most < OUTPUTS

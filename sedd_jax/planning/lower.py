"""The programs that a run compiles, ready to be compiled for another machine."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from sedd_jax.data.tokenizer import FITTED_TOKENIZERS, build_tokenizer
from sedd_jax.diffusion.importance import guess_proposal
from sedd_jax.errors import BadInput
from sedd_jax.experiment import mesh as sharding
from sedd_jax.experiment.build import Baseline, Components, build_components, build_proposal
from sedd_jax.experiment.config import Config
from sedd_jax.experiment.state import run_keys
from sedd_jax.inference import autoregressive
from sedd_jax.inference.estimate import sequence_loss
from sedd_jax.inference.generator import build_generator
from sedd_jax.inference.prompt import Prompt
from sedd_jax.inference.sampling import FIRST_HITTING, Sampling
from sedd_jax.model.score_model import count_params
from sedd_jax.model.sharding import num_batch_shards, shardings
from sedd_jax.model.tiles import tiling_for
from sedd_jax.planning import head
from sedd_jax.planning.hlo_cost.hlo import Instruction
from sedd_jax.system.rounding import round_up
from sedd_jax.training.step import build_programs
from sedd_jax.training.throughput import sequence_flops, share_with_loss, step_flops


class Program(NamedTuple):
    """A program to be compiled.

    Attributes:
      lowered: as traced for the devices of the mesh.
      mesh: the devices.
      parameters: numbers that training changes.
      model_flops: what the model asks for, over all devices, per run of the program.
      tokens: of the sequences of a run, over all devices.
      kept: bytes per chip of what is kept between runs and given to them, by name.
      dynamic_trips: mean trips of a loop whose count is known only while it runs.
      steps: of the run, each a run of the program; None if it is no training step.
    """

    lowered: jax.stages.Lowered
    mesh: Mesh
    parameters: int
    model_flops: float
    tokens: int
    kept: dict[str, int]
    dynamic_trips: Callable[[Instruction], float]
    steps: int | None = None


def vocab_size_of(config: Config) -> int:
    """Returns the tokens of the config's tokenizer, as far as they are known without its text.

    Raises:
      BadInput: they are not.
    """
    data = config.data
    if data.vocab_size:
        return data.vocab_size
    if data.tokenizer in FITTED_TOKENIZERS or data.tokenizer_path or data.prepared:
        raise BadInput(
            "The config does not say how many tokens its tokenizer has (config.data.vocab_size is "
            "0): give --vocab_size=N."
        )
    return build_tokenizer(data).vocab_size


def with_batch(config: Config, mesh: Mesh, per_chip: int) -> Config:
    """Returns the config with a batch in one part, of so many sequences per chip.

    Or per group of `tensor` chips, which work on the same ones.
    """
    train = dataclasses.replace(
        config.train, batch_size=per_chip * num_batch_shards(mesh), microbatches=1
    )
    return dataclasses.replace(config, train=train)


def state_per_chip(config: Config, vocab_size: int, mesh: Mesh) -> int:
    """Returns the bytes that a chip keeps of parameters, moments and average."""
    components = build_components(config, vocab_size, sharding.placement(mesh))
    return per_chip(build_programs(components, config, run_keys(config.seed), mesh).abstract)


def train_program(config: Config, vocab_size: int, mesh: Mesh) -> Program:
    """Returns the training step.

    Raises:
      BadInput: batch or heads do not divide over the devices.
    """
    sharding.check_divisions(config, mesh)
    components = build_components(config, vocab_size, sharding.placement(mesh))
    programs = build_programs(components, config, run_keys(config.seed), mesh)
    state, train, length = programs.abstract, config.train, config.model.length
    trips = {}
    if isinstance(components, Components):
        proposal = build_proposal(components, config.train)
        rows = train.batch_size // train.microbatches // num_batch_shards(mesh)
        trips = _loss_trips(components, proposal, rows, length, mesh)
    return Program(
        lowered=programs.train_step.lower(state, programs.batch),
        mesh=mesh,
        parameters=count_params(state.params),
        model_flops=step_flops(components, config.model, config.train),
        tokens=train.batch_size * length,
        kept={
            "parameters": per_chip(state.params),
            "moments": per_chip(state.opt_state),
            "average": per_chip(state.ema_params),
            "counters": per_chip((state.step, state.skipped)),
            "batch": per_chip(programs.batch),
        },
        dynamic_trips=head.dynamic_trips(trips),
        steps=train.steps,
    )


def bound_program(config: Config, vocab_size: int, mesh: Mesh, rows: int) -> Program:
    """Returns a pass of the held-out bound over a batch, its rows rounded up to fill the devices.

    Raises:
      BadInput: heads do not divide over the devices.
    """
    components, params, rows = _trained(config, vocab_size, mesh, rows)
    length = config.model.length
    tokens = _over_batch(mesh, (rows, length), jnp.int32)
    if isinstance(components, Baseline):
        loss, drawn, answered, trips = components.model.nll, (), 1.0, {}
    else:
        graph, noise, _ = components
        proposal = guess_proposal(graph, noise, config.train.t_min)
        loss = sequence_loss(components, proposal)
        drawn = _keys(mesh, rows), _over_batch(mesh, (rows,), jnp.float32)
        answered = share_with_loss(graph, noise, proposal)
        trips = _loss_trips(components, proposal, rows // num_batch_shards(mesh), length, mesh)
    return Program(
        lowered=sharding.program(loss, mesh).lower(params, *drawn, tokens),
        mesh=mesh,
        parameters=count_params(params),
        model_flops=rows * sequence_flops(components, config.model, answered),
        tokens=rows * length,
        kept={"parameters": per_chip(params), "batch": per_chip((drawn, tokens))},
        dynamic_trips=head.dynamic_trips(trips),
    )


def sample_program(
    config: Config, vocab_size: int, mesh: Mesh, sampling: Sampling, rows: int
) -> Program:
    """Returns the sampler over a batch with nothing given, rounded up to fill the devices.

    Of the autoregressive baseline only `sampling.token_filter` matters.

    Raises:
      BadInput: heads do not divide over the devices, or the graph has no such sampler.
    """
    components, params, rows = _trained(config, vocab_size, mesh, rows)
    length = config.model.length
    if isinstance(components, Baseline):
        generator = autoregressive.build_generator(components.model, sampling.token_filter)
        calls, answered, trips, otherwise = 1, 1.0, {}, None  # every position is computed once
    else:
        sampling.check(components.graph)
        graph, noise, _ = components
        t_min, tiling = config.train.t_min, tiling_for(sharding.placement(mesh).platform)
        generator = build_generator(components, sampling, t_min=t_min)
        active, jumps = head.shares_by_call(graph, noise, sampling, t_min, length)
        calls, answered = sampling.particles * len(active), active.mean()
        # calls that are made while needed are a loop; others are counted in the program
        otherwise = calls if sampling.sampler == FIRST_HITTING else None
        positions = rows // num_batch_shards(mesh) * sampling.particles * length
        trips = {
            **head.block_trips(jumps * positions, positions, (tiling.jumps,)),
            **head.block_trips(active * positions, positions, tiling.rows),
        }
    prompt = Prompt(*(_over_batch(mesh, (rows, length), kind) for kind in (jnp.int32, bool)))
    keys = _keys(mesh, rows)
    return Program(
        lowered=sharding.program(generator, mesh).lower(params, keys, prompt),
        mesh=mesh,
        parameters=count_params(params),
        model_flops=rows * calls * sequence_flops(components, config.model, answered),
        tokens=rows * length,
        kept={"parameters": per_chip(params), "batch": per_chip((keys, prompt))},
        dynamic_trips=head.dynamic_trips(trips, otherwise),
    )


def per_chip(tree: Any) -> int:
    """Returns the bytes that a chip holds of arrays, without what tiling pads."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
    )


def _trained(config, vocab_size, mesh, rows):
    """The components, the placed shapes of their parameters, and the rows that fill the devices."""
    # as a trained model is loaded, see `inference.load`
    model = dataclasses.replace(config.model, attention="auto")
    config = dataclasses.replace(config, model=model)
    sharding.check_heads(config, mesh)
    components = build_components(config, vocab_size, sharding.placement(mesh))
    shapes = jax.eval_shape(components.model.init, jax.random.key(0))
    params = sharding.placed(shapes, shardings(shapes, mesh))
    return components, params, round_up(rows, num_batch_shards(mesh))


def _loss_trips(components, proposal, rows, length, mesh):
    counts = head.counts_with_loss(components.graph, components.noise, proposal, rows, length)
    tiling = tiling_for(sharding.placement(mesh).platform)
    return head.block_trips(counts, rows * length, tiling.rows)


def _over_batch(mesh, shape, dtype):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding.over_batch(mesh))


def _keys(mesh, rows):
    return _over_batch(mesh, (rows,), jax.random.key(0).dtype)

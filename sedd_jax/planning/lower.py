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
from sedd_jax.experiment.config import Config
from sedd_jax.experiment.state import run_keys
from sedd_jax.inference.build import build_family
from sedd_jax.inference.load import build_trained
from sedd_jax.inference.prompt import Prompt
from sedd_jax.inference.score_based import ScoreBased, share_with_loss
from sedd_jax.model.score_model import count_params
from sedd_jax.model.sharding import num_batch_shards
from sedd_jax.model.tiles import tiling_for
from sedd_jax.planning import head
from sedd_jax.planning.hlo_cost.hlo import Instruction
from sedd_jax.system.rounding import round_up
from sedd_jax.training.step import build_programs
from sedd_jax.training.throughput import step_flops


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
    """Returns the bytes that a chip keeps of parameters, moments and average.

    Args:
      config: the settings of the run.
      vocab_size: tokens of the tokenizer.
      mesh: the devices.
    """
    family = build_family(config, vocab_size, sharding.placement(mesh))
    return per_chip(build_programs(family, config, run_keys(config.seed), mesh).abstract)


def train_program(config: Config, vocab_size: int, mesh: Mesh) -> Program:
    """Returns the training step.

    Args:
      config: the settings of the run.
      vocab_size: tokens of the tokenizer.
      mesh: the devices.

    Raises:
      BadInput: batch or heads do not divide over the devices.
    """
    sharding.check_divisions(config, mesh)
    family = build_family(config, vocab_size, sharding.placement(mesh))
    programs = build_programs(family, config, run_keys(config.seed), mesh)
    state, train, length = programs.abstract, config.train, config.model.length
    trips = {}
    if isinstance(family, ScoreBased):
        rows = train.batch_size // train.microbatches // num_batch_shards(mesh)
        trips = _loss_trips(family, family.training_proposal(train), rows, length, mesh)
    return Program(
        lowered=programs.train_step.lower(state, programs.batch),
        mesh=mesh,
        parameters=count_params(state.params),
        model_flops=step_flops(family, config.model, config.train),
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

    Args:
      config: the settings of the run.
      vocab_size: tokens of the tokenizer.
      mesh: the devices.
      rows: of the batch.

    Raises:
      BadInput: heads do not divide over the devices.
    """
    family, params, rows = _trained(config, vocab_size, mesh, rows)
    length, t_min = config.model.length, config.train.t_min
    tokens = _over_batch(mesh, (rows, length), jnp.int32)
    drawn = _keys(mesh, rows), _over_batch(mesh, (rows,), jnp.float32)
    share, trips = 1.0, {}
    if isinstance(family, ScoreBased):
        proposal = guess_proposal(family.graph, family.noise, t_min)
        share = share_with_loss(family.graph, family.noise, proposal)
        trips = _loss_trips(family, proposal, rows // num_batch_shards(mesh), length, mesh)
    loss = family.row_loss(t_min, "low-discrepancy")
    return Program(
        lowered=sharding.jit_replicated(loss, mesh).lower(params, *drawn, tokens),
        mesh=mesh,
        parameters=count_params(params),
        model_flops=rows * family.forward_flops(config.model, share),
        tokens=rows * length,
        kept={"parameters": per_chip(params), "batch": per_chip((drawn, tokens))},
        dynamic_trips=head.dynamic_trips(trips),
    )


def sample_program(
    config: Config, vocab_size: int, mesh: Mesh, settings: dict[str, Any], rows: int
) -> tuple[str, Program]:
    """Returns the sampler over a batch with nothing given, in words and as a program.

    Args:
      config: the settings of the run.
      vocab_size: tokens of the tokenizer.
      mesh: the devices.
      settings: how to draw, see `Family.sampling`.
      rows: of the batch, rounded up to fill the devices.

    Raises:
      BadInput: heads do not divide over the devices, or the graph has no such sampler.
    """
    family, params, rows = _trained(config, vocab_size, mesh, rows)
    sampling = family.sampling(**settings)
    length, t_min = config.model.length, config.train.t_min
    generator = family.generator(sampling, t_min=t_min)
    how, calls, share, trips, otherwise = "a token at a time", 1, 1.0, {}, None
    if isinstance(family, ScoreBased):
        tiling = tiling_for(sharding.placement(mesh).platform)
        active, jumps = head.shares_by_call(family.graph, family.noise, sampling, t_min, length)
        calls, share = sampling.particles * len(active), active.mean()
        draws_times = sampling.method.draws_times
        how = f"{sampling.sampler}, {'at most ' if draws_times else ''}{len(active)} calls"
        # a loop whose trips depend on the draws; others are counted in the program
        otherwise = calls if draws_times else None
        positions = rows // num_batch_shards(mesh) * sampling.particles * length
        trips = {
            **head.block_trips(jumps * positions, positions, (tiling.jumps,)),
            **head.block_trips(active * positions, positions, tiling.rows),
        }
    prompt = Prompt(*(_over_batch(mesh, (rows, length), kind) for kind in (jnp.int32, bool)))
    keys = _keys(mesh, rows)
    program = Program(
        lowered=sharding.jit_replicated(generator, mesh).lower(params, keys, prompt),
        mesh=mesh,
        parameters=count_params(params),
        model_flops=rows * calls * family.forward_flops(config.model, share),
        tokens=rows * length,
        kept={"parameters": per_chip(params), "batch": per_chip((keys, prompt))},
        dynamic_trips=head.dynamic_trips(trips, otherwise),
    )
    return how, program


def per_chip(tree: Any) -> int:
    """Returns the bytes that a chip holds of arrays, without what tiling pads."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
    )


def _trained(config, vocab_size, mesh, rows):
    """The family, the placed shapes of its parameters, and the rows that fill the devices."""
    family, params = build_trained(config, vocab_size, mesh)
    return family, params, round_up(rows, num_batch_shards(mesh))


def _loss_trips(family, proposal, rows, length, mesh):
    counts = head.counts_with_loss(family.graph, family.noise, proposal, rows, length)
    tiling = tiling_for(sharding.placement(mesh).platform)
    return head.block_trips(counts, rows * length, tiling.rows)


def _over_batch(mesh, shape, dtype):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding.over_batch(mesh))


def _keys(mesh, rows):
    return _over_batch(mesh, (rows,), jax.random.key(0).dtype)

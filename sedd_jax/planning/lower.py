"""The programs of a run, lowered for the devices of a mesh and ready to be compiled.

The vocabulary head computes only the positions that count, in blocks. How many count is random (in
training and for a bound with t, in a sampler from one network evaluation to the next), so the trip
counts of its loops are not in the program: the mean over the noise is used.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from sedd_jax.data.column_statistics import Label, Numbers
from sedd_jax.data.columns import parse_columns
from sedd_jax.data.conditions import Conditions
from sedd_jax.data.tokenizer import FITTED_TOKENIZERS, build_tokenizer
from sedd_jax.diffusion.hold import hold_named
from sedd_jax.diffusion.importance import guess_proposal
from sedd_jax.diffusion.time_sampling import times_named
from sedd_jax.errors import BadInput
from sedd_jax.experiment import mesh as meshes
from sedd_jax.experiment.config import Config
from sedd_jax.experiment.state import run_keys
from sedd_jax.inference.build import build_family
from sedd_jax.inference.family import sampling_names
from sedd_jax.inference.load import build_trained
from sedd_jax.inference.prompt import Prompt
from sedd_jax.inference.score_based import ScoreBased, share_with_loss
from sedd_jax.model.conditions import condition_shapes
from sedd_jax.model.rows import BLOCKS_OF
from sedd_jax.model.score_model import count_params
from sedd_jax.model.sharding import num_batch_shards
from sedd_jax.model.tiles import tiling_for
from sedd_jax.planning.head_trips import block_trips, counts_with_loss, shares_by_call
from sedd_jax.planning.hlo_cost.hlo import Instruction
from sedd_jax.system.rounding import round_up
from sedd_jax.training.step import build_programs
from sedd_jax.training.throughput import step_flops

_CLASSES, _ENTRIES = 1000, 1024  # that a label and a vector of an unknown corpus are taken to have


class Program(NamedTuple):
    """A program to compile.

    Attributes:
      kind: in words.
      lowered: for the devices of the mesh.
      mesh: the devices.
      parameters: numbers that training changes.
      model_flops: of the model, without recomputation, over all devices, per run of the program.
      tokens: of the sequences of a run of the program, over all devices.
      argument_bytes: on a chip, by name.
      dynamic_trips: returns the mean trips of a loop whose count is not in the program.
      steps: runs of the program in a training run; None if it is not a training step.
      assumptions: what it takes for granted of the data, a sentence each.
    """

    kind: str
    lowered: jax.stages.Lowered
    mesh: Mesh
    parameters: int
    model_flops: float
    tokens: int
    argument_bytes: dict[str, int]
    dynamic_trips: Callable[[Instruction], float]
    steps: int | None = None
    assumptions: tuple[str, ...] = ()


def vocab_size_of(config: Config) -> int:
    """Returns the number of tokens of the config's tokenizer.

    Raises:
      BadInput: it is only known from the text of the tokenizer.
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
    """Returns the config with a batch of one microbatch.

    Args:
      config: the settings.
      mesh: the devices.
      per_chip: sequences per chip, or per group of `tensor` chips, which share them.
    """
    size = per_chip * num_batch_shards(mesh)
    train = dataclasses.replace(config.train, batch_size=size, microbatches=1)
    return dataclasses.replace(config, train=train)


def state_per_chip(config: Config, vocab_size: int, mesh: Mesh) -> int:
    """Returns the bytes of parameters, moments and averages on a chip.

    Args:
      config: the settings.
      vocab_size: tokens of the tokenizer.
      mesh: the devices.
    """
    return bytes_per_chip(_training(config, vocab_size, mesh)[1].abstract)


def train_program(config: Config, vocab_size: int, mesh: Mesh) -> Program:
    """Returns the training step.

    Args:
      config: the settings.
      vocab_size: tokens of the tokenizer.
      mesh: the devices.

    Raises:
      BadInput: the batch or the heads do not divide over the devices.
    """
    meshes.check_divisions(config, mesh)
    family, programs = _training(config, vocab_size, mesh)
    state, train, length = programs.abstract, config.train, config.model.length
    trips = {}
    if _draws_positions(family):
        rows = train.batch_size // train.microbatches // num_batch_shards(mesh)
        drawn = hold_named(train.hold), times_named(train.times).per_position
        trips = _loss_trips(family, family.training_proposal(train), rows, length, mesh, *drawn)
    return Program(
        kind="training step",
        lowered=programs.train_step.lower(state, *programs.batch),
        mesh=mesh,
        parameters=count_params(state.params),
        model_flops=step_flops(family, config.model, train),
        tokens=train.batch_size * length,
        argument_bytes={
            "parameters": bytes_per_chip(state.params),
            "moments": bytes_per_chip(state.opt_state),
            "average": bytes_per_chip(state.ema_params),
            "counters": bytes_per_chip((state.step, state.skipped)),
            "batch": bytes_per_chip(programs.batch),
        },
        dynamic_trips=dynamic_trips(trips),
        steps=train.steps,
        assumptions=_of_conditions(config),
    )


def bound_program(config: Config, vocab_size: int, mesh: Mesh, rows: int) -> Program:
    """Returns a pass of the held-out bound over a batch.

    Args:
      config: the settings.
      vocab_size: tokens of the tokenizer.
      mesh: the devices.
      rows: sequences of the batch, rounded up to fill the devices.

    Raises:
      BadInput: the heads do not divide over the devices.
    """
    rows = round_up(rows, num_batch_shards(mesh))
    family, params = build_trained(config, vocab_size, mesh, assumed(config))
    t_min, tokens = config.train.t_min, (rows, config.model.length)
    kind, drawn, share, trips = "held-out likelihood", (None, None), 1.0, {}
    if not family.exact_likelihood:
        drawn = _keys(mesh, rows), *_over_batch(mesh, ((rows,), jnp.float32))
        kind = "held-out bound, one draw"
    if _draws_positions(family):
        proposal = guess_proposal(family.graph, family.noise, t_min)
        share = share_with_loss(family.graph, family.noise, proposal)
        per_chip = rows // num_batch_shards(mesh)
        trips = _loss_trips(family, proposal, per_chip, config.model.length, mesh)
    loss = family.row_loss(t_min, "low-discrepancy")
    inputs = *drawn, *_over_batch(mesh, (tokens, jnp.int32))
    flops = rows * family.forward_flops(config.model, share)
    program = _inference(kind, loss, mesh, params, inputs, flops, math.prod(tokens), trips)
    return program._replace(assumptions=_of_conditions(config))


def sample_program(
    config: Config, vocab_size: int, mesh: Mesh, settings: dict[str, Any], rows: int
) -> Program:
    """Returns the sampler over a batch without a prompt, told the conditions that there are.

    Args:
      config: the settings.
      vocab_size: tokens of the tokenizer.
      mesh: the devices.
      settings: how to draw, see `Family.sampling`.
      rows: sequences of the batch, rounded up to fill the devices.

    Raises:
      BadInput: the heads do not divide over the devices, the graph has no such sampler, or there is
        no condition to guide it by.
    """
    rows = round_up(rows, num_batch_shards(mesh))
    family, params = build_trained(config, vocab_size, mesh, assumed(config))
    sampling = family.sampling(**settings)
    length, t_min = config.model.length, config.train.t_min
    generator = family.generator(sampling, t_min=t_min)
    how, calls, share, trips, otherwise = "a token at a time", 1, 1.0, {}, None
    if _draws_positions(family):
        active, jumps = shares_by_call(family.graph, family.noise, sampling, t_min, length)
        calls, share = sampling.particles * len(active), active.mean()
        # with times that are drawn it loops until all have passed; other loops have a known count
        loops = sampling.method.rows_differ
        otherwise = calls if loops else None
        how = f"{sampling.sampler}, {'at most ' if loops else ''}{len(active)} calls"
        positions = rows // num_batch_shards(mesh) * sampling.particles * length
        tiling = tiling_for(meshes.placement(mesh).platform)
        trips = {
            **block_trips(jumps * positions, positions, (tiling.jumps,)),
            **block_trips(active * positions, positions, tiling.rows),
        }
    elif "steps" in sampling_names(family):
        how, calls = f"{sampling.steps} calls", sampling.steps
    prompt = Prompt(*_over_batch(mesh, ((rows, length), jnp.int32), ((rows, length), bool)))
    if sizes := getattr(family.model, "conditions", ()):
        told = condition_shapes(sizes, rows, meshes.over_batch(mesh))
        prompt = prompt._replace(condition=told)
    flops, power = family.forward_flops(config.model, share), getattr(sampling, "guidance", 1)
    if power not in (0, 1):
        # the blocks once more, without the condition; of a softmax the head too
        head = 0.0 if config.model.output == "ratio" else share
        flops += family.forward_flops(config.model, head)
        how += f", guidance {power:g}"
    inputs, tokens = (_keys(mesh, rows), prompt), rows * length
    given = mesh, params, inputs, rows * calls * flops, tokens, trips, otherwise
    program = _inference(f"sampler ({how})", generator, *given)
    return program._replace(assumptions=_of_conditions(config))


def bytes_per_chip(tree: Any) -> int:
    """Returns the bytes of placed arrays or shapes on a chip, without the padding of layouts."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
    )


def dynamic_trips(
    trips: Mapping[int, float], otherwise: float | None = None
) -> Callable[[Instruction], float]:
    """Returns a function from a loop whose count is not in the program to its mean trips.

    Args:
      trips: of the loops over blocks, by their size.
      otherwise: of the one other such loop of the program, None if it has none.
    """

    def trips_of(loop):
        found = re.search(rf"{BLOCKS_OF}(\d+)/while$", loop.source)
        if found:
            return trips[int(found[1])]
        if otherwise is None:
            raise BadInput(
                f"The compiled program has a loop whose trips are not known: {loop.name} "
                f"({loop.source or 'of the compiler'})."
            )
        return otherwise

    return trips_of


def assumed(config: Config) -> Conditions | None:
    """Returns conditions of usual sizes, which only the data know, and which cost little."""
    columns = parse_columns(config.data.condition)
    if not columns:
        return None
    classes = {f"{number:03}": 1 for number in range(_CLASSES)}
    return Conditions(
        tuple(
            Label(name, classes)
            if kind == "label"
            else Numbers(name, kind, _ENTRIES if kind == "vector" else 1, 1, 0.0, 1.0)
            for name, kind in columns
        )
    )


def _of_conditions(config):
    if not config.data.condition:
        return ()
    return (
        f"The data are not read: a label of config.data.condition is taken to have {_CLASSES:,} "
        f"classes, and a vector {_ENTRIES:,} entries.",
    )


def _training(config, vocab_size, mesh):
    family = build_family(config, vocab_size, meshes.placement(mesh), assumed(config))
    return family, build_programs(family, config, run_keys(config.seed), mesh)


def _inference(kind, function, mesh, params, inputs, flops, tokens, trips, otherwise=None):
    return Program(
        kind=kind,
        lowered=meshes.jit_replicated(function, mesh).lower(params, *inputs),
        mesh=mesh,
        parameters=count_params(params),
        model_flops=flops,
        tokens=tokens,
        argument_bytes={"parameters": bytes_per_chip(params), "batch": bytes_per_chip(inputs)},
        dynamic_trips=dynamic_trips(trips, otherwise),
    )


def _draws_positions(family):
    """Whether the positions that pass through the head depend on draws: not in other families."""
    return isinstance(family, ScoreBased)


def _loss_trips(family, proposal, rows, length, mesh, hold=None, per_position=False):
    drawn = rows, length, hold, per_position
    counts = counts_with_loss(family.graph, family.noise, proposal, *drawn)
    tiling = tiling_for(meshes.placement(mesh).platform)
    return block_trips(counts, rows * length, tiling.rows)


def _over_batch(mesh, *arrays):
    """The shapes, of (shape, dtype), of arrays that the devices split along the batch."""
    place = meshes.over_batch(mesh)
    return [jax.ShapeDtypeStruct(shape, dtype, sharding=place) for shape, dtype in arrays]


def _keys(mesh, rows):
    return _over_batch(mesh, ((rows,), jax.random.key(0).dtype))[0]

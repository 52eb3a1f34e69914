"""Estimates a run: `python -m sedd_jax.plan --config=configs/owt_medium.py --topology=v5e:2x4`.

Compiles the training step (`--sample`: the sampler, `--evaluate`: a pass of the held-out bound)
ahead of time for a topology, and prints memory, time and price per chip. Nothing is run. `--search`
looks for the settings that train fastest. Exit code 1: it does not fit.

The compiler needs no accelerator: `pip install "sedd_jax[tpu]"` or `"sedd_jax[cuda]"`.
"""

import dataclasses
import math
import os
import sys
from importlib import metadata

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # read before jax starts: compilers are verbose

import jax
from absl import flags
from jax.sharding import Mesh
from ml_collections import config_flags

from sedd_jax.display.table import markdown, to_json
from sedd_jax.errors import BadInput, Halted
from sedd_jax.experiment import cli
from sedd_jax.experiment.config import Config
from sedd_jax.experiment.config_files import define_config_flag
from sedd_jax.experiment.mesh import build_mesh
from sedd_jax.model.sharding import num_batch_shards
from sedd_jax.planning.estimate import Estimate, as_json, as_tables, estimate, in_words
from sedd_jax.planning.lower import (
    Program,
    bound_program,
    sample_program,
    train_program,
    vocab_size_of,
    with_batch,
)
from sedd_jax.planning.search import Search, as_table, for_idle_memory, to_fit, train_command
from sedd_jax.planning.topology import Topology, parse_topology, topology_devices
from sedd_jax.system.files import atomic_write, check_output_path
from sedd_jax.system.outputs import output_file
from sedd_jax.system.settings import flatten

_CONFIG = define_config_flag("The run's config file.")
_TOPOLOGY = flags.DEFINE_string(
    "topology", None, "Such as v5e:8x8, 2*v5e:8x8 (two slices) or h100:1x8 (nodes x GPUs)."
)
_SAMPLE = flags.DEFINE_bool("sample", False, "Plan the sampler instead.")
_EVALUATE = flags.DEFINE_bool("evaluate", False, "Plan a pass of the held-out bound instead.")
_PER_CHIP = flags.DEFINE_integer(
    "per_chip",
    None,
    "Sequences at a time per chip, or per group of `tensor` chips; by default those of the "
    "config, and 32 samples in all.",
    lower_bound=1,
)
_SAMPLER = flags.DEFINE_string("sampler", "tweedie", "For --sample, as in sedd_jax.sample.")
_STEPS = flags.DEFINE_integer("steps", None, "For --sample, as in sedd_jax.sample.")
_GUIDANCE = flags.DEFINE_float(
    "guidance", 1.0, "For --sample, as in sedd_jax.sample; its classifiers are not planned."
)
_SEARCH = flags.DEFINE_bool("search", False, "Look for the settings that train fastest.")
_LIMIT = flags.DEFINE_integer("limit", 24, "Most programs that --search compiles.", lower_bound=1)
_PRICE = flags.DEFINE_float(
    "price",
    None,
    "US dollars per hour of a chip (tpu7x: of half of one); by default as in planning/topology.py.",
    lower_bound=0.0,
)
_VOCAB_SIZE = flags.DEFINE_integer(
    "vocab_size", None, "Tokens of the tokenizer; by default those of the config.", lower_bound=1
)
_OUTPUT = flags.DEFINE_string("output", None, "File for the estimate as JSON; must not exist.")
_KEEP_HLO = flags.DEFINE_string(
    "keep_hlo", None, "File for the HLO text of the compiled program; must not exist."
)
_SAMPLING = (_SAMPLER, _STEPS, _GUIDANCE)
_SAMPLES = 32  # as many as `sedd_jax.sample` draws at a time


def main() -> None:
    """Prints the estimate, or the result of the search, that the flags ask for."""
    _check_flags()
    # nothing runs, and compilers for other machines read no program from the cache
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)
    config, topology = cli.config_from(_CONFIG), parse_topology(_TOPOLOGY.value)
    vocab_size = _VOCAB_SIZE.value or vocab_size_of(config)
    if _SEARCH.value:
        _search(config, topology, vocab_size)
    else:
        _estimate(config, topology, vocab_size)


def _estimate(config, topology, vocab_size):
    """Prints the estimate of one program."""
    mesh = build_mesh(config.mesh, topology_devices(topology))
    training = not (_SAMPLE.value or _EVALUATE.value)
    if _PER_CHIP.value and training:
        config = with_batch(config, mesh, _PER_CHIP.value)
    program = _program(config, vocab_size, mesh)
    kind = _in_words(program, config)
    machine = f"{topology.name} ({topology.devices_in_words})"
    print(f"{_file()} on {machine}, {in_words(mesh)}: {kind}.")
    print("A prediction: the program is compiled, and nothing is run.", flush=True)
    _tell("Compiling, which takes minutes for a large model ...")
    found = estimate(program, topology, _PRICE.value)
    _show(found)
    _write(_KEEP_HLO, found.hlo_text)
    facts = {"program": kind, "config": dataclasses.asdict(config), "versions": _versions()}
    _write(_OUTPUT, to_json(as_json(found, facts)))
    if not found.memory.fits:
        ways = to_fit(config, found, training=training)
        raise Halted(f"It does not fit; what would help: {ways}")
    if training:
        if idle := for_idle_memory(config, found):
            print(f"\n{idle}")
        print(f"\nThe command that trains so:\n\n    {_train_command(config)}")


def _check_flags():
    if not _TOPOLOGY.value:
        raise BadInput("--topology=MACHINE is needed, for example --topology=v5e:2x4.")
    modes = [flag for flag in (_SAMPLE, _EVALUATE, _SEARCH) if flag.value]
    if len(modes) > 1:
        raise BadInput(f"--{modes[0].name} and --{modes[1].name} are different plans: take one.")
    for mode, options in ((_SAMPLE, _SAMPLING), (_SEARCH, (_LIMIT,))):
        for flag in options:
            if flag.present and not mode.value:
                raise BadInput(f"--{flag.name} is for --{mode.name}.")
    if _SEARCH.value and (_PER_CHIP.value or _KEEP_HLO.value):
        raise BadInput(
            "--search keeps the batch of the config and no HLO: drop --per_chip and --keep_hlo."
        )
    if _PRICE.value is not None and not math.isfinite(_PRICE.value):
        raise BadInput(
            f"--price={_PRICE.value} is not a price: give US dollars per hour of a chip."
        )
    if _OUTPUT.value and _OUTPUT.value == _KEEP_HLO.value:
        raise BadInput(f"--output and --keep_hlo are both {_OUTPUT.value}: give one another name.")
    for flag in (_OUTPUT, _KEEP_HLO):
        if flag.value:
            with output_file(flag.value, f"--{flag.name}") as path:
                check_output_path(path, f"--{flag.name}")


def _program(config: Config, vocab_size: int, mesh: Mesh) -> Program:
    """The program that is planned."""
    given = _PER_CHIP.value and _PER_CHIP.value * num_batch_shards(mesh)
    if _SAMPLE.value:
        settings = {flag.name: flag.value for flag in _SAMPLING if flag.present}
        return sample_program(config, vocab_size, mesh, settings, given or _SAMPLES)
    if _EVALUATE.value:
        return bound_program(config, vocab_size, mesh, given or config.eval.batch_size)
    return train_program(config, vocab_size, mesh)


def _in_words(program, config):
    rows, length = program.tokens // config.model.length, config.model.length
    microbatches = config.train.microbatches if program.steps else 1
    times = f"{microbatches} microbatches of " if microbatches > 1 else ""
    per_chip = rows // num_batch_shards(program.mesh) // microbatches
    return f"{program.kind}, {rows} sequences of {length}, {times}{per_chip} a chip"


def _show(found: Estimate) -> None:
    """Prints one screen."""
    for each in as_tables(found):
        print(f"\n{markdown(each)}")
    if found.prediction:
        print("\nAssumed:")
        for line in found.assumptions:
            print(f"- {line}")
        if found.prediction.unknown:
            print(f"- Kernels whose bytes alone count: {', '.join(found.prediction.unknown)}.")


def _search(config: Config, topology: Topology, vocab_size: int) -> None:
    batch = f"{config.train.batch_size} sequences of {config.model.length} a step"
    print(f"{_file()} on {topology.name} ({topology.devices_in_words}), {batch}.")
    print("A prediction: the programs are compiled, and nothing is run.\n", flush=True)
    _tell("Compiling, minutes each for a large model; Ctrl-C ends it and shows the best ...")
    search = Search(
        config, topology, vocab_size, price=_PRICE.value, limit=_LIMIT.value, report=_tell
    )
    found = search.run()
    if not found:
        skipped = f"; the compiler failed on {search.skipped}, see above" if search.skipped else ""
        if search.ended:
            raise Halted(f"Nothing was found that fits until {search.ended}{skipped}.")
        raise Halted(f"Nothing that was tried fits {topology.name}{skipped}: take more chips.")
    print(markdown(as_table(found)))
    if search.ended:
        print(f"\nEnded by {search.ended}: not everything was tried.")
    print(f"\nThe command that trains with the best:\n\n    {_train_command(found[0].config)}")
    facts = {"program": "training step", "versions": _versions()}
    plans = [
        as_json(each.estimate, facts | {"config": dataclasses.asdict(each.config)})
        for each in found
    ]
    _write(_OUTPUT, to_json(plans))


def _train_command(config):
    own = flags.FLAGS[_CONFIG.name].parser.parse(_file())  # without the --config.* flags
    return train_command(_file(), config, flatten(own.to_dict()))


def _file():
    return config_flags.get_config_filename(flags.FLAGS[_CONFIG.name])


def _tell(line):
    print(line, file=sys.stderr, flush=True)


def _versions():
    found = {"jax": jax.__version__}
    for name in ("libtpu", "jax-cuda12-plugin", "jax-cuda13-plugin"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _write(flag, text):
    if flag.value:
        with output_file(flag.value, f"--{flag.name}") as path:
            atomic_write(path, text)


if __name__ == "__main__":
    cli.run(main)

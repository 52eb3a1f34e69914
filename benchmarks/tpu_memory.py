"""Compiles the training step for a TPU slice, without a TPU, and says what memory it would take.

    JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1 TPU_ACCELERATOR_TYPE=v5litepod-64 \
        TPU_WORKER_HOSTNAMES=localhost python -m benchmarks.tpu_memory \
        --config=configs/owt_medium.py --topology=v5e:8x8 --per_chip=8

Needs libtpu: `pip install "jax[tpu]"`. The step is the one that training runs, on the mesh of the
config (`--config.mesh.fsdp=64`), with bfloat16 matrix products and one microbatch. The figures are
the compiler's own, in GiB per chip: what goes in, what comes out and does not lie in the buffers of
what went in, and what is held in between. They say nothing of speed.
"""

import dataclasses
import json
import time
from importlib import metadata

import jax
from absl import flags
from jax.experimental import topologies
from jax.sharding import Mesh
from ml_collections import config_flags

from benchmarks.shapes import HEADS
from sedd_jax.runtime import cli
from sedd_jax.runtime.components import build_components
from sedd_jax.runtime.config import Config
from sedd_jax.runtime.programs import build_programs
from sedd_jax.runtime.sharding import build_mesh, placement
from sedd_jax.runtime.step import run_keys

_CONFIG = config_flags.DEFINE_config_file("config", None, "A config file.")
_TOPOLOGY = flags.DEFINE_string("topology", "v5e:8x8", "The slice: generation and shape.")
_HEAD = flags.DEFINE_enum("head", "streamed", list(HEADS), "The vocabulary head.")
_PER_CHIP = flags.DEFINE_integer("per_chip", 8, "Sequences per chip, or group of `tensor` chips.")
_VOCAB_SIZE = 50_257  # GPT-2's
_GIB = 2**30


def for_slice(config: Config, batch_size: int) -> Config:
    """Returns the config with the batch in one part."""
    train = dataclasses.replace(config.train, batch_size=batch_size, microbatches=1)
    return dataclasses.replace(config, train=train)


def compiled_step(config: Config, mesh: Mesh) -> jax.stages.Compiled:
    """Returns the training step, compiled for the devices of the mesh."""
    components = build_components(config, _VOCAB_SIZE, placement(mesh))
    components = components._replace(model=HEADS[_HEAD.value](components.model))
    programs = build_programs(components, config, run_keys(config.seed), mesh)
    return programs.train_step.lower(programs.abstract, programs.batch).compile()


def memory(compiled: jax.stages.Compiled) -> dict[str, float]:
    """Returns what one chip holds while the step runs, in GiB."""
    analysis = compiled.memory_analysis()
    sizes = {
        "arguments": analysis.argument_size_in_bytes,
        "outputs": analysis.output_size_in_bytes - analysis.alias_size_in_bytes,
        "temporaries": analysis.temp_size_in_bytes,
    }
    sizes["total"] = sum(sizes.values())
    return {name: round(size / _GIB, 2) for name, size in sizes.items()}


def refusal(error: jax.errors.JaxRuntimeError) -> dict[str, str]:
    """Returns what the compiler said of a program that does not fit; other errors are raised."""
    text = str(error)
    if "RESOURCE_EXHAUSTED" not in text:
        raise error
    return {"out_of_memory": text.splitlines()[0].removeprefix("RESOURCE_EXHAUSTED: ")}


def main() -> None:
    """Compiles, then prints a row of a table and the same as one JSON line."""
    devices = topologies.get_topology_desc(platform="tpu", topology_name=_TOPOLOGY.value).devices
    config = cli.config_from(_CONFIG)
    mesh = build_mesh(config.mesh, devices)
    config = for_slice(config, _PER_CHIP.value * mesh.size // mesh.shape["tensor"])
    began = time.perf_counter()
    try:
        found = memory(compiled_step(config, mesh))
    except jax.errors.JaxRuntimeError as error:
        found = refusal(error)
    result = {
        "topology": _TOPOLOGY.value,
        "chips": len(devices),
        "mesh": dict(mesh.shape),
        "per_chip": _PER_CHIP.value,
        "head": _HEAD.value,
        "attention": config.model.attention,
        "remat": config.model.remat,
        **found,
        "compile_seconds": round(time.perf_counter() - began, 1),
        "jax": jax.__version__,
        "libtpu": metadata.version("libtpu"),
    }
    print("| " + " | ".join(f"{name} {value}" for name, value in result.items()) + " |")
    print(json.dumps(result))


if __name__ == "__main__":
    cli.run(main)

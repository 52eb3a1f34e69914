"""Times a training step and a sampling step beside d3-dna: score entropy on DNA in PyTorch.

    python -m venv D3 && D3/bin/pip install d3-dna==0.1.3
    python -m benchmarks.beside_d3_dna --peer_python=D3/bin/python --trunk=transformer

Same shape, graph (uniform over four letters) and noise, float32, no dropout. The peer runs in
its own interpreter and by its own functions, without Lightning's loop. Programs take turns, so that
other load on the machine affects both; a row has the median time of each, and the median and
quartiles of the ratio within a round. Compilation is not counted. Quiet cores are needed for a
figure to quote: torch's threads spin, and lose more by load than ours.

The convolutional networks are not equal layer by layer: that of d3-dna has one convolution more, at
its input, and no gates.
"""

import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from benchmarks.measure import alternate, check_output, report
from benchmarks.published import Worker
from benchmarks.step import Step
from sedd_jax.errors import BadInput
from sedd_jax.experiment import cli
from sedd_jax.experiment.config import Config, NoiseConfig, TrainConfig
from sedd_jax.inference.batches import row_keys
from sedd_jax.inference.build import build_family
from sedd_jax.inference.prompt import empty_prompt
from sedd_jax.inference.sampling import Sampling
from sedd_jax.model.config import ModelConfig

_PEER = flags.DEFINE_string("peer_python", None, "A Python that has d3-dna.")
_TRUNK = flags.DEFINE_enum(
    "trunk", "transformer", ["transformer", "convolution"], "The network of both."
)
_HIDDEN = flags.DEFINE_integer("hidden", 256, "Width of the network, or its channels.")
_BLOCKS = flags.DEFINE_integer("blocks", 4, "Blocks of the transformer; convolutions are 20.")
_LENGTH = flags.DEFINE_integer("length", 256, "Letters of a sequence.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 32, "Sequences.")
_STEPS = flags.DEFINE_integer("steps", 8, "Updates of a sampling run, before the final one.")
_ROUNDS = flags.DEFINE_integer("rounds", 10, "Measured rounds.", lower_bound=1)
_OUTPUT = flags.DEFINE_string("output", None, "File for the results as JSON.")
COND, LETTERS, CONVOLUTIONS = 128, 4, 20  # the number of convolutions of d3-dna is fixed


def settings() -> Config:
    """Returns our settings of the same step."""
    is_convolution = _TRUNK.value == "convolution"
    model = ModelConfig(
        trunk=_TRUNK.value,
        hidden_size=_HIDDEN.value,
        cond_dim=COND,
        num_blocks=CONVOLUTIONS if is_convolution else _BLOCKS.value,
        num_heads=_heads(),
        length=_LENGTH.value,
        dropout=0.0,
        scale_by_sigma=False,
    )
    train = TrainConfig(batch_size=_BATCH_SIZE.value)
    noise = NoiseConfig("geometric", sigma_min=1e-4, sigma_max=20.0)
    return Config(graph="uniform", noise=noise, model=model, train=train)


def shape_of_peer() -> dict:
    """Returns the same shape as d3_worker.py wants it."""
    if not _PEER.value:
        raise BadInput("--peer_python=PYTHON is needed, a Python that has d3-dna.")
    return {
        "trunk": _TRUNK.value, "hidden": _HIDDEN.value, "cond": COND, "blocks": _BLOCKS.value,
        "heads": _heads(), "batch": _BATCH_SIZE.value, "length": _LENGTH.value,
        "steps": _STEPS.value,
    }  # fmt: skip


def main() -> None:
    """Runs the benchmark."""
    check_output(_OUTPUT.value)
    config, spec = settings(), shape_of_peer()
    family = build_family(config, LETTERS)
    shape = (spec["batch"], spec["length"])
    with Worker(_PEER.value, "d3_worker.py", "d3-dna") as peer:
        tokens = jax.random.randint(jax.random.key(1), shape, 0, LETTERS)
        programs = {
            "train": Step(family, config, tokens),
            "train, d3-dna": lambda: peer.seconds("train", **spec),
            "sample": _sampling(family, shape),
            "sample, d3-dna": lambda: peer.seconds("sample", **spec),
        }
        seconds = alternate(programs, _ROUNDS.value)
    rows = []
    for name in ("train", "sample"):
        ours, theirs = (np.array(seconds[key]) for key in (name, f"{name}, d3-dna"))
        low, middle, high = np.quantile(ours / theirs, [0.25, 0.5, 0.75])
        rows.append(
            {
                "trunk": _TRUNK.value,
                "step": name,
                "rounds": len(ours),
                "ours_s": float(np.median(ours)),
                "d3_dna_s": float(np.median(theirs)),
                "ours / d3-dna": float(middle),
                "quartiles": f"{low:.3f} to {high:.3f}",
            }
            | {key: spec[key] for key in ("batch", "length", "hidden")}
        )
    report(rows, _OUTPUT.value)


def _heads():
    return max(_HIDDEN.value // 64, 1)


def _sampling(family, shape):
    """A program: the seconds of a network evaluation of a run of Tweedie steps."""
    params = jax.jit(family.model.init)(jax.random.key(0))
    arguments = (params, row_keys(jax.random.key(2), jnp.arange(shape[0])), empty_prompt(*shape))
    generate = jax.jit(family.generator(Sampling(_STEPS.value), t_min=1e-3))
    compiled = generate.lower(*arguments).compile()

    def program():
        began = time.perf_counter()
        _, diagnostics = jax.block_until_ready(compiled(*arguments))
        return (time.perf_counter() - began) / int(diagnostics.evaluations.max())

    return program


if __name__ == "__main__":
    cli.run(main)

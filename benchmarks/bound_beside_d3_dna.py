"""Trains a network and one of d3-dna on the same batches, and compares their held-out bounds.

    python -m benchmarks.bound_beside_d3_dna --peer_python=D3/bin/python --trunk=convolution \
        --hidden=128 --length=60 --batch_size=64 --steps=800 \
        --training=runs/splice_data/training.csv --heldout=runs/splice_data/heldout.csv

Networks, flags and environment of `benchmarks.beside_d3_dna`; --steps is the number of updates.
Both see the same sequences in the same order, without labels, by AdamW with the same warm-up, clip
and average. The bound is that of the published code, the loss at uniform times from 1e-3 to 1, in
nats per letter, of the averaged weights. Its standard error is that of the mean over sequences;
that of the difference pairs them.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from benchmarks.beside_d3_dna import LETTERS, settings, shape_of_peer
from benchmarks.measure import check_output, report
from benchmarks.published import Worker
from benchmarks.step import Step
from sedd_jax.errors import BadInput
from sedd_jax.evaluation.sequence_sets import read_set
from sedd_jax.evaluation.sequences import NUCLEOTIDES
from sedd_jax.experiment import cli
from sedd_jax.experiment.config import OptimConfig
from sedd_jax.inference.build import build_family
from sedd_jax.inference.likelihood import nll_bound
from sedd_jax.inference.model import TrainedModel

_TRAINING = flags.DEFINE_string("training", None, "Sequences: FASTA, or CSV with a column `text`.")
_HELDOUT = flags.DEFINE_string("heldout", None, "Others, for the bound.")
_DRAWS = flags.DEFINE_integer("draws", 32, "Of t and x_t, per held-out sequence.")
OPTIM = OptimConfig(learning_rate=1e-3, warmup_steps=100, ema_decay=0.99)


def main() -> None:
    """Runs the comparison."""
    output = flags.FLAGS.output
    check_output(output)
    spec = shape_of_peer()
    training, heldout = (_read(flag, spec["length"]) for flag in (_TRAINING, _HELDOUT))
    rng, steps = np.random.default_rng(0), flags.FLAGS.steps
    batches = training[rng.integers(len(training), size=(steps, spec["batch"]))]
    optim = {"lr": OPTIM.learning_rate, "warmup": OPTIM.warmup_steps, "ema": OPTIM.ema_decay}
    with Worker(flags.FLAGS.peer_python, "d3_worker.py", "d3-dna") as peer:
        asked = {"batches": batches.tolist(), "heldout": heldout.tolist(), "draws": _DRAWS.value}
        theirs = np.array(peer.ask("bound", **spec, **optim, **asked)["losses"]) / spec["length"]
    ours = _bound(batches, heldout) / spec["length"]
    losses = {"ours": ours, "d3-dna": theirs, "ours - d3-dna": ours - theirs}
    report(
        [
            {"trunk": spec["trunk"], "updates": steps, "bound of": name}
            | {"nats_per_letter": float(x.mean()), "stderr": float(x.std() / np.sqrt(len(x)))}
            for name, x in losses.items()
        ],
        output,
    )


def _bound(batches, heldout):
    """Returns the loss of our network on every held-out sequence."""
    config = dataclasses.replace(settings(), optim=OPTIM)
    family = build_family(config, LETTERS)
    step = Step(family, config, jnp.asarray(batches[0]))
    for batch in batches:
        step(jnp.asarray(batch))
    model = TrainedModel(family, step.ema_params, config, tokenizer=None, step=len(batches))
    key = jax.random.key(3)
    return nll_bound(key, model, heldout, batch_size=64, draws=_DRAWS.value).nats.mean(0)


def _read(flag, length):
    """Returns the tokens [N, L] of a file."""
    if not flag.value:
        raise BadInput(f"--{flag.name}=FILE is needed.")
    texts = read_set(flag.value).texts
    if any(len(text) != length or set(text) - set(NUCLEOTIDES) for text in texts):
        raise BadInput(
            f"{flag.value} must have sequences of --length={length} letters {NUCLEOTIDES} alone."
        )
    return np.array([[NUCLEOTIDES.index(letter) for letter in text] for text in texts], np.int32)


if __name__ == "__main__":
    cli.run(main)

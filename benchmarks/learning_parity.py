"""Trains on one fixed text under one fixed protocol, to compare learning across implementations.

    python -m benchmarks.learning_parity --config=configs/parity_absorb.py

Protocol: the text is the help topics of Python 3.11.7 joined by blank lines. The first 90 % of its
bytes are the training split, the rest is held out. A batch consists of random crops. The held-out
bound is the mean over 2000 fixed crops with stratified times t in [1e-3, 1], in bits per byte,
without the factor 1 - 1e-3 and the prior term. The script uses the graph, noise, model, train and
optim sections of the config, and the tokenizer. The results of the published code are for bytes.
"""

import hashlib
import json
import math
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from sedd_jax.data.tokenizer import build_tokenizer
from sedd_jax.diffusion.importance import plain_proposal
from sedd_jax.errors import BadInput
from sedd_jax.experiment import cli
from sedd_jax.experiment.config_files import define_config_flag
from sedd_jax.experiment.state import run_keys
from sedd_jax.inference.batches import row_keys
from sedd_jax.inference.build import build_family
from sedd_jax.inference.score_based import sequence_loss
from sedd_jax.training.hooks import PendingLosses
from sedd_jax.training.step import build_train_step, init_state

_CONFIG = define_config_flag("A config file.")
_DATA_SEED = flags.DEFINE_integer("data_seed", 0, "Seed of the order of the training crops.")
_SECONDS = flags.DEFINE_float("seconds", None, "Stop after this many seconds of training steps.")
_HELDOUT_CROPS = 2000
_SHA256 = "71f2ff5d99bdc1f9c48c5c2353ad138201c5ca1c377e0226857ef8fa89b8bcee"


def text_split() -> tuple[str, str]:
    """Returns the training text and the held-out text."""
    from pydoc_data import topics

    text = "\n\n".join(topics.topics.values()).encode()
    if hashlib.sha256(text).hexdigest() != _SHA256:
        raise BadInput("The help topics are not those of Python 3.11.7: run it with that version.")
    cut = round(0.9 * len(text))
    return text[:cut].decode(), text[cut:].decode()


def crops(tokens: np.ndarray, starts: np.ndarray, length: int) -> np.ndarray:
    """Returns the crops of `length` that begin at `starts`, [len(starts), length]."""
    return tokens[starts[:, None] + np.arange(length)[None]]


def heldout(tokens: np.ndarray, length: int, t_min: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns the held-out crops and their stratified times."""
    rng = np.random.default_rng(1)
    starts = rng.integers(0, len(tokens) - length + 1, size=_HELDOUT_CROPS)
    strata = rng.permutation(_HELDOUT_CROPS) + rng.random(_HELDOUT_CROPS)
    times = t_min + (1 - t_min) * strata / _HELDOUT_CROPS
    return crops(tokens, starts, length), times.astype(np.float32)


def main() -> None:
    """Trains, then prints the bound with the raw and the averaged weights as one JSON line."""
    settings = cli.config_from(_CONFIG)
    train_text, heldout_text = text_split()
    data = settings.data
    tokenizer = build_tokenizer(data, lambda: [train_text], "".join(sorted(set(train_text))))
    train_tokens, heldout_tokens = map(tokenizer.encode, (train_text, heldout_text))
    bytes_per_token = len(heldout_text.encode()) / len(heldout_tokens)
    # the published runs had no end-of-document token, the last id of the byte tokenizer
    vocab_size = 256 if data.tokenizer == "bytes" else tokenizer.vocab_size
    family, keys = build_family(settings, vocab_size), run_keys(settings.seed)
    train_step = jax.jit(
        build_train_step(family, settings.train, settings.optim, keys.train), donate_argnums=0
    )
    t_min = settings.train.t_min
    loss = jax.jit(sequence_loss(family, plain_proposal(t_min)))
    state = init_state(keys.init, family, settings.optim)
    length, batch_size = settings.model.length, settings.train.batch_size
    held, times = heldout(heldout_tokens, length, t_min)
    units = (times - t_min) / (1 - t_min)

    def bits_per_byte(params):
        nats = [
            loss(params, row_keys(keys.evaluate, rows), jnp.asarray(units[rows]), held[rows])
            for rows in np.split(np.arange(_HELDOUT_CROPS), _HELDOUT_CROPS // 100)
        ]
        nats_per_token = float(np.mean(jax.device_get(nats))) / length
        return nats_per_token / math.log(2) / bytes_per_token

    rng = np.random.default_rng(_DATA_SEED.value)
    losses, seconds = PendingLosses(settings.train.max_skipped), 0.0
    for step in range(1, settings.train.steps + 1):
        starts = rng.integers(0, len(train_tokens) - length + 1, size=batch_size)
        began = time.perf_counter()
        state, metrics = train_step(state, crops(train_tokens, starts, length))
        losses.add(step, metrics)
        if step == 1:
            jax.block_until_ready(metrics)  # the first step compiles and is not timed
            continue
        seconds += time.perf_counter() - began
        if step % 100 == 0:
            print(f"step {step}  loss {losses.take()['loss']:.4f}  {seconds:.0f} s", flush=True)
        if _SECONDS.value is not None and seconds > _SECONDS.value:
            break
    result = {
        "graph": settings.graph,
        "steps": step,
        "training_seconds": round(seconds, 1),
        "raw": round(bits_per_byte(state.params), 4),
        "ema": round(bits_per_byte(state.ema_params), 4),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    cli.run(main)

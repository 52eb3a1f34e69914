"""Times the autoregressive baseline: its training step, and its key-value cache.

    python -m benchmarks.baseline

The networks of configs/tiny.py and configs/ar_tiny.py alternate in one process. One table compares
their training steps, another compares sampling a batch with the key-value cache and with a whole
forward pass for every token.
"""

import statistics
from collections.abc import Callable

import jax
import jax.numpy as jnp
from absl import flags

from benchmarks.measure import alternate, check_output, report, timed
from benchmarks.step import Step
from configs import ar_tiny, tiny
from sedd_jax.diffusion import categorical
from sedd_jax.experiment import cli
from sedd_jax.experiment.config import parse
from sedd_jax.inference.autoregressive import build_generator
from sedd_jax.inference.batches import row_keys
from sedd_jax.inference.build import build_family
from sedd_jax.inference.prompt import empty_prompt
from sedd_jax.model.autoregressive import CausalModel

_ROUNDS = flags.DEFINE_integer("rounds", 10, "Measured rounds.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 8, "Sequences sampled at a time.")
_LENGTH = flags.DEFINE_integer("length", 128, "Tokens sampled, at most 128.", upper_bound=128)
_OUTPUT = flags.DEFINE_string("output", None, "File for the results as JSON.")


def main() -> None:
    """Runs the benchmark."""
    check_output(_OUTPUT.value)
    configs = {"diffusion": parse(tiny.get_config()), "baseline": parse(ar_tiny.get_config())}
    steps = {name: _step(config) for name, config in configs.items()}
    rows = _rows("training step", steps, "diffusion")
    model = build_family(configs["baseline"], configs["baseline"].data.vocab_size).model
    params = jax.jit(model.init)(jax.random.key(0))
    keys = row_keys(jax.random.key(1), jnp.arange(_BATCH_SIZE.value))
    prompt = empty_prompt(_BATCH_SIZE.value, _LENGTH.value)
    generators = {
        "no cache": _without_cache(model),
        "cache": build_generator(model),
    }
    programs = {
        name: timed(jax.jit(generate), params, keys, prompt)
        for name, generate in generators.items()
    }
    report(rows + _rows("sampling", programs, "no cache"), _OUTPUT.value)


def _step(config):
    vocab_size = config.data.vocab_size
    shape = (config.train.batch_size, config.model.length)
    tokens = jax.random.randint(jax.random.key(1), shape, 0, vocab_size)
    return Step(build_family(config, vocab_size), config, tokens)


def _without_cache(model: CausalModel) -> Callable:
    """The same tokens, each from a forward pass over the whole sequence."""

    def generate(params, keys, prompt):
        def step(tokens, position):
            logits = model.apply(params, tokens)[:, position]
            weights = jnp.exp(logits - logits.max(-1, keepdims=True))
            position_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, position)
            drawn = jax.vmap(categorical.categorical)(position_keys, weights)
            return tokens.at[:, position + 1].set(drawn, mode="drop"), drawn

        start = jnp.full(prompt.tokens.shape, model.start, jnp.int32)
        return jax.lax.scan(step, start, jnp.arange(prompt.tokens.shape[1]))[1].T

    return generate


def _rows(what, programs, last):
    seconds = alternate(programs, _ROUNDS.value)
    return [
        {
            "what": what,
            "of": name,
            "median_s": statistics.median(times),
            "min_s": min(times),
            f"over {last}": statistics.median(
                a / b for a, b in zip(times, seconds[last], strict=True)
            ),
        }
        for name, times in seconds.items()
    ]


if __name__ == "__main__":
    cli.run(main)

"""Times a step of the sampler, averaged over a whole run, against its parts and the dense rule.

    python -m benchmarks.sampling_step
    python -m benchmarks.sampling_step --graph=uniform --steps=4 --rounds=2

A row is a sampler of the library, and its seconds are those of a run by its network evaluations,
the final denoising step included. Under the uniform graph Tweedie steps by tempered conditionals
are timed too, and with --guidance=2 those of a network that is told a condition, guided by what the
condition changes: two evaluations of the blocks, one of the head. "parts" is the work that a
Tweedie step cannot avoid: the network's blocks, and the product of the unembedding with the
positions that may change (all, or under the absorbing graph half, those masked on average), written
to memory. "dense" is Tweedie with materialised log-scores, over a few steps, since each costs the
same. With --published=FOLDER and --published_python=PYTHON the published sampler (absorbing graph)
alternates with them: one analytic update halfway.
"""

import contextlib
import statistics
import time

import jax
import jax.numpy as jnp
from absl import flags

from benchmarks.measure import alternate, check_output, report, temporaries, timed
from benchmarks.published import Published
from benchmarks.shapes import Shape, family_of
from sedd_jax.data.column_statistics import Label
from sedd_jax.data.conditions import Conditions
from sedd_jax.experiment import cli
from sedd_jax.inference.batches import row_keys
from sedd_jax.inference.prompt import empty_prompt
from sedd_jax.inference.sampling import Sampling, samplers_for

_BATCH_SIZE = flags.DEFINE_integer("batch_size", 1, "Sequences.")
_LENGTH = flags.DEFINE_integer("length", 1024, "Tokens per sequence.")
_TOKENS = flags.DEFINE_integer("tokens", 50_257, "Tokens of the vocabulary.")
_HIDDEN = flags.DEFINE_integer("hidden", 256, "Width of the network.")
_BLOCKS = flags.DEFINE_integer("blocks", 4, "Blocks of the network.")
_GRAPH = flags.DEFINE_enum("graph", "absorb", ["absorb", "uniform"], "The token graph.")
_SAMPLERS = flags.DEFINE_multi_string(
    "sampler", None, "A sampler beside tweedie, repeatable; by default all that the graph has."
)
_STEPS = flags.DEFINE_integer("steps", 16, "Network evaluations before the final one.")
_DENSE_STEPS = flags.DEFINE_integer("dense_steps", 3, "Steps of the dense run.")
_GUIDANCE = flags.DEFINE_float("guidance", 1.0, "Times guided Tweedie steps too, unless it is 1.")
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Measured runs of each.")
_PUBLISHED = flags.DEFINE_string("published", None, "Folder of the published PyTorch code.")
_PYTHON = flags.DEFINE_string("published_python", "python", "A Python that has torch.")
_CONDITIONS = Conditions((Label("class", {"a": 1, "b": 1}),))
_OUTPUT = flags.DEFINE_string("output", None, "File for the results as JSON.")


def random_params(family):
    """Returns weights of a network whose scores differ by token."""
    params = jax.jit(family.model.init)(jax.random.key(0))
    kernel = params["head"]["kernel"]
    params["head"]["kernel"] = 0.05 * jax.random.normal(jax.random.key(1), kernel.shape)
    return params


def main() -> None:
    """Runs the benchmark."""
    check_output(_OUTPUT.value)
    shape = Shape(
        tokens=_TOKENS.value,
        hidden=_HIDDEN.value,
        blocks=_BLOCKS.value,
        heads=_HIDDEN.value // 64 or 1,
        length=_LENGTH.value,
        batch=_BATCH_SIZE.value,
    )
    streamed = family_of(shape, "streamed", "none", _GRAPH.value)
    params = random_params(streamed)
    args = (
        params,
        row_keys(jax.random.key(2), jnp.arange(shape.batch)),
        empty_prompt(shape.batch, shape.length),
    )
    programs, memory = {}, {}
    for name, (head, sampling) in _ways(streamed.graph).items():
        family = family_of(shape, head, "none", _GRAPH.value)
        compiled = jax.jit(family.generator(sampling, t_min=1e-3)).lower(*args).compile()
        memory[name] = temporaries(compiled)
        programs[name] = _per_evaluation(compiled, *args)

    if _GUIDANCE.value != 1:
        name = f"tweedie, guidance {_GUIDANCE.value:g}"
        family = family_of(shape, "streamed", "none", _GRAPH.value, conditions=_CONDITIONS)
        told = args[2]._replace(condition=_CONDITIONS.encode([{"class": "a"}] * shape.batch))
        guided_args = random_params(family), args[1], told
        sampling = Sampling(_STEPS.value, guidance=_GUIDANCE.value)
        generator = jax.jit(family.generator(sampling, t_min=1e-3))
        compiled = generator.lower(*guided_args).compile()
        memory[name] = temporaries(compiled)
        programs[name] = _per_evaluation(compiled, *guided_args)

    xt = jnp.zeros((shape.batch, shape.length), jnp.int32)
    blocks = jax.jit(
        lambda params: streamed.model.score(params, xt, jnp.ones(len(xt))).inputs.hidden
    )
    programs["blocks"] = _repeated(timed(blocks.lower(params).compile(), params))
    changeable = xt.size if not streamed.graph.absorbs else xt.size // 2
    hidden = jax.random.normal(jax.random.key(3), (changeable, shape.hidden))
    product = jax.jit(jnp.dot).lower(hidden, params["head"]["kernel"]).compile()
    programs["product"] = _repeated(timed(product, hidden, params["head"]["kernel"]))

    with contextlib.ExitStack() as stack:
        if _PUBLISHED.value:
            worker = stack.enter_context(Published(_PYTHON.value, _PUBLISHED.value))
            spec = {
                "tokens": shape.tokens,
                "hidden": shape.hidden,
                "cond": 128,
                "blocks": shape.blocks,
                "heads": shape.heads,
                "batch": shape.batch,
                "length": shape.length,
                "steps": _STEPS.value,
                "t": 0.5,
            }
            programs["published"] = lambda: worker.seconds("sample_step", **spec)
        seconds = alternate(programs, _ROUNDS.value)
    seconds["parts"] = [
        sum(pair) for pair in zip(seconds["blocks"], seconds["product"], strict=True)
    ]
    rows = [
        {
            "batch": shape.batch,
            "what": name,
            "median_s": statistics.median(times),
            "min_s": min(times),
            "times_tweedie": statistics.median(
                a / b for a, b in zip(times, seconds["tweedie"], strict=True)
            ),
            "temporaries_mb": round(memory[name] / 1e6) if name in memory else "",
        }
        for name, times in seconds.items()
    ]
    report(rows, _OUTPUT.value)


def _ways(graph):
    """Of every row the head and the settings."""
    steps = _STEPS.value
    names = ["tweedie", *(_SAMPLERS.value or samplers_for(graph))]
    ways = {name: ("streamed", Sampling(steps, name)) for name in names}
    if not graph.absorbs:
        sharp = {"temperature": 0.7, "tempering": "conditional"}
        ways["tweedie, conditional"] = ("streamed", Sampling(steps, **sharp))
        ways["tweedie, conditional top-p"] = ("streamed", Sampling(steps, **sharp, top_p=0.9))
    return ways | {"dense": ("dense", Sampling(_DENSE_STEPS.value))}


def _repeated(program, times=20):
    """Repeats a program as a run does: the first call after another program has cold caches."""
    return lambda: sum(program() for _ in range(times)) / times


def _per_evaluation(generator, *args):
    def program():
        began = time.perf_counter()
        _, diagnostics = jax.block_until_ready(generator(*args))
        return (time.perf_counter() - began) / int(diagnostics.evaluations.max())

    return program


if __name__ == "__main__":
    cli.run(main)

"""Sampling (Algorithm 2) from a trained network, with any positions held."""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Int, Key

from sedd_jax.diffusion.published_race import RacedScore
from sedd_jax.diffusion.reverse import SAMPLERS, Clamp, SamplerState, build_kernels
from sedd_jax.diffusion.score import Score
from sedd_jax.errors import BadInput
from sedd_jax.inference.load import Checkpoint
from sedd_jax.model.score_model import Params, ScoreModel
from sedd_jax.runtime.components import Components
from sedd_jax.runtime.config import Config
from sedd_jax.runtime.sharding import program

MOST_STEPS = 2**20  # their times are float32


class Diagnostics(NamedTuple):
    """What happened while sampling.

    Attributes:
      evaluations: network evaluations per row, the final denoising step included.
      changed: positions changed at each of the steps + 1 calls, [steps + 1, B].
      finite: True for a row all of whose scores were finite, [B].
      trace: the tokens before the first and after every call, [steps + 2, B, L], if asked for.
    """

    evaluations: int
    changed: Int[Array, "S B"]
    finite: Bool[Array, "B"]
    trace: Int[Array, "T B L"] | None


Generator = Callable[[Params, Key[Array, "B"], Clamp], tuple[Int[Array, "B L"], Diagnostics]]


def _raced(model: ScoreModel) -> Callable[..., Score]:
    return lambda params, xt, sigma: RacedScore(xt, model.apply(params, xt, sigma))


# how tokens are drawn from a network's answer
PRECISIONS: dict[str, Callable[[ScoreModel], Callable[..., Score]]] = {
    "exact": lambda model: model.score,
    "published": _raced,
}


@jax.jit
def row_keys(key: Key[Array, ""], rows: Int[Array | np.ndarray, "B"]) -> Key[Array, "B"]:
    """Returns one key per row: a sample depends on the seed and its row number alone."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, rows)


def free(num_samples: int, length: int) -> Clamp:
    """Returns the clamp that holds nothing."""
    shape = (num_samples, length)
    return Clamp(jnp.zeros(shape, jnp.int32), jnp.zeros(shape, bool))


def build_generator(
    components: Components,
    *,
    steps: int,
    sampler: str,
    t_min: float,
    trace: bool = False,
    precision: str = "exact",
) -> Generator:
    """Returns generate(params, keys, clamp) -> (tokens, diagnostics), one program when jitted.

    Times go evenly from 1 to t_min, the end of the range that was trained; the final denoising
    step removes the noise that is left.

    Args:
      components: graph, noise and network.
      steps: reverse steps before the final one, at least 1.
      sampler: "tweedie" or "euler".
      t_min: the smallest time of training.
      trace: keep the tokens after every step.
      precision: "exact", or "published" for the float32 race of `diffusion.published_race`, which
        loses rare tokens and writes out B L V numbers: only to show what it does.
    """
    graph, noise, model = components
    times = jnp.linspace(1.0, t_min, steps + 1)
    answer = PRECISIONS[precision](model)

    def generator(params, keys, clamp):
        score_fn = functools.partial(answer, params)
        reverse_step, denoise_step = build_kernels(graph, noise, score_fn, times, sampler, clamp)

        def at_step(index):
            return jax.vmap(jax.random.fold_in, (0, None))(keys, index)

        def scanned(state, index):
            state, info = reverse_step(at_step(index), state)
            return state, (info, state.xt if trace else None)

        length = clamp.tokens.shape[1]
        limit = jax.vmap(lambda key: graph.sample_limit(key, (length,)))(at_step(steps + 1))
        start = clamp(limit)
        state, (infos, path) = jax.lax.scan(
            scanned, SamplerState(start, jnp.zeros((), jnp.int32)), jnp.arange(steps)
        )
        state, last = denoise_step(at_step(steps), state)
        diagnostics = Diagnostics(
            evaluations=steps + 1,
            changed=jnp.concatenate([infos.changed, last.changed[None]]),
            finite=jnp.all(infos.finite, axis=0) & last.finite,
            trace=jnp.concatenate([start[None], path, state.xt[None]]) if trace else None,
        )
        return state.xt, diagnostics

    return generator


def generate(
    key: Key[Array, ""],
    checkpoint: Checkpoint,
    num_samples: int,
    length: int | None = None,
    *,
    steps: int = 128,
    sampler: str = "tweedie",
    prompt: Clamp | None = None,
    batch_size: int = 32,
    trace: bool = False,
    precision: str = "exact",
    progress: Callable[[int, int], None] | None = None,
) -> tuple[np.ndarray, Diagnostics]:
    """Draws token sequences from a trained diffusion model (Algorithm 2).

    Row i is a function of (key, i) and the settings, whatever `num_samples` and `batch_size`; on
    another mesh it is so up to rounding. The rows of a batch are split over the checkpoint's mesh,
    and every process gets all.

    Args:
      key: random key.
      checkpoint: the model, from `sedd.load`.
      num_samples: N.
      length: L, tokens per sequence; the trained length by default.
      steps: reverse steps before the final denoising step.
      sampler: "tweedie" or "euler".
      prompt: tokens to hold, [N, L]; they come back unchanged.
      batch_size: rows at a time; on a mesh, rounded up to fill it.
      trace: keep the tokens after every step in the diagnostics.
      precision: "exact", or "published", see `build_generator`.
      progress: called as progress(done, total) after every batch.

    Returns:
      Tokens [N, L] and `Diagnostics` over the N rows.

    Raises:
      BadInput: an autoregressive model, a setting out of range, or a prompt of another shape.
      FloatingPointError: the network gave a score that is not finite; no later batch is drawn.
    """
    components, config = checkpoint.diffusion, checkpoint.config
    length = config.model.length if length is None else length
    check_rows(config, num_samples, length, batch_size)
    check_steps(steps, sampler, precision)
    prompt = free(num_samples, length) if prompt is None else prompt
    check_prompt(prompt, (num_samples, length), components.num_tokens)
    t_min = config.train.t_min
    generator = _compiled(components, checkpoint.mesh, steps, sampler, t_min, trace, precision)
    parts = in_batches(
        generator, checkpoint, key, prompt, batch_size, lambda found: found.finite, progress
    )
    return _join_rows(parts, num_samples)


def in_batches(
    generator: Callable[[Params, Key[Array, "B"], Clamp], tuple[Int[Array, "B L"], Any]],
    checkpoint: Checkpoint,
    key: Key[Array, ""],
    prompt: Clamp,
    batch_size: int,
    finite: Callable[[Any], Bool[np.ndarray, "B"]],
    progress: Callable[[int, int], None] | None = None,
) -> list[Any]:
    """Returns what the generator gives for the rows of the prompt, a batch at a time.

    Args:
      generator: gives tokens and what else was found of the rows.
      checkpoint: the model.
      key: random key.
      prompt: tokens to hold, [N, L].
      batch_size: rows at a time.
      finite: says by what was found of a row whether all its numbers were.
      progress: called as progress(done, total) after every batch.

    Raises:
      FloatingPointError: those of a row were not; no later batch is drawn.
    """
    held = jax.tree.map(np.asarray, prompt)
    batches = list(row_batches(len(held.tokens), batch_size, checkpoint.parts))
    parts = []
    for done, rows in enumerate(batches, 1):
        last = np.minimum(rows, len(held.tokens) - 1)
        of_batch = jax.tree.map(lambda x, last=last: checkpoint.spread(x[last]), held)
        keys = row_keys(key, checkpoint.spread(rows))
        parts.append(jax.device_get(generator(checkpoint.params, keys, of_batch)))
        wrong = rows[~finite(parts[-1][1]) & (rows == last)]
        if len(wrong):
            raise FloatingPointError(
                f"The network gave numbers that are not finite in rows {wrong}: its weights are of "
                "no use, try another checkpoint."
            )
        if progress is not None:
            progress(done, len(batches))
    return parts


def row_batches(num_rows: int, batch_size: int, parts: int) -> Iterator[np.ndarray]:
    """Yields the numbers of the rows of batches, all of one size, which `parts` divides.

    One shape, one program: the last batch goes on past `num_rows`, with rows to be cut off.
    """
    size = -(-min(batch_size, num_rows) // parts) * parts
    for first in range(0, num_rows, size):
        yield np.arange(first, first + size, dtype=np.int32)


@functools.lru_cache(maxsize=8)
def _compiled(
    components: Components,
    mesh: Mesh | None,
    steps: int,
    sampler: str,
    t_min: float,
    trace: bool,
    precision: str,
) -> Generator:
    """The generator as one program, kept so that the next call does not compile it again."""
    settings = {"steps": steps, "sampler": sampler, "t_min": t_min, "precision": precision}
    return program(build_generator(components, trace=trace, **settings), mesh)


def _join_rows(parts, num_samples):
    """Concatenates the batches along their row axis and cuts the rows that only filled up."""
    tokens, diagnostics = zip(*parts, strict=True)

    def join(name, axis):
        joined = np.concatenate([getattr(part, name) for part in diagnostics], axis)
        return joined.take(np.arange(num_samples), axis)

    return np.concatenate(tokens)[:num_samples], Diagnostics(
        evaluations=int(diagnostics[0].evaluations),
        changed=join("changed", 1),
        finite=join("finite", 0),
        trace=None if diagnostics[0].trace is None else join("trace", 1),
    )


def check_positive(**settings: int) -> None:
    """Raises BadInput unless every setting, by its name, is at least 1."""
    for name, value in settings.items():
        if value < 1:
            raise BadInput(f"{name} must be at least 1, got {value}.")


def check_rows(config: Config, num_samples: int, length: int, batch_size: int) -> None:
    """Raises BadInput for samples that no model can draw, or not the one of these settings."""
    check_positive(num_samples=num_samples, length=length, batch_size=batch_size)
    learned = config.family == "autoregressive" or config.model.learned_positions
    if learned and length > config.model.length:
        raise BadInput(
            f"length must be at most {config.model.length}, the positions that the model has "
            f"learned, got {length}."
        )


def check_steps(steps: int, sampler: str, precision: str) -> None:
    """Raises BadInput for a way to sample that cannot be."""
    check_positive(steps=steps)
    if steps > MOST_STEPS:
        raise BadInput(f"steps must be at most {MOST_STEPS:,}, got {steps:,}.")
    if sampler not in SAMPLERS:
        raise BadInput(f"sampler must be one of {', '.join(SAMPLERS)}, got {sampler!r}.")
    if precision not in PRECISIONS:
        raise BadInput(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}.")


def check_prompt(prompt: Clamp, shape: tuple[int, int], num_tokens: int) -> None:
    """Raises BadInput unless a prompt has the shape [N, L] and holds tokens of the model."""
    for name, array in prompt._asdict().items():
        if array.shape != shape:
            raise BadInput(
                f"prompt.{name} has shape {array.shape}, need [num_samples, length] = {shape}."
            )
    held = np.asarray(prompt.tokens)[np.asarray(prompt.held)]
    if held.size and not 0 <= held.min() <= held.max() < num_tokens:
        raise BadInput(f"The prompt holds ids outside [0, {num_tokens}), the model's tokens.")


def prefix_suffix(
    prefix: Int[np.ndarray, "P"], suffix: Int[np.ndarray, "S"], num_samples: int, length: int
) -> Clamp:
    """Returns the clamp that holds `prefix` at the start and `suffix` at the end of every row.

    Raises:
      BadInput: the two leave no position to sample.
    """
    check_positive(num_samples=num_samples, length=length)
    given = len(prefix) + len(suffix)
    if given >= length:
        raise BadInput(
            f"The prompt has {given} tokens and the length is {length}: nothing is left to sample; "
            "give a shorter prompt or a larger length."
        )
    tokens = np.zeros(length, np.int32)
    held = np.ones(length, bool)
    tokens[: len(prefix)] = prefix
    tokens[length - len(suffix) :] = suffix
    held[len(prefix) : length - len(suffix)] = False
    rows = (num_samples, length)
    return Clamp(
        jnp.asarray(np.broadcast_to(tokens, rows)), jnp.asarray(np.broadcast_to(held, rows))
    )

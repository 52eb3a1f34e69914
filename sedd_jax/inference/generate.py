"""Sampling (Algorithm 2) from a trained network, with any positions held."""

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Key

from sedd_jax.errors import BadInput
from sedd_jax.experiment.build import Components
from sedd_jax.experiment.mesh import program
from sedd_jax.inference.batches import check_rows, in_batches, row_batches, row_numbers
from sedd_jax.inference.generator import Diagnostics, Generator, build_generator
from sedd_jax.inference.load import TrainedModel
from sedd_jax.inference.prompt import Prompt, check_prompt, free
from sedd_jax.inference.sampling import Sampling
from sedd_jax.inference.sliding import overlap_of, slide, windows


def generate(
    key: Key[Array, ""],
    checkpoint: TrainedModel,
    num_samples: int | None = None,
    length: int | None = None,
    *,
    prompt: Prompt | None = None,
    rows: np.ndarray | None = None,
    batch_size: int = 32,
    trace: bool = False,
    progress: Callable[[int, int], None] | None = None,
    **settings: Any,
) -> tuple[np.ndarray, Diagnostics]:
    """Draws token sequences from a trained diffusion model (Algorithm 2).

    A row is a function of (key, its number), its prompt and the settings, whatever `num_samples`
    and `batch_size`; on another mesh it is so up to rounding. The rows of a batch are split over
    the checkpoint's mesh, and every process gets all.

    Args:
      key: random key.
      checkpoint: the model, from `sedd.load`.
      num_samples: N; by default as many as the prompt has rows.
      length: L, tokens per sequence; by default that of the prompt, or the trained one. Longer rows
        are drawn a window of the trained length at a time, each holding the end of the text before.
      prompt: tokens to hold, [N, L]; they come back unchanged.
      rows: numbers of the rows, below 2^32; 0 to N - 1 by default.
      batch_size: rows at a time; on a mesh, rounded up to fill it.
      trace: keep the tokens after every step in the diagnostics; not of longer rows.
      progress: called as progress(done, total) after every batch; of longer rows, of every window.
      **settings: how to draw, see `Sampling`: sampler="tweedie", steps=128 and the like.

    Returns:
      Tokens [N, L] and `Diagnostics` over the N rows.

    Raises:
      BadInput: an autoregressive model, a setting out of range, or a prompt or row numbers that do
        not fit.
      FloatingPointError: the network gave a score that is not finite; no later batch is drawn.
    """
    components, config = checkpoint.diffusion, checkpoint.config
    if prompt is None and num_samples is None:
        raise BadInput("num_samples is needed where there is no prompt to say how many.")
    given = (num_samples, config.model.length) if prompt is None else prompt.tokens.shape
    num_samples = given[0] if num_samples is None else num_samples
    length = given[1] if length is None else length
    sampling = Sampling(**settings)
    sampling.check(components.graph)
    check_rows(config, num_samples, length, batch_size)
    prompt = free(num_samples, length) if prompt is None else prompt
    check_prompt(prompt, (num_samples, length), components.num_tokens)
    trained = config.model.length
    if trace and length > trained:
        raise BadInput(f"trace is for rows of at most {trained} tokens, the trained length.")
    if sampling.overlap is not None or length > trained:
        overlap = overlap_of(sampling.overlap, trained)
    numbers, size = row_numbers(rows, num_samples), min(batch_size, num_samples)
    kind = dataclasses.replace(sampling, overlap=None)  # which makes no other program
    generator = _compiled(components, checkpoint.mesh, kind, config.train.t_min, trace)

    def draw(part, told, chosen=slice(None), window=0):
        parts = in_batches(
            generator,
            checkpoint,
            key,
            part,
            numbers[chosen],
            size,  # in every window: one program
            lambda found: found.finite,
            told,
            window,
        )
        return _join_rows(parts, len(part.tokens))

    if length <= trained:
        return draw(prompt, progress)
    plan = windows(prompt, trained, overlap)
    batches = [len(list(row_batches(len(w.rows), size, checkpoint.parts))) for w in plan]
    done = itertools.count(1)
    told = progress and (lambda *_: progress(next(done), sum(batches)))
    return slide(prompt, plan, lambda part, window: draw(part, told, window.rows, window.number))


@functools.lru_cache(maxsize=8)
def _compiled(
    components: Components, mesh: Mesh | None, sampling: Sampling, t_min: float, trace: bool
) -> Generator:
    """The generator as one program, kept so that the next call does not compile it again."""
    return program(build_generator(components, sampling, t_min=t_min, trace=trace), mesh)


def _join_rows(parts, num_samples):
    """Concatenates the batches along their row axis and cuts the rows that only filled up."""
    tokens, diagnostics = zip(*parts, strict=True)

    def join(name, axis):
        joined = np.concatenate([getattr(part, name) for part in diagnostics], axis)
        return joined.take(np.arange(num_samples), axis)

    return np.concatenate(tokens)[:num_samples], Diagnostics(
        evaluations=join("evaluations", 0),
        changed=join("changed", 1),
        finite=join("finite", 0),
        trace=None if diagnostics[0].trace is None else join("trace", 1),
    )

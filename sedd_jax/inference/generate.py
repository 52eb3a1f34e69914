"""Sampling from a trained model (Algorithm 2), with any positions held."""

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Integer, Key

from sedd_jax.errors import BadInput, check_positive
from sedd_jax.inference.batches import batch_rows, one_ahead, row_keys, row_numbers, window_keys
from sedd_jax.inference.family import Family
from sedd_jax.inference.generator import Diagnostics, Generator
from sedd_jax.inference.model import TrainedModel
from sedd_jax.inference.prompt import Prompt, check_prompt, free
from sedd_jax.inference.sliding import overlap_of, slide, windows


def generate(
    key: Key[Array, ""],
    model: TrainedModel,
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
    """Draws token sequences from a trained model: Algorithm 2, or from left to right.

    A row is a function of (key, its number), its prompt and the settings, whatever `num_samples`
    and `batch_size`; on another mesh it is so up to rounding. The rows of a batch are split over
    the model's mesh, and every process gets all.

    Args:
      key: random key.
      model: the model, from `sedd.load`.
      num_samples: N; by default the number of rows of the prompt.
      length: L, tokens per sequence; by default that of the prompt, or the trained one. Longer rows
        of a diffusion model are drawn a window of the trained length at a time, each holding the
        end of the text before.
      prompt: tokens to hold, [N, L]; they come back unchanged. For an autoregressive model they
        must come first in their row.
      rows: numbers of the rows, below 2^32; 0 to N - 1 by default.
      batch_size: rows at a time; on a mesh, rounded up to fill it.
      trace: keep the tokens after every step in the diagnostics; not for longer rows, and not for
        an autoregressive model.
      progress: called as progress(done, total) after every batch; for longer rows, of every window.
      **settings: how to draw: of `Sampling` for a diffusion model, sampler="tweedie", steps=128 and
        the like; of `TokenSampling` for an autoregressive one.

    Returns:
      Tokens [N, L] and `Diagnostics` over the N rows.

    Raises:
      BadInput: a setting out of range or of another family, or a prompt or row numbers that do not
        fit.
      FloatingPointError: the network gave a score that is not finite; at most one more batch is
        computed.
    """
    family, config = model.family, model.config
    if prompt is None and num_samples is None:
        raise BadInput("num_samples is needed where there is no prompt to say how many.")
    given = (num_samples, config.model.length) if prompt is None else prompt.tokens.shape
    num_samples = given[0] if num_samples is None else num_samples
    length = given[1] if length is None else length
    sampling = family.sampling(**settings)
    check_rows(model, num_samples, length, batch_size)
    prompt = free(num_samples, length) if prompt is None else prompt
    check_prompt(prompt, (num_samples, length), family.num_tokens)
    family.check_prompt(prompt)
    trained = config.model.length
    if trace and not family.infills:
        raise BadInput("trace is for diffusion models: this one draws each token once.")
    if trace and length > trained:
        raise BadInput(f"trace is for rows of at most {trained} tokens, the trained length.")
    sampling, overlap = split_overlap(sampling, trained)
    numbers, size = row_numbers(rows, num_samples), min(batch_size, num_samples)
    generator = model.compiled(build_sampler, sampling, config.train.t_min, trace)

    def draw(part, told, chosen=slice(None), window=0):
        return _draw(generator, model, key, part, numbers[chosen], size, told, window)

    if length <= trained:
        return draw(prompt, progress)
    plan = windows(prompt, trained, overlap)
    total = sum(len(batch_rows(len(w.rows), size, model.num_batch_shards)) for w in plan)
    done = itertools.count(1)
    told = progress and (lambda *_: progress(next(done), total))
    return slide(prompt, plan, lambda part, window: draw(part, told, window.rows, window.number))


def build_sampler(family: Family, sampling: Any, t_min: float, trace: bool) -> Generator:
    """Returns the family's generator, for `TrainedModel.compiled`.

    Args:
      family: the model.
      sampling: how to draw.
      t_min: the smallest time of training.
      trace: keep the tokens after every step.
    """
    return family.generator(sampling, t_min=t_min, trace=trace)


def split_overlap(sampling: Any, trained: int) -> tuple[Any, int]:
    """Returns the settings without `overlap`, which makes no other program, and the overlap.

    Raises:
      BadInput: windows of the trained length cannot overlap so.
    """
    overlap = overlap_of(getattr(sampling, "overlap", None), trained)
    if getattr(sampling, "overlap", None) is not None:
        sampling = dataclasses.replace(sampling, overlap=None)
    return sampling, overlap


def check_rows(model: TrainedModel, num_samples: int, length: int, batch_size: int) -> None:
    """Raises BadInput unless the model can draw such samples.

    Args:
      model: the model.
      num_samples: N.
      length: L.
      batch_size: rows at a time.
    """
    check_positive(num_samples=num_samples, length=length, batch_size=batch_size)
    longest = model.family.max_length
    if not model.family.infills and longest is not None and length > longest:
        raise BadInput(
            f"length must be at most {longest}, the positions that the model has learned, got "
            f"{length}."
        )


def not_finite(rows: Integer[np.ndarray, "N"]) -> FloatingPointError:
    """Returns the error that rows of these numbers cannot be drawn."""
    return FloatingPointError(
        f"The network gave numbers that are not finite in rows {rows}: its weights are NaN or Inf, "
        "or produce them; try another checkpoint."
    )


def _draw(generator, model, key, prompt, numbers, size, progress, window):
    """The rows of a prompt, a batch at a time: tokens and diagnostics."""
    held = jax.tree.map(np.asarray, prompt)
    count = len(held.tokens)

    def compute(rows):
        keys = row_keys(key, model.shard_batch(numbers[rows]))
        if window:
            keys = window_keys(keys, np.uint32(window))
        return generator(
            model.params, keys, jax.tree.map(lambda x: model.shard_batch(x[rows]), held)
        )

    batches = batch_rows(count, size, model.num_batch_shards)
    parts = []
    for rows, (tokens, found) in one_ahead(batches, compute):
        real = min(len(rows), count - rows[0])  # the rest fills up the batch
        if not found.finite[:real].all():
            raise not_finite(numbers[rows[:real][~found.finite[:real]]])
        parts.append((tokens, found, real))
        if progress is not None:
            progress(len(parts), len(batches))

    def join(name, axis):
        arrays = [getattr(found, name).take(np.arange(real), axis) for _, found, real in parts]
        return np.concatenate(arrays, axis)

    return np.concatenate([tokens[:real] for tokens, _, real in parts]), Diagnostics(
        evaluations=join("evaluations", 0),
        changed=join("changed", 1),
        finite=join("finite", 0),
        trace=None if parts[0][1].trace is None else join("trace", 1),
    )

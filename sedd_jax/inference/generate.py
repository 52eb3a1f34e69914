"""Sampling from a trained model (Algorithm 2), with any positions held."""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Int, Integer, Key

from sedd_jax.errors import BadInput, check_positive
from sedd_jax.inference.batches import batch_rows, one_ahead, row_keys, row_numbers, window_keys
from sedd_jax.inference.classifier import split_classifier
from sedd_jax.inference.conditions import Told, check_guided, told_prompt
from sedd_jax.inference.family import Family
from sedd_jax.inference.generator import Diagnostics, Generator
from sedd_jax.inference.model import TrainedModel
from sedd_jax.inference.prompt import Prompt, check_prompt, empty_prompt, rows_and_length


def generate(
    key: Key[Array, ""],
    model: TrainedModel,
    num_samples: int | None = None,
    length: int | None = None,
    *,
    prompt: Prompt | None = None,
    condition: Told | Sequence[Told] | None = None,
    rows: np.ndarray | None = None,
    batch_size: int = 32,
    trace: bool = False,
    progress: Callable[[int, int], None] | None = None,
    **settings: Any,
) -> tuple[np.ndarray, Diagnostics]:
    """Draws token sequences from a trained model: Algorithm 2, or from left to right.

    A row is a function of (key, its number), its prompt and the settings, not of `num_samples` or
    `batch_size`; on another mesh, up to rounding. The rows of a batch are split over the model's
    mesh, and every process returns all.

    Args:
      key: random key.
      model: the model, from `sedd.load`.
      num_samples: N; by default the number of rows of the prompt.
      length: L, tokens per sequence; by default that of the prompt, or the trained one. Longer rows
        of a diffusion model are drawn a window of the trained length at a time, each holding the
        end of the text before.
      prompt: tokens to hold, [N, L]; they come back unchanged. For an autoregressive model they
        must come first in their row.
      condition: what the model is told, by column with values as in the data, {"class": "EI"}: of
        all rows, or of each. None: what the prompt has, or nothing.
      rows: numbers of the rows, below 2^32; 0 to N - 1 by default.
      batch_size: rows at a time; on a mesh, rounded up to fill it.
      trace: keep the tokens after every step in the diagnostics; not for longer rows, and not for
        an autoregressive model.
      progress: called as progress(done, total) after every batch; for longer rows, of every window.
      **settings: how to draw: of `Sampling` for a diffusion model, sampler="tweedie", steps=128 and
        the like, where `classifier` may also be a trained one, from `sedd.load`, whose class
        `condition` tells; of `TokenSampling` for an autoregressive one.

    Returns:
      Tokens [N, L] and `Diagnostics` over the N rows.

    Raises:
      BadInput: a setting out of range or of another family, or a prompt, conditions or row numbers
        that do not fit.
      FloatingPointError: the network gave a score that is not finite; at most one more batch is
        computed.
    """
    model, settings = split_classifier(model, settings)
    family, config = model.family, model.config
    if prompt is None and num_samples is None:
        raise BadInput("num_samples is needed where there is no prompt to say how many.")
    shape = (num_samples, config.model.length) if prompt is None else rows_and_length(prompt)
    num_samples = shape[0] if num_samples is None else num_samples
    length = shape[1] if length is None else length
    sampling = family.sampling(**settings)
    check_rows(model, num_samples, length, batch_size)
    prompt = empty_prompt(num_samples, length) if prompt is None else prompt
    check_prompt(prompt, (num_samples, length), family.num_tokens)
    family.check_prompt(prompt)
    prompt = told_prompt(model, prompt, condition)
    check_guided(model, sampling, prompt.condition)
    trained = config.model.length
    if trace and not family.infills:
        raise BadInput("trace is for diffusion models: this one draws each token once.")
    if trace and length > trained:
        raise BadInput(f"trace is for rows of at most {trained} tokens, the trained length.")
    sampling, overlap = split_overlap(sampling, trained)
    numbers, batch_size = row_numbers(rows, num_samples), min(batch_size, num_samples)
    generator = model.compiled(family_generator, sampling, config.train.t_min, trace)

    def draw(part, progress, rows=slice(None), window=0):
        return _draw(generator, model, key, part, numbers[rows], batch_size, progress, window)

    if length <= trained:
        return draw(prompt, progress)
    plan = windows(prompt, trained, overlap)
    total = sum(len(batch_rows(len(w.rows), batch_size, model.num_batch_shards)) for w in plan)
    done = itertools.count(1)
    overall = progress and (lambda *_: progress(next(done), total))
    return slide(prompt, plan, lambda part, window: draw(part, overall, window.rows, window.number))


def family_generator(family: Family, sampling: Any, t_min: float, trace: bool) -> Generator:
    """Returns the generator of a family, for `TrainedModel.compiled`.

    Args:
      family: the model.
      sampling: how to draw.
      t_min: the smallest time of training.
      trace: keep the tokens after every step.
    """
    return family.generator(sampling, t_min=t_min, trace=trace)


def split_overlap(sampling: Any, trained: int) -> tuple[Any, int]:
    """Returns the settings without `overlap`, which compiled programs do not use, and the overlap.

    It is half of the trained length by default.

    Raises:
      BadInput: the overlap is not at least 1 and less than the trained length.
    """
    overlap = getattr(sampling, "overlap", None)
    if overlap is None:
        overlap = trained // 2
    else:
        sampling = dataclasses.replace(sampling, overlap=None)
    if not 0 < overlap < trained:
        raise BadInput(f"overlap must be in [1, {trained}), the trained length, got {overlap}.")
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


def not_finite_error(rows: Integer[np.ndarray, "N"]) -> FloatingPointError:
    """Returns the error for rows, by number, whose scores are not finite."""
    return FloatingPointError(
        f"The network gave numbers that are not finite in rows {rows}: its weights are NaN or Inf, "
        "or produce them, or a classifier does; try another checkpoint, or no classifier."
    )


def _draw(generator, model, key, prompt, numbers, batch_size, progress, window):
    """The rows of a prompt, a batch at a time: tokens [N, L] and diagnostics.

    Row i has the number numbers[i] and draws window `window` of that row.
    """
    prompt = jax.tree.map(np.asarray, prompt)
    count = len(prompt.tokens)

    def compute(rows):
        keys = row_keys(key, model.shard_batch(numbers[rows]))
        if window:
            keys = window_keys(keys, np.uint32(window))
        return generator(
            model.params, keys, jax.tree.map(lambda x: model.shard_batch(x[rows]), prompt)
        )

    batches = batch_rows(count, batch_size, model.num_batch_shards)
    parts = []
    for rows, (tokens, diagnostics) in one_ahead(batches, compute):
        real = min(len(rows), count - rows[0])  # the rest fills up the batch
        finite = diagnostics.finite[:real]
        if not finite.all():
            raise not_finite_error(numbers[rows[:real][~finite]])
        parts.append((tokens, diagnostics, real))
        if progress is not None:
            progress(len(parts), len(batches))

    def join(name, axis):
        arrays = [getattr(each, name).take(np.arange(real), axis) for _, each, real in parts]
        return np.concatenate(arrays, axis)

    return np.concatenate([tokens[:real] for tokens, _, real in parts]), Diagnostics(
        evaluations=join("evaluations", 0),
        changed=join("changed", 1),
        finite=join("finite", 0),
        trace=None if parts[0][1].trace is None else join("trace", 1),
    )


class Window(NamedTuple):
    """A window of some rows longer than the trained length.

    Every window holds the end of the text before it, and the given tokens inside it. It does not
    see tokens that are given after its end. The last window of a row ends with the row, so a window
    is shorter than the trained length only where its row is.

    Attributes:
      number: of the window in its rows, from 0.
      rows: indices of the rows with positions to draw in the window.
      places: positions of the window in those rows.
    """

    number: int
    rows: Int[np.ndarray, "n"]
    places: Int[np.ndarray, "n W"]


def windows(prompt: Prompt, width: int, overlap: int) -> list[Window]:
    """Returns the windows of the rows, in the order in which they are drawn.

    Args:
      prompt: tokens to hold.
      width: tokens of a window, at most those of the prompt's rows.
      overlap: the least number of tokens that a window shares with the one before.
    """
    lengths, length = _lengths(prompt), prompt.tokens.shape[1]
    undrawn = ~np.asarray(prompt.held) & (np.arange(length) < lengths[:, None])
    last = np.maximum(lengths - width, 0)
    found = []
    for number in range(1 - (-last.max() // (width - overlap))):
        starts = np.minimum(number * (width - overlap), last)
        places = starts[:, None] + np.arange(width)
        rows = np.flatnonzero(np.take_along_axis(undrawn, places, axis=1).any(axis=1))
        np.put_along_axis(undrawn, places, False, axis=1)
        if len(rows):
            found.append(Window(number, rows, places[rows]))
    return found


def slide(
    prompt: Prompt,
    plan: list[Window],
    draw: Callable[[Prompt, Window], tuple[np.ndarray, Diagnostics]],
) -> tuple[np.ndarray, Diagnostics]:
    """Returns the rows drawn window by window.

    Args:
      prompt: tokens to hold, [N, L].
      plan: its windows.
      draw: maps the prompt of a window and the window to the tokens and diagnostics of its rows.

    Returns:
      Tokens [N, L] and diagnostics: evaluations add up; the changes of a window follow those of the
      one before, and are 0 for a row without that window.
    """
    count, length = prompt.tokens.shape
    lengths = _lengths(prompt)
    known = np.asarray(prompt.held) & (np.arange(length) < lengths[:, None])
    text = np.where(known, np.asarray(prompt.tokens), 0)
    evaluations, finite, changed = np.zeros(count, np.int32), np.ones(count, bool), []
    for window in plan:
        place = window.rows[:, None], window.places
        sizes = np.minimum(lengths[window.rows], window.places.shape[1])
        # also where all windows are full: the program of a row does not depend on other rows
        part_lengths = None if prompt.lengths is None else sizes.astype(np.int32)
        condition = jax.tree.map(lambda x, of=window.rows: np.asarray(x)[of], prompt.condition)
        part = Prompt(text[place], known[place], part_lengths, condition)
        text[place], diagnostics = draw(part, window)
        known[place] = True
        evaluations[window.rows] += diagnostics.evaluations
        finite[window.rows] &= diagnostics.finite
        changed.append(np.zeros((len(diagnostics.changed), count), np.int32))
        changed[-1][:, window.rows] = diagnostics.changed
    every = np.concatenate(changed) if changed else np.zeros((0, count), np.int32)
    return text, Diagnostics(evaluations, every, finite, trace=None)


def _lengths(prompt):
    count, length = prompt.tokens.shape
    return np.full(count, length) if prompt.lengths is None else np.asarray(prompt.lengths)

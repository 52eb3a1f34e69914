"""Rows longer than the trained length, drawn a window of that length at a time.

Every window holds the end of the text before it, and whatever the prompt holds there. What the
prompt holds further on is not seen by the windows before. The last window of a row ends with the
row, so no window but the only one of a short row is shorter than the network was trained on.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from sedd_jax.errors import BadInput
from sedd_jax.inference.generator import Diagnostics
from sedd_jax.inference.prompt import Prompt


class Window(NamedTuple):
    """Some rows, and where in each of them a window lies.

    Attributes:
      number: of the window in its rows, from 0.
      rows: that have something to draw there.
      places: of the window's tokens in those rows.
    """

    number: int
    rows: Int[np.ndarray, "n"]
    places: Int[np.ndarray, "n W"]


# prompt of a window and the window -> its tokens and what happened, of those rows
Draw = Callable[[Prompt, Window], tuple[np.ndarray, Diagnostics]]


def overlap_of(overlap: int | None, width: int) -> int:
    """Returns how many tokens windows share: half of them by default.

    Raises:
      BadInput: none, or all.
    """
    overlap = width // 2 if overlap is None else overlap
    if not 0 < overlap < width:
        raise BadInput(f"overlap must be in [1, {width}), the trained length, got {overlap}.")
    return overlap


def windows(prompt: Prompt, width: int, overlap: int) -> list[Window]:
    """Returns the windows of the rows, in the order in which they are drawn.

    Args:
      prompt: tokens to hold.
      width: tokens of a window, at most those of the prompt's rows.
      overlap: tokens that a window shares with the one before, at least.
    """
    lengths, length = _lengths(prompt), prompt.tokens.shape[1]
    free = ~np.asarray(prompt.held) & (np.arange(length) < lengths[:, None])
    last = np.maximum(lengths - width, 0)
    found = []
    for number in range(1 - (-last.max() // (width - overlap))):
        starts = np.minimum(number * (width - overlap), last)
        places = starts[:, None] + np.arange(width)
        rows = np.flatnonzero(np.take_along_axis(free, places, axis=1).any(axis=1))
        np.put_along_axis(free, places, False, axis=1)
        if len(rows):
            found.append(Window(number, rows, places[rows]))
    return found


def slide(prompt: Prompt, plan: list[Window], draw: Draw) -> tuple[np.ndarray, Diagnostics]:
    """Returns the rows drawn window by window.

    Args:
      prompt: tokens to hold, [N, L].
      plan: its windows.
      draw: draws the rows of one window.

    Returns:
      Tokens [N, L] and diagnostics: evaluations add up, the calls of a window follow those of the
      one before, in which a row that has no such window changes nothing.
    """
    count, length = prompt.tokens.shape
    lengths = _lengths(prompt)
    known = np.asarray(prompt.held) & (np.arange(length) < lengths[:, None])
    text = np.where(known, np.asarray(prompt.tokens), 0)
    evaluations, finite, changed = np.zeros(count, np.int32), np.ones(count, bool), []
    for window in plan:
        place = window.rows[:, None], window.places
        sizes = np.minimum(lengths[window.rows], window.places.shape[1])
        # also where all are full: what a row is computed by does not depend on its neighbours
        shorter = None if prompt.lengths is None else sizes.astype(np.int32)
        part = Prompt(text[place], known[place], shorter)
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

"""What a page shows of rows that are being denoised."""

import functools
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from sedd_jax.diffusion.reverse import denoise_law
from sedd_jax.diffusion.score import total_away
from sedd_jax.inference.live import Moment
from sedd_jax.inference.load import Checkpoint
from sedd_jax.inference.prompt import Prompt

LIKELIEST = 5  # tokens that are named of a position

Text = list[str | None]  # token by token, None where it is masked


class Guess(NamedTuple):
    """What the model takes a position for, from all that it sees at this moment.

    Attributes:
      likeliest: tokens and their probabilities in the clean text, the likeliest first.
      drawn: the token that the position ends with, and its probability at this moment.
    """

    likeliest: list[tuple[str, float]]
    drawn: tuple[str, float]


class Frame(NamedTuple):
    """One moment of all rows.

    Attributes:
      calls: calls of the network so far.
      evaluations: those that each row took part in.
      rows: the text of every row, without its padding.
      guesses: of every position that is not yet settled, None for others.
    """

    calls: int
    evaluations: list[int]
    rows: list[Text]
    guesses: list[list[Guess | None]]


def texts(checkpoint: Checkpoint, tokens: Int[np.ndarray, "N L"], prompt: Prompt) -> list[Text]:
    """Returns rows as text, token by token, without their padding.

    Joined, the tokens of a row are its text; see `Tokenizer.pieces`, and ids without a tokenizer.
    """
    lengths = _lengths(prompt)
    return [_text(checkpoint, row[:length]) for row, length in zip(tokens, lengths, strict=True)]


def frames(
    checkpoint: Checkpoint, prompt: Prompt, moments: Iterable[Moment], most: int = 32
) -> list[Frame]:
    """Returns what there is to see of rows while they are drawn, at most `most` moments, evenly.

    The first and the last moment are always among them. The guesses are the law of the clean token
    of every position given all tokens of the moment, by the model's own scores: they are the same
    whatever draws the tokens. They cost one more evaluation for each row and moment shown.

    Args:
      checkpoint: the model.
      prompt: what was held, [N, L].
      moments: from `inference.live`.
      most: at least 2.
    """
    seen = list(moments)
    chosen = np.unique(np.linspace(0, len(seen) - 1, min(max(most, 2), len(seen))).round())
    final = seen[-1].tokens
    shown = []
    for index in chosen.astype(int):
        now = seen[index]
        # the noise that the next call takes these tokens to have
        ahead = seen[index + 1].sigma if index + 1 < len(seen) else None
        guesses = [
            [None] * length if ahead is None else _guesses(checkpoint, prompt, row, now.tokens, final, ahead)
            for row, length in enumerate(_lengths(prompt))
        ]
        rows = texts(checkpoint, now.tokens, prompt)
        shown.append(Frame(now.calls, now.evaluations.tolist(), rows, guesses))
    return shown


def _guesses(checkpoint, prompt, row, tokens, final, sigma):
    """Of one row: the network's answer is written out for no more than that."""
    (length,) = _lengths(prompt)[row : row + 1]
    mask = checkpoint.graph.mask_id
    open_ = ~np.asarray(prompt.held[row, :length])
    if mask is not None:
        open_ &= tokens[row, :length] == mask
    if not open_.any():
        return [None] * length
    ids, probs, prob_of_final = jax.device_get(
        _guesser(checkpoint.diffusion)(
            checkpoint.params,
            jnp.asarray(tokens[row][None]),
            jnp.asarray(sigma[row][None]),
            jnp.asarray(final[row][None]),
            None if prompt.lengths is None else jnp.asarray([length]),
        )
    )

    def guess(place):
        names = [_name(checkpoint, id_) for id_ in ids[place]]
        likeliest = list(zip(names, probs[place].tolist(), strict=True))
        return Guess(likeliest, (_name(checkpoint, final[row, place]), float(prob_of_final[place])))

    return [guess(place) if is_open else None for place, is_open in enumerate(open_)]

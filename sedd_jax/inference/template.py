r"""Text with holes, such as `Once[MASK:12] the end.`, as rows to be filled in.

`[MASK:12]` is a hole of 12 tokens and `[MASK:*]`, at most one, fills the row to its length. A
backslash makes it text: `\[MASK:3]`; before it, `\\` is a backslash. Every text between two holes
is encoded on its own, so that a hole begins and ends between tokens: a subword tokenizer may cut
`Once` + ` upon` otherwise than it would cut them in one text, and a word that goes on in a hole is
begun with whole pieces. Where a space belongs to the word after it, none stands before a hole.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from sedd_jax.data.tokenizer import Integers, Tokenizer
from sedd_jax.errors import BadInput
from sedd_jax.inference.model import TrainedModel
from sedd_jax.inference.prompt import Prompt
from sedd_jax.system.rounding import round_up

# every marker, with the backslashes before it; what is wrong with one is said later
_MARKER = re.compile(r"(?<!\\)(\\*+)(\[MASK(?::[^\[\]\s]{0,12})?\]?)")
_HOLE = re.compile(r"\[MASK:(\*|0*[1-9][0-9]{0,8})\]")
_HOW = r"[MASK:12] is a hole of 12 tokens, [MASK:*] fills up, \[MASK is text"
_STAR = None
_FREE = -1
_CHARACTERS = 128  # of a token at most: GPT-2 has one of 128 spaces
_FEW = 40  # characters of a text that are quoted
_WINDOWS = 64  # trained lengths in a row at most
_NARROWEST = 16


class Row(NamedTuple):
    """One row to fill in.

    Attributes:
      tokens: the given tokens, 0 where free.
      held: True where a token is given.
    """

    tokens: Int[np.ndarray, "L"]
    held: Bool[np.ndarray, "L"]


def fill(template: str, tokenizer: Tokenizer | None, length: int | None, most: int) -> Row:
    """Returns the row of a text with holes.

    Args:
      template: text with `[MASK:12]` or `[MASK:*]`, see the module.
      tokenizer: encodes the text; a template of holes alone needs none.
      length: L; by default the template's own, or `most` with `[MASK:*]`.
      most: the largest L that there may be.

    Raises:
      BadInput: a marker that is none, no hole, text that the tokenizer does not take, or a row that
        has another length or is too long; before the rest is looked at.
    """
    return _row(_of_template(template, tokenizer, most), length, most)


def templates(checkpoint: TrainedModel, texts: Sequence[str], length: int | None = None) -> Prompt:
    """Returns texts with holes as the prompt of as many rows, for `generate` or `live`.

    Args:
      checkpoint: the model.
      texts: with `[MASK:12]` or `[MASK:*]`, see `serving.template`.
      length: of every row; by default that of each template, or the trained length with `[MASK:*]`.

    Raises:
      BadInput: see `fill`.
    """
    most = most_tokens(checkpoint, length)
    rows = [fill(text, checkpoint.tokenizer, length, most) for text in texts]
    return pad(rows, max(len(row.tokens) for row in rows))


def between(
    prefix: str, suffix: str, tokenizer: Tokenizer | None, length: int | None, most: int
) -> Row:
    """Returns the row that begins and ends with texts, either of which may be empty; see `fill`."""
    texts = (("prefix", prefix), ("suffix", suffix))
    first, last = (_encode(text, tokenizer, f"the {name}", most) for name, text in texts)
    return _row([first, _STAR, last], length, most)


def of_tokens(tokens: Sequence[Any], num_tokens: int, length: int | None, most: int) -> Row:
    """Returns the row of tokens below `num_tokens`, None where it is free; see `fill`."""
    if len(tokens) > most:
        raise _too_long(most)
    for position, token in enumerate(tokens):
        if token is not None and (type(token) is not int or not 0 <= token < num_tokens):
            raise BadInput(
                f"Position {position} of the tokens is {_quoted(token)}: it must be a whole number "
                f"in [0, {num_tokens}), or null for a hole."
            )
    ids = [_FREE if token is None else token for token in tokens]
    return _row([np.array(ids, np.int32)], length, most)


def pad(rows: Sequence[Row], width: int) -> Prompt:
    """Returns rows of at most `width` tokens as one prompt [N, width], padded at their ends."""
    lengths = np.array([len(row.tokens) for row in rows], np.int32)
    tokens = np.zeros((len(rows), width), np.int32)
    held = np.zeros((len(rows), width), bool)
    for index, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        tokens[index, :length], held[index, :length] = row
    return Prompt(tokens, held, None if (lengths == width).all() else lengths)


def width_of(length: int, trained: int) -> int:
    """Returns the width that rows of a length are drawn in: 16, 24, 32, 48, ..., `trained`.

    Longer rows are drawn in windows of the trained length: their widths are its multiples.
    """
    if length > trained:
        return round_up(length, trained)
    width = _NARROWEST
    while width < length:
        width += width // 2 if width & (width - 1) == 0 else width // 3
    return min(width, trained)


def most_tokens(model: TrainedModel, length: Any) -> int:
    """Returns the most tokens that a row may have: where a length is asked for, many windows."""
    several = length is not None and model.family.infills
    return model.config.model.length * (_WINDOWS if several else 1)


def _row(parts: Iterable[np.ndarray | None], length: int | None, most: int) -> Row:
    """The row of tokens, _FREE in holes, and at most one _STAR; checked as far as it is read."""
    if length is not None and not (type(length) is int and 1 <= length <= most):
        raise BadInput(f"length must be a whole number in [1, {most}], got {_quoted(length)}.")
    read, total, star = [], 0, None
    for part in parts:
        if part is _STAR:
            star = len(read)
        else:
            read.append(part)
            total += len(part)
        if total > most:
            raise _too_long(most)
    wanted = length or (total if star is None else most)
    if star is not None:
        if total >= wanted:
            raise BadInput(
                f"The given tokens and holes take {total} positions of {wanted}: nothing is left "
                "to fill; give less text or a larger length."
            )
        read.insert(star, np.full(wanted - total, _FREE, np.int32))
    elif total != wanted:
        raise BadInput(
            f"The row has {total} positions and length is {wanted}: leave length out, or put "
            "[MASK:*] where the row is to be filled up."
        )
    tokens = np.concatenate([np.zeros(0, np.int32), *read])
    held = tokens != _FREE
    if held.all():
        raise BadInput(f"There is no hole to fill: {_HOW}; in tokens, null.")
    return Row(np.where(held, tokens, 0), held)


def _of_template(template: str, tokenizer: Tokenizer | None, most: int) -> Iterator:
    """The tokens, holes and star of a template, one after the other."""
    _check_characters(template, "The template", most)
    text, begin, end, starred = "", 0, 0, False
    for found in _MARKER.finditer(template):
        slashes, marker = found.groups()
        text += template[end : found.start()] + slashes[: len(slashes) // 2]
        end = found.end()
        if len(slashes) % 2:
            text += marker
            continue
        yield _encode(text, tokenizer, f"the text at character {begin + 1} of the template", most)
        size = _size(marker, found.start(2) + 1)
        if size == "*" and starred:
            raise BadInput(
                f"A second [MASK:*] at character {found.start(2) + 1} of the template: one at most "
                "can fill up; give the others a size."
            )
        starred |= size == "*"
        # no more than it takes to see that it is too many
        yield _STAR if size == "*" else np.full(min(int(size), most + 1), _FREE, np.int32)
        text, begin = "", end
    yield _encode(
        text + template[end:], tokenizer, f"the text at character {begin + 1} of the template", most
    )


def _size(marker, place):
    if not (found := _HOLE.fullmatch(marker)):
        raise BadInput(f"{marker} at character {place} of the template is no hole: {_HOW}.")
    return found[1]


def _encode(text, tokenizer, place, most):
    """The tokens of a text, none of an empty one."""
    if not text:
        return np.zeros(0, np.int32)
    _check_characters(text, place[0].upper() + place[1:], most)
    if tokenizer is None or isinstance(tokenizer, Integers):
        lack = "the checkpoint has none" if tokenizer is None else "this one knows ids alone"
        raise BadInput(
            f"{_quoted(text)}, {place}, needs a tokenizer for text, and {lack}: give --tokenizer, "
            "or tokens with null for the holes."
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadInput(
            f"In {place} character {error.start + 1} is half a surrogate pair, which is no text; "
            "take it out."
        ) from error
    try:
        return tokenizer.encode(text)
    except BadInput as error:
        raise BadInput(f"In {place}: {error}") from error


def _check_characters(text, name, most):
    if len(text) > most * _CHARACTERS:
        raise BadInput(
            f"{name} has {len(text):,} characters, too many for a row of at most {most} tokens; "
            "shorten it."
        )


def _too_long(most):
    return BadInput(
        f"The row has more than {most} positions, the most there may be here; give less text or "
        "smaller holes."
    )


def _quoted(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= _FEW else f"{shown[:_FEW]}..."

r"""Text with holes, such as `Once[MASK:12] the end.`, as rows to fill in.

`[MASK:12]` is a hole of 12 tokens; `[MASK:*]`, at most one, extends the row to its length. A
backslash escapes a marker: `\[MASK:3]` is text; before a hole, `\\` is a backslash. Every text
between two holes is encoded separately, so a hole begins and ends between tokens: a subword
tokenizer may split `Once` + ` upon` differently from the same words in one text, and a word that
continues in a hole begins with whole tokens. Put no space before a hole if the tokenizer attaches
spaces to the word that follows. The text comes back unchanged: what a tokenizer cannot spell
exactly, such as two spaces in a row for a SentencePiece model that joins them, is refused.
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

# every marker, even a malformed one, with the backslashes before it
_MARKER = re.compile(r"(?<!\\)(\\*+)(\[MASK(?::[^\[\]\s]{0,12})?\]?)")
_SIZE = re.compile(r"\[MASK:(\*|0*[1-9][0-9]{0,8})\]")
_HOW = r"[MASK:12] is a hole of 12 tokens, [MASK:*] fills up, \[MASK is text"
_FILL = None  # a part that fills the row up to its length
_HOLE_ID = -1
_MAX_CHARACTERS = 128  # the most of one token: GPT-2 has one of 128 spaces
_MAX_QUOTED = 40  # characters of a text that messages quote
_MAX_WINDOWS = 64  # a row has at most so many trained lengths
_MIN_LENGTH = 16  # of a padded row


class PromptRow(NamedTuple):
    """One row to fill in.

    Attributes:
      tokens: the given tokens, 0 in holes.
      held: True where a token is given.
    """

    tokens: Int[np.ndarray, "L"]
    held: Bool[np.ndarray, "L"]


def row_from_template(
    template: str, tokenizer: Tokenizer | None, length: int | None, limit: int
) -> PromptRow:
    """Returns the row of a text with holes.

    Args:
      template: text with `[MASK:12]` or `[MASK:*]`, see the module.
      tokenizer: encodes the text; a template of holes alone needs none.
      length: L; by default the template's own, or `limit` with `[MASK:*]`.
      limit: the largest L.

    Raises:
      BadInput: a malformed marker, no hole, text that the tokenizer cannot encode, or a row that
        is too long or differs from `length`; nothing after the fault is read.
    """
    return _row(_parse_template(template, tokenizer, limit), length, limit)


def templates(checkpoint: TrainedModel, texts: Sequence[str], length: int | None = None) -> Prompt:
    """Returns texts with holes as the prompt of as many rows, for `generate`.

    Args:
      checkpoint: the model.
      texts: with `[MASK:12]` or `[MASK:*]`, see the module.
      length: of every row; by default that of each template, or the trained length with `[MASK:*]`.

    Raises:
      BadInput: `texts` is no list of texts; else see `row_from_template`.
    """
    if isinstance(texts, str) or not len(texts) or not all(isinstance(text, str) for text in texts):
        raise BadInput(
            f"templates takes a list of texts with holes, one for each row, got {_quoted(texts)}; "
            'for one row, ["Once[MASK:12]"].'
        )
    limit = max_tokens(checkpoint, length)
    rows = [row_from_template(text, checkpoint.tokenizer, length, limit) for text in texts]
    return pad(rows, max(len(row.tokens) for row in rows))


def row_between(
    prefix: str, suffix: str, tokenizer: Tokenizer | None, length: int | None, limit: int
) -> PromptRow:
    """Returns the row that begins and ends with texts, with one hole between them.

    Args:
      prefix: text at the beginning, may be empty.
      suffix: text at the end, may be empty.
      tokenizer: encodes the texts; empty ones need none.
      length: L; by default `limit`.
      limit: the largest L.

    Raises:
      BadInput: see `row_from_template`.
    """
    texts = (("prefix", prefix), ("suffix", suffix))
    first, last = (
        _encode(text, tokenizer, f"the {name}", limit, first=name == "prefix")
        for name, text in texts
    )
    return _row([first, _FILL, last], length, limit)


def row_from_tokens(
    tokens: Sequence[Any], num_tokens: int, length: int | None, limit: int
) -> PromptRow:
    """Returns the row of tokens.

    Args:
      tokens: ids, None for a hole.
      num_tokens: ids are below it.
      length: L; by default that of `tokens`.
      limit: the largest L.

    Raises:
      BadInput: a token that is out of range; else see `row_from_template`.
    """
    if len(tokens) > limit:
        raise _too_long(limit)
    for position, token in enumerate(tokens):
        if token is not None and (type(token) is not int or not 0 <= token < num_tokens):
            raise BadInput(
                f"Position {position} of the tokens is {_quoted(token)}: it must be a whole number "
                f"in [0, {num_tokens}), or null for a hole."
            )
    ids = [_HOLE_ID if token is None else token for token in tokens]
    return _row([np.array(ids, np.int32)], length, limit)


def pad(rows: Sequence[PromptRow], width: int) -> Prompt:
    """Returns rows of at most `width` tokens as one prompt [N, width], padded at their ends."""
    lengths = np.array([len(row.tokens) for row in rows], np.int32)
    tokens = np.zeros((len(rows), width), np.int32)
    held = np.zeros((len(rows), width), bool)
    for index, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        tokens[index, :length], held[index, :length] = row
    return Prompt(tokens, held, None if (lengths == width).all() else lengths)


def padded_length(length: int, trained: int) -> int:
    """Returns the length that rows are padded to: 16, 24, 32, 48, ..., `trained`.

    Longer rows are drawn in windows of the trained length, and padded to its multiples.
    """
    if length > trained:
        return round_up(length, trained)
    width = _MIN_LENGTH
    while width < length:
        width += width // 2 if width & (width - 1) == 0 else width // 3
    return min(width, trained)


def max_tokens(model: TrainedModel, length: Any) -> int:
    """Returns the most tokens that a row may have: several windows only if a length is given."""
    several = length is not None and model.family.infills
    return model.config.model.length * (_MAX_WINDOWS if several else 1)


def _row(parts: Iterable[np.ndarray | None], length: int | None, limit: int) -> PromptRow:
    """The row of parts: tokens with _HOLE_ID in holes, at most one _FILL; stops when too long."""
    if length is not None and not (type(length) is int and 1 <= length <= limit):
        raise BadInput(f"length must be a whole number in [1, {limit}], got {_quoted(length)}.")
    read, total, fill_at = [], 0, None
    for part in parts:
        if part is _FILL:
            fill_at = len(read)
        else:
            read.append(part)
            total += len(part)
        if total > limit:
            raise _too_long(limit)
    wanted = length or (total if fill_at is None else limit)
    if fill_at is not None:
        if total >= wanted:
            raise BadInput(
                f"The given tokens and holes take {total} positions of {wanted}: nothing is left "
                "to fill; give less text or a larger length."
            )
        read.insert(fill_at, np.full(wanted - total, _HOLE_ID, np.int32))
    elif total != wanted:
        raise BadInput(
            f"The row has {total} positions and length is {wanted}: leave length out, or put "
            "[MASK:*] where the row should be filled up."
        )
    tokens = np.concatenate([np.zeros(0, np.int32), *read])
    held = tokens != _HOLE_ID
    if held.all():
        raise BadInput(f"There is no hole to fill: {_HOW}; in tokens, null.")
    return PromptRow(np.where(held, tokens, 0), held)


def _parse_template(template: str, tokenizer: Tokenizer | None, limit: int) -> Iterator:
    """Yields the parts of a template in order: tokens, holes of _HOLE_ID, and _FILL."""
    _check_characters(template, "The template", limit)
    text, begin, end, starred = "", 0, 0, False
    for found in _MARKER.finditer(template):
        slashes, marker = found.groups()
        text += template[end : found.start()] + slashes[: len(slashes) // 2]
        end = found.end()
        if len(slashes) % 2:
            text += marker
            continue
        place = f"the text at character {begin + 1} of the template"
        yield _encode(text, tokenizer, place, limit, first=begin == 0)
        size = _size(marker, found.start(2) + 1)
        if size == "*" and starred:
            raise BadInput(
                f"A second [MASK:*] at character {found.start(2) + 1} of the template: one at most "
                "can fill up; give the others a size."
            )
        starred |= size == "*"
        # limit + 1 is enough to be refused
        yield _FILL if size == "*" else np.full(min(int(size), limit + 1), _HOLE_ID, np.int32)
        text, begin = "", end
    place = f"the text at character {begin + 1} of the template"
    yield _encode(text + template[end:], tokenizer, place, limit, first=begin == 0)


def _size(marker, place):
    if not (found := _SIZE.fullmatch(marker)):
        raise BadInput(f"{marker} at character {place} of the template is no hole: {_HOW}.")
    return found[1]


def _encode(text, tokenizer, place, limit, *, first):
    """The tokens of a text; an empty one needs no tokenizer."""
    if not text:
        return np.zeros(0, np.int32)
    _check_characters(text, place[0].upper() + place[1:], limit)
    if tokenizer is None or isinstance(tokenizer, Integers):
        lack = "the checkpoint has none" if tokenizer is None else "this one knows only ids"
        raise BadInput(
            f"{_quoted(text)}, {place}, needs a tokenizer for text, and {lack}: give --tokenizer, "
            "or tokens with null for the holes."
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadInput(
            f"In {place} character {error.start + 1} is half a surrogate pair, which is not text; "
            "remove it."
        ) from error
    try:
        return tokenizer.encode_part(text, first=first)
    except BadInput as error:
        raise BadInput(f"In {place}: {error}") from error


def _check_characters(text, name, limit):
    if len(text) > limit * _MAX_CHARACTERS:
        raise BadInput(
            f"{name} has {len(text):,} characters, too many for a row of at most {limit} tokens; "
            "shorten it."
        )


def _too_long(limit):
    return BadInput(
        f"The row has more than {limit} positions, the most there may be here; give less text or "
        "smaller holes."
    )


def _quoted(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= _MAX_QUOTED else f"{shown[:_MAX_QUOTED]}..."

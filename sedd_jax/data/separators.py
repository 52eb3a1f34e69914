"""The separator of text files: its escapes, and whether it occurs at all."""

import re
from collections.abc import Iterable

from sedd_jax.data.documents import Piece
from sedd_jax.data.text_files import Records, blocks, open_bytes, plain_text, split
from sedd_jax.errors import BadInput

_LETTERS = {"n": "\n", "t": "\t", "r": "\r", "f": "\f", "\\": "\\"}
_ESCAPE = re.compile(r"\\(?:([ntrf\\])|x([0-9a-fA-F]{2})|u((?![dD][89a-fA-F])[0-9a-fA-F]{4}))")


def unescaped(separator: str) -> str:
    r"""Returns a separator with its escapes \n, \t, \r, \f, \\, \xNN and \uNNNN replaced.

    Another backslash stays as it is, as that of half of a surrogate pair does.
    """
    return _ESCAPE.sub(
        lambda found: _LETTERS[found[1]] if found[1] else chr(int(found[2] or found[3], 16)),
        separator,
    )


def is_text(piece: Piece, separator: str) -> bool:
    """Returns whether a piece is of a text file that this separator, unescaped, divides."""
    return isinstance(piece, Records) and piece.text_format == plain_text(separator)


def check_occurs(given: str, counted: Iterable[tuple[Piece, int]]) -> None:
    """Checks that the separator divides something, of all text files together.

    Args:
      given: config.data.separator.
      counted: the pieces of all corpora, each with its number of documents.

    Raises:
      BadInput: it never occurs.
    """
    separator = unescaped(given)
    texts = [(piece, count) for piece, count in counted if is_text(piece, separator)]
    if not separator or not texts or any(count > 1 for _, count in texts):
        return
    paths = list(dict.fromkeys(piece.path for piece, _ in texts))

    def occurs(text):
        return any(_occurs(text, path) for path in paths)

    if occurs(separator):
        return
    crlf = re.sub("\r?\n", "\r\n", separator)
    if given != separator and occurs(given):
        advice = f"{given} does as it is written: a backslash that is meant is written twice"
    elif crlf != separator and occurs(crlf):
        advice = f"its lines end with CR LF: write {crlf!r}"
    else:
        advice = "give the one that divides its documents, or none if each file is a document"
    more = f" and {len(paths) - 1:,} more text files" if len(paths) > 1 else ""
    raise BadInput(
        f"config.data.separator, {separator!r}, never occurs in {paths[0]}{more}; {advice}."
    )


def _occurs(text, path):
    with open_bytes(path) as file:
        found = split(blocks(file, path), text.encode(), 0)
        return any(not last for _, _, last in found)

"""Documents, and the pieces of a corpus that are read one at a time."""

import abc
import math
import pathlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

PIECE_BYTES = 32 * 2**20


class Fault(NamedTuple):
    """Why a document cannot be used, to be read after its place: "has no field 'text'".

    Attributes:
      kind: the reason without its details, to count by: a corpus has a handful.
      detail: what is to be read after it.
    """

    kind: str
    detail: str = ""

    @property
    def reason(self) -> str:
        """All of it."""
        return self.kind + self.detail


BLANK = Fault("is blank")


class Document(NamedTuple):
    """One document of a piece.

    Attributes:
      content: text, or integer ids [tokens], or what is wrong with it.
      where: for `Piece.place`.
    """

    content: str | np.ndarray | Fault
    where: int


class Piece(abc.ABC):
    """A part of a corpus that one worker reads from start to end; it can be pickled.

    The pieces of a corpus depend on nothing but the corpus.

    Attributes:
      name: of this piece alone, as in "a.txt[0:33554432]".
      size: bytes to read, or a guess of them, for a progress bar.
    """

    name: str
    size: int

    @abc.abstractmethod
    def documents(self) -> Iterator[Document]:
        """Yields the documents, in order. Raises BadInput for a file that cannot be read on."""

    @abc.abstractmethod
    def place(self, where: int) -> str:
        """Returns where a document is, for a person: "a.jsonl, line 12"."""

    @abc.abstractmethod
    def version(self) -> str:
        """Returns what changes when the content does: size and time of change of the file."""


def file_version(path: pathlib.Path) -> str:
    """What `Piece.version` returns for a piece of a file."""
    status = path.stat()
    return f"{status.st_size} bytes, {status.st_mtime_ns}"


def ranges(count: int, size: int) -> list[tuple[int, int]]:
    """Cuts `count` rows of `size` bytes in all into [start, stop) of about PIECE_BYTES each."""
    rows = max(PIECE_BYTES * count // max(size, 1), 1)
    return [(start, min(start + rows, count)) for start in range(0, count, rows)]


def checked_text(value: object, field: str, limit: float = math.inf) -> str | Fault:
    """`value` of `field` if it is text, or UTF-8, of at most `limit` bytes; else what is wrong."""
    if not isinstance(value, str | bytes):
        return Fault(f"has no text in the field {field!r}", f" but {type(value).__name__}")
    try:
        encoded = value.encode() if isinstance(value, str) else value
        text = value if isinstance(value, str) else value.decode()
    except UnicodeEncodeError:
        return Fault(f"has half of a surrogate pair, which is no character, in the field {field!r}")
    except UnicodeDecodeError as error:
        return Fault(
            "is not UTF-8 text",
            f": the byte at offset {error.start} of the field {field!r} does not decode",
        )
    if len(encoded) > limit:
        return too_large(limit)
    return BLANK if not text or text.isspace() else text


def too_large(limit: float) -> Fault:
    """The fault of a document above `limit` bytes."""
    return Fault(f"is larger than the {limit / 2**20:g} MB of data.max_document_mb")

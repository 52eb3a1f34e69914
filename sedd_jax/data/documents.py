"""Documents, and the pieces of a corpus that are read one at a time."""

import abc
import pathlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np


class Fault(NamedTuple):
    """Why a document cannot be used, to be read after its place: "has no field 'text'"."""

    reason: str


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

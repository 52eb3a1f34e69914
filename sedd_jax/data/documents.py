"""Documents, the pieces of a corpus, and the recipe that makes token blocks of them."""

import abc
import dataclasses
import math
import pathlib
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import numpy as np

from sedd_jax.system.settings import setting

PIECE_BYTES = 32 * 2**20


class Fault(NamedTuple):
    """Why a document cannot be used, as a predicate of it: "has no field 'text'".

    Attributes:
      kind: the reason without details, by which faults are counted; a corpus has a handful.
      detail: the rest of the sentence.
    """

    kind: str
    detail: str = ""

    @property
    def reason(self) -> str:
        """The whole reason."""
        return self.kind + self.detail


BLANK = Fault("is blank")


class Document(NamedTuple):
    """One document of a piece.

    Attributes:
      content: text, or integer ids [tokens], or why it cannot be used.
      where: its position, for `Piece.place`.
      told: what it tells the network in every column of config.data.condition, see `columns`.
    """

    content: str | np.ndarray | Fault
    where: int = 0
    told: tuple[Any, ...] = ()


class Piece(abc.ABC):
    """A part of a corpus that one worker reads from start to end; picklable.

    The pieces of a corpus depend on the corpus alone.

    Attributes:
      name: unique in the corpus, as in "a.txt[0:33554432]".
      size: bytes to read, perhaps estimated, for the progress bar.
    """

    name: str
    size: int

    @abc.abstractmethod
    def documents(self) -> Iterator[Document]:
        """Yields the documents in order.

        Raises:
          BadInput: the rest of the file cannot be read.
        """

    @abc.abstractmethod
    def place(self, where: int) -> str:
        """Returns where a document is, for a message: "a.jsonl, line 12"."""

    @abc.abstractmethod
    def version(self) -> str:
        """Returns text that changes with the content: a file's size and modification time."""


def file_version(path: pathlib.Path) -> str:
    """Returns the `Piece.version` of a piece of a file."""
    status = path.stat()
    return f"{status.st_size} bytes, {status.st_mtime_ns}"


@dataclasses.dataclass(frozen=True)
class RowRange(Piece):
    """Rows [start, stop) of a file or a data set.

    Attributes:
      source: the file, or the name of the data set.
      limit: the largest document, in bytes.
      start: the first row.
      stop: the row after the last.
      size: bytes to read, perhaps estimated.
    """

    source: pathlib.Path | str
    limit: int
    start: int
    stop: int
    size: int
    _unit = "record"

    @property
    def name(self) -> str:
        return f"{self.source}[{self.start}:{self.stop}]"

    def place(self, where: int) -> str:
        return f"{self.source}, {self._unit} {where + 1}"

    def version(self) -> str:
        return file_version(self.source)


def ranges(count: int, size: int) -> Iterator[tuple[int, int, int]]:
    """Divides `count` rows, `size` bytes in total, into pieces of about PIECE_BYTES.

    Yields:
      The first row of a piece, the row after its last, and its size in bytes.
    """
    rows = max(PIECE_BYTES * count // max(size, 1), 1)
    for start in range(0, count, rows):
        stop = min(start + rows, count)
        yield start, stop, size * (stop - start) // count


def checked_value(value: object, field: str, limit: float = math.inf) -> str | np.ndarray | Fault:
    """Returns a field's value as a document, or why it cannot be used.

    Args:
      value: text, UTF-8 bytes, a list of integers, or anything else, which is a fault.
      field: the name of the field, for the fault.
      limit: the largest size, in bytes of UTF-8 or of ids.
    """
    if isinstance(value, list | np.ndarray):
        ids = _integers(value, field)
        return ids if isinstance(ids, Fault) else checked_ids(ids, limit)
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


def _integers(values: list | np.ndarray, field: str) -> np.ndarray | Fault:
    """Returns a list of integers as an array."""
    if isinstance(values, list):
        wrong = next((i for i, value in enumerate(values) if type(value) is not int), None)
        if wrong is None:
            try:
                return np.array(values, np.int64)
            except OverflowError:
                large = next(i for i, value in enumerate(values) if abs(value) >= 2**63)
                return Fault(
                    "has an id that is too large", f": {values[large]} at position {large}"
                )
        detail = f": {values[wrong]!r:.40} at position {wrong}"
    elif values.ndim == 1 and values.dtype.kind in "iu":
        return values
    else:
        detail = f": {values.ndim} dimensions of {values.dtype}"
    return Fault(f"has neither text nor a list of integers in the field {field!r}", detail)


def checked_ids(ids: np.ndarray, limit: float) -> np.ndarray | Fault:
    """Returns the ids of a document, integers [tokens], or why they cannot be used."""
    if not ids.size:
        return BLANK
    if ids.nbytes > limit:
        return too_large(limit)
    if ids.dtype.kind == "i" and ids.min() < 0:
        position = int(np.argmax(ids < 0))
        return Fault("has a negative id", f": {ids[position]} at position {position}")
    return ids


def too_large(limit: float) -> Fault:
    """Returns the fault of a document larger than `limit` bytes."""
    return Fault(f"is larger than the {limit / 2**20:g} MB of config.data.max_document_mb")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The settings of a preparation: the documents, their tokens, and how they become blocks."""

    # the text inside Python ("pydoc"); a file, a folder or a pattern; tfds:NAME or hf:NAME, either
    # with :SPLIT
    corpus: str = "pydoc"
    format: Literal[
        "auto",
        "text",
        "jsonl",
        "csv",
        "tsv",
        "fasta",
        "fastq",
        "parquet",
        "npy",
        "uint16",
        "uint32",
        "array_record",
    ] = "auto"  # of the files; auto: by the endings of their names
    field: str = "text"  # of a JSON line or a row of a table: a text, or a list of ids
    # columns that the network is told of a document, NAME:KIND,... with a kind of `columns.KINDS`,
    # label where none is given: "class,activity:number"; needs wrap=False
    condition: str = setting("", family=("diffusion", "classifier"))
    # splits a text file into documents, with escapes as in \n; empty: the file is one document
    separator: str = ""
    heldout_corpus: str = ""  # documents never trained on; empty: a part of `corpus` is held out
    heldout_fraction: float = setting(0.1, above=0, below=1)  # of `corpus`, in whole documents
    # skip: leave them out, and count them, as blank ones always are
    bad_documents: Literal["refuse", "skip"] = "refuse"
    # a larger document is a bad one: a worker needs up to ten times its size in memory
    max_document_mb: int = setting(512, above=0)
    tokenizer: Literal[
        "bytes", "characters", "text8", "dna", "sentencepiece", "gpt2", "integers"
    ] = "bytes"
    tokenizer_path: str = ""  # a saved one to use again; gpt2: folder or hub id with its files
    # the largest share of the characters that a sentencepiece model may lose or replace by others
    max_lost: float = setting(0.1, at_least=0)
    # keep the parts of a document between letters that are not in the alphabet (dna, text8)
    split_at_unknown: bool = False
    # tokens the tokenizer must have; 0: as many as the corpus gives
    vocab_size: int = setting(257, at_least=0)
    wrap: bool = True  # documents run on over the borders of blocks; False: one document a block

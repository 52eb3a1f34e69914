"""Files of text: documents, JSON lines or FASTA records, divided by a separator of bytes.

A large plain file is read in pieces, by ranges of bytes; a compressed one is a single piece. Memory
does not grow with the file nor, above the limit, with a document.
"""

import json
import pathlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

from sedd_jax.data.documents import (
    BLANK,
    Document,
    Fault,
    Piece,
    checked_text,
    file_version,
    ranges,
    too_large,
)
from sedd_jax.errors import BadInput

_BLOCK_BYTES = 2**20
# pyarrow's names by the suffix of a file; of the two zstd readers at hand pyarrow's is the one that
# notices a truncated file
CODECS = {".gz": "gzip", ".zst": "zstd"}
_WHITE_SPACE = str.maketrans("", "", " \t\r\n")


class TextFormat(NamedTuple):
    """How a file of text becomes documents.

    Attributes:
      separator: between two records; empty: the file is one record.
      parse: takes (record, whether it is the first of the file, field) and returns the text, why it
        cannot be used, or None for what is no document.
    """

    separator: bytes
    parse: Callable[[str, bool, str], str | Fault | None]


def _parse_text(record: str, first: bool, field: str) -> str | Fault:
    """Returns a document of a text file unchanged."""
    return BLANK if not record or record.isspace() else record


def _parse_json(line: str, first: bool, field: str) -> str | Fault | None:
    """Returns the text in `field` of a JSON object; a blank line is no document."""
    if not line or line.isspace():
        return None
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        return Fault("is no JSON", f" ({str(error).partition(': line')[0]})")
    if not isinstance(row, dict) or field not in row:
        return Fault(f"has no field {field!r}")
    return checked_text(row[field], field)


def _parse_fasta(record: str, first: bool, field: str) -> str | Fault:
    """Returns the letters of a sequence in capitals, since small ones only mark repeats."""
    if first and not record.startswith(">"):
        return Fault("does not begin with '>', as a FASTA record does")
    _, _, lines = record.partition("\n")
    return lines.translate(_WHITE_SPACE).upper() or BLANK


def plain_text(separator: str) -> TextFormat:
    """Returns the format of documents divided by a separator; an empty one divides nothing."""
    return TextFormat(separator.encode(), _parse_text)


JSON_LINES = TextFormat(b"\n", _parse_json)
FASTA = TextFormat(b"\n>", _parse_fasta)


@dataclass(frozen=True)
class Records(Piece):
    """The records of a file that start in [start, stop); without `stop`, up to its end.

    A record larger than `limit` bytes is a fault, and is never in memory as a whole.
    """

    path: pathlib.Path
    text_format: TextFormat
    field: str
    limit: int
    start: int = 0
    stop: int | None = None

    @property
    def name(self) -> str:
        return str(self.path) if self.stop is None else f"{self.path}[{self.start}:{self.stop}]"

    @property
    def size(self) -> int:
        return (self.path.stat().st_size if self.stop is None else self.stop) - self.start

    def documents(self) -> Iterator[Document]:
        separator, parse = self.text_format
        for offset, record, last in self._records():
            first = offset == 0
            if record is None:
                yield Document(too_large(self.limit), offset)
                continue
            if separator and (first or last) and (not record or record.isspace()):
                continue
            try:
                content = parse(record.decode(), first, self.field)
            except UnicodeDecodeError as error:
                content = Fault(
                    "is not UTF-8 text",
                    f": the byte at offset {offset + error.start} of the file does not decode",
                )
            if content is not None:
                yield Document(content, offset)

    def _records(self) -> Iterator[tuple[int, bytes | None, bool]]:
        separator, start, stop = self.text_format.separator, self.start, self.stop
        with _open(self.path) as file:
            if start:
                start = _first_start(file, self.path, separator, start, stop)
                if start >= stop:
                    return
                file.seek(start)
            for offset, record, last in split(_blocks(file, self.path), separator, self.limit):
                if stop is not None and start + offset >= stop:
                    return
                yield start + offset, record, last

    def place(self, where: int) -> str:
        if not self.text_format.separator:
            return str(self.path)
        with _open(self.path) as file:
            lines = sum(block.count(b"\n") for block in _blocks(file, self.path, where))
        return f"{self.path}, line {lines + 1}"

    def version(self) -> str:
        return file_version(self.path)


def records(path: pathlib.Path, text_format: TextFormat, field: str, limit: int) -> list[Piece]:
    """Returns the pieces of a file of text.

    Args:
      path: the file; .gz and .zst files are decompressed.
      text_format: how it becomes documents.
      field: of a JSON line.
      limit: the largest document, in bytes.
    """
    if path.suffix in CODECS or not text_format.separator:
        return [Records(path, text_format, field, limit)]
    size = path.stat().st_size
    return [
        Records(path, text_format, field, limit, start, stop)
        for start, stop, _ in ranges(size, size)
    ]


def split(
    blocks: Iterator[bytes], separator: bytes, limit: int
) -> Iterator[tuple[int, bytes | None, bool]]:
    """Divides a stream as `bytes.split` divides the whole; holds at most `limit` and one block.

    Args:
      blocks: the stream.
      separator: between two records; an empty one never occurs.
      limit: the largest record, in bytes.

    Yields:
      The offset of each record, the record (None if it is larger than `limit`) and whether it is
      the last.
    """
    offset, dropped, tail = 0, 0, bytearray()
    overlap = max(len(separator) - 1, 0)
    for block in blocks:
        unseen = max(len(tail) - overlap, 0)
        tail += block
        if separator and tail.find(separator, unseen) >= 0:
            *parts, tail = tail.split(separator)
            for part in parts:
                size = dropped + len(part)
                yield offset, part if size <= limit else None, False
                offset += size + len(separator)
                dropped = 0
        # the end of the tail may be the beginning of a separator and not a part of the record
        if dropped + len(tail) - overlap > limit:
            surplus = len(tail) - overlap
            dropped += surplus
            del tail[:surplus]
    yield offset, tail if dropped + len(tail) <= limit else None, True


def _first_start(
    file: BinaryIO, path: pathlib.Path, separator: bytes, start: int, stop: int
) -> int:
    r"""Returns where the first record at or after `start` starts, or `stop`.

    A separator may overlap itself, as "\n\n" does: the search goes back to where no two of them
    overlap, since from there on every reader finds the same ones.
    """
    begin = max(start - len(separator), 0)
    while True:
        low = max(begin - len(separator) + 1, 0)
        file.seek(low)
        found = file.read(begin - low + len(separator) - 1).find(separator)
        if found < 0:
            break
        begin = low + found
    file.seek(begin)
    blocks = _blocks(file, path, stop - begin)
    starts = (begin + offset for offset, _, _ in split(blocks, separator, 0))
    return next((offset for offset in starts if offset >= start), stop)


def _open(path: pathlib.Path) -> BinaryIO:
    """Opens a file to read its bytes, decompressed; BadInput if it cannot be opened."""
    codec = CODECS.get(path.suffix)
    try:
        if codec is None:
            return path.open("rb", buffering=0)
        import pyarrow

        return pyarrow.CompressedInputStream(pyarrow.OSFile(str(path)), codec)
    except OSError as error:
        raise BadInput(f"{path} cannot be opened ({error}); look at the file.") from error


def _blocks(file: BinaryIO, path: pathlib.Path, size: int | None = None) -> Iterator[bytes]:
    """Yields the next `size` bytes, or the rest; BadInput for a damaged file."""
    while size is None or size > 0:
        try:
            block = file.read(_BLOCK_BYTES if size is None else min(size, _BLOCK_BYTES))
        except OSError as error:
            raise BadInput(
                f"{path} is damaged or cut short ({error}); fetch or make it again."
            ) from error
        if not block:
            return
        if size is not None:
            size -= len(block)
        yield block

"""Files of text: documents, JSON lines, FASTA or FASTQ, divided by a separator of bytes.

A large plain file is read in pieces, by ranges of bytes; a compressed one is a single piece. Memory
does not grow with the file nor, above the limit, with a document.
"""

import itertools
import json
import os
import pathlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

from sedd_jax.data.columns import Fields
from sedd_jax.data.documents import (
    BLANK,
    Document,
    Fault,
    Piece,
    file_version,
    ranges,
    too_large,
)
from sedd_jax.data.signatures import HEAD_BYTES, MARK
from sedd_jax.errors import BadInput

_BLOCK_BYTES = 2**20
# pyarrow's names by the suffix of a file; of the two zstd readers at hand pyarrow's is the one that
# notices a truncated file
_CODECS = {".gz": "gzip", ".bgz": "gzip", ".zst": "zstd"}
_BGZIP_END = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")
_WHITE_SPACE = str.maketrans("", "", " \t\r\n")
# [key=value] in a header of FASTA, whose value may have spaces, or key=value
_FIELD = re.compile(r"\[([^\[\]=\s]+)=([^\[\]]*)\]|(?<!\S)([^\[\]=\s]+)=(\S*)")


class TextFormat(NamedTuple):
    """How a file of text becomes documents.

    Attributes:
      separator: between two records; empty: the file is one record.
      parse: takes (record, whether it is the first of the file, fields) and returns the document,
        or None for what is no document.
      lines: so many records, joined, are one.
    """

    separator: bytes
    parse: Callable[[str, bool, Fields], Document | None]
    lines: int = 1


def _parse_text(record: str, first: bool, fields: Fields) -> Document:
    """Returns a document of a text file unchanged."""
    return Document(BLANK if not record or record.isspace() else record)


def _parse_json(line: str, first: bool, fields: Fields) -> Document | None:
    """Returns the text or ids of a JSON object; a blank line is no document."""
    if not line or line.isspace():
        return None
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        return Document(Fault("is no JSON", f" ({str(error).partition(': line')[0]})"))
    if not isinstance(row, dict):
        return Document(Fault("is no JSON object"))
    if fields.text not in row:
        detail = f" but {', '.join(row):.80}" if row else ""
        return Document(Fault(f"has no field {fields.text!r}", detail))
    return fields.document(row)


def _parse_fasta(record: str, first: bool, fields: Fields) -> Document:
    """Returns the letters of a sequence in capitals, since small ones only mark repeats.

    The words key=value of its first line are its fields; in brackets a value may have spaces.
    """
    if first and not record.startswith(">"):
        return Document(Fault("does not begin with '>', as a FASTA record does"))
    name, _, lines = record.partition("\n")
    if ">" in lines:
        return Document(Fault("has a '>' inside its sequence"))
    found = [(key or word, value or of_word) for key, value, word, of_word in _FIELD.findall(name)]
    told = fields.tells(dict(found))
    for column in fields.told:
        if len({value for key, value in found if key == column.name}) > 1:
            told = Fault(f"has several values of {column.name!r} in its header")
    if isinstance(told, Fault):
        return Document(told)
    return Document(lines.translate(_WHITE_SPACE).upper() or BLANK, told=told)


def _parse_fastq(record: str, first: bool, fields: Fields) -> Document:
    """Returns the letters of a read in capitals, without their qualities."""
    name, letters, plus, qualities = [*map(str.rstrip, record.split("\n")), "", "", ""][:4]
    is_whole = name.startswith("@") and plus.startswith("+") and len(letters) == len(qualities)
    if not is_whole or len(letters.split()) > 1:
        return Document(Fault("is no FASTQ record of four lines, the last as long as the second"))
    return Document(letters.upper() or BLANK)


def plain_text(separator: str) -> TextFormat:
    """Returns the format of documents divided by a separator; an empty one divides nothing."""
    return TextFormat(separator.encode(), _parse_text)


JSON_LINES = TextFormat(b"\n", _parse_json)
FASTA = TextFormat(b"\n>", _parse_fasta)
FASTQ = TextFormat(b"\n", _parse_fastq, 4)


@dataclass(frozen=True)
class Records(Piece):
    """The records of a file that start in [start, stop); without `stop`, up to its end.

    A record larger than `limit` bytes is a fault, and is never in memory as a whole.
    """

    path: pathlib.Path
    text_format: TextFormat
    fields: Fields
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
        separator, parse, _ = self.text_format
        for offset, record, last in self._records():
            first = offset == 0
            if record is None:
                fault = too_large(self.limit)
                if parse is _parse_text:
                    how = "does not divide it" if separator else "is empty: a file is one document"
                    fault = fault._replace(detail=f"; config.data.separator {how}")
                yield Document(fault, offset)
                continue
            mark = len(MARK) if first and record.startswith(MARK) else 0
            record = record[mark:] if mark else record
            if separator and (first or last) and (not record or record.isspace()):
                continue
            try:
                document = parse(record.decode(), first, self.fields)
            except UnicodeDecodeError as error:
                at = offset + mark + error.start
                fault = Fault(
                    "is not UTF-8 text",
                    f": the byte at offset {at} of the file does not decode (if it is Latin-1: "
                    "iconv -f LATIN1 -t UTF-8 FILE > NEW)",
                )
                document = Document(fault)
            # nothing between two separators in a row is no document
            between = bool(separator) and parse is _parse_text
            if document is not None and not (between and document.content is BLANK):
                yield document._replace(where=offset)

    def _records(self) -> Iterator[tuple[int, bytes | None, bool]]:
        separator, start, stop = self.text_format.separator, self.start, self.stop
        with open_bytes(self.path) as file:
            if start:
                start = _first_start(file, self.path, separator, start, stop)
                if start >= stop:
                    return
                file.seek(start)
            found = split(blocks(file, self.path), separator, self.limit)
            for offset, record, last in _joined(found, self.text_format):
                if stop is not None and start + offset >= stop:
                    return
                yield start + offset, record, last

    def place(self, where: int) -> str:
        if not self.text_format.separator:
            return str(self.path)
        with open_bytes(self.path) as file:
            lines = sum(block.count(b"\n") for block in blocks(file, self.path, where))
        return f"{self.path}, line {lines + 1}"

    def version(self) -> str:
        return file_version(self.path)


def records(path: pathlib.Path, text_format: TextFormat, fields: Fields, limit: int) -> list[Piece]:
    """Returns the pieces of a file of text.

    Args:
      path: the file; .gz and .zst files are decompressed.
      text_format: how it becomes documents.
      fields: what is read of a JSON line, and told by a FASTA record.
      limit: the largest document, in bytes.
    """
    if codec(path) or not text_format.separator or text_format.lines > 1:
        return [Records(path, text_format, fields, limit)]
    size = path.stat().st_size
    return [
        Records(path, text_format, fields, limit, start, stop)
        for start, stop, _ in ranges(size, size)
    ]


def split(
    stream: Iterator[bytes], separator: bytes, limit: int
) -> Iterator[tuple[int, bytes | None, bool]]:
    """Divides a stream as `bytes.split` divides the whole; holds at most `limit` and one block.

    Args:
      stream: the bytes, in blocks.
      separator: between two records; an empty one never occurs.
      limit: the largest record, in bytes.

    Yields:
      The offset of each record, the record (None if it is larger than `limit`) and whether it is
      the last.
    """
    offset, dropped, tail = 0, 0, bytearray()
    overlap = max(len(separator) - 1, 0)
    for block in stream:
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


def _joined(
    records: Iterator[tuple[int, bytes | None, bool]], text_format: TextFormat
) -> Iterator[tuple[int, bytes | None, bool]]:
    """Joins the records that are one in this format."""
    if text_format.lines == 1:
        yield from records
        return
    while group := list(itertools.islice(records, text_format.lines)):
        parts = [record for _, record, _ in group]
        whole = None if None in parts else text_format.separator.join(parts)
        yield group[0][0], whole, group[-1][2]


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
    stream = blocks(file, path, stop - begin)
    starts = (begin + offset for offset, _, _ in split(stream, separator, 0))
    return next((offset for offset in starts if offset >= start), stop)


def codec(path: pathlib.Path) -> str | None:
    """Returns how a file is compressed, by the ending of its name."""
    return _CODECS.get(path.suffix.lower())


def head_of(path: pathlib.Path) -> bytes:
    """Returns the first bytes of a file, decompressed; BadInput if it cannot be read."""
    with open_bytes(path) as file:
        return b"".join(blocks(file, path, HEAD_BYTES))


def open_bytes(path: pathlib.Path) -> BinaryIO:
    """Opens a file to read its bytes, decompressed; BadInput if it cannot be opened."""
    name = codec(path)
    try:
        if name is None:
            return path.open("rb", buffering=0)
        if not path.stat().st_size:  # which readers take for nothing compressed
            raise BadInput(f"{path} is cut short (it is empty); fetch or make it again.")
        if name == "gzip":
            _check_bgzip(path)
        import pyarrow

        return pyarrow.CompressedInputStream(pyarrow.OSFile(str(path)), name)
    except OSError as error:
        raise BadInput(f"{path} cannot be opened ({error}); look at the file.") from error


def _check_bgzip(path: pathlib.Path) -> None:
    """Raises BadInput for a file of bgzip that was not closed; each block of it is whole."""
    with path.open("rb") as file:
        head = file.read(14)
        if head.startswith(b"\x1f\x8b\x08\x04") and head.endswith(b"BC"):
            file.seek(-min(len(_BGZIP_END), path.stat().st_size), os.SEEK_END)
            if file.read() != _BGZIP_END:
                raise BadInput(
                    f"{path} is cut short (the mark at the end of a file of bgzip is missing); "
                    "fetch it again, or pack it anew if it is whole (gunzip, gzip)."
                )


def blocks(file: BinaryIO, path: pathlib.Path, size: int | None = None) -> Iterator[bytes]:
    """Yields the next bytes of a file, in blocks.

    Args:
      file: from `open_bytes`.
      path: of the file, for a message.
      size: how many bytes; None for the rest.

    Raises:
      BadInput: the file is damaged.
    """
    while size is None or size > 0:
        try:
            block = file.read(_BLOCK_BYTES if size is None else min(size, _BLOCK_BYTES))
        except OSError as error:
            unless = "" if codec(path) is None else ", or rename it if it is not compressed"
            raise BadInput(
                f"{path} is damaged or cut short ({error}); fetch or make it again{unless}."
            ) from error
        if not block:
            return
        if size is not None:
            size -= len(block)
        yield block

"""Tables of text, CSV and TSV, with a column of documents; read line by line.

A field of a CSV file may stand in quotes, with delimiters, line breaks and doubled quotes in it. In
a TSV file quotes are letters, and a field is what stands between two tabs.
"""

import csv
import pathlib
from collections.abc import Iterator
from dataclasses import dataclass

from sedd_jax.data.columns import Fields, check_fields
from sedd_jax.data.documents import Document, Fault, Piece, file_version
from sedd_jax.data.signatures import MARK
from sedd_jax.data.text_files import blocks, open_bytes, split
from sedd_jax.errors import BadInput

_TAB = "\t"
_DELIMITERS = (",", ";", _TAB)  # of CSV; some spreadsheets write a semicolon


def table(path: pathlib.Path, form: str, fields: Fields, limit: int) -> list[Piece]:
    """Returns the rows of a table whose first line has the names of its columns, as one piece.

    Args:
      path: the file, perhaps compressed.
      form: "csv", divided by the delimiter that gives its first line the text, or "tsv".
      fields: the columns that are read.
      limit: the largest document, in bytes.

    Raises:
      BadInput: the file lacks a column, or has more than one of its name.
    """
    quoted = form == "csv"
    tables = [_Rows(path, at, quoted, fields, limit) for at in (_DELIMITERS if quoted else _TAB)]
    headers = [rows.header() for rows in tables]
    if not headers[0]:
        return []
    found = next((i for i, header in enumerate(headers) if fields.text in header), 0)
    names = [f"{name if name == name.strip() else repr(name):.40}" for name in headers[found]]
    if not set(fields.names) <= set(headers[found]):
        check_fields(fields, names, f"The first line of {path}, the names of its columns,")
    for name in fields.names:
        if headers[found].count(name) > 1:
            raise BadInput(f"{path} has more than one column {name!r}; rename one.")
    return [tables[found]]


@dataclass(frozen=True)
class _Rows(Piece):
    """The rows of a file after the first."""

    path: pathlib.Path
    delimiter: str
    quoted: bool
    fields: Fields
    limit: int

    @property
    def name(self) -> str:
        return str(self.path)

    @property
    def size(self) -> int:
        return self.path.stat().st_size

    def header(self) -> list[str]:
        """Returns the names of the columns, [] for an empty file."""
        # not strict: with another delimiter, text may follow a field in quotes
        return next(self._rows(strict=False), ([], 0))[0]

    def documents(self) -> Iterator[Document]:
        rows = self._rows()
        header, _ = next(rows)
        columns = {name: header.index(name) for name in self.fields.names}
        for row, line in rows:
            if len(row) != len(header):
                detail = f": {len(row)} instead of {len(header)}"
                yield Document(Fault("has more or fewer fields than the first line", detail), line)
                continue
            cells = {name: row[column] for name, column in columns.items()}
            if any(map(self._is_quoted, cells.values())):
                fault = Fault("has a field in quotes, as in CSV", "; set config.data.format=csv")
                yield Document(fault, line)
                continue
            encoded = {name: cell.encode(errors="surrogateescape") for name, cell in cells.items()}
            yield self.fields.document(encoded, line, self.limit)

    def _is_quoted(self, cell: str) -> bool:
        """Returns whether a field of a TSV file was written as one of CSV."""
        return (
            not self.quoted and len(cell) > 2 and cell[0] == cell[-1] == '"' and '""' in cell[1:-1]
        )

    def _rows(self, *, strict: bool = True) -> Iterator[tuple[list[str], int]]:
        """Yields the rows and the lines where they begin; an empty line is no row."""
        if not self.quoted:
            for line, text in enumerate(self._lines(), 1):
                row = text.removesuffix("\n").removesuffix("\r").split(self.delimiter)
                if row != [""]:
                    yield row, line
            return
        csv.field_size_limit(self.limit)  # of the whole process; the default is 128 kB
        rows, line = csv.reader(self._lines(), delimiter=self.delimiter, strict=strict), 1
        try:
            for row in rows:
                if row:
                    yield row, line
                line = rows.line_num + 1
        except csv.Error as error:
            raise BadInput(
                f"{self.path}, line {line} is no row of CSV ({error}): a field that begins with a "
                'quote ends with one, and a quote inside it is written ""; mend it, or make JSON '
                "lines of it."
            ) from error

    def _lines(self) -> Iterator[str]:
        """Yields the lines as text; what does not decode is the fault of a row."""
        with open_bytes(self.path) as file:
            lines = split(blocks(file, self.path), b"\n", self.limit)
            for number, (offset, line, last) in enumerate(lines, 1):
                if line is None:
                    raise BadInput(
                        f"{self.path}, line {number} is larger than the {self.limit / 2**20:g} MB "
                        "of config.data.max_document_mb; raise that."
                    )
                text = bytes(line if offset else line.removeprefix(MARK))
                yield text.decode(errors="surrogateescape") + ("" if last else "\n")

    def place(self, where: int) -> str:
        return f"{self.path}, line {where}"

    def version(self) -> str:
        return file_version(self.path)

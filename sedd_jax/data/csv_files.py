"""Tables of text, CSV and TSV, with a column of documents; read line by line."""

import csv
import pathlib
from collections.abc import Iterator
from dataclasses import dataclass

from sedd_jax.data.documents import Document, Fault, Piece, checked_value, file_version
from sedd_jax.data.signatures import MARK
from sedd_jax.data.tables import check_field
from sedd_jax.data.text_files import blocks, open_bytes, split
from sedd_jax.errors import BadInput

_DELIMITERS = {"csv": ",;", "tsv": "\t"}  # some spreadsheets write a semicolon


def table(path: pathlib.Path, form: str, field: str, limit: int) -> list[Piece]:
    """Returns the rows of a table whose first line has the names of its columns, as one piece.

    Args:
      path: the file; .gz and .zst files are decompressed.
      form: "csv" or "tsv".
      field: the column of text.
      limit: the largest document, in bytes.

    Raises:
      BadInput: the file has no such column, or more than one.
    """
    tables = [_Rows(path, delimiter, field, limit) for delimiter in _DELIMITERS[form]]
    # a header with quotes is an error to the strict reader of another delimiter
    headers = [next(csv.reader(rows.lines(), delimiter=rows.delimiter), []) for rows in tables]
    if not headers[0]:
        return []
    found = next((i for i, header in enumerate(headers) if field in header), 0)
    names = [f"{name:.40}" for name in headers[found]]
    check_field(field, headers[found] and names, f"The first line of {path}")
    if headers[found].count(field) > 1:
        raise BadInput(f"{path} has more than one column {field!r}; rename one.")
    return [tables[found]]


@dataclass(frozen=True)
class _Rows(Piece):
    """The rows of a file after the first."""

    path: pathlib.Path
    delimiter: str
    field: str
    limit: int

    @property
    def name(self) -> str:
        return str(self.path)

    @property
    def size(self) -> int:
        return self.path.stat().st_size

    def _read(self) -> Iterator[tuple[list[str], int]]:
        """Yields the rows and their lines, the first line with its names included."""
        csv.field_size_limit(self.limit)  # of the whole process; the default is 128 kB
        rows, line = csv.reader(self.lines(), delimiter=self.delimiter, strict=True), 1
        try:
            for row in rows:
                if row:  # an empty line is no row
                    yield row, line
                line = rows.line_num + 1
        except csv.Error as error:
            raise BadInput(
                f"{self.path}, line {line} is no row of a table ({error}): a field that begins "
                'with a quote ends with one, and a quote inside it is written ""; mend it, or make '
                "JSON lines of it."
            ) from error

    def documents(self) -> Iterator[Document]:
        rows = self._read()
        header, _ = next(rows)
        column = header.index(self.field)
        for row, line in rows:
            if len(row) == len(header):
                raw = row[column].encode(errors="surrogateescape")
                yield Document(checked_value(raw, self.field, self.limit), line)
            else:
                detail = f": {len(row)} instead of {len(header)}"
                yield Document(Fault("has more or fewer fields than the first line", detail), line)

    def lines(self) -> Iterator[str]:
        """Yields the lines as text; what does not decode is the fault of a row."""
        with open_bytes(self.path) as file:
            lines = split(blocks(file, self.path), b"\n", self.limit)
            for number, (offset, line, last) in enumerate(lines, 1):
                if line is None:
                    raise BadInput(
                        f"{self.path}, line {number} is larger than the {self.limit / 2**20:g} MB "
                        "of data.max_document_mb; raise that."
                    )
                text = bytes(line if offset else line.removeprefix(MARK))
                yield text.decode(errors="surrogateescape") + ("" if last else "\n")

    def place(self, where: int) -> str:
        return f"{self.path}, line {where}"

    def version(self) -> str:
        return file_version(self.path)

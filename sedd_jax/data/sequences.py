"""Files of integer ids: NumPy arrays, raw ids and ArrayRecord; each row or record is a document.

The name of an ArrayRecord file says its type: `X.uint16.array_record` and `X.uint32.array_record`
(with or without `-00000-of-00008` after it) hold little-endian numbers.
"""

import os
import pathlib
import re
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sedd_jax.data.columns import Column, Fields, check_tells, check_told
from sedd_jax.data.documents import (
    Document,
    Fault,
    Piece,
    RowRange,
    checked_ids,
    ranges,
)
from sedd_jax.errors import BadInput, first_line
from sedd_jax.system.files import check_readable
from sedd_jax.system.packages import package

_RAW = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}
_RUN = 2**20  # ids of a document where there are no rows
_BATCH = 64  # records read at a time
_ZIP_END, _ZIP_END_BYTES = b"PK\5\6", 22  # the last record of a zip file, without its comment


def arrays(path: pathlib.Path, form: str, fields: Fields, limit: int) -> list[Piece]:
    """Returns the pieces of a file of arrays.

    A row of a 2-D array is a document; a 1-D array and a raw file are read in runs of 2^20 ids. The
    arrays of an .npz file are read into memory, others are mapped. Where the network is told
    something, that is in arrays of an .npz file with as many rows as the one of documents.

    Args:
      path: the file.
      form: "npy" (.npz files too), "uint16" or "uint32".
      fields: the array of documents, if there are several, and those that are told.
      limit: the largest document, in bytes.

    Raises:
      BadInput: the file is damaged, or an array is missing or of another shape or type.
    """
    if form != "npy" or not zipfile.is_zipfile(path):
        check_tells(fields, path, form)
        count, size = len(_rows(path, form, "")), path.stat().st_size
        return [
            _Rows(path, limit, start, stop, part, form, "")
            for start, stop, part in ranges(count, size)
        ]
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            comment = len(archive.comment)
    except (NotImplementedError, ValueError, zipfile.BadZipFile) as error:
        raise damaged(path, first_line(error)) from error
    with path.open("rb") as file:  # a reader of zip files allows anything after their end
        file.seek(-_ZIP_END_BYTES - comment, os.SEEK_END)
        if file.read(4) != _ZIP_END:
            raise damaged(path, "something follows its end")
    sizes = {entry.filename.removesuffix(".npy"): entry.file_size for entry in members}
    if fields.told:
        member = _documents_of(path, fields, sizes)
        return [_ToldRows(path, limit, 0, None, sizes[member], form, member, fields.told)]
    return [_Rows(path, limit, 0, None, size, form, member) for member, size in sizes.items()]


def array_records(path: pathlib.Path, limit: int) -> list[Piece]:
    """Returns the pieces of an ArrayRecord file; BadInput for another name or content."""
    named = re.search(r"\.(uint16|uint32)\.array_record(-\d+-of-\d+)?$", path.name)
    if named is None:
        raise BadInput(
            f"The name of {path} does not say what its records hold; call it "
            "NAME.uint16.array_record or NAME.uint32.array_record. (A data set of TFDS is given as "
            "tfds:FOLDER.)"
        )
    count, size = number_of_records(path), path.stat().st_size
    return [
        _ArrayRecords(path, limit, start, stop, part, named[1])
        for start, stop, part in ranges(count, size)
    ]


@dataclass(frozen=True)
class _Rows(RowRange):
    """Rows or runs [start, stop) of an array, of the `member` of an .npz file, or of a raw file."""

    stop: int | None
    form: str
    member: str

    @property
    def name(self) -> str:
        return f"{self.source}[{self.member}{self.start}:{self.stop}]"

    def documents(self) -> Iterator[Document]:
        rows = _rows(self.source, self.form, self.member)
        for number, row in enumerate(rows[self.start : self.stop], self.start):
            yield Document(checked_ids(row, self.limit), number)

    def place(self, where: int) -> str:
        array = f", array {self.member!r}" if self.member else ""
        unit = "run" if isinstance(_rows(self.source, self.form, self.member), list) else "row"
        return f"{self.source}{array}, {unit} {where + 1}"


@dataclass(frozen=True)
class _ToldRows(_Rows):
    """The rows of an array of an .npz file, with what other arrays of it tell."""

    told: tuple[Column, ...]

    def documents(self) -> Iterator[Document]:
        rows = _rows(self.source, self.form, self.member)
        columns = [_loaded(self.source, self.form, column.name) for column in self.told]
        where = f"The array {self.member!r} of {self.source}"
        if isinstance(rows, list):
            raise BadInput(f"{where} has one dimension; give a row for a document.")
        for column, values in zip(self.told, columns, strict=True):
            if values.shape[:1] != rows.shape[:1]:
                raise BadInput(
                    f"{where} has {len(rows)} rows and {column.name!r} the shape "
                    f"{list(values.shape)}; give one entry for each row."
                )
        fields = Fields(self.member, self.told)
        for number, (row, *values) in enumerate(zip(rows, *columns, strict=True)):
            found = dict(zip(fields.names, (row, *values), strict=True))
            yield fields.document(found, number, self.limit)


def _documents_of(path: pathlib.Path, fields: Fields, members: Iterable[str]) -> str:
    """Returns the name of the array with the documents, where others are told."""
    check_told(fields, members, str(path))
    others = [name for name in members if name not in fields.names[1:]]
    if fields.text in others:
        return fields.text
    if len(others) != 1:
        raise BadInput(
            f"{path} has {len(others)} arrays that may be the documents; name one of "
            f"{', '.join(members)} in config.data.field."
        )
    return others[0]


@dataclass(frozen=True)
class _ArrayRecords(RowRange):
    """Records [start, stop) of an ArrayRecord file."""

    form: str

    def documents(self) -> Iterator[Document]:
        reader = _reader(self.source)
        dtype = _RAW[self.form]
        for start in range(self.start, self.stop, _BATCH):
            try:
                records = reader.read(start, min(start + _BATCH, self.stop))
            except (IndexError, RuntimeError) as error:
                raise damaged(self.source, first_line(error)) from error
            for number, record in enumerate(records, start):
                if len(record) % dtype.itemsize:
                    content = Fault(f"is no {self.form} numbers", f": it has {len(record)} bytes")
                else:
                    content = checked_ids(np.frombuffer(record, dtype), self.limit)
                yield Document(content, number)


def _rows(path: pathlib.Path, form: str, member: str) -> Sequence[np.ndarray]:
    """Returns the rows of a 2-D array, or a list of the runs of a 1-D one.

    Raises:
      BadInput: the file is damaged, or the array is not one of integers.
    """
    array = _loaded(path, form, member)
    if array.dtype.kind not in "iu" or array.ndim not in (1, 2):
        raise BadInput(
            f"{_where(path, member)} has the type {array.dtype} and {array.ndim} dimensions; give "
            "integers, a row a document, or a stream of them in one dimension."
        )
    if array.ndim == 1:
        return [array[start : start + _RUN] for start in range(0, len(array), _RUN)]
    return array


def _where(path: pathlib.Path, member: str) -> str:
    return f"The array {member!r} of {path}" if member else f"The array of {path}"


def _loaded(path: pathlib.Path, form: str, member: str) -> np.ndarray:
    """Returns an array of a file; BadInput: it is damaged, or holds Python objects."""
    try:
        if member:
            with np.load(path, allow_pickle=False) as archive:
                array = archive[member]
            if isinstance(array, bytes):  # of a file that is no .npy
                raise ValueError(f"{member} in it is no array")
        elif form == "npy":
            array = np.load(path, mmap_mode="r", allow_pickle=False)
            surplus = path.stat().st_size - array.offset - array.nbytes
            if surplus:
                raise ValueError(f"it holds {surplus} bytes more than its header says")
        else:
            array = np.memmap(path, _RAW[form], mode="r")
    except Exception as error:  # a dozen kinds, since a header is parsed as Python
        if re.search("Python objects|Object arrays", str(error)):
            raise BadInput(
                f"{_where(path, member)} holds Python objects (dtype object), which are not read; "
                "save it as integers, a row a document (rows of several lengths in an ArrayRecord "
                "file), and a column of text with astype(str)."
            ) from error
        # any other file is a pickle to NumPy, and may be loaded "if you trust" it
        reason = (
            "it does not begin as a NumPy array" if "pickle" in str(error) else first_line(error)
        )
        raise damaged(path, reason) from error
    return array


def number_of_records(path: str | pathlib.Path) -> int:
    """Returns how many records an ArrayRecord file has.

    Raises:
      BadInput: it is damaged, cut short or absent: the package says only that it has no record.
    """
    reader = _reader(path)
    if not reader.ok():
        raise damaged(path, "no record is found in it")
    return reader.num_records()


def _reader(path: str | pathlib.Path) -> Any:
    check_readable(path)
    module = package("array_record.python.array_record_module", "array_record", "ArrayRecord")
    return module.ArrayRecordReader(str(path))


def damaged(path: str | pathlib.Path, reason: str) -> BadInput:
    """Returns the error of a file that cannot be read."""
    return BadInput(f"{path} is damaged, cut short or of another format ({reason}); make it again.")

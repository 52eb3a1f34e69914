"""Files of integer ids: NumPy arrays, raw ones, and ArrayRecord; each row or record is a document.

The type of an ArrayRecord file stands in its name: `X.uint16.array_record` and
`X.uint32.array_record` (with `-00000-of-00008` after it or not) hold little-endian numbers.
"""

import pathlib
import re
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sedd_jax.data.documents import (
    BLANK,
    Document,
    Fault,
    Piece,
    file_version,
    ranges,
    too_large,
)
from sedd_jax.errors import BadInput, first_line
from sedd_jax.system.packages import package

_RAW = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}
_RUN = 2**20
# Records are read this many at a time.
_BATCH = 64


def arrays(path: pathlib.Path, form: str, limit: int) -> list[Piece]:
    """The pieces of a file of arrays; `form` is "npy" (.npz files too), "uint16" or "uint32".

    A row of a 2-D array is a document. A 1-D array and a raw file know of none: they are read in
    runs of 2^20 ids. Raises BadInput for any other array and for a damaged file. The arrays
    of an .npz file are read whole, others are mapped.
    """
    if form != "npy" or not zipfile.is_zipfile(path):
        count, size = len(_rows(path, form, "")), path.stat().st_size
        return [
            _Rows(path, form, "", limit, start, stop, size * (stop - start) // count)
            for start, stop in ranges(count, size)
        ]
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (NotImplementedError, ValueError, zipfile.BadZipFile) as error:
        raise _damaged(path, first_line(error)) from error
    return [
        _Rows(path, form, entry.filename.removesuffix(".npy"), limit, 0, None, entry.file_size)
        for entry in members
    ]


def array_records(path: pathlib.Path, limit: int) -> list[Piece]:
    """The pieces of an ArrayRecord file. Raises BadInput when its name or content is no such."""
    named = re.search(r"\.(uint16|uint32)\.array_record(-\d+-of-\d+)?$", path.name)
    if named is None:
        raise BadInput(
            f"The name of {path} does not say what its records hold; call it "
            "NAME.uint16.array_record or NAME.uint32.array_record."
        )
    count, size = _reader(path).num_records(), path.stat().st_size
    if not count:
        raise _damaged(path, "no record is found in it")
    return [
        _ArrayRecords(path, named[1], limit, start, stop, size * (stop - start) // count)
        for start, stop in ranges(count, size)
    ]


@dataclass(frozen=True)
class _Rows(Piece):
    """Rows or runs [start, stop) of an array, `member` of an .npz file, or of a raw file."""

    path: pathlib.Path
    form: str
    member: str
    limit: int
    start: int
    stop: int | None
    size: int

    @property
    def name(self) -> str:
        return f"{self.path}[{self.member}{self.start}:{self.stop}]"

    def documents(self) -> Iterator[Document]:
        rows = _rows(self.path, self.form, self.member)
        for number, row in enumerate(rows[self.start : self.stop], self.start):
            yield Document(_checked(row, self.limit), number)

    def place(self, where: int) -> str:
        array = f", array {self.member!r}" if self.member else ""
        unit = "run" if isinstance(_rows(self.path, self.form, self.member), list) else "row"
        return f"{self.path}{array}, {unit} {where + 1}"

    def version(self) -> str:
        return file_version(self.path)


@dataclass(frozen=True)
class _ArrayRecords(Piece):
    """Records [start, stop) of an ArrayRecord file."""

    path: pathlib.Path
    form: str
    limit: int
    start: int
    stop: int
    size: int

    @property
    def name(self) -> str:
        return f"{self.path}[{self.start}:{self.stop}]"

    def documents(self) -> Iterator[Document]:
        reader = _reader(self.path)
        dtype = _RAW[self.form]
        for start in range(self.start, self.stop, _BATCH):
            try:
                records = reader.read(start, min(start + _BATCH, self.stop))
            except (IndexError, RuntimeError) as error:
                raise _damaged(self.path, first_line(error)) from error
            for number, record in enumerate(records, start):
                if len(record) % dtype.itemsize:
                    content = Fault(f"is no {self.form} numbers", f": it has {len(record)} bytes")
                else:
                    content = _checked(np.frombuffer(record, dtype), self.limit)
                yield Document(content, number)

    def place(self, where: int) -> str:
        return f"{self.path}, record {where + 1}"

    def version(self) -> str:
        return file_version(self.path)


def _rows(path: pathlib.Path, form: str, member: str) -> Sequence[np.ndarray]:
    """The rows of an array, or a list of the runs of one in one dimension.

    Raises BadInput unless it is one of integers in a whole file.
    """
    try:
        if member:
            with np.load(path, allow_pickle=False) as archive:
                array = archive[member]
        elif form == "npy":
            array = np.load(path, mmap_mode="r", allow_pickle=False)
            surplus = path.stat().st_size - array.offset - array.nbytes
            if surplus:
                raise ValueError(f"it holds {surplus} bytes more than its header tells of")
        else:
            array = np.memmap(path, _RAW[form], mode="r")
    except Exception as error:  # a dozen kinds, since a header is parsed as Python
        raise _damaged(path, first_line(error)) from error
    if array.dtype.kind not in "iu" or array.ndim not in (1, 2):
        where = f"The array {member!r} of {path}" if member else f"The array of {path}"
        raise BadInput(
            f"{where} has the type {array.dtype} and {array.ndim} dimensions; give integers, a row "
            "a document, or a stream of them in one dimension."
        )
    if array.ndim == 1:
        return [array[start : start + _RUN] for start in range(0, len(array), _RUN)]
    return array


def _checked(ids: np.ndarray, limit: int) -> np.ndarray | Fault:
    """The ids of a document, or what is wrong with them."""
    if not ids.size:
        return BLANK
    if ids.nbytes > limit:
        return too_large(limit)
    if ids.dtype.kind == "i" and ids.min() < 0:
        position = int(np.argmax(ids < 0))
        return Fault("has a negative id", f": {ids[position]} at position {position}")
    return ids


def _reader(path: pathlib.Path) -> Any:
    module = package("array_record.python.array_record_module", "array_record", "ArrayRecord")
    return module.ArrayRecordReader(str(path))


def _damaged(path: pathlib.Path, reason: str) -> BadInput:
    return BadInput(f"{path} is damaged, cut short or of another format ({reason}); make it again.")

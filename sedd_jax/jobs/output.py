"""The output of a batch job: JSON lines that survive however the job ends.

Every record says what it was drawn from and how, so that the same command recognises its own rows
and draws the missing ones, and no other command adds to them.
"""

import contextlib
import json
import os
import re
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from sedd_jax.errors import BadInput
from sedd_jax.jobs.formats import encoded, json_lines
from sedd_jax.jobs.input import InputRow
from sedd_jax.system import lease, mirror
from sedd_jax.system.files import atomic_write, check_output_path
from sedd_jax.system.lock import exclusive
from sedd_jax.system.outputs import create

# settings that rows of earlier versions lack
_YOUNGER = {
    "tempering": "token",
    "guidance": 1.0,
    "classifier": None,
    "classifier_ratios": "exact",
    "constraint": None,
}
_BEGIN = b'{"index": '
_RECORD_BEGIN = re.compile(rb'\{"index": [0-9]+, "id": ')  # only records of jobs begin so


class JobOutput:
    """An output file, open for appending.

    Attributes:
      done: the indices of the rows that it holds.
    """

    def __init__(self, file: BinaryIO, done: set[int]):
        self._file, self.done = file, done

    def append(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Writes records, which begin with their index; once it returns they survive a crash."""
        self._file.write(json_lines(records))
        self._file.flush()
        os.fsync(self._file.fileno())


def write_new(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Writes records to a new file, or next to it if another process has created it meanwhile.

    Args:
      path: the file, whose ending chooses the format, see `formats`.
      records: of the samples, one at least.

    Raises:
      BadInput: the file exists; the message says where the records are.
    """
    written = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    atomic_write(written, encoded(path, records))
    try:
        create(written, path)
    except OSError as error:
        raise BadInput(
            f"{path} cannot be made ({error.strerror}): the samples are in {written}."
        ) from error


def read_records(path: Path) -> list[dict[str, Any]]:
    """Returns the records of a finished job, in the order of its input."""
    records = [json.loads(line) for line in path.read_text().splitlines()]
    return sorted(records, key=lambda record: record["index"])


@contextlib.contextmanager
def open_output(path: Path, rows: list[InputRow], facts: Mapping[str, Any]) -> Iterator[JobOutput]:
    """Opens the output of a job, new or with some of its rows, for this job alone.

    Removes a last record that was cut off, and records of errors, which may be corrected by now.

    Args:
      path: the file.
      rows: the rows of the input.
      facts: what every record of the job says of how it was drawn.

    Raises:
      BadInput: another job uses the file or wrote it, or one of its rows was made from a line that
        is not in the input. The file is left unchanged.
    """
    check_output_path(path, must_be_new=False)
    path = path.resolve()  # a link stays one
    with _held(path):
        content = path.read_bytes() if path.exists() else b""
        kept, done = _own_records(content, path, rows, facts)
        if kept != content:
            atomic_write(path, kept)
        with path.open("ab") as file:
            yield JobOutput(file, done)


@contextlib.contextmanager
def _held(path):
    """Keeps a file to this job; one in a bucket is up to date before and uploaded after."""
    lock, advice = path.with_name(f"{path.name}.lock"), "give another --output"
    if address := mirror.address_of(lock):
        with lease.exclusive(address, advice, mirror.shown(path)), mirror.synced(path.parent):
            yield
        return
    with exclusive(lock, advice, path):
        yield


def _own_records(content, path, rows, facts):
    """The bytes of an output that stay, and the indices of the rows in them."""
    *whole, torn = content.split(b"\n")
    torn = torn.rstrip(b"\0")  # a file system may leave these after a power failure
    is_own = torn.startswith(_BEGIN) if whole else _RECORD_BEGIN.match(torn)
    if not (is_own or _BEGIN.startswith(torn)):
        raise _foreign(path, len(whole))
    by_index = {row.index: row for row in rows}
    kept, done = [], set()
    for position, text in enumerate(whole):
        record = _parse_record(text, path, position)
        if "error" in record:
            continue
        if record.get("precision", "exact") != "exact":
            raise BadInput(
                f"{path} was drawn with precision={record['precision']!r}, which is gone: give "
                "another --output."
            )
        record = _YOUNGER | record
        for name, value in facts.items():
            if name not in record or record[name] != value:
                raise BadInput(
                    f"{path} was drawn with another {name} ({record.get(name)!r}, and this job has "
                    f"{value!r}): run the command that began it, or give another --output."
                )
        row = by_index.get(record["index"])
        if row is None or (row.id, row.digest) != (record["id"], record["line"]):
            raise BadInput(
                f"{path} holds a row with the id {record['id']!r} made from another line than "
                f"line {record['index'] + 1} of the input: give another --output."
            )
        if row.error:
            raise BadInput(
                f"{path} holds a row of line {row.index + 1} of the input, which is malformed now "
                f"({row.error}): correct it, or give another --output."
            )
        if row.index in done:
            raise BadInput(f"{path} holds the row {row.id!r} twice: move it away.")
        done.add(row.index)
        kept.append(text + b"\n")
    return b"".join(kept), done


def _parse_record(text, path, position):
    with contextlib.suppress(ValueError, RecursionError):
        record = json.loads(text)
        if (
            isinstance(record, dict)
            and type(record.get("index")) is int
            and (record.keys() >= {"id", "line"} or record.keys() == {"index", "id", "error"})
        ):
            return record
    raise _foreign(path, position)


def _foreign(path, position):
    return BadInput(
        f"Line {position + 1} of {path} is not a record of a sampling job: move the file away, or "
        "give another --output."
    )

"""The output of a batch job: JSON lines that outlive whatever ends the job.

Every record says what it was drawn from and how, so that the same command knows its own rows and
goes on with those that are missing, and no other command adds to them.
"""

import contextlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from sedd_jax.errors import BadInput
from sedd_jax.jobs.input import Line
from sedd_jax.system.files import atomic_write, check_output_path
from sedd_jax.system.lock import exclusive

_BEGIN = b'{"index": '
_ALONE = re.compile(rb'\{"index": [0-9]+, "id": ')  # what only a record of ours begins with


class Ledger:
    """An output file that is written to.

    Attributes:
      done: the indices of the lines whose rows it holds.
    """

    def __init__(self, file: BinaryIO, done: set[int]):
        """Appends to `file`, which holds rows of the lines `done`."""
        self._file = file
        self.done = done

    def append(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Writes records, which begin with their index, so that they are there if power fails."""
        self._file.write(b"".join(json.dumps(record).encode() + b"\n" for record in records))
        self._file.flush()
        os.fsync(self._file.fileno())


@contextlib.contextmanager
def open_ledger(path: Path, lines: list[Line], facts: Mapping[str, Any]) -> Iterator[Ledger]:
    """Opens the output of a job, which holds nothing yet or some of its rows, for this job alone.

    A last record that was cut short goes, and so do those of errors, which may be mended.

    Args:
      path: the file.
      lines: those of the input.
      facts: what every record of the job says of how it was drawn.

    Raises:
      BadInput: another job has the file, or wrote it; or one of its rows is made from another line
        than the input has. The file is left as it is.
    """
    check_output_path(path, must_be_new=False)
    path = path.resolve()  # a link stays one
    with exclusive(path.with_name(f"{path.name}.lock"), "give another --output", path):
        content = path.read_bytes() if path.exists() else b""
        kept, done = _own(content, path, lines, facts)
        if kept != content:
            atomic_write(path, kept)
        with path.open("ab") as file:
            yield Ledger(file, done)


def _own(
    content: bytes, path: Path, lines: list[Line], facts: Mapping[str, Any]
) -> tuple[bytes, set[int]]:
    """What of an output stays, and the indices of the rows in it."""
    *whole, torn = content.split(b"\n")
    torn = torn.rstrip(b"\0")  # which a file system may leave where power failed
    ours = torn.startswith(_BEGIN) if whole else _ALONE.match(torn)
    if not (ours or _BEGIN.startswith(torn)):
        raise _foreign(path, len(whole))
    by_index = {line.index: line for line in lines}
    kept, done = [], set()
    for position, text in enumerate(whole):
        record = _record(text, path, position)
        if "error" in record:
            continue
        _check_facts(record, path, facts)
        line = by_index.get(record["index"])
        if line is None or (line.id, line.digest) != (record["id"], record["line"]):
            raise BadInput(
                f"{path} holds a row with the id {record['id']!r} made from another line than "
                f"line {record['index'] + 1} of the input: give another --output."
            )
        if line.error:
            raise BadInput(
                f"{path} holds a row of line {line.index + 1} of the input, which is malformed by "
                f"now ({line.error}): mend it, or give another --output."
            )
        if line.index in done:
            raise BadInput(f"{path} holds the row {line.id!r} twice: move it away.")
        done.add(line.index)
        kept.append(text + b"\n")
    return b"".join(kept), done


def _record(text: bytes, path: Path, position: int) -> dict[str, Any]:
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
        f"Line {position + 1} of {path} is no record of a sampling job: move the file away, or "
        "give another --output."
    )


def _check_facts(record, path, facts):
    for name, mine in facts.items():
        if name not in record or record[name] != mine:
            raise BadInput(
                f"{path} was drawn with another {name} ({record.get(name)!r}, and this job has "
                f"{mine!r}): run the command that began it, or give another --output."
            )

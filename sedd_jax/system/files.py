"""Files and folders that appear in one step, and checks of the paths they are written to."""

import json
import os
import re
import uuid
from pathlib import Path
from typing import Any

from sedd_jax.errors import BadInput


def atomic_write(path: Path, content: bytes | str) -> None:
    """Writes a file in one step: a reader, or a crash, finds all of it or what was there before.

    Several processes may write the same path at the same time; one of them wins.

    Args:
      path: the file; an existing one is replaced.
      content: what it holds; text is encoded as UTF-8.
    """
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        atomic_move(temporary, path)
    except OSError as error:
        error.filename = error.filename or str(path)  # a full disk does not name the file
        raise
    finally:
        temporary.unlink(missing_ok=True)


def atomic_write_json(path: Path, value: Any, indent: int | None = None) -> None:
    """Writes `value` as JSON, with a final newline, in one step.

    Args:
      path: the file; an existing one is replaced.
      value: anything that the json module accepts.
      indent: spaces per level of nesting; None writes a single line.
    """
    atomic_write(path, json.dumps(value, indent=indent) + "\n")


def atomic_move(source: Path, target: Path) -> None:
    """Renames a finished file or folder in one step; both paths are in one file system."""
    os.replace(source, target)


def check_output_path(path: Path, flag: str = "--output", *, must_be_new: bool = True) -> None:
    """Checks, before anything expensive starts, that a file or a folder can be written.

    Args:
      path: the file or folder.
      flag: the flag that names it, for the message.
      must_be_new: whether an existing file is refused as well.

    Raises:
      BadInput: `path` exists, or the folder that it would be in does not or is read-only.
    """
    check_local(path, flag, "an output is written to a file system")
    if must_be_new and os.path.lexists(path):
        raise BadInput(f"{path} exists already; give {flag} another name.")
    if path.exists() and not path.is_file():
        raise BadInput(f"{flag}={path} is not a file; give {flag} another name.")
    parent = path.absolute().parent
    if not parent.is_dir():
        raise BadInput(f"The folder of {flag}={path} does not exist; make it first.")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise BadInput(f"The folder of {flag}={path} is read-only; choose another.")


def check_readable(path: str | os.PathLike[str]) -> None:
    """Raises BadInput for a file that exists and that this user may not read."""
    if os.path.exists(path) and not os.access(path, os.R_OK):
        raise BadInput(f"{path} cannot be read: permission denied; change its mode (chmod +r).")


def check_local(
    path: str | os.PathLike[str],
    flag: str,
    reason: str = "the data of a run are memory-mapped, which needs a folder",
) -> None:
    """Checks that a path is not a URL.

    Args:
      path: what the user gave.
      flag: the flag or setting that names it, for the message.
      reason: why a URL does not do, for the message.

    Raises:
      BadInput: `path` begins with a scheme, as gs:// does.
    """
    if re.match(r"[A-Za-z][\w+.-]+:/", str(path)):
        url = re.sub(":/+", "://", str(path), count=1)  # a Path keeps one of the slashes
        raise BadInput(
            f"{flag} is {url}, but {reason}: mount the bucket (gcsfuse, Filestore, Lustre) and "
            "give the folder that it is under."
        )

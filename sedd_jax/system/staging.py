"""The unfinished work on a prepared folder: where it lies, and when it is gone on with."""

import contextlib
import errno
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sedd_jax.errors import BadInput, Halted
from sedd_jax.system.lock import exclusive

_SETTINGS = "settings.json"
_LOCK = "lock"
# of the files that differ
_SHOWN = 3


def draft_of(folder: Path) -> Path:
    """Where the unfinished work on `folder` lies.

    A sibling, since a rename is atomic only inside one file system.
    """
    folder = Path(os.path.abspath(folder))
    return folder.parent / f".{folder.name}.draft"


def check_local(path: str | os.PathLike[str], name: str) -> None:
    """Raises BadInput for a URL; `name` says what it was given as."""
    if re.match(r"[A-Za-z][\w+.-]+:/", str(path)):
        url = re.sub(":/+", "://", str(path), count=1)  # a path keeps one of the slashes
        raise BadInput(
            f"{name} is {url}, but the data of a run are memory-mapped, which needs a folder: "
            "mount the bucket (gcsfuse, Filestore, Lustre) and give the folder that it is under."
        )


def check_target(folder: Path) -> None:
    """Raises BadInput unless finished work can be put at `folder`; only looks."""
    above = next(parent for parent in folder.absolute().parents if parent.exists())
    if folder.is_symlink():
        reason = f"is a link to {os.readlink(folder)}, which does not exist"
    elif folder.exists() and os.path.samefile(folder, os.curdir):
        reason = "is the folder that this program was started in"
    elif os.path.ismount(folder):
        reason = "is a mount point, and cannot be put in place in one step"
    elif not (above.is_dir() and os.access(above, os.W_OK | os.X_OK)):
        reason = f"cannot be made: {above} is no folder that can be written in"
    else:
        return
    raise BadInput(f"{folder} {reason}; choose another folder, or one inside it.")


@contextlib.contextmanager
def drafted(folder: Path, settings: dict[str, Any]) -> Iterator[Path]:
    """The draft of `folder`, with what was done in it before with the same `settings`.

    No other process has it meanwhile. It is removed in the end, and after BadInput, since then
    there is something to mend; it outlives everything else, a kill and a full disk too. Raises
    BadInput when another process has it, and Halted when the disk is full.
    """
    draft = draft_of(folder)
    with exclusive(draft / _LOCK, "choose another folder"):
        _begin(draft, settings)
        try:
            yield draft
        except BadInput:
            shutil.rmtree(draft)
            raise
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise Halted(
                f"{draft}: {error.strerror}; make room, and the same command goes on from there."
            ) from error
        shutil.rmtree(draft)


def _begin(draft: Path, settings: dict[str, Any]) -> None:
    begun = draft / _SETTINGS
    if begun.exists():
        changes = differences(json.loads(begun.read_text(encoding="utf-8")), settings)
        if not changes:
            return
        print(f"The unfinished work in {draft} is dropped: {'; '.join(changes)}.", flush=True)
        begun.unlink()  # first, so that what is left of the rest is never gone on with
    for path in draft.iterdir():
        if path.name != _LOCK:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    write_json(begun, settings)


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What differs between the settings of two preparations, in words."""
    changes = []
    for name in old | new:
        there, here = old.get(name), new.get(name)
        if there == here:
            continue
        if name == "sources":
            changes += _changed_sources(there, here)
        elif isinstance(there, dict) and isinstance(here, dict):
            changes += differences(there, here)
        else:
            changes.append(f"{name} is {there!r} there and {here!r} here")
    return changes


def _changed_sources(
    old: list[dict[str, Any]] | None, new: list[dict[str, Any]] | None
) -> list[str]:
    there, here = _by_file(old or []), _by_file(new or [])
    changes = [f"{file} is gone" for file in there if file not in here]
    changes += [f"{file} is new" for file in here if file not in there]
    changes += [f"{file} has changed" for file in here if there.get(file, here[file]) != here[file]]
    more = len(changes) - _SHOWN
    return changes[:_SHOWN] + ([f"and {more} more files"] if more > 0 else [])


def _by_file(sources: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The pieces of each file, by its name without the range."""
    files = {}
    for piece in sources:
        files.setdefault(re.sub(r"\[\d+:\d+\]$", "", piece["name"]), []).append(piece)
    return files


def write_json(path: Path, value: Any, indent: int | None = None) -> None:
    """Writes `value` to `path` in one step: the file is there whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(json.dumps(value, indent=indent) + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)

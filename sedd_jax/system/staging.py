"""Staging folders: where a folder is made before it is moved to its place in one step."""

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
from sedd_jax.system.files import atomic_write_json
from sedd_jax.system.lock import exclusive

_SETTINGS = "settings.json"
_LOCK = "lock"
_SHOWN = 3  # of the source files that differ


def staging_folder(folder: Path) -> Path:
    """Returns where unfinished work on `folder` is kept.

    It is a sibling, since a rename is atomic only inside one file system.
    """
    folder = Path(os.path.abspath(folder))
    return folder.parent / f".{folder.name}.staging"


def check_target(folder: Path) -> None:
    """Checks that a finished folder can be moved to `folder`; changes nothing.

    Raises:
      BadInput: `folder` is a dangling link, the current folder or a mount point, or the folder
        above it is read-only.
    """
    above = next(parent for parent in folder.absolute().parents if parent.exists())
    if folder.is_symlink():
        reason = f"is a link to {os.readlink(folder)}, which does not exist"
    elif folder.exists() and os.path.samefile(folder, os.curdir):
        reason = "is the folder that this program was started in"
    elif os.path.ismount(folder):
        reason = "is a mount point, and cannot be replaced in one step"
    elif not (above.is_dir() and os.access(above, os.W_OK | os.X_OK)):
        reason = f"cannot be made: {above} is no folder that can be written in"
    else:
        return
    raise BadInput(f"{folder} {reason}; choose another folder, or one inside it.")


@contextlib.contextmanager
def staged(folder: Path, settings: dict[str, Any]) -> Iterator[Path]:
    """Holds the staging folder of `folder`, with what earlier calls left there.

    Work left by a call with other settings is deleted first. The staging folder is removed at the
    end, and after BadInput, since the input has to change; after anything else, such as a kill or a
    full disk, it stays, and the next call continues from it.

    Args:
      folder: the folder to be made.
      settings: what the result depends on; JSON values.

    Yields:
      The staging folder, in which the caller makes the result and moves it to `folder`.

    Raises:
      BadInput: another process holds the staging folder.
      Halted: the disk is full.
    """
    staging = staging_folder(folder)
    with exclusive(staging / _LOCK, "choose another folder"):
        _begin(staging, settings)
        try:
            yield staging
        except BadInput:
            shutil.rmtree(staging)
            raise
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise Halted(
                f"{staging}: {error.strerror}; make room, and the same command continues there."
            ) from error
        shutil.rmtree(staging)


def _begin(staging: Path, settings: dict[str, Any]) -> None:
    begun = staging / _SETTINGS
    if begun.exists():
        changes = differences(json.loads(begun.read_text(encoding="utf-8")), settings)
        if not changes:
            return
        print(f"The unfinished work in {staging} is deleted: {'; '.join(changes)}.", flush=True)
        begun.unlink()  # first, so that a kill here does not leave the rest to be continued
    for path in staging.iterdir():
        if path.name != _LOCK:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    atomic_write_json(begun, settings)


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Returns the differences between the settings of two preparations, one phrase each."""
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
    """Groups the pieces of each file, by its name without the range."""
    files = {}
    for piece in sources:
        files.setdefault(re.sub(r"\[\d+:\d+\]$", "", piece["name"]), []).append(piece)
    return files

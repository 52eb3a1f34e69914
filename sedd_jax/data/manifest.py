"""The manifest of prepared data: what it must say, and whether the files are still those."""

import hashlib
import json
from pathlib import Path
from typing import Any

from sedd_jax.data.corpus_statistics import SPLITS
from sedd_jax.errors import BadInput
from sedd_jax.system.files import check_readable

FORMAT = 2
MANIFEST = "manifest.json"
# the keys that every manifest has: of data in its own folder, and of data elsewhere
_OF_DATA = ("recipe", "length", "tokenizer", "fingerprint", "vocab_size", "dtype", "splits")
_OF_LINKS = ("prepared", "splits")


def read_manifest(folder: Path) -> dict[str, Any]:
    """Returns the manifest of a folder.

    Raises:
      BadInput: it is missing, damaged or of another format.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise BadInput(
            f"There are no prepared data in {folder}: {MANIFEST} is missing; prepare them first."
        )
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        found, keys = manifest["format"], _OF_LINKS if "prepared" in manifest else _OF_DATA
        missing = [name for name in keys if name not in manifest]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise damaged(path, repr(error)) from error
    if found != FORMAT:
        raise BadInput(
            f"{folder} was prepared in format {found}, this version reads format {FORMAT}; "
            "prepare the data again in another folder."
        )
    if missing:
        raise damaged(path, f"it says nothing of {', '.join(missing)}")
    if "sha256" in manifest and sealed(manifest) != manifest:  # older ones have none
        raise damaged(path, "its SHA-256 is not the one that it says")
    return manifest


def sealed(manifest: dict[str, Any]) -> dict[str, Any]:
    """Returns a manifest with the SHA-256 of all that it says."""
    said = {name: value for name, value in manifest.items() if name != "sha256"}
    return said | {"sha256": hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()}


def check_hashes(folder: Path, manifest: dict[str, Any]) -> int:
    """Returns how many files of ids hold what was written; those of an older version have no hash.

    Raises:
      BadInput: one has changed.
    """
    shards = shards_of(manifest)
    told = [shard["told"] for shard in shards if "told" in shard]
    hashed = [file for file in (*shards, *told) if "sha256" in file]
    for shard in hashed:
        with (folder / shard["file"]).open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != shard["sha256"]:
                reason = "it is of the right size, but its SHA-256 is not that of the manifest"
                raise damaged(folder / shard["file"], reason)
    return len(hashed)


def shards_of(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the files of ids of both splits."""
    return [shard for split in SPLITS for shard in manifest["splits"][split]["shards"]]


def damaged(path: Path, reason: str) -> BadInput:
    """Returns the error of a file that is not as it was prepared."""
    return BadInput(f"{path} is damaged ({reason}); prepare the data again in another folder.")


def check_size(path: Path, wanted: int) -> None:
    """Raises BadInput unless a file has so many bytes."""
    check_readable(path)
    found = path.stat().st_size if path.is_file() else 0
    if found != wanted:
        raise damaged(path, f"it holds {found} bytes where the manifest says {wanted}")

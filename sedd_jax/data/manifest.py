"""The manifest of prepared data: what it must say, and whether the files are still those."""

import functools
import hashlib
import json
from pathlib import Path
from typing import Any

from sedd_jax.data.corpus_statistics import SPLITS
from sedd_jax.data.shard_cache import Shard, sha256_of
from sedd_jax.errors import BadInput
from sedd_jax.system import bucket, mirror
from sedd_jax.system.bucket import Address
from sedd_jax.system.files import check_readable

FORMAT = 2
MANIFEST = "manifest.json"
# the keys that every manifest has: of data in its own folder, and of data elsewhere
_OF_DATA = ("recipe", "length", "tokenizer", "fingerprint", "vocab_size", "dtype", "splits")
_OF_LINKS = ("prepared", "splits")
OTHER = "it is of the right size, but its {} is not that of the manifest"


def read_manifest(folder: Path) -> dict[str, Any]:
    """Returns the manifest of a folder.

    Raises:
      BadInput: it is missing, damaged or of another format.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise BadInput(
            f"There are no prepared data in {mirror.shown(folder)}: {MANIFEST} is missing; prepare "
            "them first."
        )
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        found, keys = manifest["format"], _OF_LINKS if "prepared" in manifest else _OF_DATA
        missing = [name for name in keys if name not in manifest]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise damaged(path, repr(error)) from error
    if found != FORMAT:
        raise BadInput(
            f"{mirror.shown(folder)} was prepared in format {found}, this version reads format "
            f"{FORMAT}; prepare the data again in another folder."
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


def check_hashes(folder: Path, manifest: dict[str, Any], part: slice = slice(None)) -> int:
    """Returns how many files of ids hold what was written; those of an older version have no hash.

    A file in a bucket is read only if the bucket does not say its MD5.

    Args:
      folder: of the files.
      manifest: of the folder.
      part: which of the files are looked at.

    Raises:
      BadInput: one has changed.
    """
    objects = objects_of(folder, manifest) or {}
    shards = shards_of(manifest)
    told = [shard["told"] for shard in shards if "told" in shard]
    hashed = [file for file in (*shards, *told) if "sha256" in file][part]

    def check(file):
        path, found = folder / file["file"], objects.get(file["file"])
        if found and found.is_known:
            return
        if (sha256_of(found) if found else _sha256(path)) != file["sha256"]:
            raise damaged(path, OTHER.format("SHA-256"))

    bucket.in_parallel([functools.partial(check, file) for file in hashed])
    return len(hashed)


def check_files(folder: Path, part: slice) -> int:
    """Compares files of ids on disk with their hashes; those in a bucket are compared when opened.

    Args:
      folder: of prepared data, or linked to some.
      part: which of the files, where processes share the work.

    Returns:
      How many were compared.

    Raises:
      BadInput: one has changed.
    """
    manifest = read_manifest(folder)
    entries = manifest.get("prepared", [])
    linked = [(mirror.local(entry["folder"]), entry["manifest"]) for entry in entries]
    here = [it for it in linked or [(folder, manifest)] if objects_of(*it) is None]
    return sum(check_hashes(*it, part) for it in here)


def _sha256(path):
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def objects_of(folder: Path, manifest: dict[str, Any]) -> dict[str, Shard] | None:
    """Returns the files of ids in the bucket that a folder mirrors; None if they are here.

    Their sizes and MD5 are compared with the manifest, by one listing.

    Raises:
      BadInput: one is missing or has changed.
    """
    address, files = mirror.address_of(folder), shards_of(manifest)
    if address is None or all((folder / file["file"]).is_file() for file in files):
        return None
    entries, objects = mirror.entries_of(folder), {}
    width = 2 if manifest["dtype"] == "uint16" else 4
    for file in files:
        place, entry = address / file["file"], entries.get(file["file"])
        _check_size(place, entry.size if entry else 0, file["tokens"] * width)
        is_known = entry.md5 is not None and entry.md5 == file.get("md5")
        # an ETag of S3 may look like an MD5 and be none, of an encrypted object
        if place.scheme == "gs" and entry.md5 and "md5" in file and not is_known:
            raise damaged(place, OTHER.format("MD5"))
        sha256 = file.get("sha256", "")
        objects[file["file"]] = Shard(place, entry.size, entry.version, sha256, is_known)
    return objects


def shards_of(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the files of ids of both splits."""
    return [shard for split in SPLITS for shard in manifest["splits"][split]["shards"]]


def damaged(path: Path | Address, reason: str) -> BadInput:
    """Returns the error of a file that is not as it was prepared."""
    path = mirror.shown(path) if isinstance(path, Path) else path
    return BadInput(f"{path} is damaged ({reason}); prepare the data again in another folder.")


def check_size(path: Path, wanted: int) -> None:
    """Raises BadInput unless a file has so many bytes."""
    check_readable(path)
    _check_size(path, path.stat().st_size if path.is_file() else 0, wanted)


def _check_size(place, found, wanted):
    if found != wanted:
        raise damaged(place, f"it holds {found} bytes where the manifest says {wanted}")

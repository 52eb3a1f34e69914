"""Prepares data for a bucket: on a local disk first, then they are uploaded, the manifest last."""

import dataclasses
import functools
import hashlib
import re
from pathlib import Path

from sedd_jax.data.documents import Recipe
from sedd_jax.data.manifest import MANIFEST
from sedd_jax.data.preparation import prepare_blocks
from sedd_jax.data.prepared import Dataset, open_blocks
from sedd_jax.errors import BadInput, Halted
from sedd_jax.system import bucket, mirror
from sedd_jax.system.bucket import ABSENT, Address, Conflict, Entry, is_address, parse
from sedd_jax.system.disk_cache import cache_folder
from sedd_jax.system.staging import staged

_OURS = r"(train|heldout)-\d+\.(bin|told)|tokenizer/[^/]+|conditions\.json"


def is_prepared(output: str) -> bool:
    """Returns whether there is a manifest in a folder, here or in a bucket."""
    if not is_address(output):
        return (Path(output) / MANIFEST).is_file()
    try:
        bucket.entry(parse(output, "--output") / MANIFEST)
    except FileNotFoundError:
        return False
    return True


def prepare_anywhere(output: str, recipe: Recipe, length: int, workers: int = 1) -> Dataset:
    """Prepares the corpus of a recipe, see `prepare_blocks`, in a folder here or in a bucket.

    For a bucket, the work is done in the cache folder of this machine. After a kill the same call
    continues it, and uploads what is not there yet.

    Args:
      output: a path, gs://... or s3://...
      recipe: the settings.
      length: tokens of a block.
      workers: the number of processes.

    Raises:
      BadInput: as `prepare_blocks`, or the bucket cannot be written.
      Halted: the upload cannot be finished; the prepared data are kept for the same call.
    """
    if not is_address(output):
        return prepare_blocks(output, recipe, length, workers)
    address = parse(output, "--output")
    entries = bucket.entries(address)
    if MANIFEST in entries:
        return prepare_blocks(mirror.local(output), recipe, length)
    if others := [name for name in entries if not re.fullmatch(_OURS, name)]:
        raise BadInput(
            f"{address} holds {others[0]}, and is no folder of prepared data; nothing was "
            "overwritten: choose another folder."
        )
    bucket.check_access(address, "--output")
    name = hashlib.sha256(str(address).encode()).hexdigest()
    settings = {"recipe": dataclasses.asdict(recipe), "length": length}
    with staged(cache_folder() / "prepare" / name, settings) as staging:
        prepare_blocks(staging / address.name, recipe, length, workers)
        try:
            _upload(staging / address.name, address, entries)
        except BadInput as error:  # which would delete the work
            raise Halted(f"{error} The prepared data are kept in {staging}.") from error
    return open_blocks(output, length)


def _upload(folder: Path, address: Address, entries: dict[str, Entry]) -> None:
    """Uploads a folder to an address, where there are `entries` already; the manifest last."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    files.remove(folder / MANIFEST)
    todo = [path for path in files if not _is_there(path, entries, path.relative_to(folder))]
    size = sum(path.stat().st_size for path in todo) / 1e6
    print(f"Uploading {len(todo)} files, {size:,.1f} MB, to {address}.", flush=True)
    bucket.in_parallel(
        [
            functools.partial(bucket.upload, path, address / path.relative_to(folder).as_posix())
            for path in todo
        ]
    )
    content = (folder / MANIFEST).read_bytes()
    try:
        bucket.write(address / MANIFEST, content, ABSENT)
    except Conflict as error:
        if bucket.read(address / MANIFEST)[0] != content:  # not this very write, answered late
            raise BadInput(
                f"{address} was prepared by another process meanwhile; choose another folder."
            ) from error


def _is_there(path: Path, entries: dict[str, Entry], name: Path) -> bool:
    entry = entries.get(name.as_posix())
    if entry is None or entry.size != path.stat().st_size:
        return False
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False))
    return entry.md5 == digest.hexdigest()

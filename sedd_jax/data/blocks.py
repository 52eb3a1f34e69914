"""Prepared folders: token ids in files, with all that is known of them.

A prepared folder holds `tokenizer/`, `manifest.json` and, for each piece of the corpus, a file of
ids for each split; it is never changed afterwards, so that the data of a run stay what they were.
"""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from sedd_jax.data.shards import SPLITS
from sedd_jax.data.token_blocks import Mixture, TokenBlocks
from sedd_jax.data.tokenizer import Tokenizer, load_tokenizer
from sedd_jax.errors import BadInput

FORMAT = 2
MANIFEST = "manifest.json"
# What a manifest tells at least, of data that lie beside it or elsewhere.
_OF_DATA = ("recipe", "length", "tokenizer", "fingerprint", "vocab_size", "dtype", "splits")
_OF_LINKS = ("prepared", "splits")


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Prepared data: their tokenizer, their two splits and their manifest."""

    tokenizer: Tokenizer
    train: TokenBlocks | Mixture
    heldout: TokenBlocks | Mixture
    manifest: dict[str, Any]


def open_blocks(folder: str | os.PathLike[str], length: int) -> Dataset:
    """Opens a prepared folder as blocks of `length`; the corpus it was made from is not needed.

    Raises BadInput when `folder` holds no manifest, one that is damaged or of another format, other
    files or another tokenizer than it says, blocks of another length, or less than one block in a
    split.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    try:
        if manifest["length"] not in (None, length):
            raise BadInput(
                f"{folder} holds a document in each block of {manifest['length']} tokens, but the "
                f"length is {length} here; prepare the data again in another folder."
            )
        blocks = {split: _open_split(folder, manifest, split, length) for split in SPLITS}
    except (KeyError, TypeError) as error:
        raise _damaged(folder / MANIFEST, repr(error)) from error
    tokenizer = load_tokenizer(folder / "tokenizer")
    known = (tokenizer.fingerprint(), tokenizer.vocab_size)
    if known != (manifest["fingerprint"], manifest["vocab_size"]):
        raise _damaged(folder / "tokenizer", "it is not the tokenizer that the manifest tells of")
    return Dataset(tokenizer=tokenizer, manifest=manifest, **blocks)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder; BadInput without one, or for one of another format."""
    path = folder / MANIFEST
    if not path.is_file():
        raise BadInput(
            f"There are no prepared data in {folder}: {MANIFEST} is missing; prepare them first."
        )
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        found, missing = manifest["format"], _missing(manifest)
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise _damaged(path, repr(error)) from error
    if found != FORMAT:
        raise BadInput(
            f"{folder} was prepared in format {found}, this version reads format {FORMAT}; "
            "prepare the data again in another folder."
        )
    if missing:
        raise _damaged(path, f"it says nothing of {', '.join(missing)}")
    return manifest


def _missing(manifest: dict[str, Any]) -> list[str]:
    return [
        name for name in (_OF_LINKS if "prepared" in manifest else _OF_DATA) if name not in manifest
    ]


def _open_split(folder: Path, manifest: dict[str, Any], split: str, length: int) -> TokenBlocks:
    shards, dtype = manifest["splits"][split]["shards"], manifest["dtype"]
    for shard in shards:
        path = folder / shard["file"]
        found = path.stat().st_size if path.is_file() else 0
        wanted = shard["tokens"] * (2 if dtype == "uint16" else 4)
        if found != wanted:
            raise _damaged(path, f"it holds {found} bytes where the manifest says {wanted}")
    return TokenBlocks([folder / shard["file"] for shard in shards], length, dtype)


def _damaged(path: Path, reason: str) -> BadInput:
    return BadInput(f"{path} is damaged ({reason}); prepare the data again in another folder.")

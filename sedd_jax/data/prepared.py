"""Prepared folders: token ids in files, opened as blocks, linked to a run and mixed by weight.

A prepared folder holds `tokenizer/`, `manifest.json` and, for each piece of the corpus and each
split, a file of ids. It never changes afterwards, so that the data of a run stay the same.
"""

import dataclasses
import functools
import math
import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from sedd_jax.data.bucket_blocks import BucketBlocks
from sedd_jax.data.columns import parse_columns
from sedd_jax.data.conditions import Conditions, find_conditions
from sedd_jax.data.corpus_statistics import SPLITS
from sedd_jax.data.documents import Recipe
from sedd_jax.data.manifest import (
    FORMAT,
    MANIFEST,
    check_hashes,
    check_size,
    damaged,
    objects_of,
    read_manifest,
    shards_of,
)
from sedd_jax.data.separators import unescaped
from sedd_jax.data.shard_cache import Shard
from sedd_jax.data.token_blocks import Mixture, TokenBlocks, ToldRows
from sedd_jax.data.tokenizer import Tokenizer, build_tokenizer, load_tokenizer
from sedd_jax.errors import BadInput, warn
from sedd_jax.system import mirror
from sedd_jax.system.bucket import is_address, parse
from sedd_jax.system.files import atomic_move, atomic_write_json
from sedd_jax.system.staging import staged

_HASHED_BYTES = 64 * 2**20  # files of ids up to this size together are hashed when they are opened


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Prepared data: the tokenizer, the two splits, the manifest and what the network is told."""

    tokenizer: Tokenizer
    train: TokenBlocks | Mixture
    heldout: TokenBlocks | Mixture
    manifest: dict[str, Any]
    conditions: Conditions | None = None


def open_blocks(
    folder: str | os.PathLike[str], length: int, conditions: Conditions | None = None
) -> Dataset:
    """Opens a prepared folder as blocks of `length` tokens, without its corpus.

    Args:
      folder: the folder, here or gs://... or s3://...
      length: tokens of a block.
      conditions: what the network is told of its columns; by default all that they tell.

    Raises:
      BadInput: the manifest is missing, damaged or of another format, the files or the tokenizer
        are not those of the manifest, or a split has less than one block of this length.
    """
    folder = mirror.local(folder)
    manifest = read_manifest(folder)
    try:
        if manifest["length"] not in (None, length):
            raise BadInput(
                f"{mirror.shown(folder)} holds a document in each block of {manifest['length']} "
                f"tokens, but the length is {length} here; prepare the data again in another "
                "folder."
            )
        own = _own_conditions(manifest)
        told = own if conditions is None else conditions
        objects = objects_of(folder, manifest)
        blocks = {
            split: _open_split(folder, manifest, split, length, own, told, objects)
            for split in SPLITS
        }
        tokens = sum(shard["tokens"] for shard in shards_of(manifest))
        if objects is None and tokens * np.dtype(manifest["dtype"]).itemsize <= _HASHED_BYTES:
            check_hashes(folder, manifest)
    except (KeyError, TypeError) as error:
        raise damaged(folder / MANIFEST, repr(error)) from error
    tokenizer = load_tokenizer(folder / "tokenizer")
    known = (tokenizer.fingerprint(), tokenizer.vocab_size)
    if known != (manifest["fingerprint"], manifest["vocab_size"]):
        raise damaged(folder / "tokenizer", "it is not the tokenizer of the manifest")
    return Dataset(tokenizer=tokenizer, manifest=manifest, conditions=told or None, **blocks)


def _own_conditions(manifest: dict[str, Any]) -> Conditions | None:
    found = manifest.get("conditions")
    return found and Conditions.from_json(found)


def _open_split(
    folder: Path,
    manifest: dict[str, Any],
    split: str,
    length: int,
    own: Conditions | None,
    conditions: Conditions | None,
    objects: dict[str, Shard] | None,
) -> TokenBlocks:
    """Opens the files of a split, which tell their `own` conditions, as those of a run."""
    shards, dtype = manifest["splits"][split]["shards"], manifest["dtype"]
    for shard in shards:
        if objects is None:
            check_size(folder / shard["file"], shard["tokens"] * (2 if dtype == "uint16" else 4))
        if own:
            size = shard["tokens"] // length * own.width * 8
            check_size(folder / shard["told"]["file"], size)
    told = conditions and ToldRows(
        [folder / shard["told"]["file"] for shard in shards], own, conditions
    )
    if objects is not None:
        files = [objects[shard["file"]] for shard in shards]
        return BucketBlocks(files, length, dtype, told or None)
    return TokenBlocks([folder / shard["file"] for shard in shards], length, dtype, told or None)


# settings that differ from those of prepared data are an error, others have no effect
_CHECKED = ("tokenizer", "tokenizer_path", "vocab_size", "wrap", "condition")
_COMMAND = "python -m sedd_jax.prepare --config=CONFIG --output={}, with the --config of this run"


def link_prepared(
    folder: str | os.PathLike[str], prepared: str, recipe: Recipe, length: int
) -> None:
    """Links a folder to data that were prepared before.

    The folder gets their tokenizer, and a manifest with their manifests, by which `open_data`
    recognises them, and their places. A folder that is linked to the same data already gets their
    new places.

    Args:
      folder: the folder to make or to update.
      prepared: FOLDER or FOLDER:WEIGHT,FOLDER:WEIGHT,...; a folder may be gs://... or s3://...
      recipe: the settings of the run.
      length: tokens of a block.

    Raises:
      BadInput: a prepared folder is missing, the data do not fit the recipe, the length or each
        other, or `folder` is linked to other data or with other weights.
    """
    folder, weights = Path(folder), _parse(prepared)
    manifests = {name: _checked(name, recipe, length) for name in weights}
    (first, kept), *others = manifests.items()
    for other, manifest in others:
        if manifest["fingerprint"] != kept["fingerprint"]:
            raise BadInput(
                f"{first} and {other} were prepared with different tokenizers and cannot be mixed; "
                f"prepare one again with --config.data.tokenizer_path={_place(first)}/tokenizer."
            )
    entries = [
        {"folder": _place(name), "weight": weight, "manifest": manifests[name]}
        for name, weight in weights.items()
    ]
    splits = {split: _mixed_counts(entries, split) for split in SPLITS}
    manifest = {"format": FORMAT, "prepared": entries, "splits": splits}
    conditions = _mixed_conditions(manifests, recipe)
    if folder.exists():
        if _placeless(read_manifest(folder)) != _placeless(manifest):
            raise BadInput(
                f"{folder} links to other data than {prepared}, or with other weights; they may "
                "be moved, but not changed: go back to those, or choose another folder."
            )
        atomic_write_json(folder / MANIFEST, manifest, indent=1)
        return
    with staged(folder, manifest) as staging:
        load_tokenizer(_local(first) / "tokenizer").save(staging / "data" / "tokenizer")
        if conditions:
            conditions.save(staging / "data")
        atomic_write_json(staging / MANIFEST, manifest, indent=1)
        atomic_move(staging / MANIFEST, staging / "data" / MANIFEST)
        atomic_move(staging / "data", folder)


def open_data(folder: str | os.PathLike[str], length: int) -> Dataset:
    """Opens the prepared data in `folder`, or those that `link_prepared` linked it to.

    Raises:
      BadInput: the linked data are gone or have changed, or `open_blocks` raises it.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    if "prepared" not in manifest:
        return open_blocks(folder, length)
    try:
        told = find_conditions(folder)
        datasets = [_open_same(entry, folder, length, told) for entry in manifest["prepared"]]
        weights = [float(entry["weight"]) for entry in manifest["prepared"]]
    except (KeyError, TypeError) as error:
        raise damaged(folder / MANIFEST, repr(error)) from error
    if len(datasets) == 1:
        return datasets[0]
    mixed = {split: Mixture([getattr(d, split) for d in datasets], weights) for split in SPLITS}
    tokenizer = datasets[0].tokenizer
    return Dataset(tokenizer=tokenizer, manifest=manifest, conditions=told, **mixed)


def check_name(folder: str) -> None:
    """Raises BadInput for a folder that config.data.prepared cannot name."""
    if "," in folder or re.search(r":[^/]*$", folder):
        raise BadInput(
            f"{folder} cannot be named in config.data.prepared, where a comma ends a folder and a "
            "colon comes before its weight; choose another name."
        )


def _local(name: str) -> Path:
    return mirror.local(name, "config.data.prepared")


def _place(name: str) -> str:
    """Returns a name that holds everywhere."""
    return str(parse(name)) if is_address(name) else str(Path(name).resolve())


def _placeless(manifest: dict[str, Any]) -> list[tuple[float, dict[str, Any]]] | None:
    """Returns the weights and manifests of the data a folder is linked to; None if its own."""
    entries = manifest.get("prepared")
    return entries and [(entry["weight"], entry["manifest"]) for entry in entries]


def _parse(prepared: str) -> dict[str, float]:
    """Returns the weights by folder."""
    weights = {}
    for part in prepared.split(","):
        # what follows the colon of gs:// has slashes
        folder, colon, weight = re.fullmatch("(?s)(.*?)(:?)([^:/]*)", part.strip()).groups()
        try:
            folder, value = (folder, float(weight)) if colon else (folder + weight, 1.0)
        except ValueError:
            value = math.nan
        if not (folder and 0 < value < math.inf) or folder in weights:
            raise BadInput(
                f"config.data.prepared is {prepared!r}; give a folder, or different folders with "
                "positive weights, as in data/owt:3,data/books:1."
            )
        weights[folder] = value
    return weights


def _checked(name: str, recipe: Recipe, length: int) -> dict[str, Any]:
    """Returns the manifest of the prepared folder `name`, if its data fit the config."""
    command, folder = _COMMAND.format(name), _local(name)
    if not (folder / MANIFEST).is_file():
        raise BadInput(
            f"config.data.prepared names {name}, but no prepared data are there; prepare them "
            f"first: {command}."
        )
    manifest = read_manifest(folder)
    if "recipe" not in manifest:
        linked = " and ".join(entry["folder"] for entry in manifest["prepared"])
        raise BadInput(f"{name} is the data/ of a run, which links to {linked}.")
    wanted = {
        "config.data.tokenizer": (manifest["recipe"]["tokenizer"], recipe.tokenizer),
        "config.data.vocab_size": (
            manifest["vocab_size"],
            recipe.vocab_size or manifest["vocab_size"],
        ),
        "config.data.wrap": (manifest["recipe"]["wrap"], recipe.wrap),
        "config.model.length": (manifest["length"] or length, length),
    }
    for setting, (there, here) in wanted.items():
        if there != here:
            raise BadInput(
                f"{name} was prepared with {setting}={there}, but it is {here} here; set it to "
                f"{there}, or prepare other data: {_COMMAND.format('FOLDER')}."
            )
    for setting, there in manifest["recipe"].items():
        here = getattr(recipe, setting, there)
        here = unescaped(here) if setting == "separator" else here
        if setting not in _CHECKED and here not in (there, getattr(Recipe(), setting)):
            warn(
                f"config.data.{setting}={here!r} has no effect: {name} was prepared with {there!r}"
            )
    # a tokenizer on the hub is not downloaded for this check alone
    given = recipe.tokenizer_path and (
        Path(recipe.tokenizer_path).exists() or recipe.tokenizer != "gpt2"
    )
    if given and build_tokenizer(recipe).fingerprint() != manifest["fingerprint"]:
        raise BadInput(
            f"{name} was prepared with another tokenizer than that of config.data.tokenizer_path, "
            f"{recipe.tokenizer_path}; leave that out, or prepare other data: "
            f"{_COMMAND.format('FOLDER')}."
        )
    return manifest


def _mixed_counts(entries: list[dict[str, Any]], split: str) -> dict[str, float]:
    """Returns the counts of a mixture: all bytes, and the weighted mean of bytes per token."""
    total = sum(entry["weight"] for entry in entries)
    counts = [(entry["weight"] / total, entry["manifest"]["splits"][split]) for entry in entries]
    return {
        "utf8_bytes": sum(count["utf8_bytes"] for _, count in counts),
        "bytes_per_token": sum(share * count["bytes_per_token"] for share, count in counts),
    }


def _mixed_conditions(manifests: dict[str, Any], recipe: Recipe) -> Conditions | None:
    """Returns what the folders tell together of the columns that a run names."""
    columns = parse_columns(recipe.condition)
    if not columns:
        return None
    found = [
        (_own_conditions(manifest) or Conditions(())).chosen(columns, name)
        for name, manifest in manifests.items()
    ]
    return functools.reduce(Conditions.joined, found)


def _open_same(
    entry: dict[str, Any], folder: Path, length: int, conditions: Conditions | None
) -> Dataset:
    """Opens the data that an entry of the manifest in `folder` names, if they are unchanged."""
    name, link = entry["folder"], mirror.shown(folder / MANIFEST)
    if not (_local(name) / MANIFEST).is_file():
        raise BadInput(
            f"The prepared data of this run are gone: {name} was named in {link}; put "
            "them back, or say with --config.data.prepared where they are now."
        )
    if read_manifest(_local(name)) != entry["manifest"]:
        raise BadInput(
            f"{name} holds other data than those this run began with (see {link}); "
            "put them back, say with --config.data.prepared where they are now, or choose another "
            "--workdir."
        )
    return open_blocks(name, length, conditions or Conditions(()))

"""The data of a run: its own, or data prepared before in one folder, or mixed from several."""

import math
import os
import re
from pathlib import Path
from typing import Any

from sedd_jax.data.blocks import FORMAT, MANIFEST, Dataset, open_blocks, read_manifest
from sedd_jax.data.recipe import Recipe
from sedd_jax.data.shards import SPLITS
from sedd_jax.data.token_blocks import Mixture
from sedd_jax.data.tokenizer import build_tokenizer, load_tokenizer
from sedd_jax.errors import BadInput
from sedd_jax.system.files import atomic_move, atomic_write_json
from sedd_jax.system.staging import staged

_COMMAND = "python -m sedd_jax.prepare --config=CONFIG --output={}, with the --config of this run"


def link_prepared(
    folder: str | os.PathLike[str], prepared: str, recipe: Recipe, length: int
) -> None:
    """Makes `folder` stand for the data in `prepared`: FOLDER or FOLDER:WEIGHT,FOLDER:WEIGHT,...

    It gets their tokenizer, and a manifest that holds theirs, by which `open_data` knows them
    again, and where they are. A `folder` that stands for them already takes their new places.
    Raises BadInput for a folder that is not there, for data that do not fit the recipe, the length
    or each other, and when `folder` stands for other data or other weights.
    """
    folder, weights = Path(folder), _parse(prepared)
    manifests = {name: _checked(name, recipe, length) for name in weights}
    (first, kept), *others = manifests.items()
    for other, manifest in others:
        if manifest["fingerprint"] != kept["fingerprint"]:
            raise BadInput(
                f"{first} and {other} were prepared with different tokenizers and cannot be mixed; "
                f"prepare one again with --config.data.tokenizer_path={Path(first) / 'tokenizer'}."
            )
    entries = [
        {"folder": str(Path(name).resolve()), "weight": weight, "manifest": manifests[name]}
        for name, weight in weights.items()
    ]
    splits = {split: _mixed_counts(entries, split) for split in SPLITS}
    manifest = {"format": FORMAT, "prepared": entries, "splits": splits}
    if folder.exists():
        if _placeless(read_manifest(folder)) != _placeless(manifest):
            raise BadInput(
                f"{folder} stands for other data than {prepared}, or with other weights; they may "
                "be moved, but not changed: go back to those, or choose another folder."
            )
        atomic_write_json(folder / MANIFEST, manifest, indent=1)
        return
    with staged(folder, manifest) as staging:
        load_tokenizer(Path(first) / "tokenizer").save(staging / "data" / "tokenizer")
        atomic_write_json(staging / MANIFEST, manifest, indent=1)
        atomic_move(staging / MANIFEST, staging / "data" / MANIFEST)
        atomic_move(staging / "data", folder)


def open_data(folder: str | os.PathLike[str], length: int) -> Dataset:
    """Opens the prepared data in `folder`, or those that `link_prepared` made it stand for.

    Raises BadInput when those are gone or no longer what they were, and what `open_blocks` raises.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    if "prepared" not in manifest:
        return open_blocks(folder, length)
    datasets = [_open_same(entry, folder, length) for entry in manifest["prepared"]]
    if len(datasets) == 1:
        return datasets[0]
    weights = [entry["weight"] for entry in manifest["prepared"]]
    mixed = {split: Mixture([getattr(d, split) for d in datasets], weights) for split in SPLITS}
    return Dataset(tokenizer=datasets[0].tokenizer, manifest=manifest, **mixed)


def check_name(folder: str) -> None:
    """Raises BadInput for a folder that config.data.prepared could not name."""
    if "," in folder or re.search(r":[^/]*$", folder):
        raise BadInput(
            f"{folder} cannot be named in config.data.prepared, where a comma ends a folder and a "
            "colon comes before its weight; choose another name."
        )


def _placeless(manifest: dict[str, Any]) -> list[tuple[float, dict[str, Any]]] | None:
    """The weights and manifests of the data a folder stands for; None if they are its own."""
    entries = manifest.get("prepared")
    return entries and [(entry["weight"], entry["manifest"]) for entry in entries]


def _parse(prepared: str) -> dict[str, float]:
    """The weights by folder."""
    weights = {}
    for part in prepared.split(","):
        folder, colon, weight = part.strip().rpartition(":")
        try:
            folder, value = (folder, float(weight)) if colon else (weight, 1.0)
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
    """The manifest of the prepared folder `name`, if its data are what the config asks for."""
    command = _COMMAND.format(name)
    if not (Path(name) / MANIFEST).is_file():
        raise BadInput(
            f"config.data.prepared names {name}, but no prepared data are there; prepare them "
            f"first: {command}."
        )
    manifest = read_manifest(Path(name))
    if "recipe" not in manifest:
        raise BadInput(f"{name} is the data/ of a run, which stands for {_named(manifest)}.")
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
    # One on the hub is not fetched for this alone.
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


def _named(manifest: dict[str, Any]) -> str:
    return " and ".join(entry["folder"] for entry in manifest["prepared"])


def _mixed_counts(entries: list[dict[str, Any]], split: str) -> dict[str, float]:
    """What is counted of a mixture: all bytes, and bytes a token as the weights have it."""
    total = sum(entry["weight"] for entry in entries)
    counts = [(entry["weight"] / total, entry["manifest"]["splits"][split]) for entry in entries]
    return {
        "utf8_bytes": sum(count["utf8_bytes"] for _, count in counts),
        "bytes_per_token": sum(share * count["bytes_per_token"] for share, count in counts),
    }


def _open_same(entry: dict[str, Any], folder: Path, length: int) -> Dataset:
    """The data that an entry of the manifest in `folder` names, if they are what they were."""
    name = entry["folder"]
    if not (Path(name) / MANIFEST).is_file():
        raise BadInput(
            f"The prepared data of this run are gone: {name} was named in {folder / MANIFEST}; put "
            "them back, or say with --config.data.prepared where they are now."
        )
    if read_manifest(Path(name)) != entry["manifest"]:
        raise BadInput(
            f"{name} holds other data than those this run began with (see {folder / MANIFEST}); "
            "put them back, say with --config.data.prepared where they are now, or choose another "
            "--workdir."
        )
    return open_blocks(name, length)

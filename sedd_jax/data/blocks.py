"""Text prepared once: documents tokenised, concatenated and cut into blocks of one length.

A prepared folder holds `train.bin` and `heldout.bin` (flat token ids), `tokenizer/` and
`manifest.json`, and is never changed afterwards, so that the data of a run stay what they were.
"""

import hashlib
import json
import os
import pathlib
import secrets
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sedd_jax.data.recipe import Recipe
from sedd_jax.data.sources import load_documents, split_documents
from sedd_jax.data.token_blocks import TokenBlocks
from sedd_jax.data.tokenizer import SIZED_TOKENIZERS, Tokenizer, build_tokenizer, load_tokenizer
from sedd_jax.errors import BadInput

FORMAT = 1
_MANIFEST = "manifest.json"
# An alphabet must cover the held-out text as well, or that text could not be encoded at all. Every
# other kind that is fitted sees the training documents only.
_FITTED_ON_ALL = frozenset({"characters"})


@dataclass(frozen=True)
class Dataset:
    """A prepared folder: its tokenizer, its two splits and its manifest."""

    tokenizer: Tokenizer
    train: TokenBlocks
    heldout: TokenBlocks
    manifest: dict[str, Any]


def prepare_blocks(
    folder: str | pathlib.Path,
    corpus: str,
    separator: str,
    heldout_fraction: float,
    tokenizer_kind: str,
    vocab_size: int | None,
    tokenizer_path: str | None,
    length: int,
) -> Dataset:
    """Prepares `corpus` in `folder`, or opens `folder` when it holds just that already.

    The documents are split by `split_documents`, each is tokenised whole and followed by an
    end-of-document token (where the tokenizer has one), and the remainder below one block of
    `length` is dropped. `vocab_size` counts only for the kinds in SIZED_TOKENIZERS,
    `tokenizer_path` only for `gpt2`. The folder appears in one step, so a killed run leaves none,
    and two processes that prepare the same data at once get the same folder. Raises BadInput when
    `folder` holds anything else (nothing is overwritten) or when a split has less than one block,
    and what `load_documents`, `split_documents`, `build_tokenizer` and `encode` raise.
    """
    if length < 1:
        raise BadInput(f"The block length is {length}, it must be at least 1.")
    folder = pathlib.Path(folder)
    documents = load_documents(corpus, separator)
    settings = {
        "format": FORMAT,
        "sha256": _digest(documents),
        "heldout_fraction": heldout_fraction,
        "tokenizer": tokenizer_kind,
        "length": length,
    }
    if tokenizer_kind in SIZED_TOKENIZERS:
        settings["vocab_size"] = vocab_size
    if _is_occupied(folder):
        return _reopen(folder, settings)

    train, heldout = split_documents(documents, heldout_fraction)
    fitted_on = documents if tokenizer_kind in _FITTED_ON_ALL else train
    recipe = Recipe(
        tokenizer=tokenizer_kind, vocab_size=vocab_size or 0, tokenizer_path=tokenizer_path or ""
    )
    tokenizer = build_tokenizer(recipe, lambda: fitted_on, "".join(sorted(set().union(*fitted_on))))
    dtype = "uint16" if tokenizer.vocab_size <= 2**16 else "uint32"
    # A sibling, since a rename is atomic only inside one file system; its name is never used twice,
    # so what a killed run left behind is in nobody's way.
    draft = folder.absolute().parent / f".{folder.name}.{secrets.token_hex(8)}.draft"
    draft.mkdir(parents=True)
    try:
        splits = {
            name: _write_blocks(draft / f"{name}.bin", name, part, tokenizer, length, dtype)
            for name, part in (("train", train), ("heldout", heldout))
        }
        tokenizer.save(draft / "tokenizer")
        manifest = {
            **settings,
            "corpus": corpus,
            "vocab_size": tokenizer.vocab_size,
            "dtype": dtype,
            "splits": splits,
        }
        text = json.dumps(manifest, indent=1) + "\n"
        (draft / _MANIFEST).write_text(text, encoding="utf-8")
        try:
            os.replace(draft, folder)
        except OSError:
            # Another process was quicker; any other cause of the error is still there to raise.
            if not _is_occupied(folder):
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return _reopen(folder, settings)


def drafts(folder: pathlib.Path) -> list[pathlib.Path]:
    """What runs that now prepare `folder`, or were killed while they did, have beside it."""
    return list(folder.parent.glob(f".{folder.name}.*.draft"))


def open_blocks(folder: str | pathlib.Path) -> Dataset:
    """Opens a prepared folder; the corpus it was made from is not needed.

    Raises BadInput when `folder` holds no manifest, or one that is damaged or of another format.
    """
    folder = pathlib.Path(folder)
    path = folder / _MANIFEST
    if not path.is_file():
        raise BadInput(
            f"There are no prepared data in {folder}: {_MANIFEST} is missing; prepare them first."
        )
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        found = manifest["format"]
        if found != FORMAT:
            raise BadInput(
                f"{folder} was prepared in format {found}, this version reads format {FORMAT}; "
                "prepare the data again in another folder."
            )
        blocks = {
            name: _open_split(folder / f"{name}.bin", manifest, manifest["splits"][name]["blocks"])
            for name in ("train", "heldout")
        }
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise BadInput(
            f"{path} is damaged ({error!r}); prepare the data again in another folder."
        ) from error
    return Dataset(tokenizer=load_tokenizer(folder / "tokenizer"), manifest=manifest, **blocks)


def _open_split(path: pathlib.Path, manifest: dict[str, Any], blocks: int) -> TokenBlocks:
    split = TokenBlocks(path, manifest["length"], manifest["dtype"])
    if len(split) != blocks:
        raise BadInput(
            f"{path} is damaged: it holds {len(split)} blocks where the manifest says {blocks}; "
            "prepare the data again in another folder."
        )
    return split


def _is_occupied(folder: pathlib.Path) -> bool:
    return folder.exists() and (not folder.is_dir() or any(folder.iterdir()))


def _reopen(folder: pathlib.Path, settings: dict[str, Any]) -> Dataset:
    """The dataset in `folder` if it has these settings; else BadInput says what differs."""
    if not (folder / _MANIFEST).is_file():
        raise BadInput(
            f"{folder} exists but is no complete folder of prepared data ({_MANIFEST} is missing); "
            "nothing was overwritten: choose another folder."
        )
    dataset = open_blocks(folder)
    differing = [
        f"{name} is {dataset.manifest.get(name)!r} there and {wanted!r} here"
        for name, wanted in settings.items()
        if dataset.manifest.get(name) != wanted
    ]
    if differing:
        raise BadInput(
            f"{folder} holds other prepared data ({'; '.join(differing)}); nothing was "
            "overwritten: choose another folder or go back to those settings."
        )
    return dataset


def _digest(documents: Sequence[str]) -> str:
    """SHA-256 of the documents, each preceded by its length so that no two lists look alike."""
    digest = hashlib.sha256()
    for document in documents:
        content = document.encode()
        digest.update(len(content).to_bytes(8, "little"))
        digest.update(content)
    return digest.hexdigest()


def _write_blocks(
    path: pathlib.Path,
    name: str,
    documents: Sequence[str],
    tokenizer: Tokenizer,
    length: int,
    dtype: str,
) -> dict[str, int | float]:
    """Writes whole blocks to `path` and returns their counts for the manifest."""
    end = np.array([] if tokenizer.eod_id is None else [tokenizer.eod_id], np.int32)
    tokens = 0
    with path.open("wb") as file:
        for number, document in enumerate(documents):
            try:
                ids = tokenizer.encode(document)
            except ValueError as error:
                raise BadInput(f"In document {number} of the {name} split: {error}") from error
            file.write(np.concatenate([ids, end]).astype(dtype).tobytes())
            tokens += len(ids) + len(end)
        blocks, dropped = divmod(tokens, length)
        file.truncate(blocks * length * np.dtype(dtype).itemsize)
    if not blocks:
        raise BadInput(
            f"The {name} split has {tokens} tokens, less than one block of length {length}; give "
            "more text, choose a shorter length or change heldout_fraction."
        )
    size = sum(len(document.encode()) for document in documents)
    return {
        "documents": len(documents),
        "characters": sum(map(len, documents)),
        "utf8_bytes": size,
        "tokens": tokens,
        "blocks": blocks,
        "dropped_tokens": dropped,
        "bytes_per_token": size / tokens,
    }

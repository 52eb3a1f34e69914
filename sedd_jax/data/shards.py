"""The second pass over a corpus: a task becomes a file of token ids for each split."""

import collections
import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sedd_jax.data.columns import Told
from sedd_jax.data.conditions import Conditions
from sedd_jax.data.corpus_statistics import SPLITS, Content, Split, size_of
from sedd_jax.data.documents import Fault, Piece, Recipe
from sedd_jax.data.round_trip import Lost, LostTotal, changed, unknown
from sedd_jax.data.tokenizer import load_tokenizer
from sedd_jax.data.workers import Task
from sedd_jax.errors import BadInput
from sedd_jax.system.files import atomic_move, atomic_write_json

_COUNTS = ("documents", "characters", "utf8_bytes", "tokens", "filling", "cut_off")
_IDS, _TOLD = ".bin", ".told"  # endings of the files
_NO_LETTER = Fault("has no letter of the alphabet")


class _Block(NamedTuple):
    """A part of a document: its ids as they are written, its counts, and what they do not hold."""

    ids: np.ndarray
    counts: dict[str, int]
    lost: Lost | None


class Shards:
    """Tokenises a task, unless an earlier call did, and returns its counts.

    It writes `train-NUMBER.bin` and `heldout-NUMBER.bin`, with the ids of one document after
    another, each followed by an end-of-document token if the tokenizer has one; a split without
    tokens gets no file. Unless the recipe wraps, each document is one block of `length` instead.
    What a block is told is a row of `.told` files beside them. The bytes depend on the pieces and
    the arguments of `__init__` alone.

    Raises BadInput for a document that the tokenizer refuses, unless the recipe skips those.
    """

    def __init__(
        self,
        staging: Path,
        recipe: Recipe,
        split: Split,
        length: int,
        conditions: Conditions | None = None,
    ):
        """Loads the tokenizer.

        Args:
          staging: the staging folder, which holds `data/tokenizer` and `shards`.
          recipe: the settings.
          split: which documents are held out.
          length: tokens of a block; used unless the recipe wraps.
          conditions: what the documents of the corpus tell.
        """
        self._data, self._work = staging / "data", staging / "shards"
        self._recipe, self._split, self._length = recipe, split, length
        self._conditions = conditions
        self._tokenizer = load_tokenizer(self._data / "tokenizer")
        self._dtype = id_dtype(self._tokenizer.vocab_size)

    def __call__(self, task: Task) -> dict[str, Any]:
        done = self._work / f"{task.number:05d}.json"
        if not done.exists():
            atomic_write_json(done, self._write(task))
        return json.loads(done.read_text(encoding="utf-8"))

    def _write(self, task: Task) -> dict[str, Any]:
        names = {split: f"{split}-{task.number:05d}" for split in SPLITS}
        counts = {split: collections.Counter(dict.fromkeys(_COUNTS, 0)) for split in SPLITS}
        skipped, losses = collections.Counter(), LostTotal()
        with ExitStack() as stack:
            files = {
                suffix: {
                    split: stack.enter_context(_HashedFile(self._work / (name + suffix)))
                    for split, name in names.items()
                }
                for suffix in ((_IDS, _TOLD) if self._conditions else (_IDS,))
            }
            for number, piece in enumerate(task.pieces):
                for content, where, told in piece.documents():
                    if isinstance(content, Fault):
                        continue  # counted in the first pass
                    blocks, lost = self._blocks(task.corpus, content)
                    losses.add(lost, (number, where))
                    for split, block in blocks:
                        if isinstance(block, Fault):
                            self._check_skips(block, piece, where, lost)
                            skipped[block.kind] += 1
                            continue
                        files[_IDS][split].write(block.ids)
                        if self._conditions:
                            files[_TOLD][split].write(self._row(told, piece, where))
                        counts[split].update(block.counts)
                        losses.add(block.lost, (number, where))
        for split in SPLITS:
            if counts[split]["tokens"]:
                for file in (each[split].name for each in files.values()):
                    atomic_move(self._work / file, self._data / file)

        def facts(split):
            told = {"told": files[_TOLD][split].facts} if self._conditions else {}
            return files[_IDS][split].facts | told | counts[split]

        return {
            "splits": {split: facts(split) for split in SPLITS},
            "skipped": skipped,
            "losses": vars(losses),
        }

    def _row(self, told: Sequence[Told], piece: Piece, where: int) -> np.ndarray:
        """Returns what a document tells; held-out ones alone may have a class that is unknown."""
        try:
            return self._conditions.row(told)
        except BadInput as error:
            raise BadInput(
                f"{piece.place(where)} of config.data.heldout_corpus: {error}"
            ) from error

    def _check_skips(self, fault: Fault, piece: Piece, where: int, lost: Lost | None) -> None:
        """Raises BadInput unless the recipe leaves documents with a fault out."""
        if self._recipe.bad_documents == "refuse" and fault != _NO_LETTER:
            between = ""
            if lost and not self._recipe.split_at_unknown:
                between = ", split it there with config.data.split_at_unknown=True"
            raise BadInput(
                f"{piece.place(where)} {fault.reason.rstrip('.')}{between}, or leave such "
                "documents out with config.data.bad_documents=skip."
            )

    def _blocks(
        self, corpus: str, content: Content
    ) -> tuple[list[tuple[str, _Block | Fault]], Lost | None]:
        """Returns the blocks of a document, each with its split, and the letters without an id.

        Of a document with a fault this is the fault alone, unless the recipe keeps the parts
        between unknown letters: each of those is then a document.
        """
        parts = list(self._split.parts(corpus, content))
        if self._recipe.split_at_unknown:
            lost = unknown(self._tokenizer, content)
            runs = [(split, run) for split, part in parts for run in self._runs(part)]
            found = [(split, self._block(run) if len(run) else _NO_LETTER) for split, run in runs]
            return found, lost
        blocks = [(split, self._block(part)) for split, part in parts]
        faults = [(split, block) for split, block in blocks if isinstance(block, Fault)]
        if not faults:
            return blocks, None
        # a position in the message counts from the start of the whole document
        whole = self._block(content) if len(parts) > 1 else faults[0][1]
        fault = whole if isinstance(whole, Fault) else faults[0][1]
        return [(faults[0][0], fault)], unknown(self._tokenizer, content)

    def _runs(self, content: Content) -> list[Content]:
        """Returns the parts between letters without an id, or an empty one; ids as they are."""
        if not isinstance(content, str):
            return [content]
        return [run for run in self._tokenizer.unknown.split(content) if run] or [""]

    def _block(self, content: Content) -> _Block | Fault:
        """Returns the block of a part of a document."""
        kind, end = self._recipe.tokenizer, self._tokenizer.eod_id
        try:
            ids = self._tokenizer.encode(content)
        except BadInput as error:
            return Fault(f"does not suit the tokenizer {kind}", f": {error}")
        lost, ids = changed(self._tokenizer, content, ids), ids.astype(self._dtype)
        size, cut_off, filling = size_of(content), 0, 0
        if self._recipe.wrap:
            ids = ids if end is None else np.append(ids, np.array(end, ids.dtype))
        else:
            cut_off, filling = max(len(ids) - self._length, 0), max(self._length - len(ids), 0)
            if filling and end is None:
                return Fault(
                    "is too short for a block",
                    f": it has {len(ids)} tokens of {self._length}, and the tokenizer {kind} has "
                    "no end-of-document token to fill up with; choose a shorter "
                    "config.model.length.",
                )
            ids = ids[: self._length]
            if cut_off:
                size = self._tokenizer.size(ids)
            if filling:
                ids = np.append(ids, np.full(filling, end, ids.dtype))
        numbers = (1, len(content), size, len(ids), filling, cut_off)
        counts = dict(zip(_COUNTS, numbers, strict=True))
        if lost:
            counts |= {"changed": 1, "lost": lost.letters.total()}
        return _Block(ids, counts, lost)


class _HashedFile:
    """A file that is written, with the SHA-256 of what was, and the MD5 that buckets tell."""

    def __init__(self, path: Path):
        self.name = path.name
        self._file = path.open("wb")
        self._hashes = hashlib.sha256(), hashlib.md5(usedforsecurity=False)

    def write(self, array: np.ndarray) -> None:
        self._file.write(array.data)
        for each in self._hashes:
            each.update(array.data)

    @property
    def facts(self) -> dict[str, str]:
        return {"file": self.name, **{each.name: each.hexdigest() for each in self._hashes}}

    def __enter__(self) -> "_HashedFile":
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()


def id_dtype(vocab_size: int) -> str:
    """Returns the smallest type for ids in [0, vocab_size)."""
    return "uint16" if vocab_size <= 2**16 else "uint32"

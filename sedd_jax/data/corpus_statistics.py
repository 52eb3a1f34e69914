"""The first pass over a corpus: its statistics, and from them which documents are held out."""

import collections
import dataclasses
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sedd_jax.data.characters import END_OF_DOCUMENT
from sedd_jax.data.column_statistics import Tally
from sedd_jax.data.columns import Column
from sedd_jax.data.conditions import Conditions
from sedd_jax.data.documents import BLANK, Fault, Piece
from sedd_jax.data.separators import is_text
from sedd_jax.data.workers import Task
from sedd_jax.errors import BadInput
from sedd_jax.system.files import atomic_write_json

SPLITS = ("train", "heldout")
_COUNTS = ("documents", "characters", "utf8_bytes")


@dataclasses.dataclass(frozen=True)
class Surveyor:
    """Writes the statistics of a task to a file, unless an earlier call did; returns its path.

    Attributes:
      folder: where the files are written.
      refuse: raise BadInput for a document that cannot be used, instead of counting it; a blank one
        is counted.
      letters: collect the alphabet.
      tokenizer: its name: raise BadInput for ids if it takes text, and for text if it takes ids.
      told: the columns of config.data.condition.
    """

    folder: Path
    refuse: bool
    letters: bool
    tokenizer: str = ""
    told: tuple[Column, ...] = ()

    def __call__(self, task: Task) -> Path:
        path = self.folder / f"{task.number:05d}.json"
        if not path.exists():
            atomic_write_json(path, [self._survey(piece) for piece in task.pieces])
        return path

    def _survey(self, piece: Piece) -> dict[str, Any]:
        digest, letters = hashlib.sha256(), set()
        counts = collections.Counter(dict.fromkeys(_COUNTS, 0))
        bins, skipped = collections.Counter(), collections.Counter()
        undivided, marks = is_text(piece, ""), 0
        tallies = list(map(Tally, self.told))
        for content, where, told in piece.documents():
            if isinstance(content, Fault):
                skipped[content.kind] += 1
                if self.refuse and content != BLANK:
                    raise BadInput(
                        f"{piece.place(where)} {content.reason}; mend it or set "
                        "config.data.bad_documents=skip."
                    )
                continue
            if self.tokenizer and isinstance(content, str) == (self.tokenizer == "integers"):
                holds, takes = ("text", "ids") if isinstance(content, str) else ("ids", "text")
                raise BadInput(
                    f"{piece.place(where)} holds {holds}, but the tokenizer {self.tokenizer!r} "
                    f"takes {takes}; choose another config.data.tokenizer ('integers' is the "
                    "one for ids, which are arrays, raw files or lists in a table), or "
                    "config.data.field."
                )
            try:
                for tally, value in zip(tallies, told, strict=True):
                    tally.add(value)
            except BadInput as error:
                raise BadInput(f"{piece.place(where)}: {error}") from error
            raw = content_bytes(content)
            # the length first, so that no two lists of documents have the same digest
            digest.update(len(raw).to_bytes(8, "little"))
            digest.update(raw)
            bins[bin_of(raw)] += len(content)
            counts.update(documents=1, characters=len(content), utf8_bytes=size_of(content))
            marks += content.count(END_OF_DOCUMENT) if undivided else 0
            if self.letters and isinstance(content, str):
                letters.update(content)
        return {
            **counts,
            "sha256": digest.hexdigest(),
            "letters": "".join(sorted(letters)),
            "bins": list(bins),
            "bin_characters": list(bins.values()),
            "skipped": skipped,
            "end_marks": marks,
            "told": [tally.to_json() for tally in tallies],
        }


class Survey:
    """The statistics of a corpus, summed over its pieces.

    Attributes:
      pieces: documents, characters, utf8_bytes and sha256 of each piece.
      histogram: characters by the `bin_of` their document, int64 [BINS].
      letters: the alphabet of all documents.
      skipped: the number of documents left out, by reason.
      end_marks: how often `<|endoftext|>` is written in text files without a separator.
      tallies: what the documents tell in every column.
    """

    def __init__(self, told: tuple[Column, ...] = ()):
        self.pieces: list[dict[str, Any]] = []
        self.histogram = np.zeros(BINS, np.int64)
        self.letters: set[str] = set()
        self.skipped = collections.Counter()
        self.end_marks = 0
        self.tallies = list(map(Tally, told))

    def add(self, path: Path) -> None:
        """Adds the statistics of the pieces of a task, from the file that `Surveyor` wrote."""
        for piece in json.loads(path.read_text(encoding="utf-8")):
            self.pieces.append({name: piece[name] for name in (*_COUNTS, "sha256")})
            bins = np.array(piece["bins"], np.int64)  # the list may be empty
            self.histogram[bins] += np.array(piece["bin_characters"], np.int64)
            self.letters.update(piece["letters"])
            self.skipped.update(piece["skipped"])
            self.end_marks += piece["end_marks"]
            for tally, counted in zip(self.tallies, piece["told"], strict=True):
                tally.add_counted(counted)

    @property
    def characters(self) -> int:
        """Characters in all documents."""
        return sum(piece["characters"] for piece in self.pieces)

    @property
    def conditions(self) -> Conditions | None:
        """What the documents tell; None without columns."""
        return Conditions(tuple(tally.found for tally in self.tallies)) if self.tallies else None

    @property
    def sha256(self) -> str:
        """The digest of the pieces' digests."""
        return hashlib.sha256("".join(p["sha256"] for p in self.pieces).encode()).hexdigest()


def size_of(content: str | np.ndarray) -> int:
    """Returns the UTF-8 bytes of a text, or the number of ids: bits per byte are bits per id."""
    return len(content.encode()) if isinstance(content, str) else len(content)


_BITS = 20
BINS = 2**_BITS
_NEARBY = 1000  # characters in which a cut looks for a line break

# Text, or integer ids [tokens].
Content = str | np.ndarray


def content_bytes(content: Content) -> bytes | memoryview:
    """Returns the bytes of a document that are hashed: UTF-8, or the ids as they are in memory."""
    if isinstance(content, str):
        return content.encode()
    return np.ascontiguousarray(content).view(np.uint8).data


def bin_of(content: bytes | memoryview) -> int:
    """Returns the first 20 bits of the SHA-256; copies of a document share a bin."""
    return int.from_bytes(hashlib.sha256(content).digest()[:4]) >> (32 - _BITS)


def heldout_bins(histogram: np.ndarray, fraction: float) -> int | None:
    """Returns the number b such that the documents of bins [0, b) are held out.

    Bins are taken in order until `fraction` of all characters is reached, and at least one bin with
    text is left on each side. If every distinct text has its own bin, this is the order of the
    texts' SHA-256.

    Args:
      histogram: characters by bin, int64 [BINS].
      fraction: the share of the characters to hold out, in (0, 1).

    Returns:
      b, or None when only one bin has text: then `cut` splits every document.
    """
    occupied = np.flatnonzero(histogram)
    if len(occupied) < 2:
        return None
    characters = np.cumsum(histogram[occupied])
    taken = int(np.searchsorted(characters, fraction * int(characters[-1]))) + 1
    return int(occupied[min(taken, len(occupied) - 1)])


def cut(content: Content, fraction: float) -> tuple[Content, Content]:
    """Divides a document in two, at a line break if one is near.

    Args:
      content: the document.
      fraction: the share of the second part, about.

    Raises:
      BadInput: the document has less than two characters.
    """
    size = len(content)
    if size < 2:
        raise BadInput(
            f"The corpus is a single document of {size} character(s), too short to hold a part of "
            "it out; give more text."
        )
    border = min(max(round((1 - fraction) * size), 1), size - 1)
    if isinstance(content, str):
        # at most half of the tail is moved to the first part to end at a whole line
        newline = content.find("\n", border - 1, border + min(_NEARBY, (size - border) // 2))
        border = border if newline < 0 else newline + 1
    return content[:border], content[border:]


@dataclasses.dataclass(frozen=True)
class Split:
    """Which documents of each corpus are held out.

    Attributes:
      heldout: by corpus, the number b such that the documents of bins [0, b) are held out; None
        where every document is cut in two.
      fraction: the share of a cut document that is held out.
    """

    heldout: dict[str, int | None]
    fraction: float

    def parts(self, corpus: str, content: Content) -> Iterator[tuple[str, Content]]:
        """Yields the splits that a document belongs to, each with its part of the document."""
        border = self.heldout[corpus]
        if border is None:
            yield from zip(SPLITS, cut(content, self.fraction), strict=True)
        else:
            yield SPLITS[bin_of(content_bytes(content)) < border], content

"""The first reading of a corpus: what there is, what is wrong with it, and who it is."""

import collections
import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from sedd_jax.data.documents import Fault, Piece
from sedd_jax.data.heldout import BINS, bin_of, content_bytes
from sedd_jax.data.workers import Task
from sedd_jax.errors import BadInput
from sedd_jax.system.files import atomic_write_json

_COUNTS = ("documents", "characters", "utf8_bytes")


@dataclasses.dataclass(frozen=True)
class Surveyor:
    """Surveys a task into a file of `folder`, unless it was done before, and returns its path.

    Raises BadInput for a document that cannot be used, if those are to be refused.

    Attributes:
      folder: for the files.
      refuse: else faults are counted.
      letters: note the alphabet.
    """

    folder: Path
    refuse: bool
    letters: bool

    def __call__(self, task: Task) -> Path:
        path = self.folder / f"{task.number:05d}.json"
        if not path.exists():
            atomic_write_json(path, self._survey(task.piece))
        return path

    def _survey(self, piece: Piece) -> dict[str, Any]:
        digest, letters = hashlib.sha256(), set()
        counts = collections.Counter(dict.fromkeys(_COUNTS, 0))
        bins, skipped = collections.Counter(), collections.Counter()
        for content, where in piece.documents():
            if isinstance(content, Fault):
                skipped[content.kind] += 1
                if self.refuse:
                    raise BadInput(
                        f"{piece.place(where)} {content.reason}; mend it or set "
                        "config.data.bad_documents=skip."
                    )
                continue
            raw = content_bytes(content)
            # Each document after its length, so that no two lists of documents look alike.
            digest.update(len(raw).to_bytes(8, "little"))
            digest.update(raw)
            bins[bin_of(raw)] += len(content)
            counts.update(documents=1, characters=len(content), utf8_bytes=size_of(content))
            if self.letters and isinstance(content, str):
                letters.update(content)
        return {
            **counts,
            "sha256": digest.hexdigest(),
            "letters": "".join(sorted(letters)),
            "bins": list(bins),
            "bin_characters": list(bins.values()),
            "skipped": skipped,
        }


class Survey:
    """What the surveys of the pieces of a corpus come to.

    Attributes:
      pieces: documents, characters, utf8_bytes and sha256 of each.
      histogram: characters by `bin_of` their document, int64 [BINS].
      letters: of all documents.
      skipped: documents left out, by reason.
    """

    def __init__(self):
        self.pieces: list[dict[str, Any]] = []
        self.histogram = np.zeros(BINS, np.int64)
        self.letters: set[str] = set()
        self.skipped = collections.Counter()

    def add(self, path: Path) -> None:
        """Adds what `Surveyor` wrote to `path`."""
        piece = json.loads(path.read_text(encoding="utf-8"))
        self.pieces.append({name: piece[name] for name in (*_COUNTS, "sha256")})
        bins = np.array(piece["bins"], np.int64)  # of an empty list too
        self.histogram[bins] += np.array(piece["bin_characters"], np.int64)
        self.letters.update(piece["letters"])
        self.skipped.update(piece["skipped"])

    @property
    def characters(self) -> int:
        """Of all documents."""
        return sum(piece["characters"] for piece in self.pieces)

    @property
    def sha256(self) -> str:
        """The digest of those of the pieces."""
        return hashlib.sha256("".join(p["sha256"] for p in self.pieces).encode()).hexdigest()


def size_of(content: str | np.ndarray) -> int:
    """The UTF-8 bytes of a text; of integer ids, their number: bits per byte are bits per id."""
    return len(content.encode()) if isinstance(content, str) else len(content)

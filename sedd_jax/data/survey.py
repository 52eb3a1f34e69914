"""The first reading of a corpus: what there is, what is wrong with it, and who it is."""

import collections
import dataclasses
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from sedd_jax.data.documents import BLANK, Fault, Piece
from sedd_jax.data.draft import write_json
from sedd_jax.data.split import BINS, bin_of, content_bytes
from sedd_jax.data.workers import Task
from sedd_jax.errors import BadInput


@dataclasses.dataclass(frozen=True)
class Surveyor:
    """Surveys a task into a file of `folder`, unless it was done before, and returns its path.

    Attributes:
      folder: for the files.
      refuse: the first fault ends the survey of a piece.
      letters: note the alphabet.
    """

    folder: Path
    refuse: bool
    letters: bool

    def __call__(self, task: Task) -> Path:
        path = self.folder / f"{task.number:05d}.json"
        if not path.exists():
            write_json(path, self._survey(task.piece))
        return path

    def _survey(self, piece: Piece) -> dict[str, Any]:
        digest, letters = hashlib.sha256(), set()
        counts = collections.Counter(documents=0, characters=0, utf8_bytes=0)
        bins, skipped = collections.Counter(), collections.Counter()
        fault = None
        for content, where in piece.documents():
            if isinstance(content, Fault):
                skipped[kind_of(content)] += 1
                if content != BLANK and fault is None:
                    fault = f"{piece.place(where)} {content.reason}"
                    if self.refuse:
                        break
                continue
            raw = content_bytes(content)
            # Each document after its length, so that no two lists of documents look alike.
            digest.update(len(raw).to_bytes(8, "little") + raw)
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
            "fault": fault,
        }


@dataclasses.dataclass
class Survey:
    """What the surveys of some pieces come to.

    Attributes:
      pieces: documents, characters, utf8_bytes and sha256 of each.
      histogram: characters by `bin_of` their document, int64 [BINS].
      alphabet: the letters of all documents, sorted.
      skipped: documents left out, by reason.
    """

    pieces: list[dict[str, Any]]
    histogram: np.ndarray
    alphabet: str
    skipped: collections.Counter[str]

    @property
    def characters(self) -> int:
        """Of all documents."""
        return sum(piece["characters"] for piece in self.pieces)


def summed(paths: Iterable[Path], refuse: bool) -> Survey:
    """The surveys in `paths` together, one read after the other.

    Raises BadInput for the first fault, when it is to be refused.
    """
    survey = Survey([], np.zeros(BINS, np.int64), "", collections.Counter())
    for path in paths:
        piece = json.loads(path.read_text(encoding="utf-8"))
        if refuse and piece["fault"]:
            path.unlink()  # it was given up half way
            raise BadInput(f"{piece['fault']}; mend it or set config.data.bad_documents=skip.")
        survey.histogram[piece["bins"]] += piece["bin_characters"]
        survey.alphabet = "".join(sorted({*survey.alphabet, *piece["letters"]}))
        survey.skipped.update(piece["skipped"])
        survey.pieces.append(
            {name: piece[name] for name in ("documents", "characters", "utf8_bytes", "sha256")}
        )
    return survey


def kind_of(fault: Fault) -> str:
    """The reason of a fault without its details, to count by."""
    return fault.reason.partition(":")[0]


def size_of(content: str | np.ndarray) -> int:
    """The UTF-8 bytes of a text; of integer ids, their number: bits per byte are bits per id."""
    return len(content.encode()) if isinstance(content, str) else len(content)

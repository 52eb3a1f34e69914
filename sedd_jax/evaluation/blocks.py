"""Texts as rows of tokens, the remainder too."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sedd_jax.data.prepared import open_data
from sedd_jax.data.token_blocks import Mixture
from sedd_jax.data.tokenizer import Tokenizer
from sedd_jax.evaluation.library import Text
from sedd_jax.evaluation.protocol import Frame
from sedd_jax.runtime.run import DATA_FOLDER


class Blocks(NamedTuple):
    """Rows of tokens to be scored.

    Attributes:
      tokens: [N, L]; what is after the length of a row means nothing.
      lengths: [N].
      documents: in the whole text.
      tokenizer: whose ids they are.
      story: what a Protocol says of the text and of how it was cut.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    documents: int
    tokenizer: Tokenizer
    story: dict[str, Any]

    def spaced(self, most: int | None) -> "Blocks":
        """Returns at most so many of the rows, evenly spaced."""
        count = len(self.tokens)
        if most is None or most >= count:
            return self
        rows = np.arange(most) * count // most
        story = self.story | {"part": f"{most} of {count} blocks, evenly spaced"}
        return self._replace(tokens=self.tokens[rows], lengths=self.lengths[rows], story=story)

    @property
    def utf8_bytes(self) -> int:
        """Those of the text in the rows."""
        rows = (row[:length] for row, length in zip(self.tokens, self.lengths, strict=True))
        return sum(self.tokenizer.size(row[row != self.tokenizer.eod_id]) for row in rows)


def of_text(text: Text, tokenizer: Tokenizer, frame: Frame) -> Blocks:
    """Returns the blocks of a text. Raises BadInput where the tokenizer has no ids for it."""
    end = [] if tokenizer.eod_id is None else [tokenizer.eod_id]
    ids = [np.append(tokenizer.encode(document), end) for document in text.documents]
    rows = cut(np.concatenate(ids), frame)
    story = {
        "source": text.source,
        "sha256": text.sha256,
        "split": text.split,
        "detokenizer": text.detokenizer,
        "wrap": True,
        "end_of_text": frame.end_of_text,
        "part": "all",
    }
    return Blocks(*rows, len(text.documents), tokenizer, story)


def of_heldout(folder: Path, length: int, frame_for: Callable[[Tokenizer], Frame]) -> Blocks:
    """Returns the held-out blocks of the run in `folder`.

    A stream of documents is framed anew, up to its last token. What was prepared as one document a
    block, and a mixture, whose blocks stand in proportion to its weights, are scored as they are.

    Raises:
      BadInput: the data of the run are not there.
    """
    dataset = open_data(folder / DATA_FOLDER, length)
    split, tokenizer = dataset.heldout, dataset.tokenizer
    mixed = isinstance(split, Mixture)
    first = dataset.manifest["prepared"][0]["manifest"] if mixed else dataset.manifest
    wrapped = first["length"] is None
    if wrapped and not mixed:
        tokens, frame = split.stream, frame_for(tokenizer)
        rows, end_of_text = cut(tokens, frame), frame.end_of_text
        documents = dataset.manifest["splits"]["heldout"]["documents"]
    else:
        tokens = split.take(np.arange(len(split)))
        rows, documents = (tokens, np.full(len(tokens), length)), len(tokens)
        end_of_text = "as prepared: " + (
            "after every document" if wrapped else "fills the block up, and is scored"
        )
    story = {
        "source": "data of the run",
        "sha256": hashlib.sha256(tokens.tobytes()).hexdigest(),
        "split": "heldout",
        "detokenizer": "none",
        "wrap": wrapped,
        "end_of_text": end_of_text,
        "part": "whole blocks in proportion to the weights of the mixture" if mixed else "all",
    }
    return Blocks(*rows, documents, tokenizer, story)


def cut(stream: np.ndarray, frame: Frame) -> tuple[np.ndarray, np.ndarray]:
    """Returns the tokens [N, width] of a stream, framed, and how many of every row count [N]."""
    room, before, after = frame.room, len(frame.before), len(frame.after)
    rows = np.zeros((-(-len(stream) // room), frame.width), np.int32)
    body = np.zeros((len(rows), room), np.int32)
    body.ravel()[: len(stream)] = stream
    rows[:, :before] = frame.before
    rows[:, before : before + room] = body
    lengths = np.full(len(rows), frame.width)
    lengths[-1] -= -len(stream) % room
    for row, length in zip(rows, lengths, strict=True):
        row[length - after : length] = frame.after
    return rows, lengths

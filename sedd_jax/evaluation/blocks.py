"""Texts as rows of tokens, the remainder too."""

import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sedd_jax.data.blocks import Dataset
from sedd_jax.data.prepared import open_data
from sedd_jax.data.token_blocks import Mixture
from sedd_jax.data.tokenizer import Tokenizer
from sedd_jax.errors import BadInput
from sedd_jax.evaluation.library import Text
from sedd_jax.evaluation.protocol import Frame


class Blocks(NamedTuple):
    """Rows of tokens to be scored.

    Attributes:
      tokens: [N, L]; what is after the length of a row means nothing.
      lengths: [N].
      documents: in all of the text.
      wrap: whether documents run on over the borders of rows.
      end_of_text: where such tokens stand.
      part: which blocks of the text they are.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    documents: int
    wrap: bool
    end_of_text: str
    part: str = "all"

    def spaced(self, most: int | None) -> "Blocks":
        """Returns at most so many rows, evenly spaced."""
        count = len(self.tokens)
        if most is None or most >= count:
            return self
        rows = np.arange(most) * count // most
        part = f"{most} of {count} blocks, evenly spaced"
        return self._replace(tokens=self.tokens[rows], lengths=self.lengths[rows], part=part)

    def bytes(self, tokenizer: Tokenizer) -> int:
        """Returns the UTF-8 bytes of the text in the rows."""
        rows = (row[:length] for row, length in zip(self.tokens, self.lengths, strict=True))
        return sum(tokenizer.size(row[row != tokenizer.eod_id]) for row in rows)


def encoded(text: Text, tokenizer: Tokenizer, frame: Frame) -> Blocks:
    """Returns the blocks of a text. Raises BadInput where the tokenizer has no ids for it."""
    end = [] if tokenizer.eod_id is None else [tokenizer.eod_id]
    ids = [np.append(tokenizer.encode(document), end) for document in text.documents]
    rows = cut(np.concatenate(ids).astype(np.int32), frame)
    return Blocks(*rows, len(text.documents), True, frame.end_of_text)


def heldout(folder: Path, length: int, frame: Frame) -> tuple[Blocks, Dataset, str]:
    """Returns the held-out blocks of the run in `folder`, its data, and the SHA-256 of the tokens.

    What was prepared as one document a block, and a mixture, of which whole blocks have their
    shares, are scored as they are trained on; a stream is framed anew.

    Raises:
      BadInput: its data are not there.
    """
    dataset = open_data(folder / "data", length)
    blocks, end = dataset.heldout, dataset.tokenizer.eod_id
    if isinstance(blocks, Mixture):
        found = _as_prepared(blocks, True, "as prepared", "whole blocks, by the weights of the mixture")
    elif dataset.manifest["length"]:
        found = _as_prepared(blocks, False, "fills a block up, and is scored", "all")
    else:
        stream = blocks.stream
        documents = dataset.manifest["splits"]["heldout"]["documents"]
        found = Blocks(*cut(stream, frame), documents, True, frame.end_of_text)
    return found, dataset, hashlib.sha256(found.tokens.tobytes()).hexdigest()


def cut(stream: np.ndarray, frame: Frame) -> tuple[np.ndarray, np.ndarray]:
    """Returns the tokens [N, width] of a stream, framed, and how many of every row count [N]."""
    room, before, after = frame.room, len(frame.before), len(frame.after)
    rows = np.zeros((-(-len(stream) // room), frame.width), np.int32)
    lengths = np.full(len(rows), frame.width)
    lengths[-1] -= -len(stream) % room
    body = np.zeros((len(rows), room), np.int32)
    body.ravel()[: len(stream)] = stream
    rows[:, :before] = frame.before
    rows[:, before : before + room] = body
    for row, length in zip(rows, lengths, strict=True):
        row[length - after : length] = frame.after
    return rows, lengths


def _as_prepared(blocks, wrap, end_of_text, part):
    tokens = blocks.take(np.arange(len(blocks)))
    lengths = np.full(len(tokens), blocks.length)
    return Blocks(tokens, lengths, len(tokens), wrap, end_of_text, part)

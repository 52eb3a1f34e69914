"""Texts as rows of tokens, the remainder too."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sedd_jax.data.prepared import open_data
from sedd_jax.data.token_blocks import Mixture
from sedd_jax.data.tokenizer import Tokenizer
from sedd_jax.errors import BadInput
from sedd_jax.evaluation.protocol import Frame
from sedd_jax.evaluation.texts import Text
from sedd_jax.experiment.run import DATA_FOLDER
from sedd_jax.system.rounding import ceil_div


class Blocks(NamedTuple):
    """Rows of tokens to be scored.

    Attributes:
      tokens: [N, L]; what is after the length of a row means nothing.
      lengths: [N].
      documents: in the text; 0 where they cannot be told, as in a part of it.
      utf8_bytes: of the text in the rows.
      tokenizer: whose ids they are.
      story: what a Protocol says of the text and of how it was cut.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    documents: int
    utf8_bytes: int
    tokenizer: Tokenizer
    story: dict[str, Any]

    def spaced(self, most: int | None) -> "Blocks":
        """Returns at most so many of the rows, evenly spaced."""
        count = len(self.tokens)
        if most is None or most >= count:
            return self
        rows = np.arange(most) * count // most
        whole = self.story["part"]
        part = f"{most} of {count} blocks, evenly spaced" + f", of {whole}" * (whole != "all")
        kept = self.tokens[rows], self.lengths[rows]
        size = _bytes_in(*kept, self.tokenizer)
        return Blocks(*kept, 0, size, self.tokenizer, self.story | {"part": part})


def of_text(text: Text, tokenizer: Tokenizer, frame: Frame) -> Blocks:
    """Returns the blocks of a text. Raises BadInput where the tokenizer has no ids for it."""
    end = np.array([] if tokenizer.eod_id is None else [tokenizer.eod_id], np.int32)
    ids = [part for document in text.documents for part in (tokenizer.encode(document), end)]
    rows = cut(np.concatenate(ids), frame)
    size = sum(len(document.encode()) for document in text.documents)
    story = {
        "source": text.source,
        "sha256": text.sha256,
        "split": text.split,
        "detokenizer": text.detokenizer,
    }
    return Blocks(*rows, len(text.documents), size, tokenizer, story | _framed(frame))


def _framed(frame):
    """What is told of a stream that `cut` has cut."""
    return {
        "wrap": True,
        "end_of_text": frame.end_of_text,
        "part": "all",
        "remainder": "scored, padded and masked out",
        "first_token": frame.first_token,
    }


def of_heldout(folder: Path, length: int, frame_for: Callable[[Tokenizer], Frame]) -> Blocks:
    """Returns the held-out blocks of the run in `folder`.

    A stream of documents is framed anew, up to its last token. What was prepared as one document a
    block, and a mixture, whose blocks stand in proportion to its weights, are scored as they are.

    Raises:
      BadInput: the data of the run are not there, or cannot be framed as the protocol says.
    """
    dataset = open_data(folder / DATA_FOLDER, length)
    split, tokenizer = dataset.heldout, dataset.tokenizer
    mixed = isinstance(split, Mixture)
    first = dataset.manifest["prepared"][0]["manifest"] if mixed else dataset.manifest
    wrapped, frame = first["length"] is None, frame_for(tokenizer)
    if wrapped and not mixed:
        tokens, counts = split.stream, dataset.manifest["splits"]["heldout"]
        rows, story = cut(tokens, frame), _framed(frame)
        documents, size = counts["documents"], counts["utf8_bytes"]
    else:
        tokens = split.take(np.arange(len(split)))
        rows, story = (tokens, np.full(len(tokens), length)), _as_prepared(frame, mixed, wrapped)
        documents, size = 0 if wrapped else len(tokens), _bytes_in(*rows, tokenizer)
    told = {
        "source": "data of the run",
        "sha256": hashlib.sha256(tokens.tobytes()).hexdigest(),
        "split": "heldout",
        "detokenizer": "none",
    }
    return Blocks(*rows, documents, size, tokenizer, told | story)


def _as_prepared(frame, mixed, wrapped):
    """What is told of blocks that stay as they are."""
    if frame.before or frame.after:
        kind = "a mixture" if mixed else "one document a block"
        raise BadInput(
            f"The held-out split of the run is {kind}, where no end-of-text tokens can be put "
            "around blocks: take --protocol=sedd."
        )
    return {
        "wrap": wrapped,
        "end_of_text": "as prepared: "
        + (frame.end_of_text if wrapped else "fills the block up, and is scored"),
        "part": "whole blocks in proportion to the weights of the mixture" if mixed else "all",
        "remainder": "dropped: whole blocks only" if wrapped else "dropped: one block a document",
        "first_token": frame.first_token,
    }


def _bytes_in(tokens, lengths, tokenizer):
    """Those of the text that rows hold."""
    rows = (row[:length] for row, length in zip(tokens, lengths, strict=True))
    return sum(tokenizer.size(row[row != tokenizer.eod_id]) for row in rows)


def cut(stream: np.ndarray, frame: Frame) -> tuple[np.ndarray, np.ndarray]:
    """Returns the tokens [N, width] of a stream, framed, and how many of every row count [N].

    Raises:
      BadInput: it is empty.
    """
    if not len(stream):
        raise BadInput("There are no tokens to be scored.")
    room, before, after = frame.room, len(frame.before), len(frame.after)
    rows = np.zeros((ceil_div(len(stream), room), frame.width), np.int32)
    body = np.zeros((len(rows), room), np.int32)
    body.ravel()[: len(stream)] = stream
    rows[:, :before] = frame.before
    rows[:, before : before + room] = body
    lengths = np.full(len(rows), frame.width)
    lengths[-1] -= -len(stream) % room
    for row, length in zip(rows, lengths, strict=True):
        row[length - after : length] = frame.after
    return rows, lengths

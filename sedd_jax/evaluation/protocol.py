"""The conventions by which a text becomes blocks of tokens and a figure, and their record."""

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sedd_jax.data.prepared import open_data
from sedd_jax.data.round_trip import share_of_split, share_of_texts
from sedd_jax.data.token_blocks import Mixture
from sedd_jax.data.tokenizer import Tokenizer
from sedd_jax.errors import BadInput
from sedd_jax.evaluation.catalog import Text
from sedd_jax.experiment.run import DATA_FOLDER
from sedd_jax.inference.likelihood import check_draws
from sedd_jax.system.rounding import ceil_div

ESTIMATOR = 2  # raise it whenever the meaning of the figures of a protocol changes

EXACT = "exact"
COMPLETE = "complete: all terms at every draw"  # of a family whose bound has no other form
BOUNDS = {  # by whether it is complete
    False: "published: mean over [t_min, 1]",
    True: "complete: integral over [t_min, 1], prior term and final step",
}


@dataclasses.dataclass(frozen=True)
class Choices:
    """The choices of a user.

    Attributes:
      protocol: key of CONVENTIONS.
      draws: pairs of t and x_t for every block.
      times: how t is drawn, see `nll_bound`.
      complete: all terms of the bound, else those of the published convention.
      seed: of the draws.
      max_blocks: score so many blocks of a text, evenly spaced; None: all.

    Raises:
      BadInput: invalid draws.
    """

    protocol: str = "sedd"
    draws: int = 16
    times: str = "low-discrepancy"
    complete: bool = False
    seed: int = 0
    max_blocks: int | None = None

    def __post_init__(self):
        check_draws(self.draws, self.times)


@dataclasses.dataclass(frozen=True)
class Protocol:
    """All that a likelihood depends on beside the model: equal protocols make figures comparable.

    Attributes:
      protocol: key of CONVENTIONS.
      source: names of files without folders, or a corpus.
      sha256: of the detokenised documents, or of the tokens of a prepared text.
      split: test, validation or heldout; for files of `--sources` the one that is assumed.
      detokenizer: its name.
      wrap: whether documents continue across the borders of blocks.
      end_of_text: where end-of-text tokens stand.
      length: of the model.
      part: which blocks were scored.
      remainder: how the tokens after the last whole block are treated.
      first_token: whether the first token of a block is scored.
      t: how times were drawn; None, as the next two, where nothing is drawn.
      draws: of every block.
      t_min: the smallest time; None where no time is cut off.
      bound: the terms of the bound.
      seed: of the draws; None without draws.
      tokenizer: its fingerprint.
      estimator: its version.
    """

    protocol: str
    source: str
    sha256: str
    split: str
    detokenizer: str
    wrap: bool
    end_of_text: str
    length: int
    part: str
    remainder: str
    first_token: str
    t: str | None
    draws: int | None
    t_min: float | None
    bound: str
    seed: int | None
    tokenizer: str
    estimator: int = ESTIMATOR


class BlockFormat(NamedTuple):
    """The input of the model: `width` tokens, some of them before and after the text.

    Attributes:
      width: tokens of a full block.
      before: ids before the text.
      after: ids after the text.
      end_of_text: where end-of-text tokens stand, in words.
      first_token: how the first token is scored, in words.
      ends_documents: whether an end-of-text token follows every document.
    """

    width: int
    before: tuple[int, ...]
    after: tuple[int, ...]
    end_of_text: str
    first_token: str
    ends_documents: bool = True

    @property
    def room(self) -> int:
        """Tokens of text in a full block."""
        return self.width - len(self.before) - len(self.after)


NO_END = "none: the tokenizer has no such token"
_AFTER_ALL = "after every document"


def _sedd(length: int, end: int | None, autoregressive: bool) -> BlockFormat:
    """Blocks hold text only, and all of it is scored."""
    first = "scored, after the token that precedes every text in training"
    words = NO_END if end is None else _AFTER_ALL
    return BlockFormat(length, (), (), words, first if autoregressive else "scored")


def _mdlm(length: int, end: int | None, autoregressive: bool) -> BlockFormat:
    """Blocks are enclosed in two end-of-text tokens, the first given to an autoregressive model."""
    if end is None:
        return _sedd(length, end, autoregressive)
    words = f"{_AFTER_ALL}, and before and after every block"
    if length < 3:
        raise BadInput(
            f"The protocols mdlm and duo need a model of 3 tokens or more; its length is {length}."
        )
    if autoregressive:
        # for a GPT-2 this is an end-of-text token
        first = "the token that precedes every text in training, given and not scored"
        return BlockFormat(length - 1, (), (end,), f"{_AFTER_ALL}, and after every block", first)
    return BlockFormat(length, (end,), (end,), words, "an end-of-text token, scored")


def _duo(length: int, end: int | None, autoregressive: bool) -> BlockFormat:
    """The blocks of mdlm, of a text without end-of-text tokens between its documents."""
    mdlm = _mdlm(length, end, autoregressive)
    words = mdlm.end_of_text.removeprefix(f"{_AFTER_ALL}, and ")
    return mdlm._replace(end_of_text=words, ends_documents=False)


CONVENTIONS: dict[str, Callable[[int, int | None, bool], BlockFormat]] = {
    "sedd": _sedd,
    "mdlm": _mdlm,
    "duo": _duo,
}


class Blocks(NamedTuple):
    """Rows of tokens to score.

    Attributes:
      tokens: [N, L]; padding after the length of a row.
      lengths: [N], tokens of each row.
      documents: in the text; 0 where unknown, as in a part of it.
      utf8_bytes: of the text in the rows.
      tokenizer: of the ids.
      provenance: the fields of a `Protocol` on the text and on how it is cut.
      lost: the share of the characters that the tokenizer loses; None if the text comes back, NaN
        if that is not known.
      told: what a model with conditions is told of each row, by column; None: nothing.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    documents: int
    utf8_bytes: int
    tokenizer: Tokenizer
    provenance: dict[str, Any]
    lost: float | None = None
    told: list[dict[str, Any]] | None = None

    def spaced(self, most: int | None) -> "Blocks":
        """Returns at most `most` of the rows, evenly spaced."""
        count = len(self.tokens)
        if most is None or most >= count:
            return self
        rows = np.arange(most) * count // most
        whole = self.provenance["part"]
        part = f"{most} of {count} blocks, evenly spaced" + f", of {whole}" * (whole != "all")
        kept = self.tokens[rows], self.lengths[rows]
        size = _bytes_in(*kept, self.tokenizer)
        provenance = self.provenance | {"part": part}
        told = self.told and [self.told[row] for row in rows]
        return Blocks(*kept, 0, size, self.tokenizer, provenance, self.lost, told)


def of_text(text: Text, tokenizer: Tokenizer, block_format: BlockFormat) -> Blocks:
    """Returns the blocks of a text.

    Args:
      text: documents.
      tokenizer: encodes them.
      block_format: of a block.

    Raises:
      BadInput: the tokenizer has no ids for the text, or it is empty.
    """
    ends = tokenizer.eod_id is not None and block_format.ends_documents
    end = np.array([tokenizer.eod_id] if ends else [], np.int32)
    ids = [part for document in text.documents for part in (tokenizer.encode(document), end)]
    rows = cut(np.concatenate(ids), block_format)
    size = sum(len(document.encode()) for document in text.documents)
    source = {name: getattr(text, name) for name in ("source", "sha256", "split", "detokenizer")}
    provenance, lost = source | _of_stream(block_format), share_of_texts(tokenizer, text.documents)
    return Blocks(*rows, len(text.documents), size, tokenizer, provenance, lost)


def _of_stream(block_format):
    """The provenance of a stream that `cut` has cut."""
    return {
        "wrap": True,
        "end_of_text": block_format.end_of_text,
        "part": "all",
        "remainder": "scored, padded and masked out",
        "first_token": block_format.first_token,
    }


def of_heldout(folder: Path, length: int, format_for: Callable[[Tokenizer], BlockFormat]) -> Blocks:
    """Returns the held-out blocks of the run in `folder`.

    A stream of documents is cut again in that format, up to its last token. Data prepared as one
    document a block, and a mixture, whose blocks are in proportion to its weights, are scored as
    they are.

    Args:
      folder: a run.
      length: of the model, in tokens.
      format_for: the format of a block, from the tokenizer of the data.

    Raises:
      BadInput: the data of the run are missing, or cannot be cut as the protocol demands.
    """
    dataset = open_data(folder / DATA_FOLDER, length)
    split, tokenizer = dataset.heldout, dataset.tokenizer
    mixed = isinstance(split, Mixture)
    first = dataset.manifest["prepared"][0]["manifest"] if mixed else dataset.manifest
    wrapped, block_format = first["length"] is None, format_for(tokenizer)
    if tokenizer.eod_id is not None and not block_format.ends_documents:
        raise BadInput(
            "The held-out split of the run has an end-of-text token after every document, as it "
            "was prepared: take --protocol=mdlm, which is Duo's for such data."
        )
    if wrapped and not mixed:
        tokens, counts = split.stream, dataset.manifest["splits"]["heldout"]
        rows, provenance = cut(tokens, block_format), _of_stream(block_format)
        documents, size = counts["documents"], counts["utf8_bytes"]
    else:
        tokens = split.take(np.arange(len(split)))
        rows = tokens, np.full(len(tokens), length)
        provenance = _as_prepared(block_format, mixed, wrapped)
        documents, size = 0 if wrapped else len(tokens), _bytes_in(*rows, tokenizer)
    source = {
        "source": "data of the run",
        "sha256": hashlib.sha256(tokens.tobytes()).hexdigest(),
        "split": "heldout",
        "detokenizer": "none",
    }
    lost = share_of_split(tokenizer, dataset.manifest, "heldout")
    told = dataset.conditions and dataset.conditions.values(split.told_rows(np.arange(len(split))))
    return Blocks(*rows, documents, size, tokenizer, source | provenance, lost, told)


def _as_prepared(block_format, mixed, wrapped):
    """The provenance of blocks that are scored as they were prepared."""
    if block_format.before or block_format.after:
        kind = "a mixture" if mixed else "one document a block"
        raise BadInput(
            f"The held-out split of the run is {kind}, where no end-of-text tokens can be put "
            "around blocks: take --protocol=sedd."
        )
    return {
        "wrap": wrapped,
        "end_of_text": "as prepared: "
        + (block_format.end_of_text if wrapped else "fills the block up, and is scored"),
        "part": "whole blocks in proportion to the weights of the mixture" if mixed else "all",
        "remainder": "dropped: whole blocks only" if wrapped else "dropped: one block a document",
        "first_token": block_format.first_token,
    }


def _bytes_in(tokens, lengths, tokenizer):
    """The UTF-8 bytes of the text in the rows, counted by documents."""
    end = tokenizer.eod_id
    rows = (row[:length] for row, length in zip(tokens, lengths, strict=True))
    parts = (part for row in rows for part in np.split(row, np.flatnonzero(row == end)))
    return sum(tokenizer.size(part[part != end]) for part in parts)


def cut(stream: np.ndarray, block_format: BlockFormat) -> tuple[np.ndarray, np.ndarray]:
    """Returns the blocks [N, width] of a stream of tokens and their lengths [N].

    Raises:
      BadInput: the stream is empty.
    """
    if not len(stream):
        raise BadInput("There are no tokens to score.")
    room, before, after = block_format.room, len(block_format.before), len(block_format.after)
    rows = np.zeros((ceil_div(len(stream), room), block_format.width), np.int32)
    body = np.zeros((len(rows), room), np.int32)
    body.ravel()[: len(stream)] = stream
    rows[:, :before] = block_format.before
    rows[:, before : before + room] = body
    lengths = np.full(len(rows), block_format.width)
    lengths[-1] -= -len(stream) % room
    for row, length in zip(rows, lengths, strict=True):
        row[length - after : length] = block_format.after
    return rows, lengths

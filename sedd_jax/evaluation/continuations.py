"""Likelihoods of continuations given contexts, and whether greedy decoding finds them.

The continuations of one question are compared on common random numbers: the same times and, counted
from the first token of the continuation, the same noise. What two of them share then cancels in
their difference, which depends on the model alone in the limit of many draws either way.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Float, Int, Key

from sedd_jax.data.tokenizer import Tokenizer
from sedd_jax.errors import BadInput
from sedd_jax.inference.generate import generate
from sedd_jax.inference.likelihood import nll_bound
from sedd_jax.inference.model import TrainedModel
from sedd_jax.inference.prompt import Prompt
from sedd_jax.inference.template import padded_length

Advance = Callable[[int, int], None]


class Continuation(NamedTuple):
    """Tokens to score, after tokens that are given.

    Attributes:
      context: ids of the given tokens, may be empty.
      tokens: ids of the continuation, at least one.
      question: number below 2^32, the same for all that is compared on common random numbers.
    """

    context: Int[np.ndarray, "C"]
    tokens: Int[np.ndarray, "N"]
    question: int = 0

    @property
    def row(self) -> Int[np.ndarray, "L"]:
        """The context and the continuation."""
        return np.concatenate([self.context, self.tokens])


def split_text(
    tokenizer: Tokenizer, context: str, continuation: str
) -> tuple[Int[np.ndarray, "C"], Int[np.ndarray, "N"]]:
    """Returns the ids of a context and of its continuation.

    The whole text is encoded. The context ends before the first token in which the whole differs
    from the context alone: a token over the border belongs to the continuation. So do spaces at the
    end of the context, which tokenizers attach to the next word.

    Args:
      tokenizer: of the model.
      context: text; without any the end-of-text token is the context, if the tokenizer has one.
      continuation: text.

    Raises:
      BadInput: the continuation is empty, or the tokenizer has no ids for the text.
    """
    if not continuation:
        raise BadInput("The continuation is empty: there is nothing to score; give it some text.")
    whole = tokenizer.encode(context + continuation)
    if not context.strip():
        start = [] if tokenizer.eod_id is None else [tokenizer.eod_id]
        return np.array(start, np.int32), whole
    given = tokenizer.encode(context.rstrip())
    shared = min(len(given), len(whole))
    differs = given[:shared] != whole[:shared]
    border = int(differs.argmax()) if differs.any() else shared
    if border == len(whole):
        raise BadInput(
            f"The {tokenizer.kind} tokenizer has no token for the continuation {continuation!r}."
        )
    return whole[:border], whole[border:]


def fit(continuations: Sequence[Continuation], length: int) -> tuple[list[Continuation], int]:
    """Returns continuations whose rows fit a model, and how many contexts were cut from the left.

    Args:
      continuations: of any length.
      length: the most tokens of a row.

    Raises:
      BadInput: a continuation alone is longer.
    """
    fitting, cut = [], 0
    for each in continuations:
        room = length - len(each.tokens)
        if room < 0:
            raise BadInput(
                f"The continuation has {len(each.tokens)} tokens, more than the model's {length}: "
                "leave it out, or take a longer model."
            )
        if len(each.context) > room:
            each, cut = each._replace(context=each.context[len(each.context) - room :]), cut + 1
        fitting.append(each)
    return fitting, cut


class Rows(NamedTuple):
    """Rows that are padded to one width.

    Attributes:
      indices: of the rows among all.
      tokens: ids, 0 in the padding.
      held: the context of every row.
      lengths: tokens of every row.
    """

    indices: Int[np.ndarray, "n"]
    tokens: Int[np.ndarray, "n W"]
    held: np.ndarray
    lengths: Int[np.ndarray, "n"]


def rows_by_width(
    continuations: Sequence[Continuation], length: int, batch_size: int
) -> list[Rows]:
    """Returns rows of similar lengths together, in arrays of a few widths: a program for each.

    Fewer rows than a batch are padded to the next width that there is.

    Args:
      continuations: what the rows have.
      length: the most tokens of a row.
      batch_size: rows at a time.
    """
    sizes = np.array([len(each.row) for each in continuations], np.int32)
    widths = np.array([padded_length(len(each.row), length) for each in continuations])
    groups, waiting = [], np.zeros(0, int)
    for width in np.unique(widths):
        waiting = np.concatenate([waiting, np.flatnonzero(widths == width)])
        if len(waiting) < batch_size and width < widths.max():
            continue
        tokens = np.zeros((len(waiting), width), np.int32)
        for row, index in zip(tokens, waiting, strict=True):
            row[: sizes[index]] = continuations[index].row
        given = np.array([len(continuations[index].context) for index in waiting])
        held = np.arange(width) < given[:, None]
        groups.append(Rows(waiting, tokens, held, sizes[waiting]))
        waiting = np.zeros(0, int)
    return groups


def continuation_nll(
    key: Key[Array, ""],
    model: TrainedModel,
    continuations: Sequence[Continuation],
    *,
    difference: bool = False,
    batch_size: int = 32,
    progress: Advance | None = None,
    **estimate: Any,
) -> Float[np.ndarray, "N"]:
    """Returns the bound on -log p(continuation | context) in nats; exact if autoregressive.

    What is drawn for a continuation is a function of (key, its question).

    Args:
      key: random key.
      model: the model.
      continuations: what is scored; their rows fit the model.
      difference: the bound of context and continuation less that of the context, which is no
        bound; else the context is held.
      batch_size: rows at a time.
      progress: called as progress(done, total) after every batch of rows of one width.
      **estimate: `draws`, `times` and `complete`, see `nll_bound`.
    """

    def nll(scored):
        found = np.zeros(len(scored))
        for rows in rows_by_width(scored, model.config.model.length, batch_size):
            bound = nll_bound(
                key,
                model,
                rows.tokens,
                lengths=rows.lengths,
                held=rows.held,
                rows=[scored[index].question for index in rows.indices],
                batch_size=batch_size,
                progress=progress,
                **estimate,
            )
            found[rows.indices] = bound.nats.mean(0)
        return found

    if not difference:
        return nll(continuations)
    nothing = np.zeros(0, np.int32)
    whole = nll([each._replace(context=nothing, tokens=each.row) for each in continuations])
    contexts = {(each.question, each.context.tobytes()): each.context for each in continuations}
    given = {name: ids for name, ids in contexts.items() if len(ids)}
    alone = nll([Continuation(nothing, ids, name[0]) for name, ids in given.items()])
    of_context = dict(zip(given, alone, strict=True))
    return whole - [
        of_context.get((it.question, it.context.tobytes()), 0.0) for it in continuations
    ]


def found_greedily(
    key: Key[Array, ""],
    model: TrainedModel,
    continuations: Sequence[Continuation],
    *,
    batch_size: int = 32,
    progress: Advance | None = None,
    **settings: Any,
) -> np.ndarray:
    """Returns whether sampling at temperature 0, given context and length, gives a continuation.

    Args:
      key: random key, for samplers that draw more than tokens.
      model: the model.
      continuations: what is compared; their rows fit the model.
      batch_size: rows at a time.
      progress: called as progress(done, total) after every batch of rows of one width.
      **settings: of sampling, see `generate`.
    """
    found = np.zeros(len(continuations), bool)
    for rows in rows_by_width(continuations, model.config.model.length, batch_size):
        drawn, _ = generate(
            key,
            model,
            prompt=Prompt(rows.tokens, rows.held, rows.lengths),
            rows=np.array([continuations[index].question for index in rows.indices]),
            batch_size=batch_size,
            progress=progress,
            temperature=0.0,
            **settings,
        )
        padding = np.arange(drawn.shape[1]) >= rows.lengths[:, None]
        found[rows.indices] = ((drawn == rows.tokens) | padding).all(1)
    return found

"""Texts continued in blocks, each given the text so far, until a stop string or a limit."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Int, Key

from sedd_jax.errors import BadInput, check_positive
from sedd_jax.evaluation.continuations import Continuation, rows_by_width
from sedd_jax.inference.generate import generate
from sedd_jax.inference.model import TrainedModel
from sedd_jax.inference.prompt import Prompt


def complete(
    key: Key[Array, ""],
    model: TrainedModel,
    contexts: Sequence[Int[np.ndarray, "C"]],
    *,
    until: Sequence[str] = (),
    max_tokens: int = 256,
    block: int = 32,
    numbers: Sequence[int] | None = None,
    batch_size: int = 32,
    progress: Callable[[int, int], None] | None = None,
    **settings: Any,
) -> list[str]:
    """Returns texts that follow contexts, up to a stop string, an end-of-text token or a limit.

    A row is the end of its text so far, held, and a block of new tokens: together at most as long
    as the model. A row that has met a stop string is drawn no further.

    Args:
      key: random key; block i folds in i.
      model: the model, with its tokenizer.
      contexts: ids; may be empty.
      until: stop strings; a text ends before the first one in it.
      max_tokens: the most tokens of a text.
      block: tokens drawn at a time.
      numbers: of the texts: what is drawn for one is a function of (key, its number); 0 to N - 1 by
        default.
      batch_size: texts at a time.
      progress: called as progress(done, total) after every block, in tokens.
      **settings: of sampling, see `generate`.

    Raises:
      BadInput: a setting out of range.
    """
    length, tokenizer = model.config.model.length, model.tokenizer
    check_positive(max_tokens=max_tokens, block=block)
    if block >= length:
        raise BadInput(f"block must be less than the model's {length} tokens, got {block}.")
    numbers = np.arange(len(contexts)) if numbers is None else np.asarray(numbers)
    drawn = [np.zeros(0, np.int32) for _ in contexts]
    texts, unfinished = [""] * len(contexts), list(range(len(contexts)))
    for number, start in enumerate(range(0, max_tokens, block)):
        new = np.zeros(min(block, max_tokens - start), np.int32)
        rows = []
        for index in unfinished:
            text = np.concatenate([contexts[index], drawn[index]])
            given = text[max(len(text) - (length - len(new)), 0) :]
            rows.append(Continuation(given, new, int(numbers[index])))
        for group in rows_by_width(rows, length, batch_size):
            tokens, _ = generate(
                jax.random.fold_in(key, number),
                model,
                prompt=Prompt(group.tokens, group.held, group.lengths),
                rows=np.array([rows[index].question for index in group.indices]),
                batch_size=batch_size,
                **settings,
            )
            for index, row, size in zip(group.indices, tokens, group.lengths, strict=True):
                each = unfinished[index]
                drawn[each] = np.concatenate([drawn[each], row[size - len(new) : size]])
        still = []
        for index in unfinished:
            ids, ended = _before(drawn[index], tokenizer.eod_id)
            text = tokenizer.decode(ids, first=not len(contexts[index]))
            texts[index], stopped = _until(text, until)
            if not (ended or stopped):
                still.append(index)
        unfinished = still
        if progress is not None:
            progress(max_tokens if not unfinished else start + len(new), max_tokens)
        if not unfinished:
            break
    return texts


def _before(ids, end):
    """The ids before the end-of-text token, and whether there is one."""
    at = np.flatnonzero(ids == end)
    return (ids[: at[0]], True) if end is not None and at.size else (ids, False)


def _until(text, stops):
    """The text before the first stop string, and whether there is one."""
    found = [place for place in (text.find(stop) for stop in stops if stop) if place >= 0]
    return (text[: min(found)], True) if found else (text, False)

"""The input of a batch job: JSON lines, each a row to fill in or an error about the line."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sedd_jax.data.signatures import HEAD_BYTES, MARK, check
from sedd_jax.errors import BadInput
from sedd_jax.inference.conditions import check_guided, conditions_of
from sedd_jax.inference.model import TrainedModel
from sedd_jax.inference.prompt import Prompt
from sedd_jax.inference.template import (
    PromptRow,
    max_tokens,
    row_between,
    row_from_template,
    row_from_tokens,
)

_PROMPTS = ({"template"}, {"tokens"}, {"prefix", "suffix"})  # a line has keys of one of them
_KEYS = {"id", "length", "condition"}.union(*_PROMPTS)
_NUM_IDS = 2**32


class InputRow(NamedTuple):
    """A line of the input.

    Attributes:
      index: of the line, from 0; empty lines count.
      id: its name, `index` by default; None if it could not be read.
      number: what its randomness is a function of, beside the seed.
      digest: of its text.
      prompt: the given tokens; None if the line is malformed.
      error: what is malformed.
      condition: the value of every condition of the model, None where it is not told.
    """

    index: int
    id: int | str | None
    number: int
    digest: str
    prompt: PromptRow | None
    error: str | None
    condition: dict[str, Any] = {}  # noqa: RUF012 - never changed


def read_rows(path: Path, checkpoint: TrainedModel, sampling: Any = None) -> list[InputRow]:
    """Returns the rows of a file for a model to fill in, the malformed ones included.

    Args:
      path: the file.
      checkpoint: the model.
      sampling: how to draw, of its family; None: without guidance, which needs conditions.

    Raises:
      BadInput: the file cannot be read or is empty.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BadInput(f"--input={path} cannot be read ({error.strerror}).") from error
    check(path, content[:HEAD_BYTES], "jsonl", named=True)
    rows = list(_parse(content, checkpoint, sampling))
    if not rows:
        raise BadInput(f"--input={path} is empty: it must hold JSON lines, one for each row.")
    return rows


def number_of(name: int | str) -> int:
    """Returns the number of a row: its id, or 32 bits of the SHA-256 of an id that is a string."""
    if isinstance(name, int):
        return name
    digest = hashlib.sha256(name.encode(errors="surrogatepass")).digest()
    return int.from_bytes(digest[:4], "little")


def _parse(content: bytes, checkpoint: TrainedModel, sampling: Any) -> Iterator[InputRow]:
    indices = {}
    for index, text in enumerate(content.removeprefix(MARK).split(b"\n")):
        if not text.strip():
            continue
        digest = hashlib.sha256(text.strip()).hexdigest()[:16]
        name = None
        try:
            fields = _object(text)
            name = _id(fields, index)
            if name in indices:
                raise BadInput(f"The id {name!r} is that of line {indices[name] + 1} already.")
            indices[name] = index
            prompt = _prompt(fields, checkpoint)
            told = _condition(fields, checkpoint, sampling)
            yield InputRow(index, name, number_of(name), digest, prompt, None, told)
        except BadInput as error:
            yield InputRow(index, name, 0, digest, None, str(error))


def _object(text):
    try:
        fields = json.loads(text.decode())
    except (ValueError, RecursionError) as error:
        raise BadInput(f"The line is not JSON ({error}).") from error
    if not isinstance(fields, dict):
        raise BadInput('The line must be a JSON object, as in {"template": "Once[MASK:12]."}.')
    return fields


def _id(fields, index):
    name = fields.get("id", index)
    if type(name) not in (int, str) or (type(name) is int and not 0 <= name < _NUM_IDS):
        raise BadInput(f"id must be a string or a whole number in [0, 2^32), got {name!r:.60}.")
    return name


def _condition(fields, checkpoint, sampling):
    told = fields.get("condition", {})
    if not isinstance(told, dict):
        raise BadInput(f'condition must be an object, as in {{"class": "EI"}}, got {told!r:.60}.')
    if not told and not checkpoint.conditions:
        return {}
    conditions = conditions_of(checkpoint)
    check_guided(checkpoint, sampling, conditions.encode([told]))
    return conditions.every(told)


def _prompt(fields, checkpoint):
    if unknown := fields.keys() - _KEYS:
        names = ", ".join(sorted(_KEYS))
        raise BadInput(f"{min(unknown)!r:.60} is not a key of a row: it may have {names}.")
    if sum(not keys.isdisjoint(fields) for keys in _PROMPTS) > 1:
        raise BadInput("A row has a template, or tokens, or prefix and suffix: only one of these.")
    for key, kind in {"template": str, "prefix": str, "suffix": str, "tokens": list}.items():
        if key in fields and not isinstance(fields[key], kind):
            wanted = "text" if kind is str else "a list"
            raise BadInput(f"{key} must be {wanted}, got {fields[key]!r:.60}.")
    length = fields.get("length")
    bounds = length, max_tokens(checkpoint, length)
    if "template" in fields:
        row = row_from_template(fields["template"], checkpoint.tokenizer, *bounds)
    elif "tokens" in fields:
        row = row_from_tokens(fields["tokens"], checkpoint.family.num_tokens, *bounds)
    else:
        texts = fields.get("prefix", ""), fields.get("suffix", "")
        row = row_between(*texts, checkpoint.tokenizer, *bounds)
    checkpoint.family.check_prompt(Prompt(row.tokens[np.newaxis], row.held[np.newaxis]))
    return row

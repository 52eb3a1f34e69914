"""The input of a batch job: JSON lines, each a row to draw or a sentence about why it is none."""

import codecs
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sedd_jax.errors import BadInput
from sedd_jax.inference.model import TrainedModel
from sedd_jax.inference.prompt import Prompt
from sedd_jax.inference.template import Row, between, fill, most_tokens, of_tokens

_KINDS = ({"template"}, {"tokens"}, {"prefix", "suffix"})  # what says which tokens are given
_COMMON = {"id", "length"}
_NUMBERS = 2**32


class Line(NamedTuple):
    """A row of the input.

    Attributes:
      index: of the line, from 0; empty lines count.
      id: its name, `index` by default; None if it has none that could be read.
      number: what its randomness is a function of, beside the seed.
      digest: of its text.
      row: what is given; None if the line is malformed.
      error: why it is.
    """

    index: int
    id: int | str | None
    number: int
    digest: str
    row: Row | None
    error: str | None


def read_lines(path: Path, checkpoint: TrainedModel) -> list[Line]:
    """Returns the rows of a file for a model to draw, the malformed ones too.

    Raises:
      BadInput: no such file, or nothing in it.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BadInput(f"--input={path} cannot be read ({error.strerror}).") from error
    lines = list(_parsed(content, checkpoint))
    if not lines:
        raise BadInput(f"--input={path} is empty: it must hold JSON lines, one for each row.")
    return lines


def number_of(name: int | str) -> int:
    """Returns the number of a row: its id, or 32 bits of a SHA-256 of it if that is a string."""
    if isinstance(name, int):
        return name
    digest = hashlib.sha256(name.encode(errors="surrogatepass")).digest()
    return int.from_bytes(digest[:4], "little")


def _parsed(content: bytes, checkpoint: TrainedModel) -> Iterator[Line]:
    known = {}
    for index, text in enumerate(content.removeprefix(codecs.BOM_UTF8).split(b"\n")):
        if not text.strip():
            continue
        digest = hashlib.sha256(text.strip()).hexdigest()[:16]
        name = None
        try:
            fields = _object(text)
            name = _id(fields, index)
            if name in known:
                raise BadInput(f"The id {name!r} is that of line {known[name] + 1} already.")
            known[name] = index
            yield Line(index, name, number_of(name), digest, _row(fields, checkpoint), None)
        except BadInput as error:
            yield Line(index, name, 0, digest, None, str(error))


def _object(text: bytes) -> dict:
    try:
        fields = json.loads(text.decode())
    except (ValueError, RecursionError) as error:
        raise BadInput(f"The line is no JSON ({error}).") from error
    if not isinstance(fields, dict):
        raise BadInput('The line must be a JSON object, as in {"template": "Once[MASK:12]."}.')
    return fields


def _id(fields: dict, index: int) -> int | str:
    name = fields.get("id", index)
    if type(name) not in (int, str) or (type(name) is int and not 0 <= name < _NUMBERS):
        raise BadInput(f"id must be a string or a whole number in [0, 2^32), got {name!r:.60}.")
    return name


def _row(fields: dict, checkpoint: TrainedModel) -> Row:
    if unknown := fields.keys() - _COMMON.union(*_KINDS):
        names = ", ".join(sorted(_COMMON.union(*_KINDS)))
        raise BadInput(f"{min(unknown)!r:.60} is no key of a row: it may have {names}.")
    given = [kind & fields.keys() for kind in _KINDS if kind & fields.keys()]
    if len(given) > 1:
        raise BadInput("A row has a template, or tokens, or prefix and suffix: only one of these.")
    for key, kind in {"template": str, "prefix": str, "suffix": str, "tokens": list}.items():
        if key in fields and not isinstance(fields[key], kind):
            wanted = "text" if kind is str else "a list"
            raise BadInput(f"{key} must be {wanted}, got {fields[key]!r:.60}.")
    tokenizer = checkpoint.tokenizer
    length = fields.get("length")
    most = most_tokens(checkpoint, length)
    if "template" in fields:
        row = fill(fields["template"], tokenizer, length, most)
    elif "tokens" in fields:
        row = of_tokens(fields["tokens"], checkpoint.family.num_tokens, length, most)
    else:
        texts = fields.get("prefix", ""), fields.get("suffix", "")
        row = between(*texts, tokenizer, length, most)
    checkpoint.family.check_prompt(Prompt(row.tokens[np.newaxis], row.held[np.newaxis]))
    return row

"""Samples as files: the ending of a name chooses the format, here and nowhere else.

.jsonl: a JSON object for every sample, with all settings.
.txt: the samples as they are printed.
.csv: a row for every sample, below a header; `data.format=csv` reads it.
.npz: arrays; tokens [N, L] with -1 after the end of a shorter row, lengths, texts, conditions.
.fasta, .fa: sequences, with their conditions in the header, in brackets where a value has spaces;
`data.format=fasta` reads them.

What a sample is conditioned on is in the field `condition` of its record, a value by its name.
"""

import csv
import io
import json
import re
import string
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sedd_jax.data.characters import END_OF_DOCUMENT, Characters, Tokenizer
from sedd_jax.errors import BadInput

Records = Sequence[Mapping[str, Any]]

JSON_LINES = ".jsonl"
_FASTA = (".fasta", ".fa")
_LETTERS = set(string.ascii_letters + "*-.")  # of nucleotides and amino acids, stops and gaps
# names that a condition has with "condition." before it; np.savez has an argument file
_TAKEN = {"index", "id", "seed", "evaluations", "text", "tokens", "lengths", "file"}
_LINE = 80  # letters of a line of FASTA


def json_lines(records: Iterable[Mapping[str, Any]]) -> bytes:
    """Returns records as JSON lines."""
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def _text(records):
    return "".join(f"--- sample ---\n{_shown(record)}\n" for record in records).encode()


def _csv(records):
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns := _columns(records))
    writer.writerows(zip(*columns.values(), strict=True))
    return file.getvalue().encode()


def _npz(records):
    columns = {name: _array(values) for name, values in _columns(records).items()}
    lengths = np.array([len(record["tokens"]) for record in records])
    tokens = np.full((len(records), lengths.max()), -1, np.int32)
    for row, record in zip(tokens, records, strict=True):
        row[: len(record["tokens"])] = record["tokens"]
    file = io.BytesIO()
    np.savez_compressed(file, tokens=tokens, lengths=lengths, **columns)
    return file.getvalue()


def _array(values):
    """A column as an array; what is not told is NaN among numbers, and empty among texts."""
    told = np.array([value for value in values if value is not None])
    is_text = told.dtype.kind == "U" or not told.size
    untold = "" if is_text else np.full(told.shape[1:], np.nan)
    return np.array([untold if value is None else value for value in values])


def _fasta(records):
    return "".join(map(_fasta_record, records)).encode()


def _fasta_record(record):
    told = {name: it for name, it in (record.get("condition") or {}).items() if it is not None}
    named = _renamed(told) | {"seed": record["seed"]}
    words = [re.sub(r"\s+", "_", str(record.get("id", f"sample_{record['index']}")))]
    for name, value in named.items():
        text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
        word = f"{name}=" + re.sub(r"\s", " ", text)
        words.append(f"[{word}]" if " " in word else word)
    header = " ".join(words)
    sequence, _, _ = record["text"].partition(END_OF_DOCUMENT)
    return "\n".join([f">{header}", *textwrap.wrap(sequence, _LINE), ""])


def _columns(records):
    """The values of all records by column: index, id if they have one, conditions, and text."""
    own = {
        name: [record[name] for record in records] for name in ("index", "id") if name in records[0]
    }
    own |= {name: [record[name] for record in records] for name in ("seed", "evaluations")}
    last = {"text": list(map(_shown, records))}
    conditions = {
        name: [record["condition"][name] for record in records]
        for name in records[0].get("condition") or {}
    }
    return own | _renamed(conditions) | last


def _renamed(told):
    """What is told by name, under other names where fields and arrays have these."""
    return {f"condition.{name}" if name in _TAKEN else name: it for name, it in told.items()}


def _shown(record):
    """The text of a record; its ids where there is no tokenizer."""
    text = record["text"]
    return " ".join(map(str, record["tokens"])) if text is None else text


FORMATS: dict[str, Callable[[Records], bytes]] = {
    JSON_LINES: json_lines,
    ".txt": _text,
    ".csv": _csv,
    ".npz": _npz,
    **dict.fromkeys(_FASTA, _fasta),
}


def check_format(path: Path, tokenizer: Tokenizer | None = None, *, loaded: bool = False) -> None:
    """Checks that samples can be written to a file of this name.

    Args:
      path: the file.
      tokenizer: of the model that draws them; None for one without.
      loaded: whether the model is loaded, and so its tokenizer known.

    Raises:
      BadInput: the ending is of no format, or the samples are no sequences of letters.
    """
    if path.suffix not in FORMATS:
        raise BadInput(
            f"--output={path} does not end in one of {', '.join(FORMATS)}, which choose the format."
        )
    if loaded and path.suffix in _FASTA:
        alphabet = tokenizer.alphabet if isinstance(tokenizer, Characters) else " "
        if not set(alphabet) <= _LETTERS:
            kind = "none" if tokenizer is None else repr(tokenizer.kind)
            raise BadInput(
                f"--output={path} is FASTA, which holds sequences of letters, and the tokenizer of "
                f"the model ({kind}) has other tokens: give a name that ends in {JSON_LINES}."
            )


def encoded(path: Path, records: Records) -> bytes:
    """Returns the content of a file of samples, see `check_format`."""
    return FORMATS[path.suffix](records)

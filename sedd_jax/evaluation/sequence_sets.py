"""Files of sequences, and what they tell of each, as the reader of training data finds them."""

import hashlib
import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sedd_jax.data.columns import Column, condition_text
from sedd_jax.data.documents import BLANK, Fault, Recipe
from sedd_jax.data.sources import pieces
from sedd_jax.data.tables import HUGGING_FACE, TFDS
from sedd_jax.errors import BadInput
from sedd_jax.system import mirror

FEWEST = 20  # sequences of a set, for its figures to mean anything


class SequenceSet(NamedTuple):
    """The sequences of a file.

    Attributes:
      name: of the file.
      sha256: of the sequences and what they tell.
      texts: capitals, without white space.
      labels: the class of each, None where no label is asked for.
      targets: the number of each, likewise.
    """

    name: str
    sha256: str
    texts: list[str]
    labels: list[str] | None
    targets: np.ndarray | None

    def of_class(self, label: str) -> "SequenceSet":
        """Returns the sequences of a class."""
        kept = [i for i, each in enumerate(self.labels) if each == label]
        texts = [self.texts[i] for i in kept]
        targets = None if self.targets is None else self.targets[kept]
        return self._replace(texts=texts, labels=[label] * len(kept), targets=targets)


def read_set(
    path: str, *, field: str = "text", label: str | None = None, target: str | None = None
) -> SequenceSet:
    """Reads the sequences of a file, and what it tells of them.

    Args:
      path: any source of `config.data.corpus`: FASTA, CSV, JSON lines and others.
      field: the column of the sequences.
      label: the column of classes, None for none.
      target: the column of numbers, None for none.

    Raises:
      BadInput: a sequence that cannot be read or lacks a column, or fewer than `FEWEST`.
    """
    columns = [Column(label, "label")] * bool(label) + [Column(target, "number")] * bool(target)
    recipe = Recipe(field=field, condition=condition_text(columns), wrap=False)
    if not path.startswith((TFDS, HUGGING_FACE)):
        path = str(mirror.local_file(path))
    try:
        texts, told = _texts_and_told(recipe, path)
    except BadInput as error:  # of a reader that knows a config, and here are flags
        text = str(error).replace("config.data.condition", "--label or --target")
        raise BadInput(text.replace("config.data.field", "--field")) from error
    if len(texts) < FEWEST:
        raise BadInput(
            f"{path} has {len(texts)} sequences, and figures of fewer than {FEWEST} mean nothing: "
            "give more."
        )
    values = list(zip(*told, strict=True))
    labels = [str(each) for each in values[0]] if label else None
    targets = np.array([float(each[0]) for each in values[-1]]) if target else None
    facts = json.dumps([texts, labels, None if targets is None else targets.tolist()])
    digest = hashlib.sha256(facts.encode()).hexdigest()
    return SequenceSet(Path(path).name, digest, texts, labels, targets)


def _texts_and_told(recipe, path):
    """What `read_set` reads: sequences, and the values of the columns of each."""
    texts, told = [], []
    for piece in pieces(recipe, path):
        for document in piece.documents():
            content = document.content
            if isinstance(content, np.ndarray):
                content = Fault("holds ids", ", not letters: give FASTA or CSV")
            if content is BLANK:
                continue
            if isinstance(content, Fault):
                raise BadInput(f"{piece.place(document.where)} {content.reason}.")
            texts.append("".join(content.split()).upper())
            told.append(document.told)
    return texts, told


def check_disjoint(real: Mapping[str, SequenceSet]) -> None:
    """Raises BadInput for sets of real sequences, by the names of their flags, that share some."""
    for (a, one), (b, other) in itertools.combinations(real.items(), 2):
        if shared := len(set(one.texts) & set(other.texts)):
            raise BadInput(
                f"{shared} sequences of --{a} are in --{b} too, where a figure would "
                "know its answer: split the data so that equal sequences stay together "
                "(examples/split_sequences.py)."
            )

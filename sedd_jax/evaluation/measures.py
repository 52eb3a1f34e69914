"""Measures of samples: diversity, repetition, and MAUVE against real text.

A sample is a row of token ids. Entropy, distinct n-grams and repetition need neither text nor a
model; beside a generative perplexity they show whether a low one comes from dull samples.
"""

import hashlib
import importlib.metadata
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from sedd_jax.data.prepared import open_data
from sedd_jax.data.round_trip import changed
from sedd_jax.data.signatures import decoded
from sedd_jax.data.sources import format_of
from sedd_jax.errors import BadInput
from sedd_jax.experiment.run import DATA_FOLDER
from sedd_jax.inference.model import TrainedModel
from sedd_jax.system import mirror
from sedd_jax.system.packages import package
from sedd_jax.system.processes import warn_on_primary

MIN_TEXTS = 20  # for MAUVE: two clusters
FEW_TEXTS = 1000  # with fewer, MAUVE depends more on their number than on the model

TokenRows = Sequence[np.ndarray]  # integers, each row [its own length]; an array [N, L] is one


class Estimate(NamedTuple):
    """A figure and its standard error.

    Attributes:
      value: the figure.
      stderr: its standard error.
      each: what every text contributes: the mean is `value`, the standard error of the mean
        `stderr`. So errors of figures of the same texts can be combined. Empty where texts have
        no such part.
    """

    value: float
    stderr: float
    each: Sequence[float] = ()


def mean(values: np.ndarray) -> Estimate:
    """Returns the mean of at least two independent values."""
    values = np.asarray(values, np.float64)
    stderr = values.std(ddof=1) / np.sqrt(len(values))
    return Estimate(float(values.mean()), float(stderr), values.tolist())


def ratio(numerators: np.ndarray, denominators: np.ndarray) -> Estimate:
    """Returns sum / sum over at least two independent pairs, its error by the delta method."""
    numerators, denominators = (np.asarray(x, np.float64) for x in (numerators, denominators))
    count, total = len(numerators), denominators.sum()
    value = numerators.sum() / total
    residuals = numerators - value * denominators
    stderr = np.sqrt(count / (count - 1) * np.sum(residuals**2)) / total
    each = value + residuals * (count / total)
    return Estimate(float(value), float(stderr), each.tolist())


def entropy(rows: TokenRows) -> Estimate:
    """Returns the unigram entropy of a sample in nats, as a mean over samples.

    -sum_v p_v log p_v with p_v the share of token v in the sample, at most log L. The literature
    prints it beside generative perplexities.
    """
    return mean([_entropy(np.unique(row, return_counts=True)[1]) for row in rows])


def distinct(rows: TokenRows, n: int) -> float:
    """Returns distinct n-grams / n-grams, both counted over all samples together.

    It falls with the number of samples: compare it at the same number and length.

    References: Li et al. 2016, arXiv 1510.03055.
    """
    grams = np.concatenate([_grams(row, n) for row in rows])
    return len(np.unique(grams, axis=0)) / len(grams)


def self_repetition(rows: TokenRows, n: int = 4) -> Estimate:
    """Returns the share of a sample's n-grams that repeat earlier ones, as a mean over samples."""
    grams = [_grams(row, n) for row in rows]
    return mean([1 - len(np.unique(each, axis=0)) / len(each) for each in grams])


def _entropy(counts):
    share = counts / counts.sum()
    return -np.sum(share * np.log(share))


def _grams(row, n):
    """The n-grams of a row of at least n tokens, [its length - n + 1, n]."""
    return np.lib.stride_tricks.sliding_window_view(np.asarray(row), n)


def load_mauve() -> str:
    """Imports mauve-text, which takes seconds, and returns its name and version.

    Raises:
      BadInput: it is not installed; it is GPL, and so in an extra of its own.
    """
    _mauve_package()
    return f"mauve-text {importlib.metadata.version('mauve-text')}"


def check_counts(samples: int, texts: int) -> None:
    """Raises BadInput for fewer than `MIN_TEXTS` samples or real texts."""
    if min(samples, texts) < MIN_TEXTS:
        raise BadInput(
            f"MAUVE needs at least {MIN_TEXTS} samples and as many blocks of real text, got "
            f"{samples} and {texts}; a figure to report needs {FEW_TEXTS} of each."
        )


def mauve(samples: np.ndarray, reference: np.ndarray) -> float:
    """Returns the MAUVE of features [N, D] against those of real text [M, D]; at most 1, if equal.

    It quantises both sets in min(N, M) / 10 clusters: below a thousand texts of each it depends
    more on that number than on the model, and separates only good samples from very bad ones.

    References: Pillutla et al. 2021, arXiv 2102.01454.
    """
    found = _mauve_package().compute_mauve(p_features=reference, q_features=samples)
    return float(found.mauve)


def _mauve_package():
    return package("mauve", '"sedd_jax[mauve]"', "MAUVE")


class Reference(NamedTuple):
    """Blocks of real text, in the tokens of the model whose samples are measured.

    Attributes:
      name: "heldout", or the name of a file.
      sha256: of the file, or of the held-out tokens.
      rows: [M, L], as long as the samples.
    """

    name: str
    sha256: str
    rows: np.ndarray

    @property
    def facts(self) -> dict[str, Any]:
        """What a record holds about it."""
        return {"name": self.name, "sha256": self.sha256, "texts": len(self.rows)}


def read_reference(source: str, checkpoint: TrainedModel, length: int, count: int) -> Reference:
    """Returns at most `count` blocks of `length` tokens, evenly spaced over a text.

    Args:
      source: "heldout" for the held-out split of the model's run, or a text file.
      checkpoint: the model, whose tokenizer encodes a file.
      length: tokens of a block.
      count: the number of samples.

    Raises:
      BadInput: no such text, no tokenizer, or less than a block.
    """
    if source == "heldout":
        blocks = _heldout(checkpoint, length)
        rows = blocks.take(_evenly_spaced(len(blocks), count))
        return Reference("heldout", hashlib.sha256(rows.tobytes()).hexdigest(), rows)
    path = mirror.local_file(source, "--reference")
    if not path.is_file():
        raise BadInput(f'There is no reference text {path}; give a text file, or "heldout".')
    if checkpoint.tokenizer is None:
        raise BadInput("A reference text needs the tokenizer of the model, which has none.")
    if (form := format_of(path)) not in (None, "text"):
        raise BadInput(f"The reference {path} holds {form} by its name; give a file of plain text.")
    content = path.read_bytes()
    text = decoded(content, f"The reference {path}")
    tokens = checkpoint.tokenizer.encode(text)
    if lost := changed(checkpoint.tokenizer, text, tokens):
        share = lost.letters.total() / len(text)
        warn_on_primary(
            f"the tokenizer of the model loses {share:.2%} of the characters of {path}; "
            f"{lost.first}"
        )
    rows = tokens[: len(tokens) // length * length].reshape(-1, length)
    if not len(rows):
        raise BadInput(f"The reference {path} has {len(tokens)} tokens, less than {length}.")
    rows = rows[_evenly_spaced(len(rows), count)]
    return Reference(path.name, hashlib.sha256(content).hexdigest(), rows)


def _heldout(checkpoint, length):
    data = None if checkpoint.folder is None else checkpoint.folder / DATA_FOLDER
    if data is None or not data.is_dir():
        raise BadInput(
            "The checkpoint is not a run with its data, so it has no held-out text; give a file."
        )
    return open_data(data, length).heldout


def _evenly_spaced(available, count):
    count = min(available, count)
    return np.arange(count) * available // count

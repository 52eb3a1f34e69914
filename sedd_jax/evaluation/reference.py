"""Real texts that samples are held against: blocks of tokens, as long as the samples."""

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sedd_jax.data.prepared import open_data
from sedd_jax.errors import BadInput
from sedd_jax.experiment.run import DATA_FOLDER
from sedd_jax.inference.model import TrainedModel


class Reference(NamedTuple):
    """Blocks of real text, in the tokens of the model whose samples are measured.

    Attributes:
      name: "heldout", or the name of a file.
      sha256: of the file, or of the tokens held out.
      rows: [M, L].
    """

    name: str
    sha256: str
    rows: np.ndarray

    @property
    def about(self) -> dict[str, Any]:
        """What a record says of it."""
        return {"name": self.name, "sha256": self.sha256, "texts": len(self.rows)}


def read_reference(source: str, checkpoint: TrainedModel, length: int, count: int) -> Reference:
    """Returns at most `count` blocks of `length` tokens, evenly spaced over a text.

    Args:
      source: "heldout" for the text that the run of the checkpoint held out, or a file of text.
      checkpoint: the model, by whose tokenizer a file is read.
      length: tokens of a block.
      count: of the samples.

    Raises:
      BadInput: no such text, no tokenizer, or less than a block.
    """
    if source == "heldout":
        blocks = _heldout(checkpoint, length)
        rows = blocks.take(_spaced(len(blocks), count))
        return Reference("heldout", hashlib.sha256(rows.tobytes()).hexdigest(), rows)
    path = Path(source)
    if not path.is_file():
        raise BadInput(f'There is no reference text {path}; give a file of text, or "heldout".')
    if checkpoint.tokenizer is None:
        raise BadInput("A reference text needs the tokenizer of the model, which has none.")
    content = path.read_bytes()
    try:
        tokens = checkpoint.tokenizer.encode(content.decode())
    except UnicodeDecodeError as error:
        raise BadInput(f"The reference {path} is no text in UTF-8 ({error}).") from error
    rows = tokens[: len(tokens) // length * length].reshape(-1, length)
    if not len(rows):
        raise BadInput(f"The reference {path} has {len(tokens)} tokens, less than {length}.")
    return Reference(
        path.name, hashlib.sha256(content).hexdigest(), rows[_spaced(len(rows), count)]
    )


def _heldout(checkpoint, length):
    data = None if checkpoint.folder is None else checkpoint.folder / DATA_FOLDER
    if data is None or not data.is_dir():
        raise BadInput(
            "The checkpoint is no run with its data, so it has no text held out; give a file."
        )
    return open_data(data, length).heldout


def _spaced(available, count):
    count = min(available, count)
    return np.arange(count) * available // count

"""The tokenizer of a SentencePiece model, trained on a corpus or given as a file."""

import io
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from sedd_jax.data.characters import Tokenizer
from sedd_jax.errors import BadInput
from sedd_jax.system.packages import package

# SentencePiece silently skips a training line above max_sentence_length (in bytes, at most four per
# character), so longer lines are cut.
_MAX_LINE_CHARACTERS = 20_000
# SentencePiece drops a training line with its symbol for "space" or "unknown".
_RESERVED = str.maketrans("", "", "\u2581\u2585")
# Many models put a space before a text, and drop it when they decode. Text that is not at the start
# of a document stands behind this private-use character, which no piece joins to what follows.
_LEAD = "\ue000"
_PACKAGE = ("sentencepiece", "sentencepiece", "The tokenizer 'sentencepiece'")


def _training_lines(texts: Iterable[str]) -> Iterator[str]:
    """Yields the lines that SentencePiece trains on; a newline is a piece by itself."""
    for text in texts:
        for line in text.translate(_RESERVED).split("\n"):
            for start in range(0, len(line), _MAX_LINE_CHARACTERS):
                yield line[start : start + _MAX_LINE_CHARACTERS]


def _is_exact(model: bytes, prefix: bool) -> bool:
    """Returns whether every text comes back from a model, by its settings.

    It has to keep all characters and spaces as they are, and spell by bytes what no piece covers. A
    space before each text is dropped again if it is a piece of its own, `prefix`.
    """
    try:
        proto = package("sentencepiece.sentencepiece_model_pb2", *_PACKAGE[1:]).ModelProto
    except BadInput:  # protobuf is missing
        return False
    settings = proto.FromString(model)
    rules = settings.normalizer_spec
    changes = (
        rules.precompiled_charsmap,
        rules.add_dummy_prefix and not prefix,
        rules.remove_extra_whitespaces,
        settings.denormalizer_spec.precompiled_charsmap,
    )
    in_bytes = sum(piece.type == piece.BYTE for piece in settings.pieces)
    return not any(changes) and settings.trainer_spec.byte_fallback and in_bytes == 256


class SentencePiece(Tokenizer):
    """The pieces of a SentencePiece model; one that `fit` made is `exact`.

    With such a model, `encode` never gives the ids for unknown pieces and the end of a document.

    References:
      Kudo, Richardson 2018, SentencePiece, arXiv 1808.06226
    """

    kind = "sentencepiece"
    _FILE = "sentencepiece.model"

    def __init__(self, model: bytes, place: str = "the sentencepiece model"):
        """Loads a serialised model; `place` is where it comes from, for messages.

        Raises:
          BadInput: the model is damaged or has no id for the end of a document.
        """
        self._model = model
        try:
            if not model:  # which the package takes for a model without pieces
                raise RuntimeError("the file is empty")
            self._processor = package(*_PACKAGE).SentencePieceProcessor(model_proto=model)
        except (RuntimeError, UnicodeDecodeError) as error:  # the message may be undecodable
            raise BadInput(
                f"{place} is damaged or no sentencepiece model; get it again."
            ) from error
        self.vocab_size = self._processor.vocab_size()
        self.eod_id = self._processor.eos_id()
        if self.eod_id < 0:
            raise BadInput(
                f"{place} has no id for the end of a sentence, which ends documents here; train "
                "one with an eos_id."
            )
        # SentencePiece stores a space as U+2581, so a real U+2581 would be decoded as a space; as
        # bytes it survives
        self._lower_block = [self._processor.piece_to_id(f"<0x{b:02X}>") for b in "\u2581".encode()]
        lead = self._processor.encode(_LEAD)
        spaced = self._processor.id_to_piece(lead[0]).startswith("\u2581")
        strips = self._processor.encode(" " + _LEAD) == lead
        self._lead = lead if spaced or strips else []
        self._puts_space = spaced
        alone = self._processor.id_to_piece(lead[0]) == "\u2581"
        in_bytes = all(map(self._processor.is_byte, lead[1:]))
        self.exact = _is_exact(model, prefix=alone and in_bytes)

    @classmethod
    def fit(cls, texts: Iterable[str], vocab_size: int) -> "SentencePiece":
        """Trains byte-pair pieces, with bytes for what no piece covers, deterministically.

        Args:
          texts: the training documents, which have to fit in memory.
          vocab_size: the exact number of ids.

        Raises:
          BadInput: the text does not give `vocab_size` pieces.
        """
        model = io.BytesIO()
        try:
            package(*_PACKAGE).SentencePieceTrainer.train(
                sentence_iterator=_training_lines(texts),
                model_writer=model,
                vocab_size=vocab_size,
                model_type="bpe",
                byte_fallback=True,
                normalization_rule_name="identity",
                remove_extra_whitespaces=False,
                add_dummy_prefix=False,
                user_defined_symbols=["\n"],
                unk_id=0,
                eos_id=1,
                bos_id=-1,
                pad_id=-1,
                max_sentence_length=100_000,
                num_threads=1,
                minloglevel=2,
            )
        except RuntimeError as error:
            reason = " ".join(str(error).rpartition("] ")[2].split()) or "there is no text"
            advice = "raise it" if "smaller than" in reason else "lower it or give more text"
            raise BadInput(
                f"Cannot train a sentencepiece tokenizer with vocab_size={vocab_size} on this "
                f"text, {advice} (sentencepiece says: {reason.rstrip('.')})."
            ) from error
        return cls(model.getvalue())

    def _encode(self, content: str) -> np.ndarray:
        first, *rest = content.split("\u2581")
        lead = _LEAD if self._lead else ""
        ids, *later = self._processor.encode([first, *(lead + part for part in rest)])
        for part in later:
            ids += [*self._lower_block, *part[len(self._lead) :]]
        return np.array(ids, np.int32)

    def _encode_later(self, text: str) -> np.ndarray:
        return self._encode(_LEAD + text)[len(self._lead) :] if self._lead else self._encode(text)

    def _decode_later(self, ids: np.ndarray) -> str:
        lead = self._processor.decode(self._lead)
        return self._processor.decode([*self._lead, *ids.tolist()])[len(lead) :]

    def size(self, ids: np.ndarray) -> int:
        pieces = [id_ for id_ in ids.tolist() if not self._processor.is_byte(id_)]
        return len(self._processor.decode(pieces).encode()) + len(ids) - len(pieces)

    def _decode_run(self, ids: np.ndarray) -> str:
        return self._processor.decode(ids.tolist())

    def _spelling(self, id_: int) -> bytes:
        if self._processor.is_byte(id_):
            return bytes([int(self._processor.id_to_piece(id_)[1:-1], 16)])
        if self._processor.is_unknown(id_) or self._processor.is_control(id_):
            return self._processor.decode([id_]).encode()
        # `decode` of the first piece of a text drops its space in many models
        return self._processor.id_to_piece(id_).replace("\u2581", " ").encode()

    def _files(self) -> dict[str, bytes]:
        return {self._FILE: self._model}

    @classmethod
    def load(cls, folder: pathlib.Path, settings: dict[str, Any]) -> "SentencePiece":
        return cls.read(folder / cls._FILE)

    @classmethod
    def read(cls, path: pathlib.Path) -> "SentencePiece":
        """Returns the tokenizer of a .model file."""
        if not path.is_file():
            raise BadInput(f"There is no sentencepiece model {path}.")
        return cls(path.read_bytes(), str(path))

"""The tokenizers with a model of pieces: SentencePiece, trained on the spot, and that of GPT-2.

Their packages are heavy and imported where they are used.
"""

import hashlib
import io
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from sedd_jax.data.characters import END_OF_DOCUMENT, Tokenizer
from sedd_jax.data.documents import package
from sedd_jax.errors import BadInput

# SentencePiece skips a whole training line above max_sentence_length (in bytes, four a character at
# most) without a word, so longer lines are cut.
_MAX_LINE_CHARACTERS = 20_000
# SentencePiece drops a training line that holds its marks for "space" or "unknown".
_RESERVED = str.maketrans("", "", "\u2581\u2585")


def _training_lines(documents: Iterable[str]) -> Iterator[str]:
    """The lines of `documents` as SentencePiece trains on them; a newline is a piece by itself."""
    for document in documents:
        for line in document.translate(_RESERVED).split("\n"):
            for start in range(0, len(line), _MAX_LINE_CHARACTERS):
                yield line[start : start + _MAX_LINE_CHARACTERS]


class SentencePiece(Tokenizer):
    """Byte-pair pieces with byte fallback, trained on the spot; every text round-trips exactly.

    `model` is the serialised model. The ids 0 (unknown) and 1 (end of document) never come out of
    `encode`.
    """

    kind = "sentencepiece"
    _FILE = "sentencepiece.model"

    def __init__(self, model: bytes):
        self._model = model
        self._processor = package(
            "sentencepiece", "sentencepiece", "The tokenizer 'sentencepiece'"
        ).SentencePieceProcessor(model_proto=model)
        self.vocab_size = self._processor.vocab_size()
        self.eod_id = self._processor.eos_id()
        # SentencePiece writes a space as U+2581 inside, so a real U+2581 would come back as a
        # space; spelt in bytes it survives.
        self._lower_block = [self._processor.piece_to_id(f"<0x{b:02X}>") for b in "\u2581".encode()]

    @classmethod
    def fit(cls, documents: Iterable[str], vocab_size: int) -> "SentencePiece":
        """Trains on `documents`, deterministically, to exactly `vocab_size` ids.

        Raises BadInput when the text cannot yield `vocab_size` pieces.
        """
        trainer = package(
            "sentencepiece", "sentencepiece", "The tokenizer 'sentencepiece'"
        ).SentencePieceTrainer
        model = io.BytesIO()
        try:
            trainer.train(
                sentence_iterator=_training_lines(documents),
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

    def encode(self, text: str) -> np.ndarray:
        first, *rest = self._processor.encode(text.split("\u2581"))
        ids = list(first)
        for part in rest:
            ids += [*self._lower_block, *part]
        return np.array(ids, np.int32)

    def _decode_run(self, ids: np.ndarray) -> str:
        return self._processor.decode(ids.tolist())

    def _files(self) -> dict[str, bytes]:
        return {self._FILE: self._model}

    @classmethod
    def load(cls, folder: pathlib.Path, settings: dict[str, Any]) -> "SentencePiece":
        return cls((folder / cls._FILE).read_bytes())


class GPT2(Tokenizer):
    """The byte-pair encoding of GPT-2, from a local folder with `encoder.json` and `vocab.bpe`.

    Raises BadInput when a file is missing, when the two are damaged or do not belong together, and
    without tiktoken. Nothing is downloaded.
    """

    kind = "gpt2"
    vocab_size = 50257
    eod_id = 50256
    _FILES = ("encoder.json", "vocab.bpe")

    def __init__(self, folder: str | pathlib.Path):
        folder = pathlib.Path(folder)
        for name in self._FILES:
            if not (folder / name).is_file():
                raise BadInput(
                    f"The gpt2 tokenizer needs {' and '.join(self._FILES)} in the folder {folder}, "
                    f"but {name} is not there."
                )
        tiktoken = package("tiktoken", '"sedd_jax[gpt2]"', "The tokenizer 'gpt2'")
        encoder, merges = (folder / name for name in self._FILES)
        self._contents = {path.name: path.read_bytes() for path in (encoder, merges)}
        digests = [hashlib.sha256(c).hexdigest() for c in self._contents.values()]
        try:
            # tiktoken caches files by path in the temporary folder; the digests keep it honest.
            ranks = package(
                "tiktoken.load", '"sedd_jax[gpt2]"', "The tokenizer 'gpt2'"
            ).data_gym_to_mergeable_bpe_ranks(
                str(merges), str(encoder), vocab_bpe_hash=digests[1], encoder_json_hash=digests[0]
            )
        except (AssertionError, KeyError, ValueError) as error:
            raise BadInput(
                f"The files {' and '.join(self._FILES)} in {folder} are damaged or do not belong "
                "together; fetch both again."
            ) from error
        if len(ranks) != self.eod_id:
            raise BadInput(f"{encoder} has {len(ranks)} tokens, GPT-2 has {self.eod_id}.")
        self._encoding = tiktoken.Encoding(
            "gpt2",
            explicit_n_vocab=self.vocab_size,
            mergeable_ranks=ranks,
            special_tokens={END_OF_DOCUMENT: self.eod_id},
            pat_str=r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$"""
            r"""|\s+(?!\S)|\s""",
        )

    def encode(self, text: str) -> np.ndarray:
        # A literal "<|endoftext|>" in a document is text, not the end of it, and no error.
        return self._encoding.encode_to_numpy(text, disallowed_special=()).astype(np.int32)

    def _decode_run(self, ids: np.ndarray) -> str:
        return self._encoding.decode(ids.tolist(), errors="replace")

    def _files(self) -> dict[str, bytes]:
        return dict(self._contents)

    @classmethod
    def load(cls, folder: pathlib.Path, settings: dict[str, Any]) -> "GPT2":
        return cls(folder)

"""The tokenizers with a model of pieces: SentencePiece, trained here or not, and that of GPT-2.

Their packages are heavy and imported where they are used.
"""

import hashlib
import io
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from sedd_jax.data.characters import END_OF_DOCUMENT, Tokenizer
from sedd_jax.errors import BadInput
from sedd_jax.system.packages import package

# SentencePiece skips a whole training line above max_sentence_length (in bytes, four a character at
# most) without a word, so longer lines are cut.
_MAX_LINE_CHARACTERS = 20_000
# SentencePiece drops a training line that holds its marks for "space" or "unknown".
_RESERVED = str.maketrans("", "", "\u2581\u2585")


def _training_lines(texts: Iterable[str]) -> Iterator[str]:
    """The lines of `texts` as SentencePiece trains on them; a newline is a piece by itself."""
    for text in texts:
        for line in text.translate(_RESERVED).split("\n"):
            for start in range(0, len(line), _MAX_LINE_CHARACTERS):
                yield line[start : start + _MAX_LINE_CHARACTERS]


class SentencePiece(Tokenizer):
    """The pieces of a SentencePiece model; every text round-trips through one that `fit` made.

    `model` is the serialised model. The ids for unknown pieces and the end of a document never
    come out of `encode` after `fit`. Raises BadInput for a model that is damaged or has no id for
    the end of a document; `place` is where it comes from.
    """

    kind = "sentencepiece"
    _FILE = "sentencepiece.model"

    def __init__(self, model: bytes, place: str = "the sentencepiece model"):
        module = package("sentencepiece", "sentencepiece", "The tokenizer 'sentencepiece'")
        self._model = model
        try:
            self._processor = module.SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
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
        # SentencePiece writes a space as U+2581 inside, so a real U+2581 would come back as a
        # space; spelt in bytes it survives.
        self._lower_block = [self._processor.piece_to_id(f"<0x{b:02X}>") for b in "\u2581".encode()]

    @classmethod
    def fit(cls, texts: Iterable[str], vocab_size: int) -> "SentencePiece":
        """Trains on `texts`, which must fit in memory, to exactly `vocab_size` ids.

        The same texts give the same model: byte-pair pieces, with bytes for what no piece covers.
        Raises BadInput when the text cannot yield `vocab_size` pieces.
        """
        trainer = package(
            "sentencepiece", "sentencepiece", "The tokenizer 'sentencepiece'"
        ).SentencePieceTrainer
        model = io.BytesIO()
        try:
            trainer.train(
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
        first, *rest = self._processor.encode(content.split("\u2581"))
        ids = list(first)
        for part in rest:
            ids += [*self._lower_block, *part]
        return np.array(ids, np.int32)

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
        """The tokenizer of a .model file."""
        if not path.is_file():
            raise BadInput(f"There is no sentencepiece model {path}.")
        return cls(path.read_bytes(), str(path))


# The files of GPT-2's tokenizer, under their first names and those of the Hugging Face hub.
GPT2_FILES = (("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt"))


class GPT2(Tokenizer):
    """The byte-pair encoding of GPT-2, from a folder with `encoder.json` and `vocab.bpe`.

    `vocab.json` and `merges.txt`, as the Hugging Face hub names them, do as well. Raises BadInput
    when a file is missing, when the two are damaged or do not belong together, and without
    tiktoken.
    """

    kind = "gpt2"
    vocab_size = 50257
    eod_id = 50256

    def __init__(self, folder: str | pathlib.Path):
        folder = pathlib.Path(folder)
        own, of_hub = GPT2_FILES
        hub_names = all((folder / name).is_file() for name in of_hub)
        encoder, merges = (folder / name for name in (of_hub if hub_names else own))
        for path in (encoder, merges):
            if not path.is_file():
                raise BadInput(
                    f"The gpt2 tokenizer needs {' and '.join(own)}, or {' and '.join(of_hub)}, in "
                    f"the folder {folder}, but {path.name} is not there."
                )
        extra = '"sedd_jax[gpt2]"'
        tiktoken = package("tiktoken", extra, "The tokenizer 'gpt2'")
        load = package("tiktoken.load", extra, "The tokenizer 'gpt2'")
        contents = [encoder.read_bytes(), merges.read_bytes()]
        self._contents = dict(zip(own, contents, strict=True))
        digests = [hashlib.sha256(content).hexdigest() for content in contents]
        try:
            # tiktoken caches files by path in the temporary folder; the digests keep it honest.
            ranks = load.data_gym_to_mergeable_bpe_ranks(
                str(merges), str(encoder), vocab_bpe_hash=digests[1], encoder_json_hash=digests[0]
            )
        except (AssertionError, KeyError, ValueError) as error:
            raise BadInput(
                f"The files {encoder.name} and {merges.name} in {folder} are damaged or do not "
                "belong together; fetch both again."
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

    def _encode(self, content: str) -> np.ndarray:
        # A literal "<|endoftext|>" in a document is text, not the end of it, and no error.
        return self._encoding.encode_to_numpy(content, disallowed_special=()).astype(np.int32)

    def size(self, ids: np.ndarray) -> int:
        return len(self._encoding.decode_bytes(ids.tolist()))

    def _decode_run(self, ids: np.ndarray) -> str:
        return self._encoding.decode(ids.tolist(), errors="replace")

    def _spelling(self, id_: int) -> bytes:
        return self._encoding.decode_single_token_bytes(id_)

    def _files(self) -> dict[str, bytes]:
        return dict(self._contents)

    @classmethod
    def load(cls, folder: pathlib.Path, settings: dict[str, Any]) -> "GPT2":
        return cls(folder)

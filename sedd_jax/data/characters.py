"""The interface of all tokenizers, and the kinds without a model: bytes, characters, integers.

Every kind has `vocab_size` (real tokens, the end-of-document token included), `eod_id` (or None),
`encode(content)`, `decode(ids)`, `pieces(ids)`, `size(ids)`, `save(folder)` and `fingerprint()`.
The mask of the absorbing graph is no token of a tokenizer: its id is `vocab_size`, and only
`decode` and `pieces` know it.
"""

import abc
import codecs
import hashlib
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from sedd_jax.errors import BadInput

END_OF_DOCUMENT = "<|endoftext|>"
SETTINGS_FILE = "tokenizer.json"
# Characters are looked up this many at a time.
_CHUNK = 2**20


class Tokenizer(abc.ABC):
    """What all tokenizers share; a subclass sets the attributes and adds the methods below."""

    kind: str
    vocab_size: int
    eod_id: int | None
    # What a document is made of, and what `decode` puts between two runs of tokens.
    _takes: type = str
    _space = ""

    @abc.abstractmethod
    def _encode(self, content: Any) -> np.ndarray:
        """Token ids of a document of the type `_takes`, int32 [tokens]."""

    @abc.abstractmethod
    def _decode_run(self, ids: np.ndarray) -> str:
        """Text of int64 [tokens] ids that hold neither the end-of-document token nor the mask."""

    @abc.abstractmethod
    def _spelling(self, id_: int) -> bytes:
        """UTF-8 of one such id, perhaps half a character."""

    def _settings(self) -> dict[str, Any]:
        """What `tokenizer.json` holds besides the kind."""
        return {}

    def _files(self) -> dict[str, bytes]:
        """Model files by name."""
        return {}

    def encode(self, content: str | np.ndarray) -> np.ndarray:
        """Token ids of a document, int32 [tokens], without an end-of-document token.

        The kind `integers` takes ids, all others text; BadInput for what is the other.
        """
        if not isinstance(content, self._takes):
            taken, given = ("text", "integers") if self._takes is str else ("integers", "text")
            raise BadInput(
                f"The tokenizer {self.kind!r} takes {taken}, but the document is {given}; choose "
                "another data.tokenizer ('integers' is the one for integers)."
            )
        return self._encode(content)

    def decode(self, ids: Sequence[int] | np.ndarray, mask: str = "░") -> str:
        """Text of `ids` (integers, flattened), each in [0, vocab_size].

        The end-of-document token shows as `<|endoftext|>` and the id `vocab_size`, the mask of the
        absorbing graph, as `mask`. Ids that form no valid text (half a character, say) show as the
        replacement character. Raises BadInput for an id out of range.
        """
        ids, marks = self._checked(ids), self._marks(mask)
        pieces, start = [], 0
        for stop in np.flatnonzero(np.isin(ids, list(marks))):
            pieces += [self._decode_run(ids[start:stop]), marks[int(ids[stop])]]
            start = stop + 1
        pieces.append(self._decode_run(ids[start:]))
        return self._space.join(piece for piece in pieces if piece)

    def pieces(self, ids: Sequence[int] | np.ndarray, mask: str = "░") -> list[str]:
        """Text of `ids` one by one; for ids from `encode` it is, joined, what `decode` returns.

        A character that several ids spell stands at the last of them, and one that none completes
        as the replacement character. Integers end with a space each.
        """
        decoder, marks = codecs.getincrementaldecoder("utf-8")("replace"), self._marks(mask)
        pieces: list[str] = []
        for id_ in self._checked(ids).tolist():
            if id_ in marks:
                self._complete(pieces, decoder)
                pieces.append(marks[id_] + self._space)
            else:
                pieces.append(decoder.decode(self._spelling(id_)))
        self._complete(pieces, decoder)
        return pieces

    @staticmethod
    def _complete(pieces, decoder):
        """Ends the last of `pieces` with what is left of a character that was not completed."""
        if rest := decoder.decode(b"", final=True):
            pieces[-1] += rest

    def _checked(self, ids):
        ids = np.asarray(ids, np.int64).reshape(-1)
        wrong = ids[(ids < 0) | (ids > self.vocab_size)]
        if wrong.size:
            raise BadInput(
                f"Cannot decode the id {wrong[0]}: this {self.kind} tokenizer has the ids 0 to "
                f"{self.vocab_size - 1}, and {self.vocab_size} for the mask."
            )
        return ids

    def _marks(self, mask):
        """What stands for the ids that are no text."""
        end = {} if self.eod_id is None else {self.eod_id: END_OF_DOCUMENT}
        return {self.vocab_size: mask} | end

    def size(self, ids: np.ndarray) -> int:
        """The UTF-8 bytes that ids from `encode` stand for, half characters too.

        Of the kind `integers`, their number: bits per byte are bits per id.
        """
        return len(self.decode(ids).encode())

    def save(self, folder: str | pathlib.Path) -> None:
        """Writes `tokenizer.json` and the model files, if any, into `folder` (made when absent)."""
        folder = pathlib.Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self._saved().items():
            (folder / name).write_bytes(content)

    def fingerprint(self) -> str:
        """SHA-256 of what `save` writes: where it agrees, every text gets the same ids."""
        digest = hashlib.sha256()
        for name, content in sorted(self._saved().items()):
            digest.update(f"{name} {len(content)}\n".encode())
            digest.update(content)
        return digest.hexdigest()

    def _saved(self) -> dict[str, bytes]:
        settings = json.dumps({"kind": self.kind, **self._settings()}, indent=1)
        return {**self._files(), SETTINGS_FILE: f"{settings}\n".encode()}


class Bytes(Tokenizer):
    """UTF-8 bytes as ids 0 to 255, end of document 256."""

    kind = "bytes"
    vocab_size = 257
    eod_id = 256

    def _encode(self, content: str) -> np.ndarray:
        return np.frombuffer(content.encode(), np.uint8).astype(np.int32)

    def size(self, ids: np.ndarray) -> int:
        return len(ids)

    def _decode_run(self, ids: np.ndarray) -> str:
        return ids.astype(np.uint8).tobytes().decode(errors="replace")

    def _spelling(self, id_: int) -> bytes:
        return bytes([id_])

    @classmethod
    def load(cls, folder: pathlib.Path, settings: dict[str, Any]) -> "Bytes":
        return cls()


def _codepoints(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4").astype(np.int64)


class Characters(Tokenizer):
    """One id per character, in the order of `alphabet`; with `eod` one more id, the last.

    Raises BadInput when the alphabet is empty or repeats a character, and from `encode` for a
    text with a character outside it.
    """

    kind = "characters"

    def __init__(self, alphabet: str, eod: bool = True):
        if not alphabet or len(set(alphabet)) != len(alphabet):
            raise BadInput("The alphabet of a characters tokenizer must be distinct characters.")
        self.alphabet = alphabet
        self.vocab_size = len(alphabet) + eod
        self.eod_id = len(alphabet) if eod else None
        codepoints = _codepoints(alphabet)
        # One spare entry stands for every code point above the largest of the alphabet.
        self._id_of = np.full(codepoints.max() + 2, -1, np.int32)
        self._id_of[codepoints] = np.arange(len(alphabet), dtype=np.int32)

    def _encode(self, content: str) -> np.ndarray:
        ids = np.empty(len(content), np.int32)
        # In parts, since the code points alone take several times the memory of the text.
        for start in range(0, len(content), _CHUNK):
            codepoints = _codepoints(content[start : start + _CHUNK])
            known = np.minimum(codepoints, len(self._id_of) - 1)
            ids[start : start + len(known)] = self._id_of[known]
        if ids.size and ids.min() < 0:
            unknown = np.flatnonzero(ids < 0)
            names = ", ".join(repr(c) for c in sorted({content[i] for i in unknown})[:5])
            raise BadInput(
                f"The text has {unknown.size} character(s) outside the alphabet of "
                f"{len(self.alphabet)} ({names}), the first at position {unknown[0]}; use the "
                "tokenizer 'bytes' or clean the text."
            )
        return ids

    def _decode_run(self, ids: np.ndarray) -> str:
        return "".join(self.alphabet[i] for i in ids)

    def _spelling(self, id_: int) -> bytes:
        return self.alphabet[id_].encode(errors="replace")

    def _settings(self) -> dict[str, Any]:
        return {"alphabet": self.alphabet, "eod": self.eod_id is not None}

    @classmethod
    def load(cls, folder: pathlib.Path, settings: dict[str, Any]) -> "Characters":
        return cls(settings["alphabet"], settings["eod"])


class Integers(Tokenizer):
    """Documents that are ids already, each in [0, vocab_size); they have no end-of-document token.

    Raises BadInput from `encode` for an id out of range.
    """

    kind = "integers"
    eod_id = None
    _takes = np.ndarray
    _space = " "

    def __init__(self, vocab_size: int):
        self.vocab_size = vocab_size

    def _encode(self, content: np.ndarray) -> np.ndarray:
        wrong = (content < 0) | (content >= self.vocab_size)
        if wrong.any():
            position = int(np.argmax(wrong))
            raise BadInput(
                f"The id {content[position]} at position {position} is outside the vocabulary of "
                f"{self.vocab_size} ids, 0 to {self.vocab_size - 1}; set data.vocab_size or mend "
                "the ids."
            )
        return np.array(content, np.int32)

    def size(self, ids: np.ndarray) -> int:
        return len(ids)

    def _decode_run(self, ids: np.ndarray) -> str:
        return " ".join(map(str, ids))

    def _spelling(self, id_: int) -> bytes:
        return f"{id_} ".encode()

    def _settings(self) -> dict[str, Any]:
        return {"vocab_size": self.vocab_size}

    @classmethod
    def load(cls, folder: pathlib.Path, settings: dict[str, Any]) -> "Integers":
        return cls(settings["vocab_size"])

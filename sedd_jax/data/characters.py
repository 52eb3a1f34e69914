"""The interface of all tokenizers, and the kinds without a model: bytes, characters, integers.

The mask of the absorbing graph is not a token of a tokenizer: its id is `vocab_size`, which only
`decode` and `pieces` accept.
"""

import abc
import codecs
import functools
import hashlib
import json
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from sedd_jax.errors import BadInput

END_OF_DOCUMENT = "<|endoftext|>"
SETTINGS_FILE = "tokenizer.json"
_CHUNK = 2**20  # characters looked up at a time
_SHOWN = 20  # characters of a text that messages quote


class Tokenizer(abc.ABC):
    """The interface of all tokenizers; a subclass sets the attributes and the abstract methods.

    Attributes:
      kind: the name of the kind.
      vocab_size: the number of tokens, including the end-of-document token.
      eod_id: the id of the end-of-document token, or None.
      exact: whether every text that `encode` takes is the `decode` of its ids.
      unknown: matches a run of characters that `encode` refuses; None if there are none.
    """

    kind: str
    vocab_size: int
    eod_id: int | None
    exact: bool = False
    unknown: re.Pattern[str] | None = None
    # the type of a document, and what `decode` puts between two runs of tokens
    _takes: type = str
    _space = ""
    _puts_space = False  # before every document, and drops it in `decode`

    @abc.abstractmethod
    def _encode(self, content: Any) -> np.ndarray:
        """Returns the token ids of a document of the type `_takes`, int32 [tokens]."""

    @abc.abstractmethod
    def _decode_run(self, ids: np.ndarray) -> str:
        """Returns the text of int64 [tokens] ids, without end-of-document tokens and masks."""

    @abc.abstractmethod
    def _spelling(self, id_: int) -> bytes:
        """Returns the UTF-8 of one such id, perhaps half a character."""

    def _encode_later(self, text: str) -> np.ndarray:
        """Returns the ids of text that is not at the start of a document."""
        return self._encode(text)

    def _decode_later(self, ids: np.ndarray) -> str:
        """Returns the text of ids that are not at the start of a document."""
        return self._decode_run(ids)

    def _settings(self) -> dict[str, Any]:
        """Returns the contents of `tokenizer.json` besides the kind."""
        return {}

    def _files(self) -> dict[str, bytes]:
        """Returns the model files by name."""
        return {}

    @classmethod
    def load(cls, folder: pathlib.Path, settings: dict[str, Any]) -> "Tokenizer":
        """Returns the tokenizer that `save(folder)` wrote; `settings` are in `tokenizer.json`."""
        return cls(**{name: value for name, value in settings.items() if name != "kind"})

    def encode(self, content: str | np.ndarray) -> np.ndarray:
        """Returns the token ids of a document, int32 [tokens], without an end-of-document token.

        Raises:
          BadInput: the document is text for the kind `integers`, or ids for another.
        """
        if not isinstance(content, self._takes):
            taken, given = ("text", "integers") if self._takes is str else ("integers", "text")
            raise BadInput(
                f"The tokenizer {self.kind!r} takes {taken}, but the document is {given}; choose "
                "another config.data.tokenizer ('integers' is the one for integers)."
            )
        return self._encode(content)

    def encode_part(self, text: str, *, first: bool) -> np.ndarray:
        """Returns the ids of a part of a document: decoded in their place, they are `text` again.

        Args:
          text: the part.
          first: whether the document begins with it.

        Raises:
          BadInput: the tokenizer cannot spell the text exactly.
        """
        ids = self._encode(text) if first else self._encode_later(text)
        back = self._decode_run(ids) if first else self._decode_later(ids)
        if back != text:
            same = first_difference(back, text)
            raise BadInput(
                f"the {self.kind} tokenizer cannot hold the text: from its character {same + 1} on "
                f"{text[same : same + _SHOWN]!r} comes back as {back[same : same + _SHOWN]!r}; "
                "write that, or leave it out."
            )
        return ids

    def decode(
        self, ids: Sequence[int] | np.ndarray, mask: str = "░", *, first: bool = True
    ) -> str:
        """Returns the text of ids.

        The end-of-document token becomes `<|endoftext|>`; ids that form no valid text, such as half
        a character, become the replacement character.

        Args:
          ids: integers in [0, vocab_size], of any shape.
          mask: the text for the id `vocab_size`, the mask of the absorbing graph.
          first: whether a document begins with them.

        Raises:
          BadInput: an id is out of range.
        """
        ids, marks = self._checked(ids), self._marks(mask)
        pieces, start, decode = [], 0, self._decode_run if first else self._decode_later
        for stop in np.flatnonzero(np.isin(ids, list(marks))):
            pieces += [decode(ids[start:stop]), marks[int(ids[stop])]]
            # after a mask the text continues
            decode = self._decode_run if ids[stop] == self.eod_id else self._decode_later
            start = stop + 1
        pieces.append(decode(ids[start:]))
        return self._space.join(piece for piece in pieces if piece)

    def pieces(
        self, ids: Sequence[int] | np.ndarray, mask: str = "░", *, first: bool = True
    ) -> list[str]:
        """Returns the text of each id; for ids from `encode`, joined, this is `decode`.

        A character that several ids spell is at the last of them, and one that stays incomplete
        becomes the replacement character. Integers end with a space each.

        Args:
          ids: integers in [0, vocab_size], of any shape.
          mask: the text for the id `vocab_size`.
          first: whether a document begins with them.
        """
        decoder, marks = codecs.getincrementaldecoder("utf-8")("replace"), self._marks(mask)
        pieces: list[str] = []
        spaced = first and self._puts_space
        for id_ in self._checked(ids).tolist():
            if id_ in marks:
                self._complete(pieces, decoder)
                pieces.append(marks[id_] + self._space)
                spaced = id_ == self.eod_id and self._puts_space
            else:
                pieces.append(decoder.decode(self._spelling(id_).removeprefix(b" " * spaced)))
                spaced = False
        self._complete(pieces, decoder)
        return pieces

    @staticmethod
    def _complete(pieces, decoder):
        """Appends what is left of an incomplete character to the last of `pieces`."""
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
        """Returns the text for the ids that are no text."""
        end = {} if self.eod_id is None else {self.eod_id: END_OF_DOCUMENT}
        return {self.vocab_size: mask} | end

    def size(self, ids: np.ndarray) -> int:
        """Returns the UTF-8 bytes that ids from `encode` spell, including half characters.

        For the kind `integers`, it is the number of ids: bits per byte are bits per id.
        """
        return len(self.decode(ids).encode())

    def save(self, folder: str | pathlib.Path) -> None:
        """Writes `tokenizer.json` and the model files into a folder, which may not exist yet."""
        folder = pathlib.Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self._saved().items():
            (folder / name).write_bytes(content)

    def fingerprint(self) -> str:
        """Returns the SHA-256 of what `save` writes: if equal, every text gets the same ids."""
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
    exact = True

    def _encode(self, content: str) -> np.ndarray:
        return np.frombuffer(content.encode(), np.uint8).astype(np.int32)

    def size(self, ids: np.ndarray) -> int:
        return len(ids)

    def _decode_run(self, ids: np.ndarray) -> str:
        return ids.astype(np.uint8).tobytes().decode(errors="replace")

    def _spelling(self, id_: int) -> bytes:
        return bytes([id_])


def first_difference(a: str, b: str) -> int:
    """Returns the position of the first character in which two texts differ."""
    pairs = enumerate(zip(a, b, strict=False))
    return next((i for i, (x, y) in pairs if x != y), min(len(a), len(b)))


def codepoints(text: str) -> np.ndarray:
    """Returns the code points of a text, int64 [characters]."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4").astype(np.int64)


class Characters(Tokenizer):
    """One id per character, in the order of an alphabet; `encode` refuses other characters."""

    kind = "characters"
    exact = True

    def __init__(self, alphabet: str, eod: bool = True):
        """Takes the alphabet, distinct characters; with `eod`, the last id ends a document."""
        if not alphabet or len(set(alphabet)) != len(alphabet):
            raise BadInput("The alphabet of a characters tokenizer must be distinct characters.")
        self.alphabet = alphabet
        self.vocab_size = len(alphabet) + eod
        self.eod_id = len(alphabet) if eod else None
        points = codepoints(alphabet)
        # one more entry is for every code point above the largest of the alphabet
        self._id_of = np.full(points.max() + 2, -1, np.int32)
        self._id_of[points] = np.arange(len(alphabet), dtype=np.int32)

    @functools.cached_property
    def unknown(self) -> re.Pattern[str]:
        return re.compile(f"[^{re.escape(self.alphabet)}]+")

    def _encode(self, content: str) -> np.ndarray:
        ids = np.empty(len(content), np.int32)
        # in parts, since the code points take several times the memory of the text
        for start in range(0, len(content), _CHUNK):
            points = codepoints(content[start : start + _CHUNK])
            known = np.minimum(points, len(self._id_of) - 1)
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


class Integers(Tokenizer):
    """Documents that are ids in [0, vocab_size) already; there is no end-of-document token."""

    kind = "integers"
    eod_id = None
    exact = True  # the ids are the document
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
                f"{self.vocab_size} ids, 0 to {self.vocab_size - 1}; set "
                "config.data.vocab_size or mend the ids."
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

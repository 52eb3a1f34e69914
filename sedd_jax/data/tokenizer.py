"""Tokenizers by name: built from a corpus, loaded from a folder.

The kinds: `bytes` (257 ids), `characters` (the alphabet of the corpus), `text8` (27 ids: space is
0, a to z are 1 to 26) and `dna` (A, C, G, T), both without an end-of-document token,
`sentencepiece` (trained on the corpus), `gpt2` (from its files) and `integers` (ids as input).
"""

import copy
import hashlib
import json
import pathlib
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from sedd_jax.data.characters import (
    END_OF_DOCUMENT,
    SETTINGS_FILE,
    Bytes,
    Characters,
    Integers,
    Tokenizer,
)
from sedd_jax.data.documents import Recipe
from sedd_jax.data.sentence_pieces import SentencePiece
from sedd_jax.errors import BadInput
from sedd_jax.system import hub, mirror
from sedd_jax.system.packages import package

# the files of GPT-2's tokenizer, as first published and as on the Hugging Face hub
GPT2_FILES = (("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt"))


class GPT2(Tokenizer):
    """The byte-level byte-pair encoding of GPT-2.

    With `pad` it has one id more, [PAD], which no text has: `transformers` adds it, and models that
    were trained with it on the uniform graph have a state for it.

    References:
      Radford et al. 2019, Language Models are Unsupervised Multitask Learners
    """

    kind = "gpt2"
    vocab_size = 50257
    eod_id = 50256
    exact = True  # the pieces are bytes

    def __init__(self, folder: str | pathlib.Path, pad: bool = False):
        """Loads `encoder.json` and `vocab.bpe`, or `vocab.json` and `merges.txt`, from a folder.

        Raises:
          BadInput: a file is missing, the two do not belong together, or tiktoken is missing.
        """
        folder = pathlib.Path(folder)
        self.vocab_size += pad
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
            # tiktoken caches files by path in the temporary folder and checks the digests
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
            explicit_n_vocab=GPT2.vocab_size,
            mergeable_ranks=ranks,
            special_tokens={END_OF_DOCUMENT: self.eod_id},
            pat_str=r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$"""
            r"""|\s+(?!\S)|\s""",
        )

    def _encode(self, content: str) -> np.ndarray:
        # a literal "<|endoftext|>" in a document is text: not its end, and no error
        return self._encoding.encode_to_numpy(content, disallowed_special=()).astype(np.int32)

    def size(self, ids: np.ndarray) -> int:
        return len(self._encoding.decode_bytes(ids.tolist()))

    def _decode_run(self, ids: np.ndarray) -> str:
        return self._encoding.decode(ids.tolist(), errors="replace")

    def _spelling(self, id_: int) -> bytes:
        return self._encoding.decode_single_token_bytes(id_)

    def padded(self) -> "GPT2":
        """Returns the same with [PAD]."""
        other = copy.copy(self)
        other.vocab_size = GPT2.vocab_size + 1
        return other

    def _marks(self, mask):
        pads = range(GPT2.vocab_size, self.vocab_size)
        return super()._marks(mask) | dict.fromkeys(pads, "[PAD]")

    def _settings(self) -> dict[str, Any]:
        return {"pad": True} if self.vocab_size > GPT2.vocab_size else {}

    def _files(self) -> dict[str, bytes]:
        return dict(self._contents)

    @classmethod
    def load(cls, folder: pathlib.Path, settings: dict[str, Any]) -> "GPT2":
        return cls(folder, settings.get("pad", False))


TEXT8_ALPHABET = " abcdefghijklmnopqrstuvwxyz"

_FIXED: dict[str, Callable[[], Tokenizer]] = {
    "bytes": Bytes,
    "text8": lambda: Characters(TEXT8_ALPHABET, eod=False),
    "dna": lambda: Characters("ACGT", eod=False),
}
_CLASSES = {cls.kind: cls for cls in (Bytes, Characters, SentencePiece, GPT2, Integers)}

# the names in a config, those for which vocab_size is a choice, and those built from the corpus
TOKENIZERS = ("bytes", "characters", "text8", "dna", "sentencepiece", "gpt2", "integers")
SIZED_TOKENIZERS = frozenset({"sentencepiece", "integers"})
FITTED_TOKENIZERS = frozenset({"characters", "sentencepiece"})


def build_tokenizer(
    recipe: Recipe, texts: Callable[[], Iterable[str]] = tuple, alphabet: str = ""
) -> Tokenizer:
    """Returns the tokenizer of a recipe: the one in its `tokenizer_path`, or a new one.

    Args:
      recipe: its `tokenizer`, `tokenizer_path` and, for SIZED_TOKENIZERS, `vocab_size` are used.
      texts: starts to read the training documents; only for `sentencepiece`.
      alphabet: the sorted characters of the corpus; only for `characters`.

    Raises:
      BadInput: the kind is unknown, a setting is missing, the path holds no tokenizer of that kind,
        or the kind itself raises it.
    """
    kind = recipe.tokenizer
    if kind not in TOKENIZERS:
        raise BadInput(f"Unknown tokenizer {kind!r}; choose one of {', '.join(TOKENIZERS)}.")
    given = ("text8", "dna") + ("characters",) * bool(recipe.tokenizer_path)
    if recipe.split_at_unknown and kind not in given:
        raise BadInput(
            "config.data.split_at_unknown is for tokenizers with a given alphabet: text8, dna, or "
            f"characters with a tokenizer_path; the tokenizer is {kind!r}."
        )
    if recipe.tokenizer_path:
        path = mirror.local(recipe.tokenizer_path, "config.data.tokenizer_path")
        return _given_tokenizer(kind, path)
    if kind in SIZED_TOKENIZERS and not recipe.vocab_size:
        raise BadInput(f"The tokenizer {kind!r} needs a vocab_size, for example 4096.")
    match kind:
        case "characters":
            return Characters(alphabet)
        case "sentencepiece":
            return SentencePiece.fit(texts(), recipe.vocab_size)
        case "gpt2":
            raise BadInput(
                "The tokenizer 'gpt2' needs a path: a folder with encoder.json and vocab.bpe, or "
                "the name of one on the Hugging Face hub, openai-community/gpt2; set "
                "config.data.tokenizer_path."
            )
        case "integers":
            return Integers(recipe.vocab_size)
        case _:
            return _FIXED[kind]()


def _given_tokenizer(kind: str, path: pathlib.Path) -> Tokenizer:
    """Returns the tokenizer in `path`, which has to be of the kind `kind`."""
    if kind == "sentencepiece" and path.suffix == ".model":
        return SentencePiece.read(path)
    if kind == "gpt2" and not _is_saved(path):
        return GPT2(hub.folder(str(path), GPT2_FILES[1], has_gpt2_files))
    tokenizer = load_tokenizer(path)
    # text8 and dna are saved as characters: their alphabet identifies them
    fixed = _FIXED.get(kind)
    agrees = tokenizer.fingerprint() == fixed().fingerprint() if fixed else tokenizer.kind == kind
    if not agrees:
        raise BadInput(
            f"{path} holds a tokenizer of the kind {tokenizer.kind!r} with {tokenizer.vocab_size} "
            f"ids, which is not config.data.tokenizer {kind!r}; change one of the two."
        )
    return tokenizer


def _is_saved(folder: pathlib.Path) -> bool:
    """Returns whether `save` wrote a folder; those of the hub have another tokenizer.json."""
    path = folder / SETTINGS_FILE
    return path.is_file() and path.read_bytes().startswith(b'{\n "kind"')


def has_gpt2_files(folder: pathlib.Path) -> bool:
    """Returns whether a folder has the files of GPT-2's tokenizer."""
    return any(all((folder / name).is_file() for name in names) for names in GPT2_FILES)


def find_tokenizer(folder: pathlib.Path) -> Tokenizer | None:
    """Returns the tokenizer in a folder, a saved one or GPT-2's by its files, or None.

    Raises:
      BadInput: it is damaged.
    """
    if has_gpt2_files(folder) and not _is_saved(folder):
        return GPT2(folder)
    return load_tokenizer(folder) if (folder / SETTINGS_FILE).is_file() else None


def load_tokenizer(folder: str | pathlib.Path) -> Tokenizer:
    """Returns the tokenizer that `save(folder)` wrote.

    Raises:
      BadInput: no tokenizer there, or its settings are damaged.
    """
    folder = pathlib.Path(folder)
    if not (folder / SETTINGS_FILE).is_file():
        raise BadInput(
            f"There is no tokenizer in {folder}: {SETTINGS_FILE} is missing; give the folder that "
            "a tokenizer was saved to."
        )
    try:
        settings = json.loads((folder / SETTINGS_FILE).read_text(encoding="utf-8"))
        return _CLASSES[settings["kind"]].load(folder, settings)
    except (json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise BadInput(
            f"{folder / SETTINGS_FILE} is damaged or from another version of sedd_jax ({error!r}); "
            "prepare the data again."
        ) from error

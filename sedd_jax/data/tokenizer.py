"""Tokenizers by name: built from a corpus, saved to a folder, read back.

The kinds: `bytes` (257 ids), `characters` (the alphabet of the corpus), `text8` (27 ids: space is
0, a to z are 1 to 26; no end-of-document token), `sentencepiece` (trained on the corpus) and
`gpt2` (from local files). What they share is described at `Tokenizer`.
"""

import json
import pathlib
from collections.abc import Callable, Sequence

from sedd_jax.data.characters import SETTINGS_FILE, Bytes, Characters, Tokenizer
from sedd_jax.data.subword import GPT2, SentencePiece
from sedd_jax.errors import BadInput

__all__ = [
    "GPT2",
    "GPT2_FILES",
    "SIZED_TOKENIZERS",
    "TOKENIZERS",
    "Bytes",
    "Characters",
    "SentencePiece",
    "Tokenizer",
    "build_tokenizer",
    "find_tokenizer",
    "has_gpt2_files",
    "load_tokenizer",
]

TEXT8_ALPHABET = " abcdefghijklmnopqrstuvwxyz"


def _sentencepiece(documents: Sequence[str], vocab_size: int | None, path: str | None) -> Tokenizer:
    if not vocab_size:
        raise BadInput("The tokenizer 'sentencepiece' needs a vocab_size, for example 4096.")
    return SentencePiece.fit(documents, vocab_size)


def _gpt2(documents: Sequence[str], vocab_size: int | None, path: str | None) -> Tokenizer:
    if not path:
        raise BadInput(
            "The tokenizer 'gpt2' needs a path: a folder with encoder.json and vocab.bpe."
        )
    return GPT2(path)


_BUILDERS: dict[str, Callable[[Sequence[str], int | None, str | None], Tokenizer]] = {
    "bytes": lambda documents, vocab_size, path: Bytes(),
    "characters": lambda documents, vocab_size, path: Characters.fit(documents),
    "text8": lambda documents, vocab_size, path: Characters(TEXT8_ALPHABET, eod=False),
    "sentencepiece": _sentencepiece,
    "gpt2": _gpt2,
}
_LOADERS = {cls.kind: cls.load for cls in (Bytes, Characters, SentencePiece, GPT2)}

# The files of GPT-2's tokenizer, under their first names and those of the hub.
GPT2_FILES = (("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt"))

# The names a config may use, and those among them for which vocab_size is a choice.
TOKENIZERS = tuple(_BUILDERS)
SIZED_TOKENIZERS = frozenset({"sentencepiece"})


def build_tokenizer(
    kind: str,
    documents: Sequence[str],
    *,
    vocab_size: int | None = None,
    path: str | None = None,
) -> Tokenizer:
    """The tokenizer named `kind`, fitted on `documents` where it is one that is fitted.

    `vocab_size` counts only for the kinds in SIZED_TOKENIZERS, `path` only for `gpt2`. Raises
    ValueError for an unknown kind or a missing setting, and what the kind itself raises.
    """
    if kind not in _BUILDERS:
        raise BadInput(f"Unknown tokenizer {kind!r}; choose one of {', '.join(TOKENIZERS)}.")
    return _BUILDERS[kind](documents, vocab_size, path)


def has_gpt2_files(folder: pathlib.Path) -> bool:
    """Whether `folder` has the files of GPT-2's tokenizer."""
    return any(all((folder / name).is_file() for name in names) for names in GPT2_FILES)


def find_tokenizer(folder: pathlib.Path) -> Tokenizer | None:
    """The tokenizer in `folder`: a saved one, or GPT-2's by its files; None when there is none.

    Raises BadInput when it is damaged.
    """
    if has_gpt2_files(folder):  # looked for first: tokenizer.json beside them may be another's
        return GPT2(folder)
    return load_tokenizer(folder) if (folder / SETTINGS_FILE).is_file() else None


def load_tokenizer(folder: str | pathlib.Path) -> Tokenizer:
    """The tokenizer that `save(folder)` wrote.

    Raises BadInput when there is none or its settings are damaged.
    """
    folder = pathlib.Path(folder)
    if not (folder / SETTINGS_FILE).is_file():
        raise BadInput(
            f"There is no tokenizer in {folder}: {SETTINGS_FILE} is missing; give the folder that "
            "a tokenizer was saved to."
        )
    try:
        settings = json.loads((folder / SETTINGS_FILE).read_text(encoding="utf-8"))
        load = _LOADERS[settings["kind"]]
        return load(folder, settings)
    except (json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise BadInput(
            f"{folder / SETTINGS_FILE} is damaged or from another version of sedd_jax ({error!r}); "
            "prepare the data again."
        ) from error

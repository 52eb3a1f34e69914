"""Tokenizers by name: built from a corpus, saved to a folder, read back.

The kinds: `bytes` (257 ids), `characters` (the alphabet of the corpus), `text8` (27 ids: space is
0, a to z are 1 to 26) and `dna` (A, C, G, T), both without an end-of-document token,
`sentencepiece` (trained on the corpus), `gpt2` (from its files) and `integers` (ids that need no
tokenizer). What they share is described at `Tokenizer`.
"""

import json
import pathlib
from collections.abc import Callable, Iterable

from sedd_jax.data.characters import SETTINGS_FILE, Bytes, Characters, Integers, Tokenizer
from sedd_jax.data.recipe import Recipe
from sedd_jax.data.subword import GPT2, GPT2_FILES, SentencePiece
from sedd_jax.errors import BadInput
from sedd_jax.system import hub

__all__ = [
    "FITTED_TOKENIZERS",
    "GPT2",
    "GPT2_FILES",
    "SIZED_TOKENIZERS",
    "TOKENIZERS",
    "Bytes",
    "Characters",
    "Integers",
    "SentencePiece",
    "Tokenizer",
    "build_tokenizer",
    "find_tokenizer",
    "has_gpt2_files",
    "load_tokenizer",
]

TEXT8_ALPHABET = " abcdefghijklmnopqrstuvwxyz"

_FIXED: dict[str, Callable[[], Tokenizer]] = {
    "bytes": Bytes,
    "text8": lambda: Characters(TEXT8_ALPHABET, eod=False),
    "dna": lambda: Characters("ACGT", eod=False),
}
_CLASSES = {cls.kind: cls for cls in (Bytes, Characters, SentencePiece, GPT2, Integers)}

# The names a config may use, those among them for which vocab_size is a choice, and those that are
# made from the corpus.
TOKENIZERS = ("bytes", "characters", "text8", "dna", "sentencepiece", "gpt2", "integers")
SIZED_TOKENIZERS = frozenset({"sentencepiece", "integers"})
FITTED_TOKENIZERS = frozenset({"characters", "sentencepiece"})


def build_tokenizer(
    recipe: Recipe, texts: Callable[[], Iterable[str]] = tuple, alphabet: str = ""
) -> Tokenizer:
    """The tokenizer of a recipe: the one in its `tokenizer_path`, else made anew.

    Args:
      recipe: its `tokenizer`, `tokenizer_path` and, for SIZED_TOKENIZERS, `vocab_size` count.
      texts: starts to read the training documents; only `sentencepiece` learns from them.
      alphabet: the sorted characters of the corpus; only for `characters`.

    Raises BadInput for an unknown kind, a missing setting, a path that holds no tokenizer of that
    kind, and what the kind itself raises.
    """
    kind = recipe.tokenizer
    if kind not in TOKENIZERS:
        raise BadInput(f"Unknown tokenizer {kind!r}; choose one of {', '.join(TOKENIZERS)}.")
    if recipe.tokenizer_path:
        return _given_tokenizer(kind, pathlib.Path(recipe.tokenizer_path))
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
                "data.tokenizer_path."
            )
        case "integers":
            return Integers(recipe.vocab_size)
        case _:
            return _FIXED[kind]()


def _given_tokenizer(kind: str, path: pathlib.Path) -> Tokenizer:
    """The tokenizer that lies in `path`, of the kind `kind`."""
    if kind == "sentencepiece" and path.suffix == ".model":
        return SentencePiece.read(path)
    if kind == "gpt2" and not _is_saved(path):
        return GPT2(hub.folder(str(path), GPT2_FILES[1], has_gpt2_files))
    tokenizer = load_tokenizer(path)
    # text8 and dna are saved as characters: what they are is their alphabet.
    fixed = _FIXED.get(kind)
    agrees = tokenizer.fingerprint() == fixed().fingerprint() if fixed else tokenizer.kind == kind
    if not agrees:
        raise BadInput(
            f"{path} holds a tokenizer of the kind {tokenizer.kind!r} with {tokenizer.vocab_size} "
            f"ids, which is not data.tokenizer {kind!r}; change one of the two."
        )
    return tokenizer


def _is_saved(folder: pathlib.Path) -> bool:
    """Whether `save` wrote `folder`: those of the hub have a tokenizer.json too, another one."""
    path = folder / SETTINGS_FILE
    return path.is_file() and path.read_bytes().startswith(b'{\n "kind"')


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
        return _CLASSES[settings["kind"]].load(folder, settings)
    except (json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise BadInput(
            f"{folder / SETTINGS_FILE} is damaged or from another version of sedd_jax ({error!r}); "
            "prepare the data again."
        ) from error

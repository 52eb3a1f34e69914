"""Where the text comes from: the embedded corpus, a file or a folder; and its held-out part."""

import hashlib
import pathlib
from collections.abc import Sequence

from sedd_jax.errors import BadInput

EMBEDDED_CORPUS = "pydoc"
# A cut looks for a line break within this many characters.
_NEARBY = 1000


def load_documents(corpus: str, separator: str) -> list[str]:
    """The documents of `corpus`, each as it stands, line ends too; blank ones are left out.

    `corpus` is "pydoc" (the help topics of the running Python, about 0.5 MB of English, one
    document per topic, so the text depends on the version of Python), a UTF-8 text file (cut at
    every `separator`, which is dropped, or one document when `separator` is empty), or a folder of
    *.txt files (one document each, in the order of their names). Raises BadInput for a
    missing path and for text that is not UTF-8 or nothing but white space.
    """
    documents = [document for document in _read(corpus, separator) if document.strip()]
    if not documents:
        raise BadInput(f"The corpus {corpus} is empty: it holds nothing but white space.")
    return documents


def split_documents(
    documents: Sequence[str], heldout_fraction: float
) -> tuple[list[str], list[str]]:
    """Splits whole documents into (train, heldout), the order kept inside each part.

    Distinct texts are taken as held-out in the order of their SHA-256 until `heldout_fraction` of
    all characters is reached, and at least one text is left on each side: which text goes where
    depends on nothing but the texts themselves, not on their order, and the copies of a text stay
    together. If there is only one distinct text, it is cut after (1 - heldout_fraction) of it, at
    the next line boundary if one is near. Raises BadInput for a fraction outside (0, 1) and for
    text too short to split.
    """
    if not 0 < heldout_fraction < 1:
        raise BadInput(
            f"heldout_fraction is {heldout_fraction}, it must lie between 0 and 1, both excluded."
        )
    by_digest = sorted(set(documents), key=lambda text: hashlib.sha256(text.encode()).digest())
    if len(by_digest) < 2:
        halves = [_cut(document, heldout_fraction) for document in documents]
        return [head for head, _ in halves], [tail for _, tail in halves]
    copies = {text: 0 for text in by_digest}
    for document in documents:
        copies[document] += 1
    wanted = heldout_fraction * sum(map(len, documents))
    heldout, characters = set(), 0
    for text in by_digest[:-1]:
        if characters >= wanted:
            break
        heldout.add(text)
        characters += copies[text] * len(text)
    return (
        [document for document in documents if document not in heldout],
        [document for document in documents if document in heldout],
    )


def _cut(text: str, heldout_fraction: float) -> tuple[str, str]:
    if len(text) < 2:
        raise BadInput(
            f"The corpus is a single document of {len(text)} character(s), too short to hold a "
            "part of it out; give more text."
        )
    cut = min(max(round((1 - heldout_fraction) * len(text)), 1), len(text) - 1)
    # At most half of the tail is given away for the sake of a whole line.
    newline = text.find("\n", cut - 1, cut + min(_NEARBY, (len(text) - cut) // 2))
    cut = cut if newline < 0 else newline + 1
    return text[:cut], text[cut:]


def _read(corpus: str, separator: str) -> list[str]:
    if corpus == EMBEDDED_CORPUS:
        from pydoc_data import topics

        return list(topics.topics.values())
    path = pathlib.Path(corpus)
    if path.is_dir():
        files = sorted(path.glob("*.txt"))
        if not files:
            raise BadInput(f"The corpus folder {path} has no *.txt files.")
        return [_read_text(file) for file in files]
    if not path.is_file():
        raise BadInput(
            f"There is no corpus at {path}; give a UTF-8 text file, a folder of *.txt files or "
            f"'{EMBEDDED_CORPUS}'."
        )
    text = _read_text(path)
    return text.split(separator) if separator else [text]


def _read_text(path: pathlib.Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadInput(
            f"{path} is not UTF-8 text: the byte at offset {error.start} does not decode "
            f"({error.reason}); convert the file to UTF-8."
        ) from error

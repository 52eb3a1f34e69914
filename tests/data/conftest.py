"""The rule of the split, as it was before corpora were read in pieces."""

import hashlib

import pytest

from sedd_jax.data.corpus_statistics import cut
from sedd_jax.data.documents import Fault, Recipe
from sedd_jax.data.sources import pieces


@pytest.fixture(scope="session")
def split_documents():
    """(documents, fraction) to (train, heldout), the order kept.

    Distinct texts are held out in the order of their SHA-256 until the fraction of all characters
    is reached, at least one is left on each side, and a single one is cut.
    """
    return _split_documents


def _split_documents(documents, fraction):
    by_digest = sorted(set(documents), key=lambda text: hashlib.sha256(text.encode()).digest())
    if len(by_digest) < 2:
        halves = [cut(document, fraction) for document in documents]
        return [head for head, _ in halves], [tail for _, tail in halves]
    wanted = fraction * sum(map(len, documents))
    heldout, characters = set(), 0
    for text in by_digest[:-1]:
        if characters >= wanted:
            break
        heldout.add(text)
        characters += documents.count(text) * len(text)
    return (
        [document for document in documents if document not in heldout],
        [document for document in documents if document in heldout],
    )


@pytest.fixture(scope="session")
def load_documents():
    """(corpus, separator) to the texts, the bad ones left out."""

    def load(corpus, separator=""):
        contents = (
            document.content
            for piece in pieces(Recipe(separator=separator), corpus)
            for document in piece.documents()
        )
        return [content for content in contents if not isinstance(content, Fault)]

    return load

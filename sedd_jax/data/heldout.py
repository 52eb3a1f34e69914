"""Which documents are held out: a question of the SHA-256 of each, whatever their order."""

import hashlib

import numpy as np

from sedd_jax.errors import BadInput

_BITS = 20
BINS = 2**_BITS
# A cut looks for a line break within this many characters.
_NEARBY = 1000

# Text, or integer ids [tokens].
Content = str | np.ndarray


def content_bytes(content: Content) -> bytes | memoryview:
    """What stands for a document in hashes: UTF-8, or the ids as they lie in memory."""
    if isinstance(content, str):
        return content.encode()
    return np.ascontiguousarray(content).view(np.uint8).data


def bin_of(content: bytes | memoryview) -> int:
    """The first bits of the SHA-256, in [0, BINS); copies of a document share a bin."""
    return int.from_bytes(hashlib.sha256(content).digest()[:4]) >> (32 - _BITS)


def heldout_bins(histogram: np.ndarray, fraction: float) -> int | None:
    """The number b for which the documents of the bins [0, b) are to be held out.

    `histogram` int64 [BINS] counts characters. Bins are taken in order until `fraction` of all
    characters is reached, and at least one bin with text is left on each side. None when there is
    only one: then every document is to be `cut`. While every distinct text has a bin of its own,
    that is the order of the texts' SHA-256.
    """
    occupied = np.flatnonzero(histogram)
    if len(occupied) < 2:
        return None
    characters = np.cumsum(histogram[occupied])
    taken = int(np.searchsorted(characters, fraction * int(characters[-1]))) + 1
    return int(occupied[min(taken, len(occupied) - 1)])


def cut(content: Content, fraction: float) -> tuple[Content, Content]:
    """The document in two, the second about `fraction` of it, at a line boundary if one is near.

    Raises BadInput for less than two characters.
    """
    size = len(content)
    if size < 2:
        raise BadInput(
            f"The corpus is a single document of {size} character(s), too short to hold a part of "
            "it out; give more text."
        )
    border = min(max(round((1 - fraction) * size), 1), size - 1)
    if isinstance(content, str):
        # At most half of the tail is given away for the sake of a whole line.
        newline = content.find("\n", border - 1, border + min(_NEARBY, (size - border) // 2))
        border = border if newline < 0 else newline + 1
    return content[:border], content[border:]

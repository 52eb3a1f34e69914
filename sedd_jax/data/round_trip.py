"""What tokens do not hold of a text: characters without an id, and texts that come back changed.

Bits per byte are the length of a code for the text only if its ids give it back. A text is compared
with its decoded ids, unless the tokenizer is exact for every text.
"""

import collections
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from sedd_jax.data.characters import Tokenizer, first_difference
from sedd_jax.data.documents import Piece, Recipe
from sedd_jax.errors import BadInput

_KEPT = 8  # letters, the most frequent ones
_AROUND = 12  # characters before and after the first difference


class Lost(NamedTuple):
    """What one text has lost.

    Attributes:
      letters: the characters that do not come back, each with how many fewer there are.
      first: the first difference, in words.
    """

    letters: collections.Counter[str]
    first: str


def changed(tokenizer: Tokenizer, text: str, ids: np.ndarray) -> Lost | None:
    """Returns what a text loses as ids; None if they give it back.

    Args:
      tokenizer: of the ids; nothing is compared if it is exact.
      text: a document or a part of one.
      ids: `tokenizer.encode(text)`.
    """
    if tokenizer.exact:
        return None
    back = tokenizer.decode(ids)
    if back == text:
        return None
    start = first_difference(text, back)
    there, here = (each[max(start - _AROUND, 0) : start + _AROUND] for each in (text, back))
    missing = collections.Counter(text) - collections.Counter(back)
    return Lost(missing, f"{there!r} becomes {here!r}")


def unknown(tokenizer: Tokenizer, text: str | np.ndarray) -> Lost | None:
    """Returns the characters of a text without an id; None if the tokenizer has no alphabet."""
    if tokenizer.unknown is None or not isinstance(text, str):
        return None
    if not (found := tokenizer.unknown.search(text)):
        return None
    letters = collections.Counter("".join(tokenizer.unknown.findall(text)))
    return Lost(letters, f"{found[0][0]!r} at position {found.start()}")


class LostTotal:
    """The sum of several `Lost`.

    Attributes:
      documents: the number of texts that lost something.
      letters: their sum.
      first: the first text, as the caller names it, and its first difference; or None.
    """

    def __init__(self):
        self.documents, self.first = 0, None
        self.letters = collections.Counter()

    def add(self, lost: Lost | None, place: Any) -> None:
        """Adds what the text at `place` has lost."""
        if lost is not None:
            self.documents += 1
            self.letters.update(lost.letters)
            self.first = self.first or (place, lost.first)


def joined(parts: Iterable[tuple[Sequence[Piece], dict[str, Any]]]) -> dict[str, Any]:
    """Returns losses for a manifest, {} if there are none.

    Args:
      parts: some pieces, and the attributes of their `LostTotal`; its place is (number of piece,
        where).
    """
    total = LostTotal()
    for pieces, losses in parts:
        total.documents += losses["documents"]
        total.letters.update(losses["letters"])
        if losses["first"] and not total.first:  # a place takes reading
            (number, where), words = losses["first"]
            total.first = f"{pieces[number].place(where)}: {words}"
    kept = dict(sorted(total.letters.items(), key=lambda item: (-item[1], item[0]))[:_KEPT])
    found = {
        "documents": total.documents,
        "characters": total.letters.total(),
        "kinds": len(total.letters),
        "letters": kept,
        "first": total.first,
    }
    return found if total.documents else {}


def check_lost(losses: dict[str, Any], characters: int, recipe: Recipe) -> None:
    """Raises BadInput if more characters are lost than the recipe allows.

    Args:
      losses: from `joined`.
      characters: of all documents.
      recipe: names the tokenizer, and has `max_lost`.
    """
    share = losses.get("characters", 0) / max(characters, 1)
    if share > recipe.max_lost:
        raise BadInput(
            f"The tokenizer {recipe.tokenizer_path or recipe.tokenizer} loses {share:.0%} of the "
            f"characters: {letters_text(losses)}, the first in {losses['first']}. Leave "
            "config.data.tokenizer_path out, and one that loses nothing is trained on the text; or "
            "choose config.data.tokenizer=bytes; or allow it with config.data.max_lost="
            f"{-(-share * 100 // 1) / 100:g}."
        )


def share_of_texts(tokenizer: Tokenizer, texts: Iterable[str]) -> float | None:
    """Returns the share of the characters that texts lose; None if all of them come back."""
    if tokenizer.exact:
        return None
    found = [(len(text), changed(tokenizer, text, tokenizer.encode(text))) for text in texts]
    lost = [each.letters.total() for _, each in found if each]
    return sum(lost) / sum(size for size, _ in found) if lost else None


def share_of_split(tokenizer: Tokenizer, manifest: dict[str, Any], split: str) -> float | None:
    """Returns the share of the characters that a split has lost.

    Args:
      tokenizer: of the data.
      manifest: of one folder, or of several.
      split: its name.

    Returns:
      None if every document comes back; NaN if that is not known, of data of an older version.
    """
    if tokenizer.exact:
        return None
    manifests = [each["manifest"] for each in manifest.get("prepared", [])] or [manifest]
    if not all("losses" in each for each in manifests):
        return math.nan
    counts = [each["splits"][split] for each in manifests]
    if not any("changed" in each for each in counts):
        return None
    lost, characters = (sum(each.get(it, 0) for each in counts) for it in ("lost", "characters"))
    return lost / characters


def caveat(share: float | None) -> str:
    """Returns what has to stand beside bits per byte of a text that lost this share."""
    if share is None:
        return ""
    if math.isnan(share):
        return " (of a text that the tokenizer may change: nothing was compared then)"
    return f" (of a text that the tokenizer changes: {share:.2%} of its characters are lost)"


def letters_text(losses: dict[str, Any]) -> str:
    """Returns the letters of `joined` with their numbers, in words."""
    shown = [f"{letter!r} {count:,} times" for letter, count in losses["letters"].items()]
    more = losses["kinds"] - len(shown)
    return ", ".join(shown) + (f" and {more:,} others" if more else "")

"""From the tokenised text of old benchmarks back to text as people write it.

The rules are those of the published evaluations, in their order and with their quirks: a number
given after other rules is another number.
"""

import re
from collections.abc import Callable

Rule = tuple[str | re.Pattern[str], str]  # what is replaced, everywhere, and by what


def _joined(*marks: str) -> list[Rule]:
    """The space before each of the marks goes, the one after it stays."""
    return [(f" {mark} ", f"{mark} ") for mark in marks]


def _last(mark: str) -> Rule:
    """The same at the end."""
    return re.compile(rf" {re.escape(mark)}$"), mark


def _hugged(*pairs: str) -> list[Rule]:
    """No space inside a pair of brackets or quotes."""
    return [
        (re.compile(rf"{re.escape(a)}\s*([^{re.escape(b)}]*?)\s*{re.escape(b)}"), rf"{a}\1{b}")
        for a, b in pairs
    ]


def _spaced(*pairs: str) -> list[Rule]:
    """The same where there is just one space on both sides, and neither mark between."""
    return [
        (
            re.compile(rf"{re.escape(a)} ([^{re.escape(a + b)}]+) {re.escape(b)}"),
            rf"{a}\1{b}",
        )
        for a, b in pairs
    ]


_WIKITEXT: list[Rule] = [
    ("s '", "s'"),
    # meant as delimiters, the slashes are text: "/' 7/" becomes what was meant as a pattern
    (re.compile("/' [0-9]/"), "/'[0-9]/"),
    *[(f" @{mark}@ ", mark) for mark in "-,."],
    *_joined(":", ";", ".", "!", "?", ","),
    *_hugged("()", "[]", "{}", '""', "''"),
    *[("= " * (level - 1) + "=", "=" * level) for level in (4, 3, 2)],
    (" ° ", "°"),
    (" \n", "\n"),
    ("\n ", "\n"),
    (" N ", " 1 "),  # as PTB writes a number; here it is a letter
    (" 's", "'s"),
]

_PTB: list[Rule] = [
    (" 's", "'s"),
    ("s ' ", "s' "),
    (" n't", "n't"),
    (" \n ", "\n"),
    (r"\/", "/"),
    *[(" N ", " 1 ")] * 2,  # of neighbours, which share a space, once takes every other one
    ("$ 1", "$1"),
    ("# 1", "#1"),
    ("<unk>", "?"),
]

_LM1B: list[Rule] = [
    *[(f"{scheme} : / / ", f"{scheme}://") for scheme in ("http", "https")],
    (re.compile(r" '(\w+)"), r"'\1"),
    (re.compile(r" (\w+) \. "), r" \1. "),
    (re.compile(r" (\w+) \.$"), r" \1."),
    *_joined("?"),
    _last("?"),
    *_joined("!"),
    _last("!"),
    *_joined(",", ":", ";"),
    (" / ", "/"),
    *_spaced('""', "''", "()", "[]"),
    ("$ ", "$"),
    ("£ ", "£"),
]

_STRAIGHT: list[Rule] = [("“", '"'), ("”", '"')]


def _rewritten(rules: list[Rule]) -> Callable[[str], str]:
    def rewrite(text):
        for old, new in rules:
            text = text.replace(old, new) if isinstance(old, str) else old.sub(new, text)
        return text

    return rewrite


def _lambada(text: str) -> str:
    return "\n" + _rewritten(_STRAIGHT)(text).strip()


DETOKENIZERS: dict[str, Callable[[str], str]] = {
    "none": str,
    "wikitext": _rewritten(_WIKITEXT),
    "ptb": _rewritten(_PTB),
    "lm1b": _rewritten(_LM1B),
    "lambada": _lambada,
    "wikitext, then lm1b": _rewritten(_WIKITEXT + _LM1B),
}

"""The data sets of published likelihoods: their files, documents, splits and detokenizers.

A document is a row as the published evaluations read it, blank ones too: an end-of-text token
follows each of them. Detokenizers turn the tokenised text of old benchmarks back into text as
people write it. Their rules are those of the published evaluations, in their order and with their
quirks: a rule applied later sees the output of those before it.
"""

import dataclasses
import io
import re
from collections.abc import Callable
from typing import Literal

from sedd_jax.errors import BadInput

Split = Literal["test", "validation"]
TEXT8_CHARACTERS, TEXT8_SPLIT = 100_000_000, 5_000_000

_Rule = tuple[str | re.Pattern[str], str]  # what is replaced everywhere, and its replacement


def _joined(*marks: str) -> list[_Rule]:
    """Removes the space before each of the marks, keeps the one after it."""
    return [(f" {mark} ", f"{mark} ") for mark in marks]


def _last(mark: str) -> _Rule:
    """The same at the end of a text."""
    return re.compile(rf" {re.escape(mark)}$"), mark


def _hugged(*pairs: str) -> list[_Rule]:
    """Removes spaces inside a pair of brackets or quotes."""
    return [
        (re.compile(rf"{re.escape(a)}\s*([^{re.escape(b)}]*?)\s*{re.escape(b)}"), rf"{a}\1{b}")
        for a, b in pairs
    ]


def _spaced(*pairs: str) -> list[_Rule]:
    """The same for exactly one space on both sides and neither mark in between."""
    return [
        (
            re.compile(rf"{re.escape(a)} ([^{re.escape(a + b)}]+) {re.escape(b)}"),
            rf"{a}\1{b}",
        )
        for a, b in pairs
    ]


_WIKITEXT: list[_Rule] = [
    ("s '", "s'"),
    # the slashes, meant as delimiters, are text: "/' 7/" becomes the intended pattern
    (re.compile("/' [0-9]/"), "/'[0-9]/"),
    *[(f" @{mark}@ ", mark) for mark in "-,."],
    *_joined(":", ";", ".", "!", "?", ","),
    *_hugged("()", "[]", "{}", '""', "''"),
    *[("= " * (level - 1) + "=", "=" * level) for level in (4, 3, 2)],
    (" ° ", "°"),
    (" \n", "\n"),
    ("\n ", "\n"),
    (" N ", " 1 "),  # PTB writes a number so; in WikiText it is a letter
    (" 's", "'s"),
]

_PTB: list[_Rule] = [
    (" 's", "'s"),
    ("s ' ", "s' "),
    (" n't", "n't"),
    (" \n ", "\n"),
    (r"\/", "/"),
    *[(" N ", " 1 ")] * 2,  # twice: neighbours share a space, so one pass replaces every other one
    ("$ 1", "$1"),
    ("# 1", "#1"),
    ("<unk>", "?"),
]

_LM1B: list[_Rule] = [
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

_STRAIGHT: list[_Rule] = [("“", '"'), ("”", '"')]


def _rewritten(rules: list[_Rule]) -> Callable[[str], str]:
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


@dataclasses.dataclass(frozen=True)
class TextSet:
    """A data set.

    Attributes:
      title: its name in a table.
      detokenizer: key of DETOKENIZERS.
      files: patterns of the end of a path, in which SPLIT is "test" or "validation" and SHORT
        "test" or "valid"; the first one that matches a file applies.
      rows: (text of a file, split) -> documents; JSON lines and tables have rows already.
      field: of the text in such rows.
      remote: the corpus that --download fetches, or "".
      advice: what to fetch by hand; "" if the pattern shows it.
      mdlm_split: the split of MDLM's and Duo's evaluation; SEDD's is always the test split.
      foreign: a string that only another version of the text holds; "" if none is known.
    """

    title: str
    detokenizer: str
    files: tuple[str, ...]
    rows: Callable[[str, Split], list[str]]
    field: str = "text"
    remote: str = ""
    advice: str = ""
    mdlm_split: Split = "validation"
    foreign: str = ""

    def split(self, protocol: str) -> Split:
        """Returns the split that a protocol scores."""
        return "test" if protocol == "sedd" else self.mdlm_split


def _lines(text: str, split: Split) -> list[str]:
    """Lines with their line ends; blank ones are empty."""
    return [line if line.strip() else "" for line in io.StringIO(text)]


def _stripped_lines(text: str, split: Split) -> list[str]:
    return [line.strip() for line in io.StringIO(text)]


def _text8(text: str, split: Split) -> list[str]:
    """One document: the last 5 million characters, or those before them."""
    if len(text) != TEXT8_CHARACTERS:
        raise BadInput(f"has {len(text):,} characters, text8 has {TEXT8_CHARACTERS:,}")
    start = {"test": -TEXT8_SPLIT, "validation": -2 * TEXT8_SPLIT}[split]
    return [text[start:][:TEXT8_SPLIT]]


def _wikitext(number: int) -> TextSet:
    return TextSet(
        f"WikiText{number}",
        "wikitext",
        (
            rf"wikitext[-_]?{number}(?!\d)[^/]*/wiki\.SHORT\.raw",
            rf"wikitext[-_]?{number}-raw[^/]*/SPLIT-[^/]*\.parquet",
        ),
        _lines,
        remote=f"hf:Salesforce/wikitext/wikitext-{number}-raw-v1:SPLIT",
        advice=f"wikitext-{number}-raw/wiki.SHORT.raw",
        foreign="<unk>",
    )


def _papers(source: str) -> TextSet:
    return TextSet(
        f"Scientific papers, {source}",
        "wikitext, then lm1b",
        (rf"{source}[^/]*/SPLIT[^/]*\.(jsonl|parquet)",),
        _lines,
        field="article",
        remote=f"tfds:scientific_papers/{source}:SPLIT",
    )


TEXT_SETS: dict[str, TextSet] = {
    "lambada": TextSet(
        "LAMBADA",
        "lambada",
        (r"lambada_test\.jsonl",),
        _lines,
        remote="hf:EleutherAI/lambada_openai/default:test",
        advice="lambada_test.jsonl, as OpenAI processed it for GPT-2",
        mdlm_split="test",  # the only one
    ),
    "wikitext2": _wikitext(2),
    "ptb": TextSet(
        "PTB",
        "ptb",
        (
            r"ptb\.SHORT\.txt",
            r"(ptb|penn)[^/]*/(data/)?SHORT\.txt",
            r"(ptb|penn)[^/]*/(data/)?SPLIT-[^/]*\.parquet",
        ),
        _stripped_lines,
        field="sentence",
        advice="Mikolov's ptb.SHORT.txt",
    ),
    "wikitext103": _wikitext(103),
    "lm1b": TextSet(
        "1BW",
        "lm1b",
        (r"news\.en\.heldout-\d+-of-\d+", r"lm1b[^/]*/(data/)?SPLIT-[^/]*\.parquet"),
        _stripped_lines,
        remote="tfds:lm1b:SPLIT",
        advice="all files of heldout-monolingual.tokenized.shuffled",
        mdlm_split="test",
    ),
    "text8": TextSet(
        "text8",
        "none",
        (r"text8(\.txt)?",),
        _text8,
        advice="text8.zip from mattmahoney.net/dc, unpacked",
        mdlm_split="test",
    ),
    "ag_news": TextSet(
        "AG News",
        "none",
        (r"ag_?news[^/]*/(data/)?SPLIT[^/]*\.(jsonl|parquet)",),
        _lines,
        remote="hf:fancyzhx/ag_news:SPLIT",
        mdlm_split="test",
    ),
    "scientific_papers_pubmed": _papers("pubmed"),
    "scientific_papers_arxiv": _papers("arxiv"),
}
ZEROSHOT = ("lambada", "wikitext2", "ptb", "wikitext103", "lm1b")  # the columns of SEDD's table

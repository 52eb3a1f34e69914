"""The data sets that likelihoods are reported of: their files, their rows, their splits.

A document is a row as the published evaluations get it, blank ones too: after each of them comes
an end-of-text token.
"""

import dataclasses
import io
from collections.abc import Callable
from typing import Literal

from sedd_jax.errors import BadInput

Split = Literal["test", "validation"]
TEXT8_CHARACTERS, TEXT8_SPLIT = 100_000_000, 5_000_000


@dataclasses.dataclass(frozen=True)
class TextSet:
    """A data set.

    Attributes:
      title: its name in a table.
      detokenizer: key of DETOKENIZERS.
      files: what the path of a file ends with, patterns in which SPLIT is "test" or "validation"
        and SHORT "test" or "valid"; the first that fits any file counts.
      rows: (text of a file, split) -> documents; files of JSON lines and tables have rows already.
      field: of the text in those.
      remote: the corpus that --download takes; "" if there is none.
      advice: what to fetch by hand; "" if the pattern says it.
      mdlm_split: that of MDLM's evaluation; SEDD's is the test split throughout.
      foreign: what only another version of the text holds; "" if nothing is known.
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
        """Returns which split a protocol scores."""
        return self.mdlm_split if protocol == "mdlm" else "test"


def _lines(text: str, split: Split) -> list[str]:
    """Lines with their ends; blank ones are empty."""
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
        mdlm_split="test",  # there is no other
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

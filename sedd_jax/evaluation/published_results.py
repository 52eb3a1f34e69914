"""Published likelihoods, to print beside measured ones.

They are the rows of `assets/published_likelihoods.csv`. A row names its paper, and how its figures
were seen: in a converted text of the paper, in a repository, or in somebody else's text. Check them
in the paper before you cite them.
"""

import csv
import importlib.resources
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from sedd_jax.display.table import Cell, Table, with_error
from sedd_jax.evaluation.datasets import TEXT_SETS, ZEROSHOT
from sedd_jax.evaluation.protocol import BOUNDS, EXACT
from sedd_jax.evaluation.record import Record, labels

EXACT_VALUE, BOUND, NO_BOUND = "exact", "bound", "no bound"  # kinds of figures
PAPER, REPOSITORY, SECOND_HAND = "paper", "repository", "second-hand"  # where they were seen
HELDOUT = "heldout"  # the validation text of a paper, which is no data set here
_TITLES = {name: text.title for name, text in TEXT_SETS.items()}
_TITLES |= {"text8": "text8, bits", HELDOUT: "held out"}
_OF_TEXT = ("source", "sha256", "split", "detokenizer")  # keys of a protocol
_SIZES = {"small": (60e6, 250e6), "medium": (250e6, 700e6)}  # parameters


def rows_of(asset: str) -> list[dict[str, str]]:
    """Returns the rows of a CSV file in `assets/`, by the names of its columns."""
    text = (importlib.resources.files(__package__) / "assets" / asset).read_text("utf-8")
    return list(csv.DictReader(text.splitlines()))


class PublishedResult(NamedTuple):
    """A row of a published table.

    Attributes:
      model: its name there.
      source: the paper or the issue, and the table.
      seen: PAPER, REPOSITORY or SECOND_HAND.
      kind: EXACT_VALUE, BOUND, or NO_BOUND for a figure that leaves out a term of the bound.
      figures: by data set; perplexities, for text8 bits per character.
      protocol: of the evaluation.
      size: key of _SIZES.
      length: of the model.
      tokenizer: its kind, for figures per token; None for figures per character.
      not_comparable: why no figure measured here compares with it; "" if one may.
      caution: what to know before comparing; "" if nothing.
    """

    model: str
    source: str
    seen: str
    kind: str
    figures: dict[str, float]
    protocol: str
    size: str
    length: int
    tokenizer: str | None
    not_comparable: str
    caution: str

    @classmethod
    def of(cls, row: dict[str, str]) -> "PublishedResult":
        """Returns the result in a row of the file."""
        figures = {name: float(row[name]) for name in _TITLES if row[name]}
        source = ", ".join(filter(None, (row["source"], row["place"])))
        given = {name: row[name] for name in cls._fields if name in row} | {"source": source}
        length, tokenizer = int(row["length"]), row["tokenizer"] or None
        return cls(**given | {"figures": figures, "length": length, "tokenizer": tokenizer})

    @property
    def notes(self) -> str:
        """All that is to be known before comparing."""
        seen = "seen second-hand" if self.seen == SECOND_HAND else ""
        return "; ".join(filter(None, (self.not_comparable, self.caution, seen)))

    def fits(self, record: Record) -> bool:
        """Returns whether a measured figure is comparable with this row."""
        model, protocol = record.model, record.protocol
        low, high = _SIZES[self.size]
        return (
            not self.not_comparable
            and record.name in self.figures
            and protocol.get("protocol") == self.protocol
            and model.get("length") == self.length
            and low <= model.get("parameters", 0) < high
            and self.tokenizer in (None, model.get("tokenizer"))
            and protocol.get("part") == "all"
            and protocol.get("bound") in (BOUNDS[False], EXACT)
        )


RESULTS = [PublishedResult.of(row) for row in rows_of("published_likelihoods.csv")]


def paper_table_1() -> list[PublishedResult]:
    """Returns the rows of Table 1 of the SEDD paper: small models, zero-shot perplexity."""
    ours = (it for it in RESULTS if it.source.startswith("SEDD,") and it.size == "small")
    return [result for result in ours if set(ZEROSHOT) <= set(result.figures)]


def published(records: Sequence[Record], *, everything: bool = False) -> list[Table]:
    """Returns measured likelihoods with the published rows of the same data sets below them.

    Figures are perplexities, for text8 bits per character. A published figure appears where
    protocol, length, tokenizer and order of size agree, all blocks were scored, and the bound has
    the published terms. There is no table without such a row.

    Args:
      records: of evaluations; likelihoods are used.
      everything: whether to print all rows with one of the data sets, comparable or not; those
        that are no bounds then stand in a table of their own.
    """
    records = [record for record in records if record.kind == "likelihood"]
    bounds, others = [], []
    for result in RESULTS:
        names = {
            record.name
            for record in records
            if (record.name in result.figures if everything else result.fits(record))
        }
        if names and (everything or result.kind != NO_BOUND):
            (others if result.kind == NO_BOUND else bounds).append((result, names))
    return [
        *_table("Published figures", bounds, lambda shown: _measured(records, shown)),
        *_table("Published figures that are no bounds", others, lambda shown: []),
    ]


def _table(title, rows, above) -> Iterable[Table]:
    shown = [name for name in _TITLES if any(name in names for _, names in rows)]
    below = [
        (
            result.model,
            f"{result.source}, {result.size}, {result.length} tokens, protocol {result.protocol}",
            *(f"{result.figures[name]:.2f}" if name in names else "" for name in shown),
            result.notes,
        )
        for result, names in rows
    ]
    columns = ("model", "source", *map(_TITLES.get, shown), "caution")
    return [Table(title, columns, [*above(shown), *below])] if rows else []


def _measured(records, shown) -> list[tuple[Cell, ...]]:
    """A row for each model and protocol; the settings in which rows differ are their caution."""
    rows, seen, label = {}, Counter(), labels(records)
    for record in records:
        settings = {"weights": record.model.get("weights"), "dtype": record.model.get("dtype")}
        settings |= {key: it for key, it in record.protocol.items() if key not in _OF_TEXT}
        name, key = record.name, json.dumps(settings, sort_keys=True)
        if version := seen[key, name]:  # another text of the same name
            text = record.protocol
            settings["source"] = f"{text.get('source')} {text.get('sha256', '')[:8]}"
        seen[key, name] += 1
        row = rows.setdefault((key, version), (label(record), settings, {}))
        row[2][name] = _figure(record)
    keys = dict.fromkeys(key for _, settings, _ in rows.values() for key in settings)
    differing = [
        key
        for key in keys
        if key not in ("weights", "protocol")  # shown in the first columns
        and len({str(settings.get(key)) for _, settings, _ in rows.values()}) > 1
    ]
    return [
        (
            model,
            f"measured, protocol {settings['protocol']}",
            *(figures.get(name, "") for name in shown),
            ", ".join(f"{key} {settings[key]}" for key in differing if key in settings),
        )
        for model, settings, figures in rows.values()
    ]


def _figure(record):
    """The figure with its error; bits are nats on another scale."""
    names = ("perplexity", "perplexity_stderr", "bits_per_byte", "stderr", "nats_per_token")
    perplexity, error, bits, stderr, nats = (float(record.figures[name]) for name in names)
    if record.name == "text8":
        return with_error(bits, stderr * bits / nats)
    return with_error(perplexity, error)

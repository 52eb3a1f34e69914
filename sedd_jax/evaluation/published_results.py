"""Published likelihoods, to print beside measured ones.

They were copied from converted texts of the papers: check them there before you cite them. All but
those of autoregressive models are upper bounds.
"""

import json
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from sedd_jax.display.table import Cell, Table, with_error
from sedd_jax.evaluation.datasets import TEXT_SETS, ZEROSHOT
from sedd_jax.evaluation.protocol import BOUNDS, EXACT
from sedd_jax.evaluation.record import Record, labels

_SEDD, _MD4 = "SEDD, arXiv 2310.16834", "MD4, arXiv 2406.04329"
_RADD, _MDLM = "RADD, arXiv 2406.03736", "MDLM, arXiv 2406.07524"
_OF_TEXT = ("source", "sha256", "split", "detokenizer")  # keys of a protocol
_SIZES = {"small": (60e6, 250e6), "medium": (250e6, 700e6)}  # parameters
_MDLM_SETS = (
    "ptb", "wikitext103", "lm1b", "lambada", "ag_news",
    "scientific_papers_pubmed", "scientific_papers_arxiv",
)  # fmt: skip


class PublishedResult(NamedTuple):
    """A row of a published table.

    Attributes:
      model: its name there.
      source: the paper.
      figures: by data set; perplexities, for text8 bits per character.
      protocol: of the evaluation.
      size: key of _SIZES.
      length: of the model.
      tokenizer: its kind, for figures per token; None for figures per character.
      caution: what to know before comparing; "" if nothing.
    """

    model: str
    source: str
    figures: dict[str, float]
    protocol: str
    size: str
    length: int
    tokenizer: str | None
    caution: str = ""

    def fits(self, record: Record) -> bool:
        """Returns whether a measured figure is comparable with this row."""
        model, protocol = record.model, record.protocol
        low, high = _SIZES[self.size]
        return (
            record.name in self.figures
            and protocol.get("protocol") == self.protocol
            and model.get("length") == self.length
            and low <= model.get("parameters", 0) < high
            and self.tokenizer in (None, model.get("tokenizer"))
            and protocol.get("part") == "all"
            and protocol.get("bound") in (BOUNDS[False], EXACT)
        )


def _zeroshot(size: str, rows: list[tuple]) -> list[PublishedResult]:
    return [
        PublishedResult(
            model, source, dict(zip(ZEROSHOT, figures, strict=True)), "sedd", size, 1024, "gpt2",
            *caution,
        )
        for model, source, figures, *caution in rows
    ]  # fmt: skip


_MD4_DOUBT = "WikiText2 and WikiText103 alike in the copy"
RESULTS: list[PublishedResult] = [
    *_zeroshot(
        "small",
        [
            ("GPT-2", _SEDD, (45.04, 42.43, 138.43, 41.60, 75.20), "trained on WebText"),
            ("SEDD absorb", _SEDD, (50.92, 41.84, 114.24, 40.62, 79.29)),
            ("SEDD absorb, by MD4", _MD4, (49.73, 38.94, 107.54, 39.15, 72.96)),
            ("SEDD absorb, unscaled", _RADD, (52.21, 44.75, 130.49, 43.14, 80.70)),
            ("SEDD uniform", _SEDD, (65.40, 50.27, 140.12, 49.60, 101.37)),
            ("D3PM", _SEDD, (93.47, 77.28, 200.82, 75.16, 138.92)),
            ("PLAID", _SEDD, (57.28, 51.80, 142.60, 50.86, 91.12)),
            ("RADD-DSE", _RADD, (49.57, 38.83, 111.74, 37.46, 72.35), "400k steps"),
            ("RADD t-DCE", _RADD, (50.56, 39.02, 109.03, 36.38, 72.60)),
            ("RADD lambda-DCE", _RADD, (51.70, 39.98, 107.85, 37.98, 72.99)),
            ("RADD-AO", _RADD, (50.27, 38.26, 110.38, 35.90, 74.28)),
            ("MD4", _MD4, (48.43, 34.94, 102.26, 35.90, 68.10)),
        ],
    ),
    *_zeroshot(
        "medium",
        [
            ("GPT-2", _SEDD, (35.66, 31.80, 123.14, 31.39, 55.72), "trained on WebText"),
            ("SEDD absorb", _SEDD, (42.77, 31.04, 87.12, 29.98, 61.19)),
            ("SEDD uniform", _SEDD, (51.28, 38.93, 102.28, 36.81, 79.12)),
            ("RADD-DSE", _RADD, (42.30, 29.17, 75.16, 28.03, 57.45)),
            ("RADD-AO", _RADD, (41.96, 29.96, 79.06, 28.51, 57.07)),
            ("MD4", _MD4, (44.12, 25.84, 66.07, 25.84, 51.45), _MD4_DOUBT),
        ],
    ),
    *[
        PublishedResult(
            model, _MDLM, dict(zip(_MDLM_SETS, figures, strict=True)), "mdlm", "small", 1024,
            "gpt2", "which Wikitext is not said; taken for WikiText103",
        )
        for model, figures in [
            ("AR", (82.05, 25.75, 51.25, 51.28, 52.09, 49.01, 41.73)),
            ("SEDD, retrained", (100.09, 34.28, 68.20, 49.86, 62.09, 44.53, 38.48)),
            ("MDLM", (95.26, 32.83, 67.01, 47.52, 61.15, 41.89, 37.37)),
        ]
    ],
    *[
        PublishedResult(
            model, source, {"text8": bits}, "sedd", "small", 256, None, "trained on text8"
        )
        for model, source, bits in [
            ("AR", _SEDD, 1.23),
            ("SEDD absorb", _SEDD, 1.39),
            ("SEDD uniform", _SEDD, 1.47),
            ("D3PM absorb", _SEDD, 1.45),
            ("D3PM uniform", _SEDD, 1.61),
            ("MD4", _MD4, 1.37),
        ]
    ],
    *[
        PublishedResult(
            model, source, {"lm1b": perplexity}, "sedd", "small", 128, "bert-base-uncased",
            "trained on 1BW; length and tokens are another's",
        )
        for model, source, perplexity in [
            ("AR", _SEDD, 31.98),
            ("SEDD absorb", _SEDD, 32.79),
            ("SEDD uniform", _SEDD, 40.25),
            ("D3PM absorb", _SEDD, 77.50),
        ]
    ],
]  # fmt: skip


def paper_table_1() -> list[PublishedResult]:
    """Returns the rows of Table 1 of the SEDD paper: small models, zero-shot perplexity."""
    ours = (it for it in RESULTS if it.source == _SEDD and it.size == "small")
    return [result for result in ours if set(ZEROSHOT) <= set(result.figures)]


def published(records: Sequence[Record], *, everything: bool = False) -> Table | None:
    """Returns measured likelihoods with the published rows of the same data sets below them.

    Figures are perplexities, for text8 bits per character. A published figure appears where
    protocol, length, tokenizer and order of size agree, all blocks were scored, and the bound has
    the published terms. None if there is no such row.

    Args:
      records: of evaluations; likelihoods are used.
      everything: whether to print all rows with one of the data sets, comparable or not.
    """
    records = [record for record in records if record.kind == "likelihood"]
    rows = []
    for result in RESULTS:
        names = {
            record.name
            for record in records
            if (record.name in result.figures if everything else result.fits(record))
        }
        if names:
            rows.append((result, names))
    shown = [name for name in TEXT_SETS if any(name in names for _, names in rows)]
    if not shown:
        return None
    below = [
        (
            result.model,
            f"{result.source}, {result.size}, {result.length} tokens, protocol {result.protocol}",
            *(f"{result.figures[name]:.2f}" if name in names else "" for name in shown),
            result.caution,
        )
        for result, names in rows
    ]
    titles = [f"{TEXT_SETS[name].title}{', bits' * (name == 'text8')}" for name in shown]
    columns = ("model", "source", *titles, "caution")
    return Table("Published figures", columns, [*_measured(records, shown), *below])


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

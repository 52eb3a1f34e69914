"""Published figures of samples, to print below measured ones.

They are the rows of `assets/published_samples.csv`, see `published_results`. All come from models
of OpenWebText. Generative perplexity is by tokens, the convention of MDLM, as far as a paper says.
"""

from collections.abc import Sequence
from typing import NamedTuple

from sedd_jax.display.table import Table
from sedd_jax.evaluation.published_results import rows_of
from sedd_jax.evaluation.record import Record

_JUDGES = {"GPT-2 large": (700e6, 850e6)}  # parameters
_NEAR = 0.1  # budgets that differ by less are alike: the final step is one evaluation more


class PublishedSamples(NamedTuple):
    """A row of a published table.

    Attributes:
      model: its name there, and the sampler.
      source: the paper, and the table.
      length: tokens of a sample.
      tokenizer: its kind.
      judge: the scoring model, key of _JUDGES.
      evaluations: network evaluations of a sample; None for real text.
      figures: generative perplexity, entropy in nats and MAUVE, as printed; "" where there is none.
      caution: what to know before comparing; "" if nothing.
    """

    model: str
    source: str
    length: int
    tokenizer: str
    judge: str
    evaluations: int | None
    figures: tuple[str, str, str]
    caution: str

    @classmethod
    def of(cls, row: dict[str, str]) -> "PublishedSamples":
        """Returns the result in a row of the file."""
        return cls(
            model=row["model"],
            source=f"{row['source']}, {row['place']}",
            length=int(row["length"]),
            tokenizer=row["tokenizer"],
            judge=row["judge"],
            evaluations=int(row["evaluations"]) if row["evaluations"] else None,
            figures=(row["gen_perplexity"], row["entropy"], row["mauve"]),
            caution=row["caution"],
        )

    def fits(self, record: Record) -> bool:
        """Returns whether measured samples are comparable with this row, whatever their cost."""
        protocol, judge = record.protocol, record.protocol.get("judge") or {}
        low, high = _JUDGES[self.judge]
        return (
            protocol.get("length") == self.length
            and record.model.get("tokenizer") == self.tokenizer
            and judge.get("tokenizer") == "gpt2"
            and low <= judge.get("parameters", 0) < high
        )


SAMPLES = [PublishedSamples.of(row) for row in rows_of("published_samples.csv")]


def published_samples(records: Sequence[Record], *, everything: bool = False) -> list[Table]:
    """Returns published figures of samples; no table if there is nothing to compare.

    A row appears where length, tokenizer and scoring model agree, and its network evaluations are
    about those of samples measured here; rows of real text appear with the others.

    Args:
      records: of evaluations; those of samples are used.
      everything: whether to print all rows.
    """
    records = [record for record in records if record.kind == "quality" and not record.is_real]
    shown = [
        result
        for result in SAMPLES
        if any(everything or _is_beside(result, record) for record in records)
    ]
    columns = (
        "model", "source", "evaluations", "gen. ppl", "entropy, nats", "MAUVE", "caution",
    )  # fmt: skip
    rows = [
        (it.model, it.source, it.evaluations, *(f or None for f in it.figures), it.caution)
        for it in shown
    ]
    return [Table("Published samples", columns, rows)] if rows else []


def _is_beside(result, record):
    cost = record.figures.get("evaluations", 0)
    near = result.evaluations is None or abs(cost / result.evaluations - 1) < _NEAR
    return near and result.fits(record)

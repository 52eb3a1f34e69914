"""Sentences on what the figures of a comparison say and do not say."""

from collections.abc import Sequence

from sedd_jax.comparison.figures import ALONE, RowFigures, memory_kind
from sedd_jax.comparison.settings import Comparison

_LARGE = 0.05  # a difference in size that is told


def notes(
    comparison: Comparison,
    rows: Sequence[RowFigures],
    done: Sequence[RowFigures],
    judge: str | None,
    level: float | None,
) -> list[str]:
    """Returns the notes, with the failures first.

    Args:
      comparison: the settings.
      rows: their figures.
      done: those with a run that is scored.
      judge: the name of the model that scored samples; None: the comparison's own autoregressive
        row, if it has one.
      level: entropy of real text, nats; None without samples.
    """
    settings = comparison.settings
    said = [f"{title} failed: {why}" for row in rows for title, why in row.failures.items()]
    said = [note if note.endswith(".") else f"{note}." for note in said]
    if not done:
        return said
    said.append(
        "Bits per byte are of the held-out text: = is exact, <= is the complete bound, with "
        f"{settings.draws} draws of (t, x_t) for every block, the same for all rows. ± data is the "
        "standard error over blocks, ± seeds that over trainings."
    )
    if settings.seeds == 1:
        said.append(
            "There is one seed, so how much another training would differ is unknown, and the "
            "verdicts on the order leave it out."
        )
    said += _of_tokens(comparison, done)
    said += _of_size(comparison, done) + _of_budget(done)
    said += _of_samples(comparison, done, judge, level)
    words = {
        "peak_memory_gib": "is the most that a device has held",
        "step_memory_gib": "is what the compiled training step holds on a device at once: state, "
        "batch and temporaries, by the compiler's figures",
    }
    if kind := memory_kind(done):
        said.append(
            f"memory {words[kind]}. ms/step is the median while training, on this machine and with "
            "what else ran there."
        )
    return said


def _of_tokens(comparison, rows):
    if not comparison.one_tokenizer:
        return [
            "The rows have different tokenizers: they are compared in bits per byte alone, and "
            "figures per token and qualities of samples are left out."
        ]
    texts = {(it.protocol["sha256"], it.protocol["tokenizer"]) for it in _heldouts(rows)}
    if len(texts) > 1:
        return ["The rows were NOT scored on the same held-out tokens: they are not comparable."]
    return []


def _heldouts(rows):
    return [each.likelihood() for row in rows for each in row.scored]


def _of_size(comparison, rows):
    of = next((row for row in rows if row.row == comparison.reference), rows[0])
    return [
        f"{row.row.title} has {abs(share):.0%} {'more' if share > 0 else 'fewer'} parameters than "
        f"{of.row.title}."
        for row in rows
        if abs(share := row.parameters / of.parameters - 1) > _LARGE
    ]


def _of_budget(rows):
    def tokens(row):
        config = row.row.config
        return config.train.steps * config.train.batch_size * config.model.length

    seen = {row.row.title: tokens(row) for row in rows}
    if len(set(seen.values())) == 1:
        return [f"Every row is trained on {next(iter(seen.values())):,} tokens."]
    each = ", ".join(f"{title} {count:,}" for title, count in seen.items())
    return [f"The rows are NOT trained on the same number of tokens: {each}."]


def _of_samples(comparison, rows, judge, level):
    if not comparison.settings.samples:
        return ["No samples were drawn: comparison.samples is 0."]
    if not comparison.one_tokenizer:
        return []
    if level is None or all(row.matched(level) is None for row in rows):
        return [
            "There is no generative perplexity: it needs a judge, a --judge or an autoregressive "
            "row that is trained."
        ]
    own = comparison.own_judge
    who = judge or f"the first run of {own.title}"
    said = [
        f"gen. perplexity is that of {comparison.settings.samples} samples by {who}, interpolated "
        f"between temperatures to the entropy of real text ({level:.3f} nats); * is extrapolated, "
        f"{ALONE} is not at that entropy, for want of other temperatures. Its ± is over samples, "
        "and over seeds if there are several. evaluations are those of the network, of one sample."
    ]
    if not judge:
        said.append(f"{own.title} judges itself, which favours it; of the others it is fair.")
    return said

"""Tables of records.

What all rows of a table share of their protocols is said once below it, and what they do not is
said row by row, so that it can be seen which numbers may be compared.
"""

from collections.abc import Sequence
from typing import Any

from sedd_jax.display.table import Cell, Table, with_error
from sedd_jax.evaluation.naming import (
    Label,
    differing_keys,
    is_real,
    model_settings,
    real_names,
    settings,
)
from sedd_jax.evaluation.record import Record

_LIKELIHOOD, _QUALITY = "Likelihood", "Quality of samples"
_WAY = ("sampler", "steps", "samples")  # columns of their own
_FEW = 3  # names that are listed


def models_table(records: Sequence[Record], label: Label) -> Table:
    """Returns what the models are whose figures the other tables hold."""
    found: dict[str, dict[str, Cell]] = {}
    for record in records:
        if not is_real(record):
            found.setdefault(label(record), record.model)
    keys = dict.fromkeys(key for model in found.values() for key in model)
    columns = {"model": list(found)} | {
        key.replace("_", " "): [_said(model.get(key)) for model in found.values()]
        for key in keys
        if key not in ("name", "step")
    }
    return _table("Models", columns)


def likelihood_tables(records: Sequence[Record], label: Label) -> list[Table]:
    """Returns the likelihoods, then how they were taken."""
    names = {"data set": [it.name for it in records], "model": [label(it) for it in records]}
    table = _table(_LIKELIHOOD, names | _columns(map(_likelihood, records)))
    return [table, *_protocols(_LIKELIHOOD, names, records, label), *_notes(_LIKELIHOOD, records)]


def quality_tables(records: Sequence[Record], label: Label) -> list[Table]:
    """Returns how good samples are, then how they were drawn and judged; real text as it comes."""
    real = iter(real_names([record for record in records if is_real(record)]))
    names = {"model": [next(real) if is_real(it) else label(it) for it in records]}
    names |= _columns(map(_way, records))
    figures = _columns(map(_quality, records))
    return [
        _table(_QUALITY, names | figures),
        *_protocols(_QUALITY, names, records, label, apart=_WAY),
        *_notes(_QUALITY, records),
    ]


def _likelihood(record):
    figures = record.figures
    perplexity = _number(figures, "perplexity")
    return {
        "perplexity": perplexity and f"{'=' if figures.get('exact') else '<='} {perplexity}",
        "nats/token": _number(figures, "nats_per_token", figures.get("stderr")),
        "bits/token": _number(figures, "bits_per_token", _scaled(figures, "bits_per_token")),
        "bits/byte": _number(figures, "bits_per_byte", _scaled(figures, "bits_per_byte")),
        "stderr by data": _given(figures, "data_stderr", ".2g"),
        **{name: _given(figures, name, ",") for name in ("tokens", "blocks", "documents")},
    }


def _way(record):
    # of real text there is no way
    sampler = None if is_real(record) else record.protocol.get("sampler")
    return {
        "sampler": sampler,
        "steps": _given(record.protocol, "steps", ","),
        "evaluations": None if is_real(record) else _given(record.figures, "evaluations", ",.6g"),
        "samples": _given(record.figures, "samples", ","),
    }


def _quality(record):
    figures = record.figures
    return {
        "gen. ppl, by samples": _number(figures, "gen_perplexity_samples"),
        "gen. ppl, by tokens": _number(figures, "gen_perplexity_tokens"),
        "entropy, nats": _number(figures, "entropy"),
        **{f"distinct-{n}": _given(figures, f"distinct_{n}", ".3f") for n in (1, 2, 3)},
        "self-repetition": _number(figures, "self_repetition")
        if "self_repetition_stderr" in figures
        else _given(figures, "self_repetition", ".3f"),
        "MAUVE": _given(figures, "mauve", ".3f"),
    }


def _number(figures, name, error=None):
    """A figure with its standard error, None if there is no such figure."""
    value = figures.get(name)
    error = figures.get(f"{name}_stderr") if error is None else error
    return with_error(value, error or 0.0) if isinstance(value, int | float) else None


def _given(figures, name, form):
    value = figures.get(name)
    return format(value, form) if isinstance(value, int | float) else None


def _scaled(figures, name):
    """Bits are nats on another scale, and so are their errors."""
    value, nats = figures.get(name), figures.get("nats_per_token")
    return figures.get("stderr", 0.0) * value / nats if value and nats else 0.0


def _protocols(title, names, records, label, apart=()):
    """Tables of what the rows differ in, row by row, and of what they share."""
    each = [
        {key: value for key, value in settings(record).items() if _applies(key, value, apart)}
        for record in records
    ]
    models = model_settings(records, label)
    each = [own | model for own, model in zip(each, models, strict=True)]
    differing = differing_keys(each)
    shared = {key: value for one in each for key, value in one.items() if key not in differing}
    tables = []
    if differing:
        columns = names | {key: [one.get(key) for one in each] for key in differing}
        tables.append(_table(f"{title}: how the rows differ", columns))
    rows = list(shared.items())
    return [*tables, Table(f"{title}: what the rows share", ("setting", "value"), rows)]


def _applies(key, value, apart):
    return key not in apart and (key, value) != ("final_step", "none")


def _notes(title, records):
    """What is to be known of figures, once for all rows of which it is true."""
    rows: dict[str, list[str]] = {}
    for record in records:
        for note in record.figures.get("notes") or []:
            rows.setdefault(note, []).append(record.name)
    cells = [(note, _listed(names, len(records))) for note, names in rows.items()]
    return [Table(f"{title}: notes", ("note", "of"), cells)] if cells else []


def _listed(names, every):
    if len(names) == every:
        return "all rows"
    kinds = list(dict.fromkeys(names))
    more = [f"{len(kinds) - _FEW} more"] if len(kinds) > _FEW else []
    return ", ".join([*kinds[:_FEW], *more])


def _columns(rows) -> dict[str, list[Cell]]:
    """Rows of the same keys as columns."""
    rows = list(rows)
    return {key: [row[key] for row in rows] for key in rows[0]}


def _table(title: str, columns: dict[str, list[Any]]) -> Table:
    """A table without the columns in which nothing stands."""
    kept = {name: cells for name, cells in columns.items() if any(it is not None for it in cells)}
    return Table(title, tuple(kept), list(zip(*kept.values(), strict=True)))


def _said(value):
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else value

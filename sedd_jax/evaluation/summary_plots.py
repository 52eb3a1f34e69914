"""Plots of the records of evaluations: quality, intervals, and bounds over t."""

import math
from collections.abc import Iterator, Sequence

from sedd_jax.display.plot import Curve, Plot
from sedd_jax.evaluation.record import (
    Label,
    Record,
    distinguish,
    model_settings,
    real_names,
    sampler_names,
)

# figure, its axis label, whether its axis is logarithmic
_PANELS = (
    ("gen_perplexity_samples", "gen. perplexity, by samples", True),
    ("gen_perplexity_tokens", "gen. perplexity, by tokens", True),
    ("entropy", "entropy of a sample, nats", False),
)


def quality(records: Sequence[Record], label: Label) -> Iterator[Plot]:
    """Yields quality against network evaluations, if there are samples.

    There is a panel for each figure; real text is a level.

    Args:
      records: of samples and of real text.
      label: names models.
    """
    drawn = [record for record in records if not record.is_real]
    real = [record for record in records if record.is_real]
    names, reals = sampler_names(drawn, label), real_names(real)
    owners = dict(zip(names, map(label, drawn), strict=True))
    plot = None
    for name, y_label, log_y in reversed(_PANELS):
        curves: dict[str, Curve] = {}
        for curve, record in zip(names, drawn, strict=True):
            x, y, errors = curves.setdefault(curve, ([], [], []))
            cost, value = record.figures.get("evaluations"), record.figures.get(name)
            if _is_finite(cost) and _is_finite(value):
                x.append(cost)
                y.append(value)
                errors.append(record.figures.get(f"{name}_stderr", 0.0))
        levels = {
            it: record.figures[name]
            for it, record in zip(reals, real, strict=True)
            if _is_finite(record.figures.get(name))
        }
        if any(x for x, *_ in curves.values()):
            x_label = "network evaluations per sample"
            plot = Plot(
                "quality", x_label, y_label, curves, log_y=log_y, levels=levels, below=plot,
                owners=owners,
            )  # fmt: skip
    if plot:
        yield plot


def intervals(records: Sequence[Record], label: Label) -> Iterator[Plot]:
    """Yields the intervals of all data sets side by side, if there are any.

    Args:
      records: of intervals.
      label: names models.
    """
    records = [it for it in records if all(map(_is_finite, map(it.figures.get, ("low", "high"))))]
    groups = _by_set(records)
    named = [
        it for group in groups.values() for it in zip(_names(group, label), group, strict=True)
    ]
    found: dict[str, Curve] = {name: ([], [], []) for name, _ in named}
    sets, curves = list(groups), list(found)
    for name, record in named:
        low, high = record.figures["low"], record.figures["high"]
        x, middle, half = found[name]
        beside = (curves.index(name) + 1) / (len(curves) + 1) - 0.5
        x.append(sets.index(record.name) + 0.8 * beside)
        middle.append((low + high) / 2)
        half.append((high - low) / 2)
    if records:
        owners = {name: label(record) for name, record in named}
        y_label = "-log p, nats/token, between its bounds"
        yield Plot(
            "interval", "data set", y_label, found, log_x=False, log_y=False, owners=owners,
            x_names=tuple(sets),
        )  # fmt: skip


def bounds_over_t(records: Sequence[Record], label: Label) -> Iterator[Plot]:
    """Yields for every data set the density over time of the bounds: the area is nats per token.

    Args:
      records: of likelihoods; those of exact ones are left out.
      label: names models.
    """
    bounds = [record for record in records if record.figures.get("by_t")]
    for name, group in _by_set(bounds).items():
        names, curves = _names(group, label), {}
        for curve, record in zip(names, group, strict=True):
            x, y = [], []
            for low, high, nats in record.figures["by_t"]:
                x += [low, high]
                y += [nats / (high - low)] * 2
            curves[curve] = (x, y)
        yield Plot(
            f"by_t-{name}",
            "t (the area below a curve is its nats/token)",
            f"{name}: nats/token per unit of t",
            curves,
            log_x=False,
            log_y=False,
            owners=dict(zip(names, map(label, group), strict=True)),
            area=True,
        )


def _by_set(records) -> dict[str, list[Record]]:
    """The records by data set."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record.name, []).append(record)
    return groups


def _names(records, label):
    """The models, with the settings in which several records of one model differ."""
    models = model_settings(records, label)
    each = [record.settings | model for record, model in zip(records, models, strict=True)]
    return distinguish(list(map(label, records)), each)


def _is_finite(value):
    return isinstance(value, int | float) and math.isfinite(value)

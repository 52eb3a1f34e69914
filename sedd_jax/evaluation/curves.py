"""Plots of records: quality against its cost, and where in time a bound comes from."""

import math
from collections.abc import Sequence

from sedd_jax.display.plot import Curve, Plot
from sedd_jax.evaluation.naming import (
    Label,
    is_real,
    model_settings,
    real_names,
    settings,
    told_apart,
    way_names,
)
from sedd_jax.evaluation.record import Record

# figure, what it is, whether its axis is logarithmic
_SHOWN = (
    ("gen_perplexity_samples", "gen. perplexity, by samples", True),
    ("gen_perplexity_tokens", "gen. perplexity, by tokens", True),
    ("entropy", "entropy of a sample, nats", False),
)


def quality_plot(records: Sequence[Record], label: Label) -> Plot | None:
    """Returns quality against network evaluations, a panel for each measure; None if there is none.

    Real text has cost nothing and stands as a level.
    """
    drawn = [record for record in records if not is_real(record)]
    names = way_names(drawn, label)
    real = [record for record in records if is_real(record)]
    reals = real_names(real)
    plot = None
    for name, y_label, log_y in reversed(_SHOWN):
        curves: dict[str, Curve] = {}
        for curve, record in zip(names, drawn, strict=True):
            x, y, errors = curves.setdefault(curve, ([], [], []))
            cost, value = record.figures.get("evaluations"), record.figures.get(name)
            if _is_number(cost) and _is_number(value):
                x.append(cost)
                y.append(value)
                errors.append(record.figures.get(f"{name}_stderr", 0.0))
        levels = {
            it: record.figures[name]
            for it, record in zip(reals, real, strict=True)
            if _is_number(record.figures.get(name))
        }
        if any(x for x, *_ in curves.values()):
            x_label = "network evaluations per sample"
            plot = Plot("quality", x_label, y_label, curves, log_y=log_y, levels=levels, below=plot)
    return plot


def over_t(name: str, records: Sequence[Record], label: Label) -> Plot:
    """Returns the share of each time in the bound of a data set.

    The area below a curve is its nats per token.
    """
    models = model_settings(records, label)
    each = [settings(record) | model for record, model in zip(records, models, strict=True)]
    curves: dict[str, Curve] = {}
    for curve, record in zip(told_apart(list(map(label, records)), each), records, strict=True):
        x, y = [], []
        for low, high, nats in record.figures["by_t"]:
            x += [low, high]
            y += [nats / (high - low)] * 2
        curves[curve] = (x, y)
    return Plot(f"by_t-{name}", "t", f"{name}: nats/token per unit of t", curves, False, False)


def _is_number(value):
    return isinstance(value, int | float) and math.isfinite(value)

"""Plots of curves; they need matplotlib."""

import importlib.util
import io
from typing import Any, NamedTuple

from sedd_jax.errors import BadInput


class Plot(NamedTuple):
    """Curves over one axis, by name: (x, y), both positive where the scale is logarithmic."""

    name: str
    x_label: str
    y_label: str
    curves: dict[str, tuple[list[float], list[float]]]
    log_x: bool = True
    log_y: bool = True


def check_plots() -> None:
    """Raises BadInput unless plots can be made: they come last, and it is said first."""
    if importlib.util.find_spec("matplotlib") is None:
        raise BadInput('The plots need matplotlib: pip install -e ".[plots]".')


def image(plot: Plot, form: str = "png") -> bytes:
    """Returns the plot as the content of a file, "png" or "svg"."""
    content = io.BytesIO()
    _drawn(plot).savefig(content, format=form, dpi=110)
    return content.getvalue()


def _drawn(plot: Plot) -> Any:
    from matplotlib.figure import Figure  # takes half a second

    figure = Figure(figsize=(5.5, 3.8), layout="constrained")
    axes = figure.subplots()
    for index, (name, (x, y)) in enumerate(plot.curves.items()):
        axes.plot(x, y, label=name, marker="o^sv"[index % 4], markersize=4)
    axes.set(xlabel=plot.x_label, ylabel=plot.y_label)
    axes.set_xscale("log", base=2) if plot.log_x else None
    axes.set_yscale("log") if plot.log_y else None
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    return figure

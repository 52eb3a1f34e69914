"""Plots of curves; they need matplotlib."""

import importlib.util
import io
import re
from typing import Any, NamedTuple

from sedd_jax.errors import BadInput

_INK = "#010203"  # becomes the colour of the text around an inline image
_INKED = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
_MARKED = 50  # a curve of more points is a line

Curve = tuple[list[float], list[float]] | tuple[list[float], list[float], list[float]]


class Plot(NamedTuple):
    """Curves over one axis, by name, positive where a scale is logarithmic.

    A curve is (x, y) or (x, y, standard error of y). One without points keeps its colour for those
    that come after it.
    """

    name: str
    x_label: str
    y_label: str
    curves: dict[str, Curve]
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


def inline_svg(plot: Plot) -> str:
    """Returns the plot as an element of a page, in the colour of its text and on its ground."""
    import matplotlib

    style = {
        "svg.fonttype": "none",
        "svg.hashsalt": plot.name,
        "savefig.transparent": True,
        "legend.frameon": False,
        **dict.fromkeys(_INKED, _INK),
    }
    with matplotlib.rc_context(style):
        drawn = image(plot, "svg").decode()
    drawn = drawn[drawn.index("<svg") :].replace(_INK, "currentColor")
    # what a page knows without being told, and a style that would be the page's
    drawn = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", drawn, flags=re.DOTALL)
    drawn = re.sub(r' xmlns(:\w+)?="[^"]*"', "", drawn)
    # several plots on a page have the same names for other things
    return re.sub(r' id="([^"]*)"', lambda it: it[0] if f"#{it[1]}" in drawn else "", drawn)


def _drawn(plot: Plot) -> Any:
    from matplotlib.figure import Figure  # takes half a second

    figure = Figure(figsize=(5.5, 3.8), layout="constrained")
    axes = figure.subplots()
    for index, (name, (x, y, *error)) in enumerate(plot.curves.items()):
        if x:
            look = {"marker": "o^sv"[index % 4], "markersize": 4} if len(x) <= _MARKED else {}
            axes.errorbar(x, y, *error, label=name, color=f"C{index}", capsize=2, **look)
    axes.set(xlabel=plot.x_label, ylabel=plot.y_label)
    axes.set_xscale("log", base=2) if plot.log_x else None
    axes.set_yscale("log") if plot.log_y else None
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    return figure

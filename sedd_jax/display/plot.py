"""Plots of curves; they need matplotlib."""

import io
import math
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from sedd_jax.system.packages import package

_INK = "#010203"  # placeholder for the text colour of the page
_INKED = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
_MARKED = 50  # a curve of more points has no markers
_LONGEST = 60  # characters of a name
_LINE = 84  # characters of a line of names

Curve = tuple[list[float], list[float]] | tuple[list[float], list[float], list[float]]


class Plot(NamedTuple):
    """Curves over one axis.

    Attributes:
      name: of its file.
      x_label: of the axis.
      y_label: of the axis.
      curves: by name, (x, y) or (x, y, standard error of y), positive on a logarithmic scale; a
        curve without points still takes a colour.
      log_x: whether the x axis is logarithmic.
      log_y: whether the y axis is logarithmic.
      levels: values of y, by name, drawn as horizontal lines.
      below: a panel with the same x axis and the same meaning of names, drawn below.
    """

    name: str
    x_label: str
    y_label: str
    curves: dict[str, Curve]
    log_x: bool = True
    log_y: bool = True
    levels: Mapping[str, float] = MappingProxyType({})
    below: "Plot | None" = None


def check_plots() -> None:
    """Raises BadInput unless matplotlib is installed: plots come last, the message comes first."""
    package("matplotlib", '"sedd_jax[plots]"', "A plot")


def image(plot: Plot, form: str = "png") -> bytes:
    """Returns the plot as the content of a file, "png" or "svg"."""
    content = io.BytesIO()
    _drawn(plot).savefig(content, format=form, dpi=110)
    return content.getvalue()


def inline_svg(plot: Plot) -> str:
    """Returns the plot as an element of a page, in its text and background colours."""
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
    # a page needs no metadata, and a style element would apply to all of it
    drawn = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", drawn, flags=re.DOTALL)
    drawn = re.sub(r' xmlns(:\w+)?="[^"]*"', "", drawn)
    # ids of several plots on a page would collide
    return re.sub(r' id="([^"]*)"', lambda it: it[0] if f"#{it[1]}" in drawn else "", drawn)


def _drawn(plot: Plot) -> Any:
    from matplotlib.figure import Figure  # takes half a second

    panels = [plot]
    while panels[-1].below:
        panels.append(panels[-1].below)
    names = list(dict.fromkeys(name for panel in panels for name in panel.curves))
    colours = {name: index for index, name in enumerate(names)}
    figure = Figure(layout="constrained")
    shown: dict[str, Any] = {}
    rows = figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0]
    for panel, axes in zip(panels, rows, strict=True):
        shown |= _panel(axes, panel, colours)
    axes.set_xlabel(plot.x_label)
    if plot.log_x:
        _log_x(axes, {x for panel in panels for curve in panel.curves.values() for x in curve[0]})
    names = [_short(name) for name in shown]
    abreast = max(1, min(len(names), _LINE // (max(map(len, names), default=0) + 6)))
    figure.legend(
        shown.values(), names, loc="outside lower center", ncols=abreast, fontsize="small"
    )
    below = 0.2 * math.ceil(len(names) / abreast)
    figure.set_size_inches(5.5, (3.4 if len(panels) == 1 else 2.3 * len(panels)) + below)
    return figure


def _panel(axes, plot, colours):
    """Draws curves and levels, and returns their artists by name."""
    shown = {}
    for name, (x, y, *error) in plot.curves.items():
        if x:
            index = colours[name]
            look = {"linewidth": 1.3, "capsize": 2, "color": f"C{index}"}
            if len(x) <= _MARKED:
                # overlapping curves are all visible: the lower ones are wider
                lower = min(len(colours) - 1 - index, 4)
                look |= {"linewidth": 1.3 + 0.6 * lower, "elinewidth": 1.2}
                look |= {"marker": "o^sv"[index % 4], "markersize": 4 + 0.8 * lower}
            shown[name] = axes.errorbar(x, y, *error, **look)
    for index, (name, value) in enumerate(plot.levels.items()):
        style = (0, (6, 3, *(1, 3) * index))
        shown[name] = axes.axhline(value, color="0.5", linewidth=1.2, linestyle=style)
    axes.set_ylabel(plot.y_label)
    axes.grid(alpha=0.3)
    if plot.log_y:
        _log_y(axes)
    return shown


def _log_x(axes, values):
    """Labels the values themselves, as far as they fit."""
    from matplotlib.ticker import NullLocator

    axes.set_xscale("log", base=2)
    if not values:
        return
    room = 0.022 * math.log(max(values) / min(values))  # of a character
    ticks: list[float] = []
    for value in sorted(values, reverse=True):  # the largest is always labelled
        if not ticks or math.log(ticks[-1] / value) >= room * (len(_plain(ticks[-1])) + 1):
            ticks.append(value)
    axes.set_xticks(ticks, map(_plain, ticks))
    axes.xaxis.set_minor_locator(NullLocator())


def _log_y(axes):
    """Labels numbers in decimal notation."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _plain(value)))
    axes.yaxis.set_minor_formatter(NullFormatter())
    if high < 10 * low:
        axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        axes.yaxis.set_minor_locator(NullLocator())
    elif high < 1000 * low:
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))


def _plain(value):
    return f"{value:,.10g}" if value == round(value) else f"{value:,.4g}"


def _short(name):
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"

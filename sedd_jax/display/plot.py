"""Plots of curves; they need matplotlib."""

import collections
import functools
import io
import math
import re
import textwrap
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from sedd_jax.system.packages import package

# told apart with any colour vision on white; `page.css` has others for a dark ground
COLOURS = ("#0072b2", "#d55e00", "#8aa33c", "#781c51", "#c988a7", "#5a0cac", "#5d481b")
_GREY = "0.5"  # of what no model has drawn
_DASHES = ((), (5, 2), (1.2, 1.6), (6, 2, 1.2, 2))
_MARKERS = "o^svDPX*"
_INK = "#010203"  # placeholder for the text colour of the page
_INKED = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
_PARTS = re.compile(r"(axes|legend|matplotlib\.axis)_\d+")  # of a drawing, by matplotlib's ids
_DIGITS = re.compile(r"(?<=\.\d\d)\d+")  # after the second decimal
_SHADED = 2  # curves; the areas of more are one
_MARKED = 50  # a curve of more points has no markers
_LARGE = 1e4  # matplotlib would write a factor beside the axis
_LONGEST = 60  # characters of a name
_HEIGHT = 30  # characters beside a y axis
_LINE = 76  # characters of a line of names

Curve = tuple[list[float], list[float]] | tuple[list[float], list[float], list[float]]


class Plot(NamedTuple):
    """Curves over one axis.

    Attributes:
      name: of its file.
      x_label: of the axis.
      y_label: of the axis.
      curves: by name, (x, y) or (x, y, standard error of y), positive on a logarithmic scale, NaN
        where the line is interrupted; a curve without points still takes a colour.
      log_x: whether the x axis is logarithmic.
      log_y: whether the y axis is logarithmic.
      levels: values of y, by name, drawn as horizontal lines.
      below: a panel with the same x axis and the same meaning of names, drawn below.
      owners: the model of a curve, by name of the curve.
      colours: the number of a colour, by owner, as on other plots of a page; curves of one owner
        differ in their dashes, and one without an owner is grey. By default each has a colour.
      x_names: of x = 0, 1, ... on a linear axis, for what has no order: the errors alone are drawn.
      area: whether the area below a curve is a figure; it is shaded, and its points are not marked.
    """

    name: str
    x_label: str
    y_label: str
    curves: dict[str, Curve]
    log_x: bool = True
    log_y: bool = True
    levels: Mapping[str, float] = MappingProxyType({})
    below: "Plot | None" = None
    owners: Mapping[str, str] = MappingProxyType({})
    colours: Mapping[str, int] = MappingProxyType({})
    x_names: tuple[str, ...] = ()
    area: bool = False


def check_plots() -> None:
    """Raises BadInput unless matplotlib is installed: plots come last, the message comes first."""
    package("matplotlib", '"sedd_jax[plots]"', "A plot")


def image(plot: Plot, form: str = "png") -> bytes:
    """Returns the plot as the content of a file, "png" or "svg"."""
    content = io.BytesIO()
    _drawn(plot).savefig(content, format=form, dpi=110)
    return content.getvalue()


def inline_svg(plot: Plot) -> str:
    """Returns the plot as an element of a page, in its text, background and line colours."""
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
    for number, colour in enumerate(COLOURS):
        drawn = drawn.replace(f": {colour}", f": var(--colour-{number}, {colour})")
    # a page needs no metadata, and a style element would apply to all of it
    drawn = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", drawn, flags=re.DOTALL)
    drawn = re.sub(r' xmlns(:\w+)?="[^"]*"', "", drawn)
    # a hundredth of a point is not visible
    drawn = re.sub(r' (d|x|y)="[^"]*"', lambda it: _DIGITS.sub("", it[0]), drawn)
    return re.sub(r' id="([^"]*)"', functools.partial(_identity, drawn), drawn)


def _identity(drawn, match):
    """An id that is referred to, or of a part a class: ids of several plots would collide."""
    if f"#{match[1]}" in drawn:
        return match[0]
    part = _PARTS.fullmatch(match[1])
    return f' class="{part[1]}"' if part else ""


def _drawn(plot: Plot) -> Any:
    from matplotlib.figure import Figure  # takes half a second

    panels = [plot]
    while panels[-1].below:
        panels.append(panels[-1].below)
    looks = _looks(plot, dict.fromkeys(name for panel in panels for name in panel.curves))
    figure = Figure(layout="constrained")
    shown: dict[str, Any] = {}
    rows = figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0]
    for panel, axes in zip(panels, rows, strict=True):
        shown |= _panel(axes, panel, looks)
    axes.set_xlabel(plot.x_label)
    if plot.log_x:
        _log_x(axes, {x for panel in panels for curve in panel.curves.values() for x in curve[0]})
    names = [_short(name) for name in shown]
    abreast = max(1, min(len(names), _LINE // (max(map(len, names), default=0) + 6)))
    figure.legend(shown.values(), names, loc="outside lower center", ncols=abreast, fontsize=9)
    below = 0.2 * math.ceil(len(names) / abreast)
    figure.set_size_inches(5.5, (3.4 if len(panels) == 1 else 2.3 * len(panels)) + below)
    return figure


def _looks(plot, names):
    """The colour, dashes and marker of every curve, and its width where curves may coincide."""
    looks: dict[str, dict[str, Any]] = {}
    alike = collections.Counter()
    for index, name in enumerate(names):
        colour = COLOURS[plot.colours.get(plot.owners.get(name), index) % len(COLOURS)]
        if plot.colours and name not in plot.owners:
            colour = _GREY
        dashes = _DASHES[alike[colour] % len(_DASHES)]
        alike[colour] += 1
        looks[name] = {
            "color": colour,
            "linestyle": (0, dashes) if dashes else "-",
            "marker": _MARKERS[index % len(_MARKERS)],
            "lower": min(len(names) - 1 - index, 4),
        }
    return looks


def _panel(axes, plot, looks):
    """Draws curves and levels, and returns their artists by name."""
    shown = {}
    for name, (x, y, *error) in plot.curves.items():
        if x:
            look = looks[name] | {"linewidth": 1.3, "capsize": 2}
            lower = look.pop("lower")
            if plot.x_names:
                look |= {"linestyle": "none", "marker": "", "elinewidth": 2, "capsize": 4}
            elif len(x) > _MARKED or plot.area:
                del look["marker"]
            else:
                # overlapping curves are all visible: the lower ones are wider
                look |= {"linewidth": 1.3 + 0.4 * lower, "elinewidth": 1.2}
                look |= {"markersize": 4 + 0.5 * lower}
            shown[name] = axes.errorbar(x, y, *error, **look)
            alone = [i for i in range(len(x)) if "marker" not in look and _is_alone(y, i)]
            axes.plot([x[i] for i in alone], [y[i] for i in alone], ".", color=look["color"])
            if plot.area and len(plot.curves) <= _SHADED:
                axes.fill_between(x, y, color=look["color"], alpha=0.12, linewidth=0)
    for index, (name, value) in enumerate(plot.levels.items()):
        style = (0, (6, 3, *(1, 3) * index))
        shown[name] = axes.axhline(value, color=_GREY, linewidth=1.2, linestyle=style)
    axes.set_ylabel(textwrap.fill(plot.y_label, _HEIGHT))
    axes.grid(color=axes.spines["left"].get_edgecolor(), alpha=0.12)
    axes.spines[["top", "right"]].set_visible(False)
    if plot.area:
        axes.set_ylim(bottom=0)
    if plot.x_names:
        axes.set_xticks(range(len(plot.x_names)), plot.x_names)
        axes.set_xlim(-0.5, len(plot.x_names) - 0.5)
    if plot.log_y:
        _log_y(axes)
    for axis, is_log in ((axes.xaxis, plot.log_x), (axes.yaxis, plot.log_y)):
        if not is_log and max(map(abs, axis.get_view_interval())) >= _LARGE:
            axis.set_major_formatter(_decimal())
    return shown


def _is_alone(values, i):
    """Whether a value stands between NaNs, where no line passes through it."""
    around = [values[j] for j in (i - 1, i + 1) if 0 <= j < len(values)]
    return not math.isnan(values[i]) and all(map(math.isnan, around))


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
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, NullLocator

    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.yaxis.set_major_formatter(_decimal())
    axes.yaxis.set_minor_formatter(NullFormatter())
    if high < 10 * low:
        axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        axes.yaxis.set_minor_locator(NullLocator())
    elif high < 1000 * low:
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))


def _decimal():
    from matplotlib.ticker import FuncFormatter

    return FuncFormatter(lambda value, _: _plain(value))


def _plain(value):
    for factor, letter in ((1e9, "B"), (1e6, "M")):
        if abs(value) >= factor:
            return f"{value / factor:,.4g}{letter}"
    return f"{value:,.10g}" if value == round(value) else f"{value:,.4g}"


def _short(name):
    """The name, or both of its ends: names differ in either."""
    half = _LONGEST // 2
    return name if len(name) <= _LONGEST else f"{name[: half - 1]}…{name[-half:]}"

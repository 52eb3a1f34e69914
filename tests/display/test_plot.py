import importlib.resources
import itertools
import math
import re

import numpy as np
import pytest

from sedd_jax.display.plot import COLOURS, Plot, _drawn, inline_svg

X = [17.0, 33.0, 65.0, 129.0, 1025.0]


def sweep(names):
    curves = {name: (X, [500.0, 400.0, 300.0, 250.0, 200.0], [9.0] * 5) for name in names}
    entropy = Plot("entropy", "evaluations", "entropy", curves, log_y=False, levels={"real": 4.0})
    return Plot(
        "quality", "evaluations", "perplexity", curves, levels={"real": 21.0}, below=entropy
    )


def axes_of(plot):
    figure = _drawn(plot)
    figure.draw_without_rendering()
    return figure, figure.axes


@pytest.mark.parametrize(
    "names", [["tweedie"], [f"run {i}, tweedie, {'a long story ' * 9}" for i in range(9)]]
)
def test_names_leave_the_curves_their_room(names):
    figure, axes = axes_of(sweep(names))
    for panel in axes:
        room = panel.get_position()
        assert room.width > 0.7 and room.height * figure.get_figheight() > 1.5
    legend = figure.legends[0].get_window_extent()
    assert legend.width <= figure.bbox.width and legend.y1 < axes[-1].bbox.y0
    shown = [text.get_text() for text in figure.legends[0].get_texts()]
    assert len(shown) == len(names) + 1 and max(map(len, shown)) <= 60


def test_panels_share_names_colours_and_the_axis():
    figure, (above, below) = axes_of(sweep(["euler", "tweedie"]))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "euler",
        "tweedie",
        "real",
    ]
    for panel, level in ((above, 21.0), (below, 4.0)):
        assert [line.get_color() for line in panel.lines if line.get_label() == "_nolegend_"]
        assert panel.lines[-1].get_ydata() == [level, level]
    assert above.get_xlim() == below.get_xlim()
    assert (above.get_xlabel(), below.get_xlabel()) == ("", "evaluations")


def test_axes_show_numbers_as_they_are_read():
    _, (above, below) = axes_of(sweep(["tweedie"]))
    ticks = [tick.get_text() for tick in below.get_xticklabels()]
    assert ticks == ["1,025", "129", "65", "33", "17"]
    low, high = above.get_ylim()
    shown = [
        text
        for value, text in zip(above.get_yticks(), above.get_yticklabels(), strict=True)
        if low <= value <= high
    ]
    assert [text.get_text() for text in shown] == ["20", "50", "100", "200", "500"]


def test_a_point_alone_and_ticks_without_room():
    alone = Plot("alone", "x", "y", {"a": ([128.0], [3.0])})
    _, (axes,) = axes_of(alone)
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["128"]
    near = Plot("near", "x", "y", {"a": ([16.0, 128.0, 129.0, 1024.0], [3.0, 3.1, 3.2, 3.3])})
    _, (axes,) = axes_of(near)
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["1,024", "129", "16"]


def test_an_image_of_a_page_has_the_ground_of_the_page():
    drawn = inline_svg(sweep(["tweedie"]))
    assert drawn.startswith("<svg") and "currentColor" in drawn and "<style" not in drawn


# linear RGB as it is seen without one kind of cone (Machado, Oliveira and Fernandes 2009, table 1)
VISIONS = {
    "normal": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}
TO_XYZ = np.array([  # sRGB, D65
    [0.4124564, 0.3575761, 0.1804375],
    [0.2126729, 0.7151522, 0.0721750],
    [0.0193339, 0.1191920, 0.9503041],
])  # fmt: skip


def linear(colour):
    values = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def lab(rgb):
    xyz = TO_XYZ @ np.clip(rgb, 0, 1) / TO_XYZ.sum(1)
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def grounds():
    """The colours of lines on a white and on a dark ground, with the ground."""
    style = importlib.resources.files("sedd_jax.display").joinpath("assets/page.css").read_text()
    found = re.findall(r"--colour-\d: (#\w{6})", style)
    assert tuple(found[: len(COLOURS)]) == COLOURS and len(found) == 2 * len(COLOURS)
    return [("#ffffff", COLOURS), ("#15181d", found[len(COLOURS) :])]


@pytest.mark.parametrize("vision", VISIONS)
def test_colours_are_told_apart_with_any_colour_vision(vision):
    for ground, colours in grounds():
        seen = [lab(np.array(VISIONS[vision]) @ linear(it)) for it in colours]
        assert min(math.dist(*pair) for pair in itertools.combinations(seen, 2)) > 15
        light = TO_XYZ[1] @ linear(ground)
        for colour in colours:
            low, high = sorted([light, TO_XYZ[1] @ linear(colour)])
            assert (high + 0.05) / (low + 0.05) > 2.7


def test_curves_of_one_model_share_its_colour_and_differ_in_dashes():
    owners = {"a, euler": "a", "b, euler": "b", "b, tweedie": "b"}
    plot = sweep(list(owners))._replace(owners=owners, colours={"a": 3, "b": len(COLOURS)})
    for panel in axes_of(plot)[1]:
        lines = [it.lines[0] for it in panel.containers]
        assert [it.get_color() for it in lines] == [COLOURS[3], COLOURS[0], COLOURS[0]]
        assert [it.get_linestyle() for it in lines] == ["-", "-", "--"]
    assert "var(--colour-3, " in inline_svg(plot)


def test_a_line_is_interrupted_where_there_is_no_number_and_a_lone_one_is_a_point():
    y = [1.0, 2.0, math.nan, 3.0, math.nan, *([4.0] * 60)]
    plot = Plot("p", "x", "y", {"a": (list(map(float, range(len(y)))), y)}, False, False)
    _, (axes,) = axes_of(plot)
    (points,) = [line for line in axes.lines if line.get_marker() == "."]
    assert points.get_xydata().tolist() == [[3.0, 3.0]]


def test_large_numbers_are_short():
    plot = Plot("p", "x", "y", {"a": ([0.0, 2.5e7], [9e3, 1.2e4])}, False, False)
    _, (axes,) = axes_of(plot)
    assert "25M" in [it.get_text() for it in axes.get_xticklabels()]
    assert "12,000" in [it.get_text() for it in axes.get_yticklabels()]


def test_the_parts_of_an_image_are_classes_and_its_numbers_are_short():
    drawn = inline_svg(sweep(["1.23456"]))
    assert drawn.count('class="axes"') == 2 and drawn.count('class="legend"') == 1
    assert ">1.23456<" in drawn and not re.search(r' (d|x|y)="[^"]*\.\d{3}', drawn)

import pytest

from sedd_jax.display.plot import Plot, _drawn, inline_svg

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

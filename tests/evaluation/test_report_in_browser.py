"""The report in a real browser, headless Chromium, where there is one: what a reader sees."""

import dataclasses
import math
import shutil

import pytest

from sedd_jax.evaluation import summary
from sedd_jax.evaluation.dashboard import dashboard
from sedd_jax.evaluation.record import FOLDER, save
from sedd_jax.evaluation.runs import read_runs
from sedd_jax.evaluation.training_plots import training_plots
from tests.test_report import made_run

TABS = ["Runs", "Settings", "Training", "Likelihood", "Frontier", "Quality", "Samples"]
SHOWN = """[...document.querySelectorAll('main > section')].filter(
    it => it.checkVisibility()).map(it => it.id)"""
CURRENT = """[...document.querySelectorAll('.tabs a')].filter(
    it => getComputedStyle(it).fontWeight > 500).map(it => it.textContent)"""
UNFOLD = "document.querySelectorAll('details').forEach(it => { it.open = true })"
LONG = "ablation-of-the-schedule-and-of-low-discrepancy-times-with-importance-sampling-seed"


def logged(steps, *, every=1, level=4.0):
    """Rows of a training, with gaps where the loss is not finite, a bound and samples."""
    for step in range(every, steps + 1, every):
        loss = level + 3 * math.exp(-6 * step / steps) + 0.1 * math.sin(step)
        row = {"step": step, "learning_rate": 1e-3 * step / steps, "tokens_per_second": 12e3 + step}
        yield row if step % 7 == 0 else row | {"loss": loss, "grad_norm": 50 * loss}
        if step * 10 % steps == 0:
            nats = loss + 0.3
            yield {
                "step": step, "bound": nats, "bound_stderr": 0.1, "perplexity": math.exp(nats),
                "sample_0": "<b>a long sample</b> " * 90, "sample_1": "a short one",
            }  # fmt: skip


@pytest.fixture
def first(tmp_path, smoke_config, records):
    """The folder of a run with evaluations."""
    folder = made_run(tmp_path / "first", smoke_config, logged(20))
    scored, drawn = records[0], next(it for it in records if it.name == "tweedie-64")
    ends = {"low": 3.81, "high": 3.94, "low_stderr": 0.01, "high_stderr": 0.02, "width": 0.13}
    records = [
        *records,
        dataclasses.replace(scored, kind="interval", figures=ends),
        dataclasses.replace(scored, kind="interval", name="lambada", figures=ends | {"low": 3.5}),
        *(
            dataclasses.replace(
                drawn,
                protocol=drawn.protocol | {"temperature": temperature},
                figures=drawn.figures | {"entropy": entropy, "gen_perplexity_tokens": perplexity},
            )
            for temperature, entropy, perplexity in ((0.9, 5.2, 61.5), (1.1, 6.1, 204.7))
        ),
    ]
    for record in records:
        save(folder / FOLDER, record)
    return folder


@pytest.fixture
def runs(tmp_path, first, smoke_config):
    """Six runs: with evaluations, with long names, with many steps, at the start; and records."""
    larger = dataclasses.replace(smoke_config.model, hidden_size=32)
    folders = [
        first,
        made_run(tmp_path / f"{LONG}=1", smoke_config, logged(20, level=4.5), seed=1),
        made_run(tmp_path / f"{LONG}=2", smoke_config, logged(20, level=4.6), seed=2),
        made_run(tmp_path / "many steps", smoke_config, logged(5000, level=3.5)),
        made_run(tmp_path / "in training", smoke_config, logged(20_000, every=50), model=larger),
        made_run(tmp_path / "at its start", smoke_config, [], seed=5),
    ]
    for folder in (folders[1] / FOLDER, tmp_path / "gone"):
        shutil.copytree(first / FOLDER, folder)
    return read_runs([*folders, tmp_path / "gone"])


def write(path, runs):
    path.write_text(
        dashboard(runs, made="2026-11-30 12:00 UTC", command="python -m " + 30 * "RUN ")
    )
    return path.as_uri()


def test_a_tab_is_shown_and_nothing_is_out_of_place(browser, tmp_path, first):
    (run,) = read_runs([first])
    losses = [{"step": step, "loss": 5.0 / step} for step in (1, 2, 3)]
    records = [next(it for it in run.records if it.kind == "likelihood")]
    few = run._replace(facts=run.facts._replace(rows=losses), records=records)
    page = write(tmp_path / "page.html", [few])
    browser.open(page, 400)
    assert browser.ask(SHOWN) == ["runs"]
    browser.ask("document.querySelector('.tabs a[href=\"#likelihood\"]').click()")
    browser.wait(f"{SHOWN}.join() === 'likelihood'")
    assert browser.ask(CURRENT) == ["Likelihood"] and browser.misplaced() == []
    assert set(browser.requests) == {page}


@pytest.mark.slow
@pytest.mark.unsteady
def test_tabs_by_mouse_keyboard_and_address(browser, tmp_path, runs):
    page = write(tmp_path / "page.html", runs)
    browser.open(page)
    ids = [name.lower() for name in TABS]
    assert browser.ask("[...document.querySelectorAll('.tabs a')].map(it => it.textContent)") == [
        *TABS, "All on one page",
    ]  # fmt: skip
    for name, shown in zip(TABS, ids, strict=True):
        browser.click(f".tabs a[href='#{shown}']")
        browser.wait(f"{SHOWN}.join() === '{shown}'")
        assert browser.ask(CURRENT) == [name]
        assert browser.ask("scrollY") == 0  # the tabs stay where they are
    browser.ask("history.back()")
    browser.wait(f"{SHOWN}.join() === 'quality'")
    browser.open("data:,")
    browser.open(page)
    for _ in range(TABS.index("Training") + 1):
        browser.press("Tab")
    browser.press("Enter")
    browser.wait(f"{SHOWN}.join() === 'training'")
    browser.open("data:,")
    browser.open(f"{page}#samples")
    assert browser.ask(SHOWN) == ["samples"]
    browser.open("data:,")
    browser.open(f"{page}#all")
    assert browser.ask(SHOWN) == ids and browser.ask(CURRENT) == ["All on one page"]


@pytest.mark.slow
@pytest.mark.unsteady
@pytest.mark.parametrize("width", [1280, 400])
def test_nothing_overlaps_leaves_its_box_or_the_window(browser, tmp_path, runs, width):
    for name, some in (("six", runs), ("two", runs[1:3]), ("one", runs[:1]), ("gone", runs[-1:])):
        page = write(tmp_path / f"{name}.html", some)
        browser.open(page, width)
        for tab in browser.ask("[...document.querySelectorAll('.tabs a')].map(it => it.hash)"):
            browser.ask(f"location.hash = '{tab}'")
            assert browser.misplaced() == [], (name, tab)
        browser.ask(UNFOLD)
        assert browser.misplaced() == [], f"{name}, unfolded"
    assert all(it.startswith("file:") for it in browser.requests)


@pytest.mark.slow
@pytest.mark.unsteady
def test_what_is_out_of_place_is_found(browser, tmp_path, first):
    broken = {
        ".wide { overflow: visible }": "the page is",
        ".card { margin-left: -60px }": "leaves the window",
        "h3 { height: .5rem }": "leaves its box",
        ".wide + .grid { margin-top: -60px }": "overlaps",
        "svg text { font-size: 22px !important }": "leaves its plot",
        ".legend { transform: translateY(-80px) }": "a legend covers its plot",
    }
    browser.open(write(tmp_path / "page.html", read_runs([first])) + "#all", 400)
    browser.ask("document.head.append(document.createElement('style'))")
    for rule, fault in broken.items():
        browser.ask(f"document.head.lastChild.textContent = '{rule}'")
        assert any(fault in it for it in browser.misplaced()), rule


@pytest.mark.slow
@pytest.mark.unsteady
def test_plots_have_axes_and_a_legend(browser, tmp_path, runs):
    browser.open(write(tmp_path / "page.html", runs) + "#all")
    drawn = browser.ask("""[...document.querySelectorAll('figure svg')].map(svg => ({
        axes: svg.querySelectorAll('.axes').length, legends: svg.querySelectorAll('.legend').length,
        texts: [...svg.querySelectorAll('text')].map(it => it.textContent),
        names: [...svg.querySelectorAll('.legend text')].map(it => it.textContent)}))""")
    named = [record for run in runs for record in run.records]
    tabs = ("interval", "by_t", "frontier", "quality")
    order = lambda plot: tabs.index(plot.name.partition("-")[0])  # noqa: E731
    expected = [*training_plots(runs), *sorted(summary.plots(named), key=order)]
    assert len(drawn) == len(expected) == 11
    for found, plot in zip(drawn, expected, strict=True):
        panels, names = [plot], set(plot.levels)
        while panels[-1].below:
            panels.append(panels[-1].below)
        for panel in panels:
            names |= {name for name, (x, *_) in panel.curves.items() if x}
            assert panel.y_label.replace(" ", "") in "".join(found["texts"]).replace(" ", "")
        assert plot.x_label in found["texts"]
        assert (found["axes"], found["legends"]) == (len(panels), 1)
        shortened = {name for name in names if len(name) <= 60}
        assert shortened <= set(found["names"]) and len(found["names"]) == len(names)


@pytest.mark.slow
@pytest.mark.unsteady
def test_everything_is_printed_and_a_long_sample_unfolds(browser, tmp_path, runs):
    page = write(tmp_path / "page.html", runs[:1])
    browser.open(page)
    folded = ".fold > summary"
    browser.ask("location.hash = '#samples'")
    preview = "document.querySelector('.fold .preview').checkVisibility()"
    assert browser.ask(preview) is True
    browser.click(folded)
    assert browser.ask(preview) is False
    assert browser.ask("document.querySelector('.fold pre').textContent.length") == 90 * 21
    browser.open(f"{page}#samples", 720)  # paper of 19 cm
    browser.print()
    assert browser.ask("document.documentElement.scrollWidth") <= 720
    assert browser.ask(SHOWN) == [name.lower() for name in TABS]
    hidden = """[...document.querySelectorAll('main pre, main td, main svg')].filter(it =>
        !it.checkVisibility({contentVisibilityAuto: true}) || !it.getBoundingClientRect().height)"""
    assert browser.ask(f"{hidden}.map(it => it.outerHTML)") == []

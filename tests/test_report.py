"""The page about runs: it stands alone, shows every figure, and takes runs as they are."""

import dataclasses
import json
import math
import re
from html.parser import HTMLParser

import pytest
from markupsafe import escape

from sedd_jax.errors import BadInput
from sedd_jax.evaluation.dashboard import dashboard
from sedd_jax.evaluation.record import FOLDER, Record, save
from sedd_jax.evaluation.runs import read_runs
from sedd_jax.evaluation.training_plots import training_plots
from sedd_jax.experiment.config import to_json
from sedd_jax.system import mirror

NASTY = '<b>bold</b> & "quoted" <script>\x00'


class Balanced(HTMLParser):
    """Fails unless every element is closed in its turn; keeps their names."""

    def __init__(self, text):
        super().__init__()
        self.open, self.names = [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.names.append(tag)
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.names.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def made_run(folder, config, rows, **changes):
    """A run folder without weights, as it is while it trains."""
    (folder / "data").mkdir(parents=True)
    data = dataclasses.replace(config.data, vocab_size=257)
    settings = json.loads(to_json(dataclasses.replace(config, data=data, **changes)))
    del settings["optim"]["first_moment"]  # it was made before that setting
    (folder / "config.json").write_text(json.dumps(settings))
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "metrics.jsonl").write_text(lines + '{"step": 99, "lo')
    return folder


def rows(count):
    return [{"step": i, "loss": 5.0, "learning_rate": 1e-3} for i in range(1, count + 1)]


@pytest.fixture
def folders(tmp_path, smoke_config):
    bound = {"step": 20, "bound": 3.305, "bound_stderr": 0.05, "perplexity": 27.25}
    text = {"step": 20, "sample_0": NASTY}
    first = made_run(tmp_path / "a" / "run", smoke_config, [*rows(20), bound, text])
    second = made_run(tmp_path / "b" / "run", smoke_config, rows(2000), seed=7)
    save(first / FOLDER, evaluation())
    return [first, second]


def evaluation():
    protocol = {"sampler": "tweedie", "steps": 4, "judge": None}
    shares = ("distinct_1", "distinct_2", "distinct_3", "self_repetition")
    figures = dict.fromkeys(shares, 0.125) | {
        "samples": 8, "evaluations": 5, "entropy": 5.4321, "entropy_stderr": 0.012,
        "texts": ["<i>of an evaluation"], "notes": ["mauve says little"],
    }  # fmt: skip
    model = {"name": "run", "family": "diffusion", "step": 20}
    return Record("quality", "tweedie-4", model, protocol, figures)


def test_the_page_shows_all_and_needs_nothing(folders):
    runs = read_runs([*folders, folders[0]])
    assert [run.label for run in runs] == ["a/run", "b/run"]
    text = dashboard(runs)
    names = Balanced(text).names
    assert names.count("svg") == 4  # loss, bound, learning rate, entropy
    assert "script" not in names and not re.search("https?:", text) and "src=" not in text
    for shown in (
        escape(NASTY.replace("\x00", "␀")), "&lt;i&gt;of an evaluation",
        "Step 20 of 20 · held-out bound 3.305 ± 0.050 nats/token · perplexity ≤ 27.25",
        '<td>seed</td><td class="same">0</td><td>7</td><td class="same">0</td>',
        '<td class="number">5.432 ± 0.012</td>', "</i>a/run, step 20</td>",
        "<h4>tweedie, 4 steps, 8 samples</h4>\n<p>5 network evaluations · entropy 5.432",
        "<p>tweedie, at most 17 network evaluations, seed 0</p>", "mauve says little",
        "python -m sedd_jax.train --config=run/config.json --workdir=run",
    ):  # fmt: skip
        assert shown in text.replace("\u00a0", " "), shown
    assert "<b>" not in text and "<i>" not in text
    assert text == dashboard(read_runs(folders))
    # a run has one colour in all tables and plots: the first alone has a bound and samples
    for number, name in enumerate(("a/run", "b/run")):
        assert f'<i class="swatch" style="--of: var(--colour-{number})"></i>{name}</td>' in text
    drawn = re.findall("<svg.*?</svg>", text, re.DOTALL)
    assert ["--colour-0" in it for it in drawn] == [True, True, True, True]
    assert ["--colour-1" in it for it in drawn] == [True, False, True, False]


def test_the_head_says_when_and_how_the_page_was_made(tmp_path, smoke_config):
    runs = read_runs([made_run(tmp_path / "run", smoke_config, [])])
    headed = dashboard(runs, made="today", command="python -m sedd_jax.report <a>")
    assert "Made today by sedd_jax" in headed and "sedd_jax.report &lt;a&gt;</pre>" in headed


def test_a_figure_of_an_earlier_step_has_its_step(tmp_path, smoke_config):
    bound = {"step": 10, "bound": 3.305, "bound_stderr": 0.05, "perplexity": 27.25}
    run = made_run(tmp_path / "run", smoke_config, [*rows(10), bound, *rows(15)[10:]])
    text = dashboard(read_runs([run])).replace("\u00a0", " ")
    assert "Step 15 of 20 · held-out bound of step 10: 3.305 ± 0.050" in text


def test_many_rows_are_drawn_as_means(folders):
    loss = next(training_plots(read_runs(folders)))
    steps, values = loss.curves["b/run"]
    assert len(steps) == 500 and steps[:2] == [2.5, 6.5] and set(values) == {5.0}
    assert len(loss.curves["a/run"][0]) == 20


def test_of_many_samples_the_last_and_some_before_are_shown(tmp_path, smoke_config):
    texts = [{"step": step, "sample_0": f"text {step}"} for step in range(1, 102)]
    text = dashboard(read_runs([made_run(tmp_path / "run", smoke_config, texts)]))
    assert "Earlier in training: 10 of 100 steps, 90 left out" in text
    assert text.count("<pre>") == 11 and text.count("<h4>") == 11
    assert all(f"text {step}</pre>" in text for step in (1, 100, 101))


def test_bounds_and_likelihoods_stand_in_one_plot(tmp_path, smoke_config):
    found = {"bound": 3.5, "nll": 3.1}
    made = [
        made_run(tmp_path / name, smoke_config, [{"step": 4, name: nats}])
        for name, nats in found.items()
    ]
    (plot,) = training_plots(read_runs(made))
    assert plot.y_label == "held out: bound or nll, nats/token"
    assert plot.curves == {"bound, bound": ([4.0], [3.5]), "nll, nll": ([4.0], [3.1])}


def test_a_folder_of_evaluations_alone_is_shown(folders):
    (folders[0] / "config.json").unlink()
    for folder in (folders[0], folders[0] / FOLDER):
        text = dashboard(read_runs([folder]))
        assert "Evaluations only: not a run of train." in text and "distinct-1" in text


def test_records_that_two_folders_hold_are_one_row(tmp_path, smoke_config):
    run = made_run(tmp_path / "run", smoke_config, [])
    for folder in (run / FOLDER, tmp_path / "gone"):
        save(folder, evaluation())
    text = dashboard(read_runs([tmp_path / "gone", run]))
    assert text.count('<td class="number">5.432') == 1
    assert text.count("<h4>tweedie, 4 steps, 8 samples</h4>") == 2


def test_a_value_that_was_not_finite_interrupts_its_curve(tmp_path, smoke_config):
    logged = rows(6)
    del logged[2]["loss"]
    logged[4]["loss"] = math.nan
    (loss, rate) = training_plots(read_runs([made_run(tmp_path / "run", smoke_config, logged)]))
    steps, values = loss.curves["run"]
    assert steps == [1, 2, 3, 4, 5, 6]
    assert [math.isnan(it) for it in values] == [False, False, True, False, True, False]
    assert rate.curves["run"][1] == [1e-3] * 6


def test_versions_and_data_are_part_of_what_differs(tmp_path, smoke_config):
    made = [made_run(tmp_path / name, smoke_config, []) for name in "ab"]
    for folder, version, digest in zip(made, ("0.1.0", "0.2.0"), ("5", "6"), strict=True):
        card = f"This card was written by sedd_jax {version} with jax 0.10.2 and flax 0.12.8."
        (folder / "README.md").write_text(f"# {folder.name}\n\n{card}\n")
        manifest = {"sources": [], "contents": {"corpus": {"sha256": digest * 64, "pieces": []}}}
        (folder / "data" / "manifest.json").write_text(json.dumps(manifest))
    text = dashboard(read_runs(made))
    assert "<td>version of sedd_jax</td><td>0.1.0</td><td>0.2.0</td>" in text
    assert f"<td>sha256 of corpus</td><td>{'5' * 12}</td><td>{'6' * 12}</td>" in text
    assert "<tr><th>version of jax</th><td>0.10.2</td></tr>" in text  # shared


def test_a_run_alone_shows_what_is_not_the_default(tmp_path, smoke_config):
    text = dashboard(read_runs([made_run(tmp_path / "run", smoke_config, [], seed=7)]))
    assert "Settings that are not the default." in text
    assert '<td>seed</td><td>7</td><td class="same">0</td>' in text
    assert "<tr><th>graph</th><td>absorb</td></tr>" in text


def test_what_is_torn_or_no_record_is_left_out(folders, capsys):
    with (folders[0] / "metrics.jsonl").open("ab") as file:
        file.write(b"\xff\n")
    (folders[0] / FOLDER / "quality-odd-01234567.json").write_text("{}")
    (run,) = read_runs(folders[:1])
    assert run.facts.step == 20 and len(run.records) == 1
    assert "quality-odd-01234567.json is not a record" in capsys.readouterr().err


def test_runs_of_other_batches_are_drawn_over_tokens(folders, tmp_path, smoke_config):
    larger = dataclasses.replace(smoke_config.train, batch_size=32)
    made_run(tmp_path / "c", smoke_config, rows(2), train=larger)
    loss = next(training_plots(read_runs([folders[0], tmp_path / "c"])))
    assert loss.x_label == "tokens"
    assert loss.curves["c"][0] == [32 * 32, 2 * 32 * 32]
    assert loss.curves["run"][0][:2] == [16 * 32, 2 * 16 * 32]


def test_runs_in_a_bucket_are_those_of_local_folders(folders, memory_bucket):
    for folder in folders:
        for path in folder.rglob("*.*"):
            key = path.relative_to(folder.parents[1]).as_posix()
            memory_bucket.objects[key] = path.read_bytes()
            memory_bucket.objects[f"{folder.parent.name}/run/data/manifest.json"] = b"{}"
    memory_bucket.objects["a/run/checkpoints/1/params"] = b"large"
    there = read_runs([mirror.local(f"gs://bucket/{name}/run") for name in "ab"])
    here = read_runs(folders)
    assert [run.label for run in there] == [run.label for run in here] == ["a/run", "b/run"]
    assert [run.records for run in there] == [run.records for run in here]
    page = dashboard(there, made="", command="")
    assert "--checkpoint=gs://bucket/a/run" in page and "/sedd_jax-" not in page
    assert all(name in ("list", "read") for name, _ in memory_bucket.requests)  # nothing is locked


def test_what_is_no_run_is_named(tmp_path):
    with pytest.raises(BadInput, match="There is no folder .*absent"):
        read_runs([tmp_path / "absent"])
    with pytest.raises(BadInput, match="is no run: it holds neither config.json of a training nor"):
        read_runs([tmp_path])


@pytest.mark.slow
def test_the_binary_replaces_its_own_pages_alone(folders, binary, tmp_path):
    page = tmp_path / "page.html"
    flags = (*map(str, folders), f"--output={page}")
    page.write_text("of someone else")
    assert "was not made by report; choose another" in binary.refuse("report", *flags)
    assert page.read_text() == "of someone else"
    page.unlink()
    for _ in range(2):
        assert binary.run("report", *flags) == f"Wrote {page}.\n"
    assert not list(tmp_path.glob("*.tmp"))
    assert "does not exist; make it" in binary.refuse("report", *flags[:-1], "--output=no/x.html")

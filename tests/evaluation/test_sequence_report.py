"""Drawn against real sequences: files in, figures of both sides out."""

import csv
import json

import numpy as np
import pytest

from sedd_jax.errors import BadInput
from sedd_jax.evaluation.sequence_report import Settings, measure
from sedd_jax.evaluation.sequence_sets import read_set

RNG = np.random.default_rng(0)
LENGTH = 12


def draw(label):
    """A sequence of its class: AG or GT in the middle."""
    letters = RNG.choice(list("ACGT"), LENGTH)
    letters[5:7] = list({"a": "AG", "g": "GT"}[label])
    return "".join(letters)


def rows(count):
    return [(draw(label), label) for label in "ag" for _ in range(count)]


def write(path, labelled):
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([("text", "class", "activity")])
        writer.writerows((text, label, text.count("G") / LENGTH) for text, label in labelled)
    return str(path)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sequences")
    made = {name: rows(40) for name in ("reference", "training", "judge_data")}
    # half of the drawn are copies of training, and a quarter has the wrong class
    made["samples"] = [*made["training"][::2], *rows(20)]
    flip = {"a": "g", "g": "a"}
    made["samples"] = [
        (text, flip[label] if number % 4 == 0 else label)
        for number, (text, label) in enumerate(made["samples"])
    ]
    return {name: write(folder / f"{name}.csv", each) for name, each in made.items()}


@pytest.fixture(scope="module")
def report(files):
    return measure(
        Settings(
            **files,
            label="class",
            kmers=(2,),
            motifs=("5:AG", "5:GT"),
            oracle="gc_content",
            target="activity",
        )
    )


def test_every_class_has_its_figures(report):
    assert list(report.figures) == ["all", "a", "g"]
    figures = report.figures["a"]
    assert figures["sequences"].drawn.value == figures["sequences"].real.value == 40
    assert figures["motif 5:AG"].real.value == 1
    assert figures["motif 5:AG"].drawn.value == 0.75
    assert figures["motif 5:GT"].drawn.value == 0.25


def test_copies_show(report):
    figures = report.figures["all"]
    assert figures["copies of training"].drawn.value == 0.5
    assert figures["copies of training"].real.value == 0
    nearest = figures["distance to nearest in training"]
    assert nearest.drawn.value < nearest.real.value / 1.5


def test_the_judge_sees_wrong_classes(report):
    figures = report.figures["all"]
    judged, ratio = figures["judged to be of its class"], figures["judged, drawn / real"]
    assert judged.real.value > 0.9
    assert judged.drawn.value == pytest.approx(0.75, abs=0.08)
    assert ratio.drawn.value == judged.drawn.value / judged.real.value
    error = np.hypot(
        judged.drawn.stderr / judged.drawn.value, judged.real.stderr / judged.real.value
    )
    assert ratio.drawn.stderr == pytest.approx(ratio.drawn.value * error)


def test_an_oracle_scores_both_sides(report):
    figures = report.figures["all"]
    assert figures["oracle"].drawn == figures["GC content"].drawn
    assert figures["oracle, mean squared error to target"].drawn.value > 0.01
    assert 0.3 < figures["oracle, AUROC of real against drawn"].drawn.value < 0.7


def test_real_sequences_are_the_yardstick_of_spectra(report):
    found = report.figures["all"]["divergence of 2-mers, nats"]
    assert 0 < found.real.value < 0.02 and found.real.stderr > 0


def test_the_table_and_the_file_hold_all_figures(report, tmp_path):
    path = report.save(tmp_path / "new")
    held = json.loads(path.read_text())
    assert path.name.startswith("samples.") and path.name.endswith(".sequences.json")
    assert held["protocol"]["training"]["sequences"] == 80
    assert held["figures"]["g"]["motif 5:GT"]["real"] == {"value": 1.0, "stderr": 0.0}
    assert len(report.table.rows) == sum(map(len, report.figures.values()))


def test_other_sequences_are_told_apart(files, tmp_path):
    poor = [("".join(RNG.choice(list("AT"), LENGTH)), "a") for _ in range(80)]
    samples = write(tmp_path / "poor.csv", poor)
    found = measure(Settings(samples, files["reference"], kmers=(1,))).figures["all"]
    assert found["AUROC of real against drawn"].drawn.value > 0.95
    assert found["divergence of 1-mers, nats"].real is None


def test_fasta_tells_in_its_header(tmp_path):
    path = tmp_path / "x.fasta"
    path.write_text("".join(f">s{i} class=EI\nacgt\nAC\n" for i in range(20)))
    found = read_set(str(path), label="class")
    assert found.texts == ["ACGTAC"] * 20 and set(found.labels) == {"EI"}


def refused(message, **settings):
    with pytest.raises(BadInput, match=message):
        measure(Settings(**settings))


def test_other_shares_of_the_classes_are_told(report, tmp_path):
    assert report.protocol["shares of classes"] is None
    drawn = write(tmp_path / "drawn.csv", [*rows(5), *((draw("a"), "a") for _ in range(10))])
    reference = write(tmp_path / "reference.csv", rows(10))
    table = measure(Settings(drawn, reference, label="class", kmers=(2,))).table
    assert "(a 0.75 and 0.50, g 0.25 and 0.50)" in table.title


def test_sets_that_share_sequences_are_refused(files):
    both = files | {"judge_data": files["reference"]}
    refused("80 sequences of --reference are in --judge_data too", **both, label="class")


def test_what_cannot_be_measured_is_refused(files, tmp_path):
    two = {name: files[name] for name in ("samples", "reference")}
    refused("give their column, --label=NAME", **two, judge_data=files["judge_data"])
    refused("give --oracle too", **two, target="activity")
    refused("--kmer must be whole numbers from 1 on", **two, kmers=(0,))
    refused("has no field 'kind' but .*; set --label or --target", **two, label="kind")
    refused(r"--motif=GT must be POSITION:REGEX", **two, motifs=("GT",))
    refused("oracle must be one of gc_content", **two, oracle="mine")
    refused("must return a number for each of the 80 sequences", **two, oracle="builtins:len")
    one = write(tmp_path / "one.csv", [(draw("a"), "a") for _ in range(30)])
    refused(
        "has no sequences with class=g", samples=one, reference=files["reference"], label="class"
    )
    of = {"label": "class", "reference": files["reference"]}
    refused("has no sequences with class=g", **two, label="class", judge_data=one)
    more = write(tmp_path / "more.csv", [*rows(20), ("ACGT" * 3, "c")])
    refused("has sequences with class=c, which .* does not have", samples=more, **of)
    refused("has 1 sequence with class=c", samples=more, reference=more, label="class")
    named = write(tmp_path / "all.csv", [(draw("a"), "all") for _ in range(30)])
    refused("class=all is no name of a class", samples=named, reference=named, label="class")
    short = write(tmp_path / "short.csv", [("AC", "a")] * 30)
    refused("--kmer=3: sequences have no 3 letters", samples=short, reference=short, kmers=(1, 3))
    few = write(tmp_path / "few.csv", rows(2))
    refused("few.csv has 4 sequences, and figures of fewer than 20", samples=few, reference=one)
    (tmp_path / "bad.jsonl").write_text('{"text": 5}\n')
    refused("bad.jsonl.*no text", samples=str(tmp_path / "bad.jsonl"), reference=one)

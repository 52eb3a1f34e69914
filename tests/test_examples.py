"""The examples show what they say: which objective learns what, and six sentences from masks."""

import dataclasses
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from examples import guidance_curve, new_file, ratios, sentences, split_sequences
from sedd_jax.errors import BadInput
from sedd_jax.verification.exact.scores import implicit_score_entropy

RELATIVE, ABSOLUTE = ratios.MEASURES.values()
OUTPUT_OF = {"squared error": lambda ratio: ratio, "score entropy": np.log}
STEPS = np.array([10, 30, 50]) - 1


@pytest.fixture(scope="module")
def runs():
    return {
        optimizer: {name: ratios.learn(one, optimizer) for name, one in ratios.OBJECTIVES.items()}
        for optimizer in ratios.OPTIMIZERS
    }


@pytest.fixture(scope="module")
def trained():
    config = sentences.settings()
    short = dataclasses.replace(config.train, steps=800)
    config = dataclasses.replace(config, train=short)
    family, params, losses = sentences.train(config)
    return config, family, params, losses


def curve(ratio, measure):
    """The mean error after every step, at the best learning rate for this measure."""
    return measure(ratio[ratios.best(ratio, measure)]).mean(0)


def test_the_truth():
    for x, p in enumerate(ratios.PROBS):
        np.testing.assert_allclose(ratios.TRUTH[x], ratios.PROBS / p, rtol=1e-12)


@pytest.mark.parametrize("name", ratios.OBJECTIVES)
def test_the_gradient_is_zero_at_the_truth_and_only_there(name):
    gradient = jax.grad(ratios.OBJECTIVES[name].loss)
    output = jnp.float32(OUTPUT_OF[name](ratios.TRUTH))[:, None]
    assert np.abs(gradient(output)).max() < 1e-6
    off_diagonal = np.abs(gradient(output + 0.1))[:, 0][ratios.LEARNT]
    assert off_diagonal.min() > 1e-4


def test_score_entropy_needs_no_ratios():
    def implicit(params):
        return implicit_score_entropy(ratios.SPACE, ratios.network(params), ratios.PROBS)

    def explicit(params):
        return ratios.OBJECTIVES["score entropy"].loss(ratios.network(params))

    params = ratios.init(jax.random.key(1))
    without, given = (jax.tree.leaves(jax.grad(f)(params)) for f in (implicit, explicit))
    for gradient, expected in zip(without, given, strict=True):
        np.testing.assert_allclose(gradient, expected, atol=1e-5)


def test_score_entropy_stays_positive_and_squared_error_does_not(runs):
    for optimizer in ratios.OPTIMIZERS:
        squared, entropy = (
            ratio[ratios.best(ratio, RELATIVE)] for ratio in runs[optimizer].values()
        )
        assert (entropy > 0).all()
        early = squared[:, :10]
        assert (ratios.negatives(early) > 0).any(1).mean() > 0.25  # of the initial weights


def test_by_adam_each_objective_is_ahead_in_its_own_measure(runs):
    squared, entropy = runs["adam"].values()
    assert curve(entropy, RELATIVE)[-1] < 0.02
    assert (curve(entropy, RELATIVE)[STEPS] < 0.8 * curve(squared, RELATIVE)[STEPS]).all()
    assert curve(squared, ABSOLUTE)[-1] < 0.03
    assert (curve(squared, ABSOLUTE)[STEPS] < curve(entropy, ABSOLUTE)[STEPS]).all()


def test_by_gradient_descent_squared_error_is_ahead_in_both_measures(runs):
    squared, entropy = runs["sgd"].values()
    for measure in (RELATIVE, ABSOLUTE):
        assert (curve(squared, measure)[STEPS] < curve(entropy, measure)[STEPS]).all()


def test_a_rate_that_diverges_is_not_the_best():
    ratio = np.broadcast_to(ratios.TRUTH, (2, 3, 5, 4, 4)) + np.reshape(
        [np.nan, 1.0], (2, 1, 1, 1, 1)
    )
    assert ratios.best(ratio, RELATIVE) == 1


def test_the_forward_example(capsys):
    sentences.show_forward()
    assert "[MASK] 0.777; 1 - exp(-1.5) = 0.777" in capsys.readouterr().out


@pytest.mark.slow
def test_the_loss_reaches_the_entropy_of_the_data(trained):
    losses = trained[-1]
    assert np.mean(losses[-300:]) == pytest.approx(np.log(6) / 4, abs=0.03)


@pytest.mark.slow
def test_predictions_are_the_conditional_distributions_at_all_times(trained):
    _, family, params, _ = trained
    xt = np.tile(sentences.encode("[MASK] love [MASK] .", "You [MASK] NLP [MASK]"), (3, 1))
    who, what = [1 / 3] * 3 + [0] * 4, [0] * 4 + [1 / 2] * 2 + [0]
    one = np.eye(7)
    want = [[who, one[3], what, one[6]], [one[1], one[3], one[5], one[6]]] * 3
    got = sentences.predictions(family, params, xt, np.repeat([0.1, 0.5, 0.9], 2))
    np.testing.assert_allclose(got, want, atol=0.03)


@pytest.mark.slow
def test_samples_are_the_six_sentences_equally_often(trained):
    config, family, params, _ = trained
    tokens, trace = sentences.draw(family, params, config, num_samples=600, steps=16)
    _, invalid, p_value = sentences.frequencies(tokens)
    # after this short run an impossible word has a probability of some 2e-4: 0.5 in 2400 words
    assert invalid <= 3
    assert p_value > 1e-3
    assert sentences.decode(trace[0]) == "[MASK] [MASK] [MASK] [MASK]"
    np.testing.assert_array_equal(trace[-1], tokens[0])


def test_wrong_samples_are_told():
    even = np.repeat(sentences.DATA, 100, 0)
    counts, *rest = sentences.frequencies(even)
    assert (counts.tolist(), rest) == ([100] * 6, [0, pytest.approx(1)])
    assert sentences.fault(*rest) == ""
    odd = np.concatenate([even, sentences.encode("love love AI .")])
    assert "1 of the samples" in sentences.fault(*sentences.frequencies(odd)[1:])
    uneven = np.concatenate([even, even[:60]])
    assert "not equally frequent" in sentences.fault(*sentences.frequencies(uneven)[1:])


def test_plots_are_written(runs, tmp_path):
    pytest.importorskip("matplotlib")
    ratios.plot(runs["adam"], tmp_path / "ratios.png")
    sentences.plot(np.full(6, 100), tmp_path / "frequencies.png")
    for path in tmp_path.iterdir():
        assert path.read_bytes().startswith(b"\x89PNG")


def test_the_folder_is_made_and_no_file_overwritten(tmp_path):
    path = new_file(str(tmp_path / "a" / "b"), "plot.png")
    assert path.parent.is_dir()
    path.write_text("kept")
    with pytest.raises(BadInput, match="exists already"):
        new_file(str(path.parent), "plot.png")
    with pytest.raises(BadInput, match="--workdir=FOLDER is needed"):
        new_file(None, "plot.png")
    with pytest.raises(BadInput, match="cannot be made"):
        new_file(str(path), "plot.png")


@pytest.mark.parametrize("name", ["ratios", pytest.param("sentences", marks=pytest.mark.slow)])
def test_bad_input_is_one_line_and_a_failure(name):
    done = subprocess.run(
        [sys.executable, "-m", f"examples.{name}"],
        cwd=Path(__file__).parents[1],
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (2, "error: --workdir=FOLDER is needed.\n")


def test_a_split_keeps_similar_sequences_together(tmp_path):
    rng = np.random.default_rng(0)
    texts = ["".join(row) for row in rng.choice(list("ACGT"), (60, 20))]
    near = [text[:-1] + ("A" if text[-1] == "C" else "C") for text in texts[:12]]
    rows = [(text, "ab"[number % 2]) for number, text in enumerate(texts)]
    rows += [(text, "ab"[number % 2]) for number, text in enumerate(near)]
    found = [*rows, *rows[:5], ("ACGN" * 5, "a"), (texts[7], "a")]  # the last one was "b"
    source = tmp_path / "all.csv"
    source.write_text("".join(f"{label}, x,  {text.lower()}\n" for text, label in found))
    read = split_sequences.read(str(source), ["class", "name", "text"], "class")
    kept, counts = split_sequences.distinct(read)
    assert read == found and list(counts.values()) == [79, 1, 6, 1, 71]
    group_of = split_sequences.groups([text for text, _ in kept], similar=1)
    assert len(set(group_of)) == 60  # a removed one leaves its neighbour
    parts = split_sequences.split(kept, group_of, [0.5, 0.25, 0.25], seed=1)
    assert sorted(row for part in parts for row in part) == sorted(kept)
    where = {text: number for number, part in enumerate(parts) for text, _ in part}
    for text, other in zip(texts[:12], near, strict=True):
        assert text == texts[7] or where[text] == where[other]
    for number, share in enumerate([0.5, 0.25, 0.25]):
        for label in "ab":
            mine = sum(each == label for _, each in parts[number])
            assert abs(mine - share * sum(each == label for _, each in kept)) <= 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a,ACGT\n,ACGA\n", "line 2 has no sequence, or no 'class'"),
        (b"a,ACGT\na, \n", "line 2 has no sequence, or no 'class'"),
        ("b\xeata,ACGT\n".encode("latin-1"), "is no table in UTF-8"),
        (b"a,NNNN\n", "has no sequence of A, C, G and T to split"),
        (b"a,ACGT\na,ACGA\n", "would be empty: give more sequences, or fewer substitutions"),
    ],
)
def test_sequences_that_cannot_be_split_are_refused(tmp_path, monkeypatch, content, message):
    (tmp_path / "a.csv").write_bytes(content)
    given = {"source": str(tmp_path / "a.csv"), "columns": ["class", "text"], "similar": 1}
    split_flags = {"label": "class", "shares": ["0.6", "0.2", "0.2"], "seed": 0} | given
    values = types.SimpleNamespace(workdir=str(tmp_path / "out"), **split_flags)
    monkeypatch.setattr(split_sequences.flags, "FLAGS", values)
    with pytest.raises(BadInput, match=message):
        split_sequences.main()
    assert not list((tmp_path / "out").glob("*"))


def test_a_table_of_other_columns_is_refused(tmp_path):
    source = tmp_path / "all.csv"
    source.write_text("a,b\n")
    with pytest.raises(BadInput, match="line 1 has 2 columns, and --columns names 3"):
        split_sequences.read(str(source), ["class", "name", "text"], "class")
    with pytest.raises(BadInput, match="--columns=name,text does not name 'class'"):
        split_sequences.read(str(source), ["name", "text"], "class")


def test_the_curve_of_guidance_has_every_class_at_every_strength(tmp_path):
    def file(name, judged):
        figures = {
            key: {"drawn": {"value": judged, "stderr": 0.01}, "real": {"value": 0.9}}
            for key in (guidance_curve.JUDGED, guidance_curve.DISTANCE)
        }
        path = tmp_path / name
        path.write_text(json.dumps({"figures": {"all": {}, "EI": figures, "N": figures}}))
        return path

    strong, plain = file("strong.json", 0.95), file("plain.json", 0.8)
    found = guidance_curve.read([f"2={strong}", f"1={plain}"])
    above = guidance_curve.plot(found)
    assert above.curves["EI"] == ([1.0, 2.0], [0.8, 0.95], [0.01, 0.01])
    assert above.levels == {"EI, real": 0.9, "N, real": 0.9} and set(above.below.curves) == {
        "EI",
        "N",
    }
    for bad in (["x=1"], [f"{strong}"], [f"1={tmp_path}"], []):
        with pytest.raises(BadInput, match="--figures"):
            guidance_curve.read(bad)

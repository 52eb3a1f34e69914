"""Measures of samples: diversity, repetition, MAUVE and its real texts."""

import hashlib
import importlib.metadata
import sys
import types

import numpy as np
import pytest

import sedd_jax as sedd
from sedd_jax.data.prepared import open_data
from sedd_jax.data.tokenizer import Bytes
from sedd_jax.errors import BadInput
from sedd_jax.evaluation.measures import (
    check_counts,
    distinct,
    entropy,
    load_mauve,
    mauve,
    mean,
    ratio,
    read_reference,
    self_repetition,
)


def test_a_mean_and_its_error():
    found = mean([1, 2, 6])  # the squares of the deviations sum to 14
    assert found.value == 3
    assert found.stderr == pytest.approx(np.sqrt(14 / 2 / 3))


def test_a_ratio_of_sums_and_its_error():
    found = ratio([2, 4, 9], [1, 2, 3])  # 15 / 6; what is left: -1/2, -1, 3/2
    assert found.value == 2.5
    assert found.stderr == pytest.approx(np.sqrt(3 / 2 * 3.5) / 6)
    assert ratio([2, 4, 6], [1, 2, 3]).stderr == 0


def test_the_error_of_a_ratio_is_what_it_scatters_by():
    rng = np.random.default_rng(0)
    length = rng.integers(5, 50, (2000, 100))
    nats = 3 * length + rng.normal(0, 1, length.shape) * length
    found = [ratio(*pair) for pair in zip(nats, length, strict=True)]
    scatter = np.std([each.value for each in found])
    assert np.mean([each.stderr for each in found]) == pytest.approx(scatter, rel=0.05)


def test_the_entropy_of_a_sample():
    rows = [np.array([7, 7, 7, 7]), np.array([1, 2, 1, 2]), np.array([1, 2, 3, 3])]
    each = [0, np.log(2), 0.5 * np.log(4) + 0.5 * np.log(2)]
    found = entropy(rows)
    assert found.value == pytest.approx(np.mean(each))
    assert found.stderr == pytest.approx(np.std(each, ddof=1) / np.sqrt(3))


def test_distinct_counts_over_all_samples():
    rows = np.array([[1, 2, 1, 2], [1, 2, 3, 4]])
    assert distinct(rows, 1) == 4 / 8
    assert distinct(rows, 2) == 4 / 6  # 12 21 23 34: none goes from one sample to the next
    assert distinct(rows, 3) == 4 / 4  # 121 212 123 234
    assert distinct(list(rows), 2) == distinct([np.array([1, 2, 1, 2]), rows[1]], 2)


def test_repetition_within_a_sample():
    once, often = [1, 2, 3, 4, 5, 6, 7], [9] * 7  # four 4-grams each
    found = self_repetition(np.array([once, often, once, once]))
    assert found.value == 3 / 16
    assert found.stderr == pytest.approx(np.std([0, 0.75, 0, 0], ddof=1) / 2)
    assert self_repetition([np.array([1, 2, 1, 2, 1])] * 2, n=2)[:2] == (2 / 4, 0)  # 12 21 12 21


RNG = np.random.default_rng(0)
SAMPLES, REFERENCE = (RNG.normal(size=(count, 4)).astype(np.float32) for count in (30, 40))


def test_the_package_gets_the_features(monkeypatch):
    def compute_mauve(p_features, q_features):
        assert p_features is REFERENCE and q_features is SAMPLES
        return types.SimpleNamespace(mauve=np.float64(0.25))

    monkeypatch.setitem(sys.modules, "mauve", types.SimpleNamespace(compute_mauve=compute_mauve))
    monkeypatch.setattr(importlib.metadata, "version", {"mauve-text": "0.4.0"}.get)
    assert load_mauve() == "mauve-text 0.4.0"
    assert mauve(SAMPLES, REFERENCE) == 0.25


def test_without_the_package_it_is_said_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "mauve", None)
    with pytest.raises(BadInput, match=r'MAUVE needs the package mauve: pip install "sedd_jax\[ma'):
        load_mauve()


def test_too_few_texts():
    check_counts(20, 20)
    with pytest.raises(
        BadInput, match="MAUVE needs at least 20 samples .* got 30 and 19; a figure"
    ):
        check_counts(30, 19)


def test_the_package_itself():
    pytest.importorskip("mauve", reason="the optional extra [mauve], which is GPL")
    near, far = (RNG.normal(mean, 1, (200, 4)).astype(np.float32) for mean in (0, 5))
    real = RNG.normal(0, 1, (200, 4)).astype(np.float32)
    assert mauve(near, real) > 0.8 > 0.2 > mauve(far, real)


@pytest.fixture(scope="module")
def checkpoint(smoke_run):
    return sedd.load(smoke_run)


def test_the_text_held_out(checkpoint, smoke_run):
    blocks = open_data(smoke_run / "data", 16).heldout
    found = read_reference("heldout", checkpoint, 16, 4)
    quarters = [number * len(blocks) // 4 for number in range(4)]
    np.testing.assert_array_equal(found.rows, [blocks[number] for number in quarters])
    assert found.name == "heldout"


def test_a_file(checkpoint, tmp_path):
    path = tmp_path / "real.txt"
    path.write_text("\ufeffabcdéfghi")  # a byte order mark, and ten bytes
    found = read_reference(str(path), checkpoint, 3, 100)
    assert [bytes(row.astype(np.uint8)) for row in found.rows] == [b"abc", "dé".encode(), b"fgh"]
    assert found.name == "real.txt"
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert len(read_reference(str(path), checkpoint, 3, 2).rows) == 2


def test_a_file_that_the_tokenizer_changes_is_told(checkpoint, tmp_path, monkeypatch, capsys):
    path = tmp_path / "real.txt"
    path.write_text("abcd")
    monkeypatch.setattr(Bytes, "exact", False)
    read_reference(str(path), checkpoint, 2, 2)
    assert not capsys.readouterr().err
    monkeypatch.setattr(Bytes, "decode", lambda self, ids: "ab d")
    read_reference(str(path), checkpoint, 2, 2)
    assert "loses 25.00% of the characters of" in (told := capsys.readouterr().err)
    assert "real.txt; 'abcd' becomes 'ab d'." in told


def test_bad_references(checkpoint, causal, tmp_path):
    path = tmp_path / "real.txt"
    with pytest.raises(BadInput, match="There is no reference text .*real.txt"):
        read_reference(str(path), checkpoint, 4, 2)
    path.write_text("abc")
    with pytest.raises(BadInput, match="has 3 tokens, less than 4"):
        read_reference(str(path), checkpoint, 4, 2)
    path.write_bytes(b"\xff")
    with pytest.raises(BadInput, match="is not UTF-8 text"):
        read_reference(str(path), checkpoint, 4, 2)
    path.rename(tmp_path / "real.jsonl")
    with pytest.raises(BadInput, match="real.jsonl holds jsonl by its name; give a file of plain"):
        read_reference(str(tmp_path / "real.jsonl"), checkpoint, 4, 2)
    with pytest.raises(BadInput, match="The checkpoint is not a run with its data"):
        read_reference("heldout", causal, 4, 2)

import hashlib
import json
import random

import numpy as np
import pytest

from sedd_jax.data.corpus_statistics import (
    BINS,
    Survey,
    Surveyor,
    bin_of,
    content_bytes,
    cut,
    heldout_bins,
)
from sedd_jax.data.documents import BLANK, Document, Fault, Piece
from sedd_jax.data.workers import Task
from sedd_jax.errors import BadInput


class Listed(Piece):
    name, size = "listed", 1

    def __init__(self, *contents):
        self.contents, self.read = contents, 0

    def documents(self):
        for number, content in enumerate(self.contents, 1):
            self.read = number
            yield Document(content, number)

    def place(self, where):
        return f"listed, line {where}"

    def version(self):
        return "1"


def _survey(folder, *documents):
    survey = Survey()
    task = Task(0, "corpus", (Listed(*documents),))
    survey.add(Surveyor(folder, refuse=False, letters=True)(task))
    return survey


def test_a_survey_counts_hashes_and_spells(tmp_path):
    survey = _survey(tmp_path, "aé", "b", BLANK, "aé", np.array([7, 9], np.uint16))
    digest = hashlib.sha256()
    ids = np.array([7, 9], np.uint16).tobytes()
    for content in ("aé".encode(), b"b", "aé".encode(), ids):
        digest.update(len(content).to_bytes(8, "little"))
        digest.update(content)
    assert survey.pieces == [
        # an id counts as a character and as a byte
        {"documents": 4, "characters": 7, "utf8_bytes": 9, "sha256": digest.hexdigest()}
    ]
    assert survey.sha256 == hashlib.sha256(digest.hexdigest().encode()).hexdigest()
    assert survey.letters == {"a", "é", "b"}
    expected = np.zeros(BINS, np.int64)
    expected[[bin_of("aé".encode()), bin_of(b"b"), bin_of(ids)]] = 4, 1, 2
    np.testing.assert_array_equal(survey.histogram, expected)
    assert survey.skipped == {"is blank": 1}


def test_two_lists_of_documents_never_look_alike(tmp_path):
    for number, documents in enumerate((["ab", "c"], ["a", "bc"])):
        (tmp_path / str(number)).mkdir()
        survey = _survey(tmp_path / str(number), *documents)
        (tmp_path / str(number) / "sum").write_text(survey.sha256)
    assert (tmp_path / "0" / "sum").read_text() != (tmp_path / "1" / "sum").read_text()


def test_bad_documents_are_counted_by_what_is_wrong(tmp_path):
    faults = [
        Fault("is no text", ": byte 3"),
        Fault("is no text", ": byte 9"),
        Fault("has no field 'x'"),
    ]
    survey = _survey(tmp_path, "a", *faults)
    assert survey.skipped == {"is no text": 2, "has no field 'x'": 1}
    assert survey.pieces[0]["documents"] == 1


def test_the_first_fault_ends_a_survey_that_refuses_and_a_blank_document_does_not(tmp_path):
    fault = Fault("has no field 'x'")
    piece = Listed("a", BLANK, fault, "c", Fault("is never seen"))
    message = f"listed, line 3 {fault.reason}; mend it or set config.data.bad_documents=skip"
    with pytest.raises(BadInput, match=message):
        Surveyor(tmp_path, refuse=True, letters=False)(Task(0, "corpus", (piece,)))
    assert piece.read == 3
    assert list(tmp_path.iterdir()) == []


def test_what_was_surveyed_is_not_read_again(tmp_path):
    surveyor = Surveyor(tmp_path, refuse=True, letters=False)
    path = surveyor(Task(7, "corpus", (Listed("a"),)))
    before = json.loads(path.read_text())
    again = Listed("b")
    assert surveyor(Task(7, "corpus", (again,))) == path
    assert again.read == 0 and json.loads(path.read_text()) == before


def _split(documents, fraction):
    """(train, heldout) by bins."""
    histogram = np.zeros(BINS, np.int64)
    bins = [bin_of(document.encode()) for document in documents]
    for number, document in zip(bins, documents, strict=True):
        histogram[number] += len(document)
    border = heldout_bins(histogram, fraction)
    if border is None:
        halves = [cut(document, fraction) for document in documents]
        return [head for head, _ in halves], [tail for _, tail in halves]
    parts = [], []
    for number, document in zip(bins, documents, strict=True):
        parts[number < border].append(document)
    return parts


@pytest.mark.parametrize("fraction", [0.001, 0.1, 0.5, 0.97])
def test_the_split_of_the_embedded_corpus_is_what_it_was(split_documents, load_documents, fraction):
    documents = load_documents("pydoc")
    assert _split(documents, fraction) == split_documents(documents, fraction)


@pytest.mark.parametrize("seed", range(40))
def test_the_split_of_few_texts_and_many_copies_is_what_it_was(split_documents, seed):
    draw = np.random.default_rng(seed)
    distinct = [f"{seed} {i} " + "é" * draw.integers(0, 60) for i in range(draw.integers(1, 12))]
    documents = [distinct[i] for i in draw.integers(0, len(distinct), 15)]
    fraction = draw.uniform(0.01, 0.99)
    assert _split(documents, fraction) == split_documents(documents, fraction)


def test_a_bin_is_the_first_twenty_bits_of_the_digest():
    assert hashlib.sha256(b"abc").hexdigest().startswith("ba7816")
    assert bin_of(b"abc") == 0xBA781


def test_bins_go_as_a_whole_and_both_sides_get_one():
    histogram = np.zeros(BINS, np.int64)
    histogram[[3, 5, 8]] = 10, 30, 60
    for fraction, border in ((0.1, 5), (0.11, 8), (0.4, 8), (0.99, 8)):
        assert heldout_bins(histogram, fraction) == border
    histogram[[5, 8]] = 0
    assert heldout_bins(histogram, 0.5) is None


def test_ids_are_hashed_as_they_lie_and_cut_by_number():
    ids = np.array([1, 2, 40_000], np.uint16)
    assert content_bytes(ids) == ids.tobytes()
    assert bin_of(content_bytes(ids)) == bin_of(ids.tobytes())
    head, tail = cut(np.arange(10), 0.3)
    assert (head.tolist(), tail.tolist()) == (list(range(7)), [7, 8, 9])


def test_a_single_character_cannot_be_cut():
    with pytest.raises(BadInput, match=r"single document of 1 character\(s\), too short"):
        cut("x", 0.5)


def _documents(count):
    rng = random.Random(0)
    return [f"{i} " + "word " * rng.randint(5, 15) for i in range(count)]


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.5, 0.9])
def test_split_is_a_partition_near_the_fraction_in_the_old_order(fraction):
    documents = _documents(200)
    train, heldout = _split(documents, fraction)
    assert sorted(train + heldout) == sorted(documents)
    assert [d for d in documents if d in set(train)] == train
    assert [d for d in documents if d in set(heldout)] == heldout
    size, total = sum(map(len, heldout)), sum(map(len, documents))
    assert fraction * total <= size < fraction * total + max(map(len, documents))


def test_split_does_not_depend_on_the_order_of_documents():
    documents = _documents(50)
    _, heldout = _split(documents, 0.2)
    _, reversed_heldout = _split(documents[::-1], 0.2)
    assert reversed_heldout == heldout[::-1]
    assert heldout != documents[: len(heldout)]


def test_split_leaves_at_least_one_document_on_each_side():
    for fraction in (1e-9, 0.999):
        train, heldout = _split(["aaaa", "bbbb"], fraction)
        assert len(train) == len(heldout) == 1


def test_copies_of_a_text_never_straddle_the_split():
    documents = _documents(20) * 3
    for fraction in (0.05, 0.1, 0.3, 0.5):
        train, heldout = _split(documents, fraction)
        assert len(train) + len(heldout) == 60
        assert not set(train) & set(heldout)


def test_a_single_document_is_cut_at_the_next_line():
    document = "".join(f"line number {i}\n" for i in range(100))
    (head,), (tail,) = _split([document], 0.1)
    assert head + tail == document
    assert head.endswith("\n")
    assert 0.9 * len(document) <= len(head) < 0.9 * len(document) + len("line number 90\n")
    # A cut that falls on a line boundary already stays there.
    assert _split(["aaaa\nbbbb\n"], 0.5) == (["aaaa\n"], ["bbbb\n"])


def test_a_single_line_is_cut_at_the_character():
    assert _split(["0123456789"], 0.3) == (["0123456"], ["789"])
    # The only line break is far off: taking it would leave next to nothing held out.
    (head,), (tail,) = _split(["x" * 990 + "\n" + "x" * 9], 0.5)
    assert (len(head), len(tail)) == (500, 500)
    assert _split(["ab"], 0.001) == (["a"], ["b"])


def test_copies_of_one_text_are_all_cut():
    assert _split(["0123456789"] * 2, 0.3) == (["0123456"] * 2, ["789"] * 2)

import hashlib

import numpy as np
import pytest

from sedd_jax.data.split import BINS, bin_of, content_bytes, cut, heldout_bins
from sedd_jax.errors import BadInput


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


def test_ids_are_hashed_by_value_and_cut_by_number():
    ids = np.array([1, 2, 40_000], np.uint16)
    assert (
        content_bytes(ids)
        == content_bytes(ids.astype(np.int64))
        == b"".join(int(i).to_bytes(8, "little") for i in ids)
    )
    head, tail = cut(np.arange(10), 0.3)
    assert (head.tolist(), tail.tolist()) == (list(range(7)), [7, 8, 9])


def test_a_text_is_cut_at_a_line_nearby():
    text = "a" * 79 + "\n" + "b" * 20
    assert cut(text, 0.25) == ("a" * 79 + "\n", "b" * 20)
    assert cut("x" * 100, 0.25) == ("x" * 75, "x" * 25)
    with pytest.raises(BadInput, match="a single document of 1 character"):
        cut("x", 0.5)

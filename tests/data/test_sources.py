import random

import pytest

from sedd_jax.data.sources import load_documents, split_documents
from sedd_jax.errors import BadInput


def test_the_embedded_corpus_is_english_of_some_size():
    documents = load_documents("pydoc", "")
    assert len(documents) > 50
    assert sum(map(len, documents)) > 300_000
    assert any("assert" in document for document in documents)
    assert documents == load_documents("pydoc", "\n")


def test_a_file_is_cut_at_the_separator_and_otherwise_kept_as_it_is(tmp_path):
    file = tmp_path / "corpus.txt"
    file.write_bytes("one\r\nè---two\t ---  \n---\nthree\n".encode())
    assert load_documents(str(file), "---") == ["one\r\nè", "two\t ", "\nthree\n"]
    assert load_documents(str(file), "") == ["one\r\nè---two\t ---  \n---\nthree\n"]


def test_a_folder_gives_the_documents_of_all_files_below_it_in_order_of_names(tmp_path):
    (tmp_path / "b").mkdir()
    for name, text in (
        ("b/b.txt", "second---third---"),
        ("a.txt", "first"),
        ("c.txt", "\n"),
        ("d.md", "no"),
        ("manifest.json", '{"text": "no"}'),
        ("z.jsonl", '{"text": "fourth---"}\n'),
    ):
        (tmp_path / name).write_text(text)
    assert load_documents(str(tmp_path), "---") == ["first", "second", "third", "fourth---"]


def test_a_missing_corpus_is_named(tmp_path):
    with pytest.raises(BadInput, match="There is no corpus at .*absent.txt"):
        load_documents(str(tmp_path / "absent.txt"), "")


def test_a_folder_without_text_is_named(tmp_path):
    with pytest.raises(
        BadInput, match=r"has no files of a known format \(.*\.jsonl.*; name its files by a pattern"
    ):
        load_documents(str(tmp_path), "")


def test_an_empty_corpus_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text(" \n\t\n")
    for corpus in (tmp_path, tmp_path / "a.txt"):
        with pytest.raises(BadInput, match="is empty: it holds nothing but white space"):
            load_documents(str(corpus), "")


def test_text_that_is_not_utf8_is_refused_with_its_place(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"na\xefve")
    with pytest.raises(BadInput, match="a.txt is not UTF-8 text: the byte at offset 2"):
        load_documents(str(tmp_path), "")


def _documents(count):
    rng = random.Random(0)
    return [f"{i} " + "word " * rng.randint(5, 15) for i in range(count)]


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.5, 0.9])
def test_split_is_a_partition_near_the_fraction_in_the_old_order(fraction):
    documents = _documents(200)
    train, heldout = split_documents(documents, fraction)
    assert sorted(train + heldout) == sorted(documents)
    assert [d for d in documents if d in set(train)] == train
    assert [d for d in documents if d in set(heldout)] == heldout
    size, total = sum(map(len, heldout)), sum(map(len, documents))
    assert fraction * total <= size < fraction * total + max(map(len, documents))


def test_split_does_not_depend_on_the_order_of_documents():
    documents = _documents(50)
    _, heldout = split_documents(documents, 0.2)
    _, reversed_heldout = split_documents(documents[::-1], 0.2)
    assert reversed_heldout == heldout[::-1]
    assert heldout != documents[: len(heldout)]


def test_split_leaves_at_least_one_document_on_each_side():
    for fraction in (1e-9, 0.999):
        train, heldout = split_documents(["aaaa", "bbbb"], fraction)
        assert len(train) == len(heldout) == 1


def test_copies_of_a_text_never_straddle_the_split():
    documents = _documents(20) * 3
    for fraction in (0.05, 0.1, 0.3, 0.5):
        train, heldout = split_documents(documents, fraction)
        assert len(train) + len(heldout) == 60
        assert not set(train) & set(heldout)


def test_a_single_document_is_cut_at_the_next_line():
    document = "".join(f"line number {i}\n" for i in range(100))
    (head,), (tail,) = split_documents([document], 0.1)
    assert head + tail == document
    assert head.endswith("\n")
    assert 0.9 * len(document) <= len(head) < 0.9 * len(document) + len("line number 90\n")
    # A cut that falls on a line boundary already stays there.
    assert split_documents(["aaaa\nbbbb\n"], 0.5) == (["aaaa\n"], ["bbbb\n"])


def test_a_single_line_is_cut_at_the_character():
    assert split_documents(["0123456789"], 0.3) == (["0123456"], ["789"])
    # The only line break is far off: taking it would leave next to nothing held out.
    (head,), (tail,) = split_documents(["x" * 990 + "\n" + "x" * 9], 0.5)
    assert (len(head), len(tail)) == (500, 500)
    assert split_documents(["ab"], 0.001) == (["a"], ["b"])


def test_copies_of_one_text_are_all_cut():
    assert split_documents(["0123456789"] * 2, 0.3) == (["0123456"] * 2, ["789"] * 2)


def test_split_refuses_what_cannot_be_split():
    for fraction in (0, 1, -0.1, 1.5, float("nan")):
        with pytest.raises(BadInput, match="heldout_fraction is .* between 0 and 1"):
            split_documents(["a", "b"], fraction)
    with pytest.raises(BadInput, match=r"single document of 1 character\(s\), too short"):
        split_documents(["a"], 0.5)

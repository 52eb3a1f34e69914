import gzip
import pathlib
import pickle
import platform
import random
import typing

import pytest

from sedd_jax.data.characters import Characters
from sedd_jax.data.recipe import Recipe
from sedd_jax.data.sources import load_documents, pieces, split_documents
from sedd_jax.data.subword import GPT2
from sedd_jax.errors import BadInput

SHARED = pathlib.Path(__file__).parents[2].parent / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the public texts are absent")


def contents(corpus, **settings):
    return [d.content for part in pieces(Recipe(**settings), str(corpus)) for d in part.documents()]


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
    for folder in ("b", ".cache"):
        (tmp_path / folder).mkdir()
    for name, text in (
        ("b/b.txt", "second---third---"),
        ("a.txt", "first"),
        ("c.txt", "\n"),
        ("d.md", "no"),
        ("manifest.json", '{"text": "no"}'),
        ("old.json.gz", "no"),
        ("._a.txt", "no"),
        (".cache/a.txt", "no"),
        ("z.jsonl", '{"text": "fourth---"}\n'),
    ):
        (tmp_path / name).write_text(text)
    assert load_documents(str(tmp_path), "---") == ["first", "second", "third", "fourth---"]


def test_the_help_topics_are_one_piece():
    (part,) = pickle.loads(pickle.dumps(pieces(Recipe(), "pydoc")))
    first, second, *rest = part.documents()
    assert [first.content, second.content] == load_documents("pydoc", "")[:2]
    assert part.place(second.where) == "pydoc, topic 2"
    assert (part.name, part.version()) == ("pydoc", platform.python_version())
    assert abs(part.size - sum(len(d.content) for d in [first, second, *rest])) < part.size


def test_a_pattern_gives_the_files_that_match_in_order_of_names(tmp_path):
    for name in ("b/1.log", "b/2.txt", "a/3.log", "a/4.log.gz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        text = f"text {name}".encode()
        (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    expected = ["text a/3.log", "text a/4.log.gz", "text b/1.log"]
    assert contents(tmp_path / "*" / "*.log*") == expected
    assert contents(tmp_path / "**" / "*.log*") == expected
    with pytest.raises(BadInput, match="There is no corpus at"):
        contents(tmp_path / "[b]")
    assert contents(tmp_path) == ["text b/2.txt"]


def test_a_name_with_the_signs_of_a_pattern_is_a_name(tmp_path):
    (tmp_path / "a[1].txt").write_text("one")
    assert contents(tmp_path / "a[1].txt") == ["one"]


def test_a_named_format_wins_over_the_ending(tmp_path):
    for name in ("a.txt", "a.data", "a.jsonl"):
        (tmp_path / name).write_text('{"text": "x"}')
        assert contents(tmp_path / name, format="jsonl") == ["x"]
        assert contents(tmp_path / name, format="text") == ['{"text": "x"}']
    # In a folder it chooses among the endings.
    assert contents(tmp_path, format="jsonl") == ["x"]
    with pytest.raises(BadInput, match="has no files of the format parquet"):
        contents(tmp_path, format="parquet")


def test_every_format_of_a_recipe_is_read(tmp_path):
    formats = typing.get_args(typing.get_type_hints(Recipe)["format"])
    path = tmp_path / "x.uint16.array_record"
    path.write_bytes(b"\0\0\0\0")
    refused = set()
    for form in formats:
        try:
            contents(path, format=form)
        except BadInput as error:
            assert "x.uint16.array_record" in str(error) and "\n" not in str(error)
            refused.add(form)
    assert refused == {"auto", "array_record", "npy", "parquet"}


def test_a_compressed_file_of_another_format_is_refused(tmp_path):
    for name, form in (("a.npy.gz", "npy"), ("a.parquet.zst", "parquet")):
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(
            BadInput, match=f"{name} is compressed, .*{form} is not.*; decompress it"
        ):
            contents(tmp_path / name)


def test_a_missing_corpus_is_named(tmp_path):
    for name in ("absent.txt", "*.absent"):
        with pytest.raises(
            BadInput, match=r"There is no corpus at .*absent.*; give a file, a folder"
        ):
            contents(tmp_path / name)
    with pytest.raises(BadInput, match="no corpus at .*absent.txt"):
        load_documents(str(tmp_path / "absent.txt"), "")


def test_a_folder_without_text_is_named(tmp_path):
    with pytest.raises(
        BadInput, match=r"has no files of a known format \(.*\.jsonl.*; give a pattern"
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


@needs_shared
@pytest.mark.parametrize(
    ("name", "documents", "tokens"),
    [
        ("wikitext-2-raw/wiki.test.raw", 1, 286_221),
        ("wikitext-2/valid.txt", 1, 258_659),
        ("tinyshakespeare/input.txt", 1, 338_025),
        ("lambada/lambada_test.jsonl", 5153, 430_230),
    ],
)
def test_public_texts_have_the_number_of_gpt2_tokens_that_others_count(name, documents, tokens):
    pytest.importorskip("tiktoken")
    texts, tokenizer = contents(SHARED / name), GPT2(SHARED / "gpt2_bpe")
    assert len(texts) == documents
    assert sum(len(tokenizer.encode(text)) for text in texts) == tokens


@needs_shared
def test_public_dna_is_read_as_sequences_of_one_length():
    sequences = contents(SHARED / "dna" / "ctcf.fa.gz")
    assert len(sequences) == 39_184
    dna = Characters("ACGT", eod=False)
    assert {len(dna.encode(sequence)) for sequence in sequences} == {100}

import gzip
import os
import pathlib
import pickle
import platform
import typing

import pytest

from sedd_jax.data.characters import Characters
from sedd_jax.data.documents import Recipe
from sedd_jax.data.sources import passed_by, pieces
from sedd_jax.data.tokenizer import GPT2
from sedd_jax.errors import BadInput

SHARED = pathlib.Path(__file__).parents[2].parent / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the public texts are absent")


def contents(corpus, **settings):
    return [d.content for part in pieces(Recipe(**settings), str(corpus)) for d in part.documents()]


def test_the_embedded_corpus_is_english_of_some_size():
    documents = contents("pydoc")
    assert len(documents) > 50
    assert sum(map(len, documents)) > 300_000
    assert any("assert" in document for document in documents)
    assert documents == contents("pydoc", separator="\n")


def test_shards_that_are_missing_are_told(tmp_path, capsys):
    for name in ("a-00000-of-00003.txt", "a-00002-of-00003.txt", "b.00001-of-00002.txt.gz"):
        (tmp_path / name).write_bytes(gzip.compress(b"b") if "gz" in name else b"a")
    (tmp_path / "c").mkdir()
    for number in range(2):
        (tmp_path / "c" / f"a-{number}-of-2.txt").write_text("c")
    assert contents(tmp_path) == ["a", "a", "b", "c", "c"]
    assert capsys.readouterr().err.splitlines() == [
        f"warning: 1 of the 3 files {tmp_path}/a-*-of-00003.txt are missing.",
        f"warning: 1 of the 2 files {tmp_path}/b.*-of-00002.txt.gz are missing.",
    ]
    assert contents(tmp_path / "a-00000-of-00003.txt") == ["a"]
    assert not capsys.readouterr().err


def test_a_file_is_cut_at_the_separator_and_otherwise_kept_as_it_is(tmp_path):
    file = tmp_path / "corpus.txt"
    file.write_bytes("one\r\nè---two\t ---  \n---\nthree\n".encode())
    assert contents(file, separator="---") == [
        "one\r\nè",
        "two\t ",
        "\nthree\n",
    ]
    assert contents(file) == ["one\r\nè---two\t ---  \n---\nthree\n"]


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
    assert contents(tmp_path, separator="---") == ["first", "second", "third", "fourth---"]


def test_files_that_are_passed_by_are_counted(tmp_path, monkeypatch):
    for name in [
        "a.txt",
        "b.MD",
        "c.md",
        "d.csv",
        "sub/e.md",
        "LICENSE",
        "g.JSON.gz",
        ".hidden.md",
        ".h/f.md",
    ]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("text\nx")
    (tmp_path / "gone.txt").symlink_to(tmp_path / "absent")
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "linked").symlink_to(tmp_path / "sub")
    links = {"broken link": 1, "special file": 1, "linked folder": 1}
    others = {".md": 3, ".json.gz": 1, "no ending": 1, **links}
    assert passed_by(str(tmp_path), "auto") == {".csv": 1, **others}
    assert passed_by(str(tmp_path), "csv") == {".txt": 1, **others}
    assert passed_by(f"{tmp_path}/*", "auto") == {"folder": 2, "broken link": 1, "special file": 1}
    for corpus in ("pydoc", "", "hf:x", str(tmp_path / "a.txt"), f"{tmp_path}/**/*.md"):
        assert passed_by(corpus, "auto") == {}
    assert contents(tmp_path) == ["text\nx"]
    with pytest.raises(BadInput, match=r"no files of a known format .* but others \(.md 1\); give"):
        contents(tmp_path / "sub")

    def walk(folder, onerror):
        onerror(PermissionError(13, "Permission denied"))
        return iter([(str(tmp_path), [], ["a.txt"])])

    monkeypatch.setattr(os, "walk", walk)
    assert passed_by(str(tmp_path), "auto") == {"unreadable folder": 1}


@pytest.mark.parametrize(
    "ending", [*[".fa", ".fasta", ".fna", ".faa", ".ffn", ".frn", ".fas", ".FNA"]]
)
def test_sequences_are_known_by_every_usual_ending(tmp_path, ending):
    (tmp_path / f"a{ending}").write_text(">s1\nacgt\n")
    (tmp_path / f"b{ending}.GZ").write_bytes(gzip.compress(b">s2\nGG\n"))
    assert contents(tmp_path) == ["ACGT", "GG"]


def test_settings_and_tables_of_a_folder_are_read_if_they_are_named(tmp_path):
    for name in ("a.csv", "b.tsv", "c.jsonl"):
        (tmp_path / name).write_text('{"text": "x"}' if name == "c.jsonl" else f"text\n{name}\n")
    assert contents(tmp_path) == ["x"]
    assert contents(tmp_path / "*.?sv") == ["a.csv", "b.tsv"]
    assert contents(tmp_path, format="csv") == ["a.csv"]


def test_the_help_topics_are_one_piece():
    (part,) = pickle.loads(pickle.dumps(pieces(Recipe(), "pydoc")))
    first, second, *rest = part.documents()
    assert [first.content, second.content] == contents("pydoc")[:2]
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
    path.write_bytes(b"@\n\n+")
    refused = set()
    for form in formats:
        try:
            contents(path, format=form)
        except BadInput as error:
            assert "x.uint16.array_record" in str(error) and "\n" not in str(error)
            refused.add(form)
    assert refused == {"auto", "array_record", "npy", "parquet", "csv", "tsv"}


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
        contents(tmp_path / "absent.txt")


def test_a_folder_without_text_is_named(tmp_path):
    with pytest.raises(
        BadInput, match=r"has no files of a known format \(.*\.jsonl.*; give a pattern"
    ):
        contents(tmp_path)


def test_prepared_data_are_no_corpus(tmp_path):
    for name in ("manifest.json", "train-00000.bin"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(BadInput, match="holds prepared data by its manifest.json; give it as conf"):
        contents(tmp_path)


def test_text_that_is_not_utf8_is_a_fault_with_its_place(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"na\xefve")
    (fault,) = contents(tmp_path)
    assert fault.reason.startswith("is not UTF-8 text: the byte at offset 2")


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

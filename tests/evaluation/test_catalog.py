"""Data sets are found by their files, and read as the published loaders read them."""

import json

import pytest

from sedd_jax.errors import BadInput
from sedd_jax.evaluation import datasets
from sedd_jax.evaluation.catalog import DatasetCatalog
from sedd_jax.evaluation.datasets import TEXT_SETS, ZEROSHOT
from sedd_jax.evaluation.likelihood import resolve_suites

WIKI = " = Mill = \n \n The mill stood . \n\n It turned . \n"
PENN = " the mill 's wheel \n\n N of N \n"


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def folder(tmp_path):
    """A folder with some data, of both splits."""
    root = tmp_path / "shelf"
    write(root / "lambada/lambada_test.jsonl", '{"text": " “ One ” two "}\n\n{"text": ""}\n')
    write(root / "wikitext-2-raw/wiki.test.raw", WIKI)
    write(root / "wikitext-2-raw/wiki.valid.raw", " other \n")
    write(root / "wikitext-2/valid.txt", "tokenised , with <unk> \n")
    write(root / "deep/WikiText103/wiki.test.raw", " long \n")
    write(root / "mikolov/ptb.test.txt", PENN)
    write(root / "mikolov/ptb.valid.txt", "valid\n")
    return root


def test_rows_are_those_of_the_published_loaders(folder):
    catalog = DatasetCatalog(folder)
    wiki = catalog.read("wikitext2", "test")
    # every line is a row with its end, blank ones are empty rows
    assert wiki.documents == [" = Mill =\n", "", " The mill stood.\n", "", " It turned.\n"]
    assert (wiki.source, wiki.split, wiki.detokenizer) == ("wiki.test.raw", "test", "wikitext")
    assert catalog.read("ptb", "test").documents == ["the mill's wheel", "", "N of N"]
    assert catalog.read("lambada", "test").documents == ['\n" One " two', "\n"]


def test_a_set_in_a_bucket_is_fetched_alone(folder, memory_bucket):
    for path in folder.rglob("*.*"):
        memory_bucket.objects[path.relative_to(folder.parent).as_posix()] = path.read_bytes()
    catalog = DatasetCatalog("gs://bucket/shelf")
    assert catalog.read("ptb", "test") == DatasetCatalog(folder).read("ptb", "test")
    read = {key for name, key in memory_bucket.requests if name == "read"}
    assert read == {"shelf/mikolov/ptb.test.txt"}
    named = DatasetCatalog(None, {"ptb": "gs://bucket/shelf/mikolov/ptb.test.txt"})
    assert named.read("ptb", "test").documents == ["the mill's wheel", "", "N of N"]
    for name, words in (
        ("gs://bucket/none", "no folder gs://bucket/none"),
        ("gs://b/shelf", "no bucket gs://b"),
    ):
        with pytest.raises(BadInput, match=words):
            DatasetCatalog(name)


def test_only_a_newline_ends_a_line(tmp_path):
    path = write(tmp_path / "ptb.txt", "one\u2028two\x85three\r\nfour\n")
    (text,) = [DatasetCatalog(None, {"ptb": str(path)}).read("ptb", "test")]
    assert text.documents == ["one\u2028two\x85three", "four"]


def test_the_splits_of_the_protocols(folder):
    splits = {name: (known.split("sedd"), known.split("mdlm")) for name, known in TEXT_SETS.items()}
    assert all(known.split("duo") == known.split("mdlm") for known in TEXT_SETS.values())
    assert splits == {
        "lambada": ("test", "test"),
        "wikitext2": ("test", "validation"),
        "ptb": ("test", "validation"),
        "wikitext103": ("test", "validation"),
        "lm1b": ("test", "test"),
        "text8": ("test", "test"),
        "ag_news": ("test", "test"),
        "scientific_papers_pubmed": ("test", "validation"),
        "scientific_papers_arxiv": ("test", "validation"),
    }
    assert DatasetCatalog(folder).read("wikitext2", "validation").documents == [" other\n"]
    assert DatasetCatalog(folder).read("ptb", "validation").documents == ["valid"]


def test_the_hash_is_of_the_documents(folder):
    catalog = DatasetCatalog(folder)
    text = catalog.read("ptb", "test")
    assert text.sha256 == catalog.read("ptb", "test").sha256
    assert text.sha256 != text._replace(documents=[*text.documents, ""]).sha256
    joined = ["".join(text.documents)]
    assert text.sha256 != text._replace(documents=joined).sha256


def test_text8_is_cut_by_characters(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "TEXT8_CHARACTERS", 20)
    monkeypatch.setattr(datasets, "TEXT8_SPLIT", 3)
    catalog = DatasetCatalog(write(tmp_path / "text8", "abcdefghijklmnopqrst").parent)
    assert catalog.read("text8", "test").documents == ["rst"]
    assert catalog.read("text8", "validation").documents == ["opq"]
    write(tmp_path / "text8", "abc")
    with pytest.raises(BadInput, match="text8 has 3 characters, text8 has 20; get it again"):
        catalog.read("text8", "test")


def test_all_parts_of_a_set_are_read_in_order(tmp_path):
    for number in (1, 0):
        write(tmp_path / f"news.en.heldout-0000{number}-of-00002", f" part {number} .\n")
    text = DatasetCatalog(tmp_path).read("lm1b", "test")
    assert text.documents == ["part 0.", "part 1."]
    assert text.source == "news.en.heldout-00000-of-00002 to news.en.heldout-00001-of-00002"
    (tmp_path / "news.en.heldout-00001-of-00002").unlink()
    with pytest.raises(BadInput, match="holds 1 of the 2 files of lm1b"):
        DatasetCatalog(tmp_path).find("lm1b", "test")


def test_tables_are_read_with_blank_rows(tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    path = tmp_path / "wikitext-2-raw-v1" / "test-00000-of-00001.parquet"
    path.parent.mkdir()
    parquet.write_table(pa.table({"text": [" one \n", "", " two \n"]}), path)
    expected = [" one\n", "", " two\n"]
    assert DatasetCatalog(tmp_path).read("wikitext2", "test").documents == expected
    rows = write(tmp_path / "rows.jsonl", "".join(f"{json.dumps({'sentence': s})}\n" for s in "ab"))
    assert DatasetCatalog(None, {"ptb": str(rows)}).read("ptb", "test").documents == ["a", "b"]
    for name, content in (("ROWS.JSONL", rows.read_text()), ("rows.csv", "id,sentence\n1,a\n2,b")):
        source = {"ptb": str(write(tmp_path / name, content))}
        assert DatasetCatalog(None, source).read("ptb", "test").documents == ["a", "b"]
    with pytest.raises(BadInput, match="rows.jsonl, line 1 has no field 'text'"):
        DatasetCatalog(None, {"lm1b": str(rows)}).read("lm1b", "test")


def test_a_data_set_of_the_hub_is_local_once_it_is_saved(tmp_path):
    hub = pytest.importorskip("datasets", reason="the optional extra [hub]")
    hub.Dataset.from_dict({"text": ["well @-@ made", ""]}).save_to_disk(tmp_path / "saved")
    source = f"hf:{tmp_path / 'saved'}"
    text = DatasetCatalog(None, {"wikitext2": source}).read("wikitext2", "test")
    assert (text.documents, text.source) == (["well-made", ""], "saved")


def test_what_download_would_fetch():
    catalog = DatasetCatalog(None, download=True)
    found = {name: catalog.find(name, "validation") for name in TEXT_SETS}
    assert found["wikitext103"] == ["hf:Salesforce/wikitext/wikitext-103-raw-v1:validation"]
    assert found["scientific_papers_arxiv"] == ["tfds:scientific_papers/arxiv:validation"]
    assert found["ptb"] == []
    assert not any(DatasetCatalog(None).find(name, "test") for name in TEXT_SETS)


def test_a_group_takes_what_there_is_and_says_what_is_missing(folder):
    names, lacking = resolve_suites(["zeroshot", "heldout", "ptb"], DatasetCatalog(folder), "sedd")
    assert names == [*ZEROSHOT[:-1], "heldout"]
    (words,) = lacking["zeroshot"]
    assert words.startswith("lm1b: all files of heldout-monolingual")
    assert f"below {folder}" in words
    assert resolve_suites(["zeroshot"], DatasetCatalog(folder), "mdlm")[0] == [
        "lambada",
        "wikitext2",
        "ptb",
    ]


@pytest.mark.parametrize(
    ("suites", "message"),
    [
        (["lm1b"], "no data for --suite=lm1b. Looked for lm1b: all files of"),
        (["ptb", "text8"], "text8.zip from mattmahoney.net/dc, unpacked, below"),
        (["bogus"], "There is no suite 'bogus'; there are zeroshot, heldout, lambada"),
    ],
)
def test_a_missing_set_is_refused(folder, suites, message):
    with pytest.raises(BadInput, match=message):
        resolve_suites(suites, DatasetCatalog(folder), "sedd")


def test_a_group_without_any_data_is_refused(tmp_path):
    with pytest.raises(BadInput, match="no data for --suite=zeroshot.*ptb: Mikolov's ptb.valid"):
        resolve_suites(["zeroshot"], DatasetCatalog(tmp_path), "mdlm")


def test_two_of_a_kind_are_ambiguous(folder):
    write(folder / "copy/ptb.test.txt", "other\n")
    with pytest.raises(BadInput, match="more than one ptb below .* --sources=ptb=FILE"):
        DatasetCatalog(folder).find("ptb", "test")
    chosen = {"ptb": str(folder / "copy/ptb.test.txt")}
    text = DatasetCatalog(folder, chosen).read("ptb", "test")
    assert (text.documents, text.split) == (["other"], "as given, for test")
    write(folder / "text8", "")
    write(folder / "text8.txt", "")
    with pytest.raises(BadInput, match="more than one text8 below .*text8 and .*text8.txt"):
        DatasetCatalog(folder).find("text8", "test")


def test_links_to_folders_are_followed(folder, tmp_path):
    write(tmp_path / "elsewhere/penn/test.txt", "linked\n")
    root = tmp_path / "links"
    root.mkdir()
    (root / "a").symlink_to(tmp_path / "elsewhere")
    (root / "b").symlink_to(tmp_path / "elsewhere/penn")  # the same folder again
    (root / "c").symlink_to(root)  # a ring
    (root / "d").symlink_to(tmp_path / "nowhere")
    assert DatasetCatalog(root).read("ptb", "test").documents == ["linked"]
    (folder / "a").symlink_to(folder / "mikolov")  # the name of the folder itself counts
    assert DatasetCatalog(folder).find("ptb", "test") == [str(folder / "mikolov/ptb.test.txt")]


def test_tokenised_wikitext_is_refused(tmp_path):
    path = write(tmp_path / "wiki.test.tokens", " the <unk> stood \n")
    catalog = DatasetCatalog(None, {"wikitext2": str(path), "ptb": str(path)})
    with pytest.raises(BadInput, match="has <unk> in it, .* get wikitext-2-raw/wiki.test.raw"):
        catalog.read("wikitext2", "test")
    assert catalog.read("ptb", "test").documents  # it has them


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ({"ptb": "absent.txt"}, "--sources names absent.txt for ptb, which is no file"),
        ({"pbt": "absent.txt"}, "--sources names 'pbt'; there are lambada,"),
        ({"ptb": "hf:owner/name:test"}, "--download fetches it"),
    ],
)
def test_bad_sources_are_refused(sources, message):
    with pytest.raises(BadInput, match=message):
        DatasetCatalog(None, sources)


def test_text_that_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(BadInput, match="no folder .*absent to look for data in"):
        DatasetCatalog(tmp_path / "absent")
    (tmp_path / "ptb.test.txt").write_bytes(b"na\xefve")
    with pytest.raises(BadInput, match="ptb.test.txt is not UTF-8 text: the byte at offset 2"):
        DatasetCatalog(tmp_path).read("ptb", "test")
    (tmp_path / "ptb.test.txt").write_bytes(b"\xef\xbb\xbf one\r\ntwo\n")
    assert DatasetCatalog(tmp_path).read("ptb", "test").documents == ["one", "two"]
    write(tmp_path / "ptb.test.txt", " \n\n")
    with pytest.raises(BadInput, match="There is no text in .*ptb.test.txt"):
        DatasetCatalog(tmp_path).read("ptb", "test")
    with pytest.raises(BadInput, match="There is no data for wikitext2: wikitext-2-raw/wiki.test"):
        DatasetCatalog(tmp_path).read("wikitext2", "test")

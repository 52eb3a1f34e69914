"""The separator of text files: escapes, and one that never occurs."""

import dataclasses
import gzip

import numpy as np
import pytest

from sedd_jax.data import account
from sedd_jax.data.documents import Recipe
from sedd_jax.data.preparation import prepare_blocks
from sedd_jax.data.separators import unescaped
from sedd_jax.errors import BadInput

SAYINGS = [f"saying {i}\nof two lines" for i in range(30)]
RECIPE = Recipe(vocab_size=0, heldout_fraction=0.3)


@pytest.fixture
def prepare(tmp_path):
    def prepare(text, name="a.txt", **settings):
        data = text.encode()
        if name:
            (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
        recipe = dataclasses.replace(RECIPE, **{"corpus": str(tmp_path / name)} | settings)
        return prepare_blocks(tmp_path / "data" / str(len(settings)), recipe, 8)

    return prepare


def documents(dataset):
    return sum(split["documents"] for split in dataset.manifest["splits"].values())


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (r"\n%\n", "\n%\n"),
        (r"\t\r\n\f", "\t\r\n\f"),
        (r"\x1e\u00e9\u2028", "\x1eé\u2028"),
        (r"\\n", r"\n"),
        (r"\\\n", "\\\n"),
        ("\n%\n", "\n%\n"),
        (r"\d\x1\u12\ud83d", r"\d\x1\u12\ud83d"),
        ("\\", "\\"),
        ("", ""),
    ],
)
def test_escapes_are_understood_and_other_backslashes_kept(given, meant):
    assert unescaped(given) == meant


def test_a_separator_typed_with_escapes_is_the_one_with_line_ends(prepare):
    text = "\n%\n".join(SAYINGS)
    first = prepare(text, separator=r"\n%\n")
    assert documents(first) == 30
    again = prepare(text, separator="\n%\n", wrap=True)
    assert again.manifest["recipe"] == first.manifest["recipe"]


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
@pytest.mark.parametrize(
    ("between", "given", "message"),
    [
        ("\n%\n", "===", r"'===', never occurs in .*a.txt.*; give the one that divides"),
        ("\n%\n", "\n%%\n", r"'\\n%%\\n', never occurs in .*; give the one that divides"),
        ("\r\n%\r\n", r"\n%\n", r"end with CR LF: write '\\r\\n%\\r\\n'"),
        (
            r"\newpage",
            r"\newpage",
            r"\\newpage does as it is written: a backslash that is meant",
        ),
    ],
)
def test_a_separator_that_never_occurs_ends_the_preparation(prepare, name, between, given, message):
    with pytest.raises(BadInput, match=message):
        prepare(between.join(SAYINGS), name=name, separator=given)


def test_one_file_of_several_may_be_one_document(prepare, tmp_path):
    (tmp_path / "b.txt").write_text("a whole file")
    corpus = f"{tmp_path}/*.txt"
    assert documents(prepare("|".join(SAYINGS), corpus=corpus, separator="|")) == 31
    # a document and an end are one document, and divided
    (tmp_path / "c").mkdir()
    for i in range(9):
        (tmp_path / "c" / f"{i}.txt").write_text(f"{SAYINGS[i]}|")
    assert documents(prepare("", corpus=f"{tmp_path}/c", format="text", separator="|")) == 9


def test_two_separators_in_a_row_are_no_fault(prepare):
    dataset = prepare("\n\n\n\n \n\n".join(SAYINGS), separator="\n\n")
    assert documents(dataset) == 30 and dataset.manifest["skipped"] == {}


def test_the_end_of_a_document_written_out_is_told(prepare):
    text = "\n<|endoftext|>\n".join(SAYINGS)
    told = "".join(account.warnings(prepare(text).manifest))
    assert "<|endoftext|> is written 29 times in texts that are not divided" in told
    assert "endoftext" not in "".join(account.warnings(prepare(text, separator=r"\n").manifest))


def test_a_document_too_large_names_the_separator(prepare):
    text = "x" * (2**20 + 1)
    with pytest.raises(
        BadInput, match="1 MB of config.data.max_document_mb; config.data.separator is empty"
    ):
        prepare(text, max_document_mb=1)
    with pytest.raises(
        BadInput, match="1 MB of config.data.max_document_mb; config.data.separator does not"
    ):
        prepare(text, max_document_mb=1, separator="|")


def test_settings_without_effect_are_told(prepare, tmp_path, capsys):
    text = "|".join(SAYINGS)
    prepare(text, separator="|", field="body")
    assert "config.data.field='body' has no effect: the corpus has no JS" in capsys.readouterr().err
    np.save(tmp_path / "a.npy", np.arange(200).reshape(20, 10) % 9)
    ids = {"tokenizer": "integers", "vocab_size": 9}
    prepare(text, corpus=str(tmp_path / "a.npy"), separator="|", **ids)
    assert (
        "config.data.separator='|' has no effect: the corpus has no text" in capsys.readouterr().err
    )
    prepare(text, heldout_corpus=str(tmp_path / "a.txt"), heldout_fraction=0.2, separator="|")
    assert "data.heldout_fraction=0.2 has no effect: all of" in capsys.readouterr().err

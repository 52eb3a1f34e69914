import json
import os
import pickle
import shutil

import numpy as np
import pytest

from sedd_jax.data import blocks as blocks_module
from sedd_jax.data.blocks import TokenBlocks, open_blocks, prepare_blocks
from sedd_jax.data.sources import load_documents, split_documents
from sedd_jax.data.tokenizer import SentencePiece
from sedd_jax.errors import BadInput


@pytest.fixture
def corpus(tmp_path):
    file = tmp_path / "corpus.txt"
    file.write_text("\n---\n".join(f"document {i} é\n" + "text " * i for i in range(30)))
    return str(file)


def _prepare(folder, corpus, **changes):
    settings = {
        "corpus": corpus,
        "separator": "---\n",
        "heldout_fraction": 0.2,
        "tokenizer_kind": "bytes",
        "vocab_size": None,
        "tokenizer_path": None,
        "length": 32,
    }
    return prepare_blocks(folder, **{**settings, **changes})


def _contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_blocks_are_the_documents_in_a_row_each_with_its_end(tmp_path, corpus):
    dataset = _prepare(tmp_path / "data", corpus)
    documents = load_documents(corpus, "---\n")
    for blocks, part in zip(
        (dataset.train, dataset.heldout), split_documents(documents, 0.2), strict=True
    ):
        expected = "".join(document + "<|endoftext|>" for document in part)
        text = dataset.tokenizer.decode(np.concatenate([blocks[i] for i in range(len(blocks))]))
        assert expected.startswith(text.rstrip("\ufffd"))
        tokens = sum(len(document.encode()) + 1 for document in part)
        assert len(blocks) == tokens // 32
        assert blocks[0].dtype == np.int32 and blocks[0].shape == (32,)


def test_manifest_counts_what_was_written(tmp_path, corpus):
    folder = tmp_path / "data"
    manifest = _prepare(folder, corpus).manifest
    assert manifest == json.loads((folder / "manifest.json").read_text())
    assert (manifest["tokenizer"], manifest["vocab_size"]) == ("bytes", 257)
    assert (manifest["dtype"], manifest["length"]) == ("uint16", 32)
    documents = load_documents(corpus, "---\n")
    for name, part in zip(("train", "heldout"), split_documents(documents, 0.2), strict=True):
        counts = manifest["splits"][name]
        size = sum(len(document.encode()) for document in part)
        assert counts["documents"] == len(part)
        assert counts["characters"] == sum(map(len, part)) == size - len(part)
        assert counts["utf8_bytes"] == size
        assert counts["tokens"] == size + len(part)
        assert counts["tokens"] == counts["blocks"] * 32 + counts["dropped_tokens"]
        assert counts["bytes_per_token"] == size / (size + len(part))
        assert (folder / f"{name}.bin").stat().st_size == counts["blocks"] * 32 * 2


def test_without_an_end_token_documents_are_simply_concatenated(tmp_path):
    for i, letter in enumerate("abcd"):
        (tmp_path / f"{i}.txt").write_text(letter * 10)
    dataset = _prepare(tmp_path / "data", str(tmp_path), tokenizer_kind="text8", length=5)
    train, _ = split_documents([letter * 10 for letter in "abcd"], 0.2)
    assert dataset.tokenizer.decode(dataset.train.stream) == "".join(train)


def test_large_vocabularies_use_four_bytes(tmp_path, corpus, monkeypatch):
    class Wide(blocks_module.Tokenizer):
        kind, vocab_size, eod_id = "bytes", 2**16 + 1, 2**16

        def _encode(self, text):
            return np.full(len(text), 7, np.int32)

        def _decode_run(self, ids):
            return ""

    monkeypatch.setattr(blocks_module, "build_tokenizer", lambda *args, **kwargs: Wide())
    dataset = _prepare(tmp_path / "data", corpus)
    assert dataset.manifest["dtype"] == "uint32"
    assert set(dataset.train.stream.tolist()) == {7, 2**16}


def test_sentencepiece_is_fitted_on_training_text_and_characters_on_all(tmp_path):
    text = "plain words and more of them\n" * 60 + "qq☃qq qqq\n" * 100
    (tmp_path / "a.txt").write_text(text)
    common = {"separator": "", "length": 8, "heldout_fraction": 0.4}
    (train,), (heldout,) = split_documents([text], 0.4)
    assert "☃" in heldout and "☃" not in train
    fitted = _prepare(
        tmp_path / "s", str(tmp_path), tokenizer_kind="sentencepiece", vocab_size=280, **common
    ).tokenizer
    np.testing.assert_array_equal(fitted.encode(text), SentencePiece.fit([train], 280).encode(text))
    assert len(fitted.encode(text)) != len(SentencePiece.fit([text], 280).encode(text))
    letters = _prepare(tmp_path / "c", str(tmp_path), tokenizer_kind="characters", **common)
    assert "☃" in letters.tokenizer.decode(letters.heldout.stream)


def test_the_same_settings_reuse_the_folder(tmp_path, corpus, monkeypatch):
    folder = tmp_path / "data"
    first = _prepare(folder, corpus)
    before = _contents(folder)
    monkeypatch.setattr(blocks_module, "_write_blocks", lambda *args: pytest.fail("prepared again"))
    # The kind "bytes" has no choice of size, so a vocab_size given to it makes no difference.
    second = _prepare(folder, corpus, vocab_size=999)
    assert second.manifest == first.manifest
    np.testing.assert_array_equal(second.train.stream, first.train.stream)
    assert _contents(folder) == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"length": 16}, "length is 32 there and 16 here"),
        ({"heldout_fraction": 0.3}, "heldout_fraction is 0.2 there and 0.3 here"),
        ({"separator": ""}, "sha256 is "),
        ({"tokenizer_kind": "characters"}, "tokenizer is 'bytes' there and 'characters' here"),
        (
            {"tokenizer_kind": "sentencepiece", "vocab_size": 300},
            "vocab_size is 257 there and 300 here",
        ),
    ],
)
def test_other_settings_are_refused_and_named(tmp_path, corpus, changes, message):
    folder = tmp_path / "data"
    _prepare(folder, corpus)
    before = _contents(folder)
    with pytest.raises(BadInput, match=f"{message}.*nothing was overwritten"):
        _prepare(folder, corpus, **changes)
    assert _contents(folder) == before


def test_a_changed_text_is_refused(tmp_path, corpus):
    _prepare(tmp_path / "data", corpus)
    with open(corpus, "a") as file:
        file.write("more")
    with pytest.raises(BadInput, match="sha256 is .* there and .* here"):
        _prepare(tmp_path / "data", corpus)


def test_the_text_hash_sees_where_documents_end():
    assert blocks_module._digest(["ab", "c"]) != blocks_module._digest(["a", "bc"])


def test_a_foreign_folder_is_not_overwritten_but_an_empty_one_is_used(tmp_path, corpus):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "thesis.tex").write_text("precious")
    with pytest.raises(BadInput, match="is no complete folder of prepared data .*manifest.json"):
        _prepare(folder, corpus)
    assert (folder / "thesis.tex").read_text() == "precious"
    (folder / "thesis.tex").unlink()
    assert len(_prepare(folder, corpus).train) > 0


def test_a_killed_run_leaves_nothing_in_place_and_disturbs_nobody(tmp_path, corpus, monkeypatch):
    folder = tmp_path / "new" / "data"

    def killed(source, target):
        # What SIGKILL would leave: the draft as it stands at the last moment before the rename.
        shutil.copytree(source, f"{source}.left")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            _prepare(folder, corpus)
    assert not folder.exists()
    assert [path.suffix for path in folder.parent.iterdir()] == [".left"]
    dataset = _prepare(folder, corpus)
    assert len(dataset.train) == dataset.manifest["splits"]["train"]["blocks"]
    assert len(list(folder.parent.iterdir())) == 2


def test_two_processes_at_once_get_the_same_folder(tmp_path, corpus, monkeypatch):
    folder, replace = tmp_path / "data", os.replace

    def late(source, target):
        shutil.copytree(source, target)
        replace(source, target)

    monkeypatch.setattr(os, "replace", late)
    dataset = _prepare(folder, corpus)
    assert dataset.manifest == open_blocks(folder).manifest
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus.txt", "data"]


def test_a_failing_rename_is_reported(tmp_path, corpus, monkeypatch):
    def full(source, target):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="disk full"):
        _prepare(tmp_path / "data", corpus)
    assert [path.name for path in tmp_path.iterdir()] == ["corpus.txt"]


def test_a_split_without_a_block_is_refused(tmp_path, corpus):
    tokens = _prepare(tmp_path / "ok", corpus).manifest["splits"]["heldout"]["tokens"]
    message = f"The heldout split has {tokens} tokens, less than one block of length {tokens + 1}"
    with pytest.raises(BadInput, match=message):
        _prepare(tmp_path / "data", corpus, length=tokens + 1)
    assert not (tmp_path / "data").exists()
    with pytest.raises(BadInput, match="block length is 0"):
        _prepare(tmp_path / "data", corpus, length=0)


def test_text_that_cannot_be_encoded_is_located(tmp_path, corpus):
    with pytest.raises(BadInput, match="In document 0 of the train split: .*outside the alph"):
        _prepare(tmp_path / "data", corpus, tokenizer_kind="text8")


def test_open_blocks_needs_no_corpus(tmp_path, corpus):
    dataset = _prepare(tmp_path / "data", corpus)
    os.unlink(corpus)
    again = open_blocks(tmp_path / "data")
    np.testing.assert_array_equal(again.heldout[0], dataset.heldout[0])
    assert again.tokenizer.vocab_size == 257


def test_open_blocks_refuses_what_is_damaged(tmp_path, corpus):
    folder = tmp_path / "data"
    with pytest.raises(BadInput, match="There are no prepared data in"):
        open_blocks(folder)
    _prepare(folder, corpus)
    manifest = json.loads((folder / "manifest.json").read_text())
    size = (folder / "train.bin").stat().st_size
    os.truncate(folder / "train.bin", size - 2)
    with pytest.raises(BadInput, match="train.bin is damaged: it holds .* the manifest says"):
        open_blocks(folder)
    os.truncate(folder / "train.bin", 10)
    with pytest.raises(BadInput, match="train.bin holds 5 tokens, less than one block of 32"):
        open_blocks(folder)
    (folder / "manifest.json").write_text(json.dumps({**manifest, "format": 0}))
    with pytest.raises(BadInput, match="was prepared in format 0, this version reads format 1"):
        open_blocks(folder)
    (folder / "manifest.json").write_text('{"format": 1}')
    with pytest.raises(BadInput, match="manifest.json is damaged"):
        open_blocks(folder)


def test_token_blocks_are_random_access_and_picklable(tmp_path):
    np.arange(11, dtype=np.uint16).tofile(tmp_path / "tokens.bin")
    blocks = TokenBlocks(tmp_path / "tokens.bin", 4, "uint16")
    assert len(blocks) == 2
    assert blocks[np.int64(1)].tolist() == [4, 5, 6, 7]
    assert [block.tolist() for block in blocks] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert blocks.stream.tolist() == list(range(8))
    for index in (-1, 2):
        with pytest.raises(IndexError, match=f"There is no block {index} in"):
            blocks[index]
    content = pickle.dumps(blocks)
    assert blocks.stream.tobytes() not in content
    copy = pickle.loads(content)
    assert copy[1].tolist() == [4, 5, 6, 7]

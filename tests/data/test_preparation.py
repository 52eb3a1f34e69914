import collections
import contextlib
import dataclasses
import errno
import hashlib
import itertools
import json
import os
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sedd_jax.data import account, preparation, shards
from sedd_jax.data import prepared as prepared_module
from sedd_jax.data.documents import Recipe
from sedd_jax.data.preparation import prepare_blocks
from sedd_jax.data.prepared import open_blocks
from sedd_jax.data.tokenizer import SentencePiece, Tokenizer
from sedd_jax.errors import BadInput, Halted
from sedd_jax.system.staging import staged, staging_folder

MB = 2**20
Sized = collections.namedtuple("Sized", ["name", "size"])
RECIPE = Recipe(separator="---\n", heldout_fraction=0.2, vocab_size=0)


@pytest.fixture
def corpus(tmp_path):
    file = tmp_path / "corpus.txt"
    file.write_text("\n---\n".join(f"document {i} é\n" + "text " * i for i in range(30)))
    return str(file)


def _prepare(folder, corpus, length=32, workers=1, **changes):
    recipe = dataclasses.replace(RECIPE, corpus=str(corpus), **changes)
    return prepare_blocks(folder, recipe, length, workers)


def _stream(blocks):
    """The tokens of all blocks in a row."""
    return np.concatenate(list(blocks))


def _contents(folder):
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_blocks_are_the_documents_in_a_row_each_with_its_end(
    tmp_path, corpus, load_documents, split_documents
):
    dataset = _prepare(tmp_path / "data", corpus)
    documents = load_documents(corpus, "---\n")
    for blocks, part in zip(
        (dataset.train, dataset.heldout), split_documents(documents, 0.2), strict=True
    ):
        expected = "".join(document + "<|endoftext|>" for document in part)
        text = dataset.tokenizer.decode(_stream(blocks))
        assert expected.startswith(text.rstrip("\ufffd"))
        tokens = sum(len(document.encode()) + 1 for document in part)
        assert len(blocks) == tokens // 32
        assert blocks[0].dtype == np.int32 and blocks[0].shape == (32,)


def test_manifest_counts_what_was_written(tmp_path, corpus, load_documents, split_documents):
    folder = tmp_path / "data"
    manifest = _prepare(folder, corpus).manifest
    assert manifest == json.loads((folder / "manifest.json").read_text())
    assert (manifest["tokenizer"], manifest["vocab_size"]) == ("bytes", 257)
    # a stream is tied to no length
    assert (manifest["dtype"], manifest["length"], manifest["skipped"]) == ("uint16", None, {})
    (source,) = manifest["sources"]
    assert source["name"].startswith(corpus) and source["size"] == os.path.getsize(corpus)
    documents = load_documents(corpus, "---\n")
    (piece,) = manifest["contents"]["corpus"]["pieces"]
    assert piece["characters"] == sum(map(len, documents))
    for name, part in zip(("train", "heldout"), split_documents(documents, 0.2), strict=True):
        size = sum(len(document.encode()) for document in part)
        written = (folder / f"{name}-00000.bin").read_bytes()
        assert len(written) == (size + len(part)) * 2
        digests = {kind: hashlib.new(kind, written).hexdigest() for kind in ("sha256", "md5")}
        shard = {"file": f"{name}-00000.bin", **digests, "tokens": size + len(part)}
        assert manifest["splits"][name] == {
            "documents": len(part),
            "characters": size - len(part),
            "utf8_bytes": size,
            "tokens": size + len(part),
            "filling": 0,
            "cut_off": 0,
            "bytes_per_token": size / (size + len(part)),
            "shards": [shard],
        }


def test_without_an_end_token_documents_are_simply_concatenated(tmp_path, split_documents):
    for i, letter in enumerate("abcd"):
        (tmp_path / f"{i}.txt").write_text(letter * 10)
    choices = {"tokenizer": "text8", "length": 5, "separator": ""}
    dataset = _prepare(tmp_path / "data", str(tmp_path), **choices)
    train, _ = split_documents([letter * 10 for letter in "abcd"], 0.2)
    assert dataset.tokenizer.decode(_stream(dataset.train)) == "".join(train)


def test_large_vocabularies_use_four_bytes(tmp_path, corpus, monkeypatch):
    class Wide(Tokenizer):
        kind, vocab_size, eod_id, exact = "bytes", 2**16 + 1, 2**16, True

        def _encode(self, text):
            return np.full(len(text), 7, np.int32)

        def _decode_run(self, ids):
            return ""

        def _spelling(self, token):
            return b""

    monkeypatch.setattr(preparation, "build_tokenizer", lambda *args: Wide())
    for module in (preparation, shards, prepared_module):
        monkeypatch.setattr(module, "load_tokenizer", lambda folder: Wide())
    dataset = _prepare(tmp_path / "data", corpus)
    assert dataset.manifest["dtype"] == "uint32"
    assert set(_stream(dataset.train).tolist()) == {7, 2**16}


def test_sentencepiece_is_fitted_on_training_text_and_characters_on_all(tmp_path, split_documents):
    text = "plain words and more of them\n" * 60 + "qq☃qq qqq\n" * 100
    (tmp_path / "a.txt").write_text(text)
    common = {"separator": "", "length": 8, "heldout_fraction": 0.4}
    (train,), (heldout,) = split_documents([text], 0.4)
    assert "☃" in heldout and "☃" not in train
    fitted = _prepare(
        tmp_path / "s", str(tmp_path), tokenizer="sentencepiece", vocab_size=280, **common
    ).tokenizer
    np.testing.assert_array_equal(fitted.encode(text), SentencePiece.fit([train], 280).encode(text))
    assert len(fitted.encode(text)) != len(SentencePiece.fit([text], 280).encode(text))
    letters = _prepare(tmp_path / "c", str(tmp_path), tokenizer="characters", **common)
    assert "☃" in letters.tokenizer.decode(_stream(letters.heldout))


def test_the_same_settings_reuse_the_folder(tmp_path, corpus, monkeypatch):
    folder = tmp_path / "data"
    first = _prepare(folder, corpus)
    before = _contents(folder)
    monkeypatch.setattr(preparation, "results", lambda *args: pytest.fail("prepared again"))
    # The kind "bytes" has no choice of size, so a vocab_size given to it makes no difference.
    second = _prepare(folder, corpus, vocab_size=999)
    assert second.manifest == first.manifest
    np.testing.assert_array_equal(_stream(second.train), _stream(first.train))
    assert _contents(folder) == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"wrap": False}, "wrap is True there and False here; length is None there and 32 here"),
        ({"heldout_fraction": 0.3}, "heldout_fraction is 0.2 there and 0.3 here"),
        ({"separator": ""}, "separator is '---\\\\n' there and '' here"),
        ({"bad_documents": "skip"}, "bad_documents is 'refuse' there and 'skip' here"),
        ({"heldout_corpus": "pydoc"}, "heldout_fraction is 0.2 there and None here; pydoc is new"),
        ({"tokenizer": "characters"}, "tokenizer is 'bytes' there and 'characters' here"),
        (
            {"tokenizer": "sentencepiece", "vocab_size": 300},
            "tokenizer is 'bytes' there and 'sentencepiece' here; vocab_size is None there and 300",
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
    with pytest.raises(BadInput, match="holds other prepared data .*corpus.txt has changed.;"):
        _prepare(tmp_path / "data", corpus)


def test_the_files_that_differ_are_named(tmp_path):
    names = [tmp_path / "texts" / f"{letter}.txt" for letter in "abcdef"]
    names[0].parent.mkdir()
    for name in names[:-1]:
        name.write_text(f"{name} " * 9)
    _prepare(tmp_path / "data", names[0].parent, separator="")
    for name in names[:3]:
        name.unlink()
    names[-1].write_text("new")
    with pytest.raises(BadInput, match="a.txt is gone; .*b.txt is gone; .*c.txt is gone; and 1 mo"):
        _prepare(tmp_path / "data", names[0].parent, separator="")


def test_a_foreign_folder_is_not_overwritten_but_an_empty_one_is_used(tmp_path, corpus):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "thesis.tex").write_text("precious")
    with pytest.raises(BadInput, match="is no complete folder of prepared data .*manifest.json"):
        _prepare(folder, corpus)
    assert (folder / "thesis.tex").read_text() == "precious"
    (folder / "thesis.tex").unlink()
    assert len(_prepare(folder, corpus).train) > 0


@pytest.fixture
def texts(tmp_path, monkeypatch):
    """A folder of seven small files, each a task."""
    monkeypatch.setattr(preparation, "_PART_BYTES", 0)
    folder = tmp_path / "texts"
    folder.mkdir()
    for i in range(7):
        (folder / f"{i}.txt").write_text("---\n".join(f"text {i} {j} ☃ " * 9 for j in range(6)))
    return folder


class Killed(BaseException):
    pass


@pytest.mark.parametrize(
    ("kind", "vocab_size"), [("bytes", 0), ("sentencepiece", 280), ("characters", 0)]
)
def test_a_killed_preparation_goes_on_to_the_same_bytes(
    tmp_path, texts, monkeypatch, kind, vocab_size
):
    choices = {"tokenizer": kind, "vocab_size": vocab_size}
    _prepare(tmp_path / "straight", texts, **choices)
    replace, folder, kills, left = os.replace, tmp_path / "new" / "data", 0, 0

    def killed(source, target):
        """Whatever is finished is renamed: there the process ends, just before or just after."""
        nonlocal left
        left -= 1
        if left or kills % 2:
            replace(source, target)
        if not left:
            raise Killed

    monkeypatch.setattr(os, "replace", killed)
    while not folder.exists():
        left = 4
        with contextlib.suppress(Killed):
            _prepare(folder, texts, **choices)
            break
        kills += 1
    monkeypatch.setattr(os, "replace", replace)
    assert kills >= 8
    _prepare(folder, texts, **choices)  # drops what a kill at the last moment left
    assert _contents(folder) == _contents(tmp_path / "straight")
    assert [path.name for path in folder.parent.iterdir()] == ["data"]


def test_what_was_done_is_not_done_again(tmp_path, texts, monkeypatch):
    folder, write, written = tmp_path / "data", shards.Shards._write, []

    def failing(self, task):
        if task.number == 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written.append(task.number)
        return write(self, task)

    with monkeypatch.context() as patch:
        patch.setattr(shards.Shards, "_write", failing)
        message = "data.staging: No space left on device; make room, and the same command continues"
        with pytest.raises(Halted, match=message):
            _prepare(folder, texts)
    assert written == [0, 1, 2, 3]
    assert not folder.exists() and staging_folder(folder).is_dir()
    monkeypatch.setattr(
        shards.Shards, "_write", lambda s, task: written.append(task.number) or write(s, task)
    )
    _prepare(folder, texts)
    assert written == [0, 1, 2, 3, 4, 5, 6]
    assert not staging_folder(folder).exists()


def _kill(folder, texts, monkeypatch, **changes):
    """Leaves a staging in which all but the last piece is done."""

    def killed(self, task):
        if task.number == 6:
            raise Killed
        return write(self, task)

    write = shards.Shards._write
    with monkeypatch.context() as patch:
        patch.setattr(shards.Shards, "_write", killed)
        with pytest.raises(Killed):
            _prepare(folder, texts, **changes)


def test_work_of_other_settings_or_sources_is_deleted(tmp_path, texts, monkeypatch, capsys):
    folder = tmp_path / "data"
    _kill(folder, texts, monkeypatch, heldout_fraction=0.6)
    _prepare(folder, texts)
    assert "is deleted: heldout_fraction is 0.6 there and 0.2 here." in capsys.readouterr().out
    _prepare(tmp_path / "straight", texts)
    assert _contents(folder) == _contents(tmp_path / "straight")
    _kill(tmp_path / "again", texts, monkeypatch)
    (texts / "3.txt").write_text("something else " * 40)
    dataset = _prepare(tmp_path / "again", texts)
    assert "3.txt has changed." in capsys.readouterr().out
    assert "something else" in dataset.tokenizer.decode(
        np.concatenate([_stream(dataset.train), _stream(dataset.heldout)])
    )


@pytest.mark.parametrize("change", ["other words", None])
def test_a_text_that_changes_meanwhile_is_refused(tmp_path, texts, monkeypatch, change):
    write = shards.Shards._write

    def late(self, task):
        written = write(self, task)
        if change:
            (texts / "0.txt").write_text(change)
        elif task.number == 6:
            (texts / "0.txt").unlink()
        return written

    monkeypatch.setattr(shards.Shards, "_write", late)
    with pytest.raises(BadInput, match="The corpus has changed while it was read"):
        _prepare(tmp_path / "data", texts)
    assert [path.name for path in tmp_path.iterdir()] == ["texts"]


def test_several_workers_write_the_same_bytes(tmp_path, texts):
    _prepare(tmp_path / "one", texts)
    _prepare(tmp_path / "two", texts, workers=2)
    assert _contents(tmp_path / "one") == _contents(tmp_path / "two")


def test_many_small_files_become_few_with_the_same_documents(tmp_path, texts, monkeypatch):
    alone = _prepare(tmp_path / "alone", texts)
    monkeypatch.setattr(preparation, "_PART_BYTES", 2**18)
    together = _prepare(tmp_path / "together", texts, workers=2)
    assert len(list((tmp_path / "alone").iterdir())) > 12
    names = {path.name for path in (tmp_path / "together").iterdir()}
    assert names == {"manifest.json", "tokenizer", "train-00000.bin", "heldout-00000.bin"}
    for split in ("train", "heldout"):
        joined = getattr(together, split).stream
        np.testing.assert_array_equal(joined, getattr(alone, split).stream)
    for fact in ("sources", "contents"):  # still those of each file
        assert together.manifest[fact] == alone.manifest[fact]
    (texts / "4.txt").write_text("good\n---\n" * 3 + " ")
    (texts / "5.txt").write_bytes(b"good\n---\nna\xefve")
    with pytest.raises(BadInput, match="5.txt, line 3 is not UTF-8 text: the byte at offset 11"):
        _prepare(tmp_path / "bad", texts)


@pytest.mark.parametrize(
    ("sizes", "groups"),
    [
        ([32 * MB, 32 * MB, 3 * MB, 20 * MB], 4),  # a few large files stay what they were
        ([700] * 3000, 9),
        ([300_000] * 3000, 50),
        ([MB] * 3000, 94),
        ([0] * 3000, 1),
        ([5], 1),
    ],
)
def test_small_pieces_are_joined_by_their_sizes(sizes, groups):
    named = [Sized(f"{number}", size) for number, size in enumerate(sizes)]
    found = list(preparation._groups(named))
    assert list(itertools.chain(*found)) == named
    assert len(found) == groups
    assert all(sum(p.size for p in group) <= 32 * MB for group in found)


def test_a_second_process_is_refused(tmp_path, corpus):
    folder = tmp_path / "data"
    with staged(folder, {}), pytest.raises(BadInput, match="data.staging is in use by process"):
        _prepare(folder, corpus)
    assert len(_prepare(folder, corpus).train) > 0


def test_what_another_process_just_finished_is_opened(tmp_path, corpus, monkeypatch):
    folder = tmp_path / "data"
    _prepare(tmp_path / "ready", corpus)

    def late(*args):
        shutil.copytree(tmp_path / "ready", folder)
        return staged(*args)

    monkeypatch.setattr(preparation, "staged", late)
    dataset = _prepare(folder, corpus)
    assert dataset.manifest == open_blocks(tmp_path / "ready", 32).manifest
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus.txt", "data", "ready"]


def test_bad_documents_are_refused_with_their_place_or_left_out(tmp_path):
    lines = [json.dumps({"text": f"line number {i}"}) for i in range(40)]
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("\n".join([*lines[:20], "{", '{"txt": 3}', *lines[20:], "[]"]))
    with pytest.raises(
        BadInput, match=f"{corpus}, line 21 is no JSON .*mend it or set config.data"
    ):
        _prepare(tmp_path / "data", corpus)
    assert [path.name for path in tmp_path.iterdir()] == ["corpus.jsonl"]
    manifest = _prepare(tmp_path / "data", corpus, bad_documents="skip").manifest
    assert sum(manifest["skipped"].values()) == 3
    assert manifest["skipped"].keys() >= {"has no field 'text'", "is no JSON object"}
    assert sum(split["documents"] for split in manifest["splits"].values()) == 40


def test_an_empty_corpus_is_refused(tmp_path):
    (tmp_path / "corpus.txt").write_text(" \n" * 9)
    with pytest.raises(BadInput, match="corpus.txt. is empty: it has no document that can be"):
        _prepare(tmp_path / "data", tmp_path / "corpus.txt")
    with pytest.raises(BadInput, match=r"used .left out: 1 document: is blank.; give anoth"):
        corpus = tmp_path / "corpus.txt"
        _prepare(tmp_path / "data", corpus, separator="", bad_documents="skip")


@pytest.mark.parametrize("name", ["a.jsonl", "a.npz", "a.npy", "a.uint16", "a.parquet"])
def test_a_corpus_without_documents_is_named(tmp_path, corpus, name):
    empty = tmp_path / name
    match name:
        case "a.npz":
            np.savez(empty)
        case "a.npy":
            np.save(empty, np.zeros((0, 64), np.int64))
        case "a.parquet":
            pq.write_table(pa.table({"text": pa.array([], pa.string())}), empty)
        case _:
            empty.touch()
    if name == "a.uint16":  # nothing can be mapped
        with pytest.raises(BadInput, match="a.uint16 is damaged"):
            _prepare(tmp_path / "data", empty)
        return
    with pytest.raises(BadInput, match=f"config.data.corpus .*{name}. is empty: .*give another"):
        _prepare(tmp_path / "data", empty)
    with pytest.raises(BadInput, match=f"config.data.heldout_corpus .*{name}. is .*or none, and a"):
        _prepare(tmp_path / "data", corpus, heldout_corpus=str(empty))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "corpus.txt"])


def test_files_without_documents_among_others_are_told(tmp_path, texts):
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), texts / "a.parquet")
    for name in ("b.csv", "c.tsv", "d.jsonl", "e.fa"):
        (texts / name).touch()
    manifest = _prepare(tmp_path / "data", f"{texts}/*").manifest
    message = f"{texts}/a.parquet and 4 more have no document that can be used."
    assert account.warnings(manifest) == [message]


def test_no_corpus_at_all_is_refused(tmp_path):
    with pytest.raises(BadInput, match="config.data.corpus .. is empty"):
        _prepare(tmp_path / "data", "")


def test_text_and_ids_are_not_taken_for_each_other(tmp_path):
    np.save(tmp_path / "a.npy", np.ones((9, 9), np.int64))
    skip = {"bad_documents": "skip"}
    for kind, size in (("sentencepiece", 300), ("characters", 0), ("bytes", 257)):
        message = f"a.npy, row 1 holds ids, but the tokenizer '{kind}' takes text; choose another"
        with pytest.raises(BadInput, match=message):
            _prepare(tmp_path / "data", tmp_path / "a.npy", tokenizer=kind, vocab_size=size, **skip)
    lines = tmp_path / "a.jsonl"
    lines.write_text('{"text": 3}\n{"text": "no ids"}\n')
    message = (
        "a.jsonl, line 2 holds text, but the tokenizer 'integers' takes ids; .* or config.data.f"
    )
    with pytest.raises(BadInput, match=message):
        _prepare(tmp_path / "data", lines, tokenizer="integers", vocab_size=9, **skip)
    with pytest.raises(
        BadInput, match="set config.data.vocab_size or mend the ids, or leave such doc"
    ):
        np.save(tmp_path / "a.npy", np.arange(80).reshape(10, 8))
        _prepare(tmp_path / "data", tmp_path / "a.npy", tokenizer="integers", vocab_size=70)


def test_the_place_of_a_fault_is_of_the_whole_document_though_it_is_cut(tmp_path):
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("a" * 900 + "b" * 80 + "?" + "b" * 19)
    choices = {"tokenizer": "text8", "heldout_fraction": 0.1, "length": 8, "separator": ""}
    with pytest.raises(BadInput, match="the first at position 980"):
        _prepare(tmp_path / "data", corpus, **choices)
    message = r"train split has 0 tokens.*\(left out: 1 document: does not suit the tokenizer"
    with pytest.raises(BadInput, match=message):
        _prepare(tmp_path / "data", corpus, **choices, bad_documents="skip")


def test_a_split_far_from_its_fraction_is_told(tmp_path):
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("---\n".join(f"text {i}" for i in range(9)))
    near = _prepare(tmp_path / "near", corpus, length=4)
    assert account.warnings(near.manifest) == []
    far = _prepare(tmp_path / "far", corpus, length=4, heldout_fraction=0.01)
    (warning,) = account.warnings(far.manifest)
    assert warning.startswith("0.111 of the text is held out, not 0.01")


@pytest.mark.parametrize("place", ["link", "cwd", "parent", "url"])
def test_a_folder_that_cannot_be_made_is_refused_before_anything_is_read(
    tmp_path, corpus, monkeypatch, place
):
    monkeypatch.setattr(preparation, "pieces", lambda *args: pytest.fail("was read"))
    (tmp_path / "empty").mkdir()
    (tmp_path / "dangling").symlink_to("absent")
    monkeypatch.chdir(tmp_path / "empty")
    folder, message = {
        "link": (tmp_path / "dangling", "dangling is a link to absent, which does not exist"),
        "cwd": (".", "is the folder that this program was started in"),
        "parent": (f"{corpus}/data", "corpus.txt is no folder that can be written in"),
        "url": ("gs://bucket/data", "is gs://bucket/data, but .* mount the bucket"),
    }[place]
    with pytest.raises(BadInput, match=message):
        _prepare(folder, corpus)


def test_a_linked_folder_is_used_and_a_mount_point_is_not(tmp_path, corpus, monkeypatch):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with monkeypatch.context() as patch, pytest.raises(BadInput, match="real is a mount point"):
        patch.setattr(os.path, "ismount", lambda path: path == tmp_path / "real")
        _prepare(tmp_path / "link", corpus)
    _prepare(tmp_path / "link", corpus)
    assert (tmp_path / "real" / "manifest.json").is_file() and (tmp_path / "link").is_symlink()


def test_a_held_out_corpus_leaves_all_of_the_other_to_be_trained_on(tmp_path, texts, corpus):
    dataset = _prepare(tmp_path / "data", texts, heldout_corpus=corpus)
    splits = dataset.manifest["splits"]
    assert (splits["train"]["documents"], splits["heldout"]["documents"]) == (42, 30)
    assert "text 6 5 ☃" in dataset.tokenizer.decode(_stream(dataset.train))
    assert "document" not in dataset.tokenizer.decode(_stream(dataset.train))
    assert dataset.tokenizer.decode(_stream(dataset.heldout)).startswith("document 0 é")


def test_a_document_a_block_is_cut_and_filled(tmp_path):
    (tmp_path / "train.txt").write_text("abc---\nabcdefgh---\nabcdefg---\nabcdeéé")
    (tmp_path / "heldout.txt").write_text("xy")
    dataset = _prepare(
        tmp_path / "data",
        tmp_path / "train.txt",
        heldout_corpus=str(tmp_path / "heldout.txt"),
        wrap=False,
        length=7,
    )
    end = "<|endoftext|>"
    # the last is cut in the middle of é, whose second half is not counted, nor its first
    wanted = ["abc" + 4 * end, "abcdefg", "abcdefg", "abcdeé"]
    assert [dataset.tokenizer.decode(block) for block in dataset.train] == wanted
    assert dataset.manifest["length"] == 7
    counts = dataset.manifest["splits"]["train"]
    assert (counts["tokens"], counts["filling"], counts["cut_off"]) == (28, 4, 3)
    assert counts["utf8_bytes"] == 3 + 7 + 7 + 7
    assert counts["bytes_per_token"] == 24 / 28
    with pytest.raises(BadInput, match="a document in each block of 7 tokens, but the length is 8"):
        open_blocks(tmp_path / "data", 8)


def test_half_a_character_at_a_cut_counts(tmp_path):
    (tmp_path / "corpus.txt").write_text("abcé---\nabcé")
    counts = _prepare(
        tmp_path / "data",
        tmp_path / "corpus.txt",
        wrap=False,
        length=4,
        heldout_corpus=str(tmp_path / "corpus.txt"),
    ).manifest["splits"]["train"]
    assert (counts["tokens"], counts["cut_off"], counts["utf8_bytes"]) == (8, 2, 8)


def test_a_block_cannot_be_filled_up_without_an_end_token(tmp_path):
    (tmp_path / "corpus.txt").write_text("---\n".join(["abcdefgh"] * 3 + ["ijklmnop", "abc"]))
    settings = {"wrap": False, "length": 8, "tokenizer": "text8"}
    with pytest.raises(BadInput, match="is too short for a block: it has 3 tokens of 8, and the"):
        _prepare(tmp_path / "data", tmp_path / "corpus.txt", **settings)
    dataset = _prepare(tmp_path / "data", tmp_path / "corpus.txt", **settings, bad_documents="skip")
    assert sum(dataset.manifest["skipped"].values()) == 1
    assert len(dataset.train) + len(dataset.heldout) == 4


def test_blocks_run_on_over_the_files_of_the_pieces(tmp_path, texts):
    dataset = _prepare(tmp_path / "data", texts)
    parts = dataset.manifest["splits"]["train"]["shards"]
    assert len(parts) > 3
    tokens = np.concatenate(
        [np.fromfile(tmp_path / "data" / part["file"], np.uint16) for part in parts]
    )
    whole = len(tokens) // 32 * 32
    np.testing.assert_array_equal(_stream(dataset.train), tokens[:whole])


def test_any_length_can_be_cut_from_the_same_stream(tmp_path, corpus):
    first = _prepare(tmp_path / "data", corpus)
    second = _prepare(tmp_path / "data", corpus, length=48)
    assert (len(first.train[0]), len(second.train[0])) == (32, 48)
    np.testing.assert_array_equal(_stream(second.train)[:96], _stream(first.train)[:96])


def test_a_tokenizer_is_fitted_on_the_beginnings_of_all_pieces(tmp_path, texts, monkeypatch):
    seen, build = [], preparation.build_tokenizer

    def spy(recipe, texts, alphabet):
        seen.extend(texts())
        return build(recipe, texts, alphabet)

    monkeypatch.setattr(preparation, "build_tokenizer", spy)
    monkeypatch.setattr(preparation, "_FITTING_CHARACTERS", 1500)
    choices = {"tokenizer": "sentencepiece", "vocab_size": 280, "heldout_fraction": 0.01}
    dataset = _prepare(tmp_path / "data", texts, **choices)
    total = dataset.manifest["contents"]["corpus"]["pieces"]
    assert sum(piece["characters"] for piece in total) > 3000
    # of 6 documents in each piece 3 make up the share of 1500 / total
    assert {text.split()[1] for text in seen} == set("0123456")
    assert 1500 - 7 * 108 <= sum(map(len, seen)) <= 1500 + 7 * 108


def test_a_split_without_a_block_is_refused(tmp_path, corpus):
    tokens = _prepare(tmp_path / "ok", corpus).manifest["splits"]["heldout"]["tokens"]
    message = f"The heldout split has {tokens} tokens, less than one block of length {tokens + 1}"
    message += "; give more text, choose a shorter config.model.length"
    with pytest.raises(BadInput, match=message):
        _prepare(tmp_path / "data", corpus, length=tokens + 1)
    assert not (tmp_path / "data").exists()
    with pytest.raises(BadInput, match="length must be at least 1"):
        _prepare(tmp_path / "data", corpus, length=0)


def test_text_that_cannot_be_encoded_is_located_or_left_out(tmp_path, corpus):
    message = "corpus.txt.* does not suit the tokenizer .*outside the alph.*bad_documents=skip"
    with pytest.raises(BadInput, match=message):
        _prepare(tmp_path / "data", corpus, tokenizer="text8")
    with open(corpus, "a") as file:
        file.write("---\n".join(["", *(f"good words {letter}" for letter in "abcdefgh")]))
    manifest = _prepare(
        tmp_path / "data", corpus, tokenizer="text8", bad_documents="skip", length=4
    ).manifest
    assert list(manifest["skipped"].values()) == [30]
    assert sum(split["documents"] for split in manifest["splits"].values()) == 8


def test_a_wrong_size_of_the_vocabulary_shows_before_anything_is_read(
    tmp_path, corpus, monkeypatch
):
    monkeypatch.setattr(preparation, "results", lambda *args: pytest.fail("was read"))
    with pytest.raises(BadInput, match="vocab_size is 300, but the tokenizer bytes has 257 tokens"):
        _prepare(tmp_path / "data", corpus, vocab_size=300)
    assert [path.name for path in tmp_path.iterdir()] == ["corpus.txt"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"workers": 0}, "workers must be at least 1"),
        *(
            ({"heldout_fraction": value}, "heldout_fraction is .*, it must be between 0 and 1")
            for value in (0, 1, -0.1, 1.5, float("nan"))
        ),
    ],
)
def test_arguments_out_of_range_are_named(tmp_path, corpus, changes, message):
    with pytest.raises(BadInput, match=message):
        _prepare(tmp_path / "data", corpus, **changes)

import json
import os
import pickle
import resource

import numpy as np
import pytest

from sedd_jax.data import prepared
from sedd_jax.data.characters import Characters
from sedd_jax.data.documents import Recipe
from sedd_jax.data.manifest import check_files, check_hashes
from sedd_jax.data.preparation import prepare_blocks
from sedd_jax.data.prepared import link_prepared, open_blocks
from sedd_jax.data.token_blocks import Mixture, TokenBlocks
from sedd_jax.errors import BadInput


@pytest.fixture
def folder(tmp_path):
    """A prepared folder whose corpus is gone."""
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join(f"line {i}" for i in range(100)))
    prepare_blocks(tmp_path / "data", Recipe(corpus=str(corpus)), 32)
    corpus.unlink()
    return tmp_path / "data"


def test_open_blocks_needs_no_corpus(folder):
    dataset = open_blocks(folder, 16)
    assert dataset.tokenizer.decode(dataset.train[0]) == "line 0\nline 1\nli"
    assert dataset.tokenizer.vocab_size == 257


def test_open_blocks_refuses_what_is_damaged(folder, tmp_path):
    with pytest.raises(BadInput, match="There are no prepared data in"):
        open_blocks(tmp_path, 32)
    with pytest.raises(BadInput, match="tokens, less than one block of 1000"):
        open_blocks(folder, 1000)
    manifest = json.loads((folder / "manifest.json").read_text())
    file = folder / "train-00000.bin"
    size = file.stat().st_size
    for wrong in (size - 2, size + 2):
        os.truncate(file, wrong)
        message = f"train-00000.bin is damaged .it holds {wrong} bytes where .* says {size}"
        with pytest.raises(BadInput, match=message):
            open_blocks(folder, 32)
    file.unlink()
    with pytest.raises(BadInput, match="train-00000.bin is damaged .it holds 0 bytes"):
        open_blocks(folder, 32)
    file.write_bytes(b"")
    with pytest.raises(BadInput, match="train-00000.bin is damaged .it holds 0 bytes"):
        open_blocks(folder, 32)
    (folder / "manifest.json").write_text(
        json.dumps({n: v for n, v in manifest.items() if n not in ("recipe", "length")})
    )
    with pytest.raises(BadInput, match="is damaged .it says nothing of recipe, length.;"):
        open_blocks(folder, 32)
    (folder / "manifest.json").write_text(json.dumps({**manifest, "format": 1}))
    with pytest.raises(BadInput, match="was prepared in format 1, this version reads format 2"):
        open_blocks(folder, 32)
    (folder / "manifest.json").write_text(
        json.dumps(manifest).replace('"documents"', '"docuNents"')
    )
    with pytest.raises(BadInput, match="manifest.json is damaged .its SHA-256 is not the one"):
        open_blocks(folder, 32)
    for text in ('{"format": 2}', '{"format"', "[]"):
        (folder / "manifest.json").write_text(text)
        with pytest.raises(BadInput, match="manifest.json is damaged"):
            open_blocks(folder, 32)


def test_a_byte_that_changed_is_noticed_where_the_manifest_has_hashes(folder, monkeypatch):
    file, path = folder / "heldout-00000.bin", folder / "manifest.json"
    content = bytearray(file.read_bytes())
    content[5] ^= 1
    file.write_bytes(content)
    message = "heldout-00000.bin is damaged .it is of the right size, but its SHA-256 is not that"
    with pytest.raises(BadInput, match=message):
        open_blocks(folder, 32)
    monkeypatch.setattr(prepared, "_HASHED_BYTES", 100)  # large data are hashed on demand
    manifest = open_blocks(folder, 32).manifest
    with pytest.raises(BadInput, match=message):
        check_hashes(folder, manifest)
    # processes share the two files, of a run that is linked to them too
    link_prepared(folder.parent / "run", str(folder), Recipe(vocab_size=0), 32)
    for place in (folder, folder.parent / "run"):
        assert check_files(place, slice(0, None, 2)) == 1
        with pytest.raises(BadInput, match=message):
            check_files(place, slice(1, None, 2))
    monkeypatch.undo()
    for part in (manifest, *(s for split in manifest["splits"].values() for s in split["shards"])):
        del part["sha256"]
    path.write_text(json.dumps(manifest))  # as an older version wrote it
    assert len(open_blocks(folder, 32).train) > 0 == check_hashes(folder, manifest)


def test_open_blocks_refuses_another_tokenizer(folder):
    Characters("ab").save(folder / "tokenizer")
    with pytest.raises(BadInput, match="tokenizer is damaged .it is not the tokenizer of the mani"):
        open_blocks(folder, 32)


def _blocks(folder, *sizes, length=4):
    """Files that count on from one to the next."""
    borders = np.cumsum([0, *sizes])
    paths = [folder / f"{i}.bin" for i in range(len(sizes))]
    for path, first, stop in zip(paths, borders[:-1], borders[1:], strict=True):
        np.arange(first, stop, dtype=np.uint16).tofile(path)
    return TokenBlocks(paths, length, "uint16")


def test_token_blocks_are_random_access_and_picklable(tmp_path):
    blocks = _blocks(tmp_path, 11)
    assert len(blocks) == 2
    assert blocks[np.int64(1)].tolist() == [4, 5, 6, 7]
    assert [block.tolist() for block in blocks] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert blocks[0].dtype == np.int32
    for index in (-1, 2):
        with pytest.raises(IndexError, match=f"There is no block {index} in"):
            blocks[index]
    content = pickle.dumps(blocks)
    assert np.arange(8, dtype=np.uint16).tobytes() not in content
    assert pickle.loads(content)[1].tolist() == [4, 5, 6, 7]


@pytest.mark.parametrize("sizes", [(1, 1, 1, 20), (3, 4, 5, 11), (23,), (9, 1, 13), (11, 12)])
def test_blocks_run_on_over_the_borders_of_files(tmp_path, sizes):
    blocks = _blocks(tmp_path, *sizes)
    assert len(blocks) == 5
    assert [block.tolist() for block in blocks] == np.arange(20).reshape(5, 4).tolist()
    starts = np.array([1, 18, 0, 7])
    wanted = (starts[:, None] + np.arange(4)) % 20  # of the 23 tokens 3 are never read
    assert blocks.read(starts).tolist() == wanted.tolist()
    assert blocks.stream.tolist() == list(range(23))


def test_many_files_are_held_open_as_far_as_may_be(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    count = 300
    used = len(os.listdir("/proc/self/fd"))
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + 200, limits[1]))
        blocks = _blocks(tmp_path, *[2] * count)
        assert np.concatenate(list(blocks)).tolist() == list(range(2 * count))
        assert len(os.listdir("/proc/self/fd")) >= used + count
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + 200, limits[1]))
        del blocks
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_beyond_the_hard_limit_files_are_opened_again(tmp_path, monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (300, 1200))
    raised = []
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: raised.append(limits))
    blocks, before = _blocks(tmp_path, *[2] * 200), len(os.listdir("/proc/self/fd"))
    assert np.concatenate(list(blocks)).tolist() == list(range(400))
    assert len(os.listdir("/proc/self/fd")) == before + 150
    assert raised == [(1200, 1200)]


@pytest.mark.parametrize("size", [2, 8000, 20_002])
def test_a_mapped_file_that_is_cut_or_grows_is_told(tmp_path, size):
    """What is cut off reads as 0 up to the end of a page, and kills the process behind it."""
    blocks = _blocks(tmp_path, 10_000, length=100)
    assert blocks[0][1] == 1
    os.truncate(tmp_path / "0.bin", size)
    for number in (0, 99):
        with pytest.raises(BadInput, match="0.bin has changed since it was opened"):
            blocks[number]


def test_files_made_again_are_read_anew_and_changed_ones_are_told(tmp_path):
    blocks, other = _blocks(tmp_path, 11), _blocks(tmp_path, 11)
    assert blocks[0].tolist() == [0, 1, 2, 3]
    (tmp_path / "0.bin").unlink()
    np.arange(50, 61, dtype=np.uint16).tofile(tmp_path / "0.bin")
    assert other[0].tolist() == pickle.loads(pickle.dumps(blocks))[0].tolist() == [50, 51, 52, 53]
    late = _blocks(tmp_path, 11)
    os.truncate(tmp_path / "0.bin", 2)
    (tmp_path / "b").mkdir()
    gone = _blocks(tmp_path / "b", 11)
    (tmp_path / "b" / "0.bin").unlink()
    with pytest.raises(BadInput, match="0.bin has changed since it was opened"):
        gone[0]
    with pytest.raises(BadInput, match="0.bin has changed since it was opened"):
        late[0]


def test_less_than_a_block_is_refused(tmp_path):
    with pytest.raises(BadInput, match="0.bin holds 3 tokens, less than one block of 4"):
        _blocks(tmp_path, 2, 1)


def test_a_mixture_takes_blocks_in_proportion(tmp_path):
    parts = []
    for name, count in (("a", 10), ("b", 6)):
        (tmp_path / name).mkdir()
        parts.append(_blocks(tmp_path / name, 4 * count))
    mixture = Mixture(parts, (3, 1))
    assert mixture.shares == (0.75, 0.25) and mixture.length == 4
    # 10 of the first allow 3 of the second, evenly spaced over its 6
    assert len(mixture) == 13
    firsts = mixture.take(np.array([0, 9, 10, 11, 12]))[:, 0] // 4
    assert firsts.tolist() == [0, 9, 0, 2, 4]
    assert len(Mixture(parts, (0.1, 0.2))) == 3 + 6
    assert len(Mixture(parts, (1e-9, 1.0))) == 1 + 6

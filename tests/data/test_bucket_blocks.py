"""Blocks in a bucket, read through the cache of this machine."""

import errno
import fcntl
import json
import os
import time
from pathlib import Path

import numpy as np
import pytest

from sedd_jax.data.documents import Recipe
from sedd_jax.data.manifest import check_hashes
from sedd_jax.data.pipeline import heldout_batches, train_batches
from sedd_jax.data.preparation import prepare_blocks
from sedd_jax.data.prepared import link_prepared, open_blocks, open_data
from sedd_jax.data.shard_cache import UNIT
from sedd_jax.errors import BadInput, Halted
from sedd_jax.system import disk_cache, mirror

DATA = "gs://bucket/data/bytes"
LENGTH = 512  # blocks of 1 KiB


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A local folder of prepared data, with several files."""
    folder = tmp_path_factory.mktemp("prepared")
    numbers = np.random.default_rng(0).integers(0, 10**9, (2, 250, 100))
    for name, texts in zip("ab", numbers, strict=True):
        (folder / f"{name}.txt").write_text("\n\n".join(" ".join(map(str, t)) for t in texts))
    recipe = Recipe(corpus=f"{folder}/*.txt", separator="\n\n", heldout_fraction=0.2)
    prepare_blocks(folder / "data", recipe, LENGTH)
    return folder / "data"


@pytest.fixture
def remote(prepared, memory_bucket, tmp_path, monkeypatch):
    """The same in a bucket, and an empty cache."""
    for path in prepared.rglob("*"):
        if path.is_file():
            key = f"data/bytes/{path.relative_to(prepared).as_posix()}"
            memory_bucket.objects[key] = path.read_bytes()
    use_cache(tmp_path / "cache", monkeypatch)
    return memory_bucket


def use_cache(folder, monkeypatch, **environment):
    """Makes another cache that of this process, and forgets what is open."""
    monkeypatch.setenv("SEDD_JAX_CACHE", str(folder))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    disk_cache.default_cache.cache_clear()
    mirror._READ.clear()


def shards_read(bucket):
    """How many bytes of token ids were read."""
    return sum(count for key, count in bucket.bytes_read.items() if key.endswith(".bin"))


def everything(blocks):
    return blocks.take(np.arange(len(blocks)))


def test_batches_are_those_of_a_local_folder_to_the_bit(prepared, remote, tmp_path):
    here, there = open_blocks(prepared, LENGTH), open_blocks(DATA, LENGTH)
    assert shards_read(remote) == 0 and len(remote.requests) == 3  # listing, manifest, tokenizer
    for crop in ("blocks", "random"):
        options = {"batch_size": 16, "seed": 3, "start_step": 5, "crop": crop, "last_step": 5}
        with (
            train_batches(here.train, **options) as ours,
            train_batches(there.train, **options) as theirs,
        ):
            for _ in range(60):  # more than an epoch
                np.testing.assert_array_equal(next(ours), next(theirs))
    for ours, theirs in zip(
        heldout_batches(here.heldout, batch_size=4, max_blocks=8),
        heldout_batches(there.heldout, batch_size=4, max_blocks=8),
        strict=True,
    ):
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(here.train.stream, there.train.stream)
    assert check_hashes(mirror.local(DATA), there.manifest) == 4
    # all of it was fetched once, and another process finds it
    read = shards_read(remote)
    assert read < 1.01 * sum(path.stat().st_size for path in prepared.glob("*.bin"))
    np.testing.assert_array_equal(
        everything(here.train), everything(open_blocks(DATA, LENGTH).train)
    )
    assert shards_read(remote) == read


def test_each_of_four_processes_fetches_at_most_0_3_in_an_epoch(remote, tmp_path, monkeypatch):
    whole = sum(len(content) for key, content in remote.objects.items() if "train" in key)
    for process in range(4):
        use_cache(tmp_path / str(process), monkeypatch)
        blocks, before = open_blocks(DATA, LENGTH).train, shards_read(remote)
        steps = len(blocks) // 16
        rows = np.arange(4 * process, 4 * process + 4)
        with train_batches(
            blocks, batch_size=16, seed=0, rows=rows, crop="random", last_step=steps, buffer=1,
            num_threads=1,
        ) as batches:  # fmt: skip
            for _ in range(steps):
                next(batches)
        assert 0.2 < (shards_read(remote) - before) / whole < 0.3


def test_a_process_that_reads_most_rows_fetches_all_in_large_pieces(remote, monkeypatch):
    # under another name, since threads of the test before may not have ended yet
    remote.objects = {key.replace("bytes", "ahead"): it for key, it in remote.objects.items()}
    blocks = open_blocks("gs://bucket/data/ahead", LENGTH).train
    blocks.read_ahead()
    end = time.monotonic() + 60
    files = [blocks._map(number) for number in range(2)]
    while not all(file.has(0, file.shard.size) for file in files):
        assert time.monotonic() < end
        time.sleep(0.001)
    assert [key for _, key in remote.requests].count("data/ahead/train-00000.bin") == 1
    begun = []
    monkeypatch.setattr(type(blocks), "read_ahead", lambda self: begun.append(self) or list)
    for rows, last in ((1, 10**6), (8, 2), (8, 10**6)):
        with train_batches(
            blocks, batch_size=8, seed=0, rows=np.arange(rows), last_step=last
        ) as batches:
            next(batches)
        assert len(begun) == (rows == 8 and last > 2)


def test_what_changed_in_the_bucket_is_found_before_it_is_read(remote):
    file = "data/bytes/train-00001.bin"
    remote.objects[file] = remote.objects[file][::-1]
    with pytest.raises(BadInput, match="gs://bucket/data/bytes/train-00001.bin is damaged .*MD5"):
        open_blocks(DATA, LENGTH)
    mirror._READ.clear()
    remote.objects[file] = remote.objects[file][2:]
    with pytest.raises(BadInput, match="train-00001.bin is damaged .it holds .* the manifest says"):
        open_blocks(DATA, LENGTH)
    mirror._READ.clear()
    del remote.objects[file]
    with pytest.raises(BadInput, match="train-00001.bin is damaged .it holds 0 bytes"):
        open_blocks(DATA, LENGTH)


def test_a_shard_of_unknown_md5_is_fetched_whole_and_hashed(prepared, remote, monkeypatch):
    remote.tells_md5 = False  # as for an upload in parts to S3
    data = DATA.replace("gs", "s3")
    size = len(remote.objects["data/bytes/train-00000.bin"])
    for gib in ("1", "0"):
        use_cache(Path(os.environ["SEDD_JAX_CACHE"]), monkeypatch, SEDD_JAX_CACHE_GIB=gib)
        before = shards_read(remote)
        blocks = open_blocks(data, LENGTH).train
        np.testing.assert_array_equal(blocks[3], open_blocks(prepared, LENGTH).train[3])
        assert shards_read(remote) - before == (size if gib == "1" else 0)
    assert check_hashes(mirror.local(data), open_blocks(data, LENGTH).manifest) == 4
    content = bytearray(remote.objects["data/bytes/train-00000.bin"])
    content[100] ^= 1
    remote.write("bucket", "data/bytes/train-00000.bin", content, None)
    for gib in ("1", "0"):
        use_cache(Path(os.environ["SEDD_JAX_CACHE"]) / gib, monkeypatch, SEDD_JAX_CACHE_GIB=gib)
        blocks = open_blocks(data, LENGTH).train
        with pytest.raises(BadInput, match="train-00000.bin is damaged .*its SHA-256"):
            blocks[3]
        with pytest.raises(BadInput, match="train-00000.bin is damaged .*its SHA-256"):
            check_hashes(mirror.local(data), open_blocks(data, LENGTH).manifest)


def test_an_object_that_is_replaced_during_the_run_ends_it(remote):
    blocks = open_blocks(DATA, LENGTH).train
    blocks[0]
    file = "data/bytes/train-00000.bin"
    remote.write("bucket", file, remote.objects[file], None)
    blocks[0]  # it is here
    with pytest.raises(BadInput, match=f"{file} has changed since it was opened; start again"):
        blocks[1]


def test_a_damaged_cache_is_mended(prepared, remote, monkeypatch):
    right = everything(open_blocks(prepared, LENGTH).train)
    np.testing.assert_array_equal(everything(open_blocks(DATA, LENGTH).train), right)
    first = open_blocks(prepared, LENGTH).manifest["splits"]["train"]["shards"][0]["sha256"]
    file = disk_cache.cache_folder() / "shards" / first
    content = file.read_bytes()
    half = len(content) // 2

    def holds(damaged, fetched):
        file.write_bytes(damaged)
        before = shards_read(remote)
        np.testing.assert_array_equal(everything(open_blocks(DATA, LENGTH).train), right)
        assert fetched(shards_read(remote) - before)

    holds(content, lambda count: count == 0)
    # a bit, as of a failing disk
    holds(content[:1000] + bytes([content[1000] ^ 4]) + content[1001:], lambda n: n == UNIT)
    # checksums on disk, and the second half of the data not: after a power failure
    at = len(content) * UNIT // (UNIT + 4) - 1000
    holds(content[:half] + bytes(at - half) + content[at:], lambda n: at - half <= n < at)
    # whole, but its writer was killed before it compared the SHA-256: that is done now
    holds(content[:-4] + bytes(4), lambda n: n == 0)
    assert file.read_bytes() == content
    # the other way round, or a file that was cut short
    holds(content[:half], lambda n: n > half / 2)
    holds(b"", lambda n: n > half)


def test_the_cache_is_bounded_and_keeps_what_is_open(prepared, remote, tmp_path, monkeypatch):
    right = everything(open_blocks(prepared, LENGTH).train)
    folder = tmp_path / "cache" / "shards"
    folder.mkdir(parents=True)
    for name in ("old", "new", "open"):
        (folder / name).write_bytes(bytes(200_000))
    os.utime(folder / "old", (1, 1))
    os.utime(folder / "open", (0, 0))
    limit = 700_000
    with (folder / "open").open() as held:
        fcntl.flock(held, fcntl.LOCK_SH)
        use_cache(tmp_path / "cache", monkeypatch, SEDD_JAX_CACHE_GIB=str(limit / 2**30))
        blocks = open_blocks(DATA, LENGTH).train
        np.testing.assert_array_equal(everything(blocks), right)
        left = {path.name for path in folder.iterdir()}
        assert "open" in left and not {"old", "new"} & left
    before = shards_read(remote)
    np.testing.assert_array_equal(everything(blocks), right)
    assert 0 < shards_read(remote) - before < before  # what does not fit is fetched again
    assert sum(path.stat().st_blocks * 512 for path in folder.iterdir()) <= limit


def test_a_full_disk_is_a_cache_without_room(prepared, remote, monkeypatch, capsys):
    right = everything(open_blocks(prepared, LENGTH).train)
    write, written = os.pwrite, []

    def full(file, content, offset):
        written.append(len(content))
        if len(written) > 20:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(file, content, offset)

    monkeypatch.setattr(os, "pwrite", full)
    blocks = open_blocks(DATA, LENGTH).train
    for _ in range(2):
        rows = [blocks.take(np.arange(i, i + 10)) for i in range(0, len(blocks) - 9, 10)]
        np.testing.assert_array_equal(np.concatenate(rows), right[: 10 * len(rows)])
    assert capsys.readouterr().err.count("No space left on device") == 1


@pytest.mark.parametrize("given", ["-1", "many", "inf", "nan"])
def test_a_size_of_the_cache_that_is_none(remote, monkeypatch, given):
    use_cache(Path(os.environ["SEDD_JAX_CACHE"]), monkeypatch, SEDD_JAX_CACHE_GIB=given)
    with pytest.raises(BadInput, match=f"SEDD_JAX_CACHE_GIB is '{given}'; give a number of GiB"):
        open_blocks(DATA, LENGTH)


def test_a_cache_that_cannot_be_used(remote, tmp_path, monkeypatch):
    def without_locks(*arguments):
        raise OSError(errno.ENOLCK, "No locks available")

    (tmp_path / "file").write_text("")
    use_cache(tmp_path / "file", monkeypatch)
    with pytest.raises(BadInput, match="The cache of data .*/file/shards cannot be used .Not a"):
        open_blocks(DATA, LENGTH)
    use_cache(tmp_path / "another", monkeypatch)
    monkeypatch.setattr(fcntl, "flock", without_locks)
    with pytest.raises(BadInput, match="another/shards cannot be used .No locks.*SEDD_JAX_CACHE"):
        open_blocks(DATA, LENGTH)


def test_a_bucket_that_is_gone_ends_the_run_with_its_sentence(remote):
    blocks = open_blocks(DATA, LENGTH).train
    with train_batches(blocks, batch_size=2, seed=0, buffer=1, num_threads=1) as batches:
        next(batches)
        remote.fault = ConnectionError("reset")
        with pytest.raises(Halted, match="train-0000.*has not answered"):
            for _ in range(5):
                next(batches)


def test_a_run_links_to_data_in_buckets_and_they_may_move(prepared, remote, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = Recipe(corpus="gone")
    link_prepared("run", f"{DATA}/", recipe, LENGTH)
    assert json.loads(Path("run/manifest.json").read_text())["prepared"][0]["folder"] == DATA
    here = open_blocks(prepared, LENGTH)
    np.testing.assert_array_equal(open_data("run", LENGTH).train[1], here.train[1])
    for place in (str(prepared), DATA.replace("gs", "s3")):
        link_prepared("run", place, recipe, LENGTH)
        np.testing.assert_array_equal(open_data("run", LENGTH).train[2], here.train[2])
    with pytest.raises(BadInput, match="links to other data than .*, or with other weights"):
        link_prepared("run", f"{DATA}:2", recipe, LENGTH)
    link_prepared("mixed", f"{DATA}:2,{prepared}:1", recipe, LENGTH)
    assert open_data("mixed", LENGTH).train.shares == (2 / 3, 1 / 3)
    for gone in (f"gs://bucket/nothing,{DATA}", "gs:/typo"):
        with pytest.raises(BadInput, match="nothing in gs://bucket/nothing|begins with gs://"):
            link_prepared("another", gone, recipe, LENGTH)

"""Preparing data for a bucket."""

import dataclasses
import json

import pytest

from sedd_jax.data.documents import Recipe
from sedd_jax.data.manifest import check_hashes
from sedd_jax.data.preparation import prepare_blocks
from sedd_jax.data.upload import is_prepared, prepare_anywhere
from sedd_jax.errors import BadInput, Halted
from sedd_jax.system import disk_cache, mirror

OUTPUT = "gs://bucket/made/data"
LENGTH = 16


@pytest.fixture
def recipe(tmp_path, monkeypatch, memory_bucket):
    """That of a small corpus; a cache that is empty, and a bucket."""
    monkeypatch.setenv("SEDD_JAX_CACHE", str(tmp_path / "cache"))
    disk_cache.default_cache.cache_clear()
    for name in "abc":  # each large enough for a file of ids
        texts = (json.dumps({"text": f"{name}{number}" * 7000}) for number in range(15))
        (tmp_path / f"{name}.jsonl").write_text("\n".join(texts))
    return Recipe(corpus=f"{tmp_path}/*.jsonl", heldout_fraction=0.1)


def uploaded(bucket):
    """The files in the bucket, without the probes of its access."""
    return {key.removeprefix("made/data/"): it for key, it in bucket.objects.items()}


def writes(bucket):
    return [key for name, key in bucket.requests if name == "write" and "probe" not in key]


def test_the_files_in_the_bucket_are_those_of_a_local_folder(
    recipe, memory_bucket, tmp_path, capsys
):
    upload, left = memory_bucket.upload, [3]

    def dying(*arguments):
        left[0] -= 1
        if left[0] < 0:
            raise PermissionError("the credentials have expired")
        upload(*arguments)

    memory_bucket.upload = dying
    with pytest.raises(Halted, match="have expired.* The prepared data are kept in"):
        prepare_anywhere(OUTPUT, recipe, LENGTH)
    assert len(uploaded(memory_bucket)) == 3 and not is_prepared(OUTPUT)
    memory_bucket.upload = upload
    memory_bucket.requests.clear()
    dataset = prepare_anywhere(OUTPUT, recipe, LENGTH)
    prepare_blocks(tmp_path / "straight", recipe, LENGTH)
    files = {
        path.relative_to(tmp_path / "straight").as_posix(): path.read_bytes()
        for path in (tmp_path / "straight").rglob("*")
        if path.is_file()
    }
    assert uploaded(memory_bucket) == files
    assert len(writes(memory_bucket)) == len(files) - 3
    assert writes(memory_bucket)[-1] == "made/data/manifest.json"
    assert not any((tmp_path / "cache" / "prepare").iterdir())
    # the same command finds it, and writes nothing
    memory_bucket.requests.clear()
    assert is_prepared(OUTPUT)
    assert prepare_anywhere(OUTPUT, recipe, LENGTH).manifest == dataset.manifest
    count = len([name for name in files if name.endswith(".bin")])
    assert check_hashes(mirror.local(OUTPUT), dataset.manifest) == count > 3
    assert not writes(memory_bucket)
    with pytest.raises(BadInput, match=f"{OUTPUT} holds other prepared data .*heldout_fraction"):
        prepare_anywhere(OUTPUT, dataclasses.replace(recipe, heldout_fraction=0.2), LENGTH)
    # and its tokenizer serves other data
    other = dataclasses.replace(recipe, tokenizer_path=f"{OUTPUT}/tokenizer")
    prepare_blocks(tmp_path / "other", other, LENGTH)


def test_other_files_are_refused_before_the_work(recipe, memory_bucket, monkeypatch):
    monkeypatch.setattr("sedd_jax.data.upload.prepare_blocks", None)
    memory_bucket.objects["made/data/run/config.json"] = b"{}"
    with pytest.raises(BadInput, match="holds run/config.json, and is no folder of prepared data"):
        prepare_anywhere(OUTPUT, recipe, LENGTH)
    memory_bucket.objects.clear()

    def refusing(*arguments):
        raise PermissionError("read-only")

    memory_bucket.write = refusing
    for output, message in (
        (OUTPUT, "--output: gs://bucket/made/data.* refuses the access: read-only"),
        ("gs:/bucket/typo", "--output is gs:/bucket/typo, which is neither"),
        ("gs://other/data", "There is no bucket gs://other"),
    ):
        with pytest.raises(BadInput, match=message):
            prepare_anywhere(output, recipe, LENGTH)


def test_a_manifest_that_appears_meanwhile_is_kept(recipe, memory_bucket):
    upload = memory_bucket.upload

    def overtaken(*arguments):
        upload(*arguments)
        memory_bucket.objects["made/data/manifest.json"] = b"of another"

    memory_bucket.upload = overtaken
    with pytest.raises(Halted, match="was prepared by another process meanwhile"):
        prepare_anywhere(OUTPUT, recipe, LENGTH)
    assert uploaded(memory_bucket)["manifest.json"] == b"of another"


def test_a_corpus_in_a_bucket_is_to_be_copied_first(recipe, tmp_path):
    remote = dataclasses.replace(recipe, corpus="gs://bucket/texts")
    with pytest.raises(BadInput, match="gs://bucket/texts is in a bucket, .* copy it first"):
        prepare_blocks(tmp_path / "made", remote, LENGTH)

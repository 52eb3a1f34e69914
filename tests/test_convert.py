"""Models from one layout to the other, and to the hub."""

import dataclasses
import json
import os
from pathlib import Path

import chex
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

import sedd_jax as sedd
from sedd_jax import convert
from sedd_jax.errors import BadInput
from sedd_jax.experiment.config import Config, from_json
from sedd_jax.inference import export as exports
from sedd_jax.inference.export import export
from sedd_jax.model.pretrained import read_tensors
from sedd_jax.system import hub

GPT2 = Path(__file__).parent / "golden" / "gpt2"


def card(folder):
    """The card of a model, without the padding of its tables."""
    return " ".join((folder / "README.md").read_text().split())


def converted(**values):
    """Runs the binary's `main` with these flags."""
    if not flags.FLAGS.is_parsed():
        flags.FLAGS(["convert"])
    strings = {name: str(it) if isinstance(it, Path) else it for name, it in values.items()}
    with flagsaver.flagsaver(**strings):
        convert.main()
    return values["output"]


def names(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def published(smoke_run, tmp_path_factory):
    """The smoke run in the published layout."""
    output = tmp_path_factory.mktemp("converted") / "published"
    return converted(checkpoint=smoke_run, output=output)


@pytest.fixture(scope="module")
def run(published, tmp_path_factory):
    """What was published as a run folder again."""
    return converted(checkpoint=published, output=tmp_path_factory.mktemp("converted") / "run")


def test_a_folder_in_a_bucket_is_the_same(smoke_run, published, memory_bucket):
    there = converted(checkpoint=smoke_run, output="gs://bucket/published")
    assert memory_bucket.objects.keys() == {f"published/{name}" for name in names(published)}
    for name in ("config.json", "model.safetensors"):
        assert memory_bucket.objects[f"published/{name}"] == (published / name).read_bytes()
    writes = [key for request, key in memory_bucket.requests if request == "write"]
    assert writes[-1] == "published/config.json"
    assert sedd.load(there).identity == sedd.load(published).identity
    with pytest.raises(BadInput, match="gs://bucket/published exists already"):
        converted(checkpoint=smoke_run, output=there)


def test_a_run_becomes_a_published_folder(smoke_run, published):
    assert names(published) == {
        "README.md", "config.json", "manifest.json", "metrics.jsonl", "model.safetensors",
        "tokenizer/tokenizer.json",
    }  # fmt: skip
    ours, theirs = sedd.load(smoke_run), sedd.load(published)
    xt = np.random.default_rng(0).integers(0, 258, (4, 32))
    sigma = np.array([0.01, 0.1, 1.0, 5.0], np.float32)
    np.testing.assert_array_equal(ours.log_score(xt, sigma), theirs.log_score(xt, sigma))
    assert theirs.tokenizer.kind == "bytes"
    assert theirs.config.model == ours.config.model
    table = read_tensors(published / "model.safetensors")["vocab_embed.embedding"]
    np.testing.assert_array_equal(table, ours.params["embedding"]["table"][:258])


def test_the_weights_as_trained_can_be_chosen(smoke_run, published, tmp_path):
    raw = converted(checkpoint=smoke_run, output=tmp_path / "raw", ema=False)
    table = read_tensors(raw / "model.safetensors")["vocab_embed.embedding"]
    wanted = sedd.load(smoke_run, ema=False).params["embedding"]["table"][:258]
    np.testing.assert_array_equal(table, wanted)
    assert "| Weights | as trained |" in card(raw)
    assert "| Weights | averaged |" in card(published)


def test_the_way_there_and_back_keeps_every_bit(published, run, tmp_path):
    again = converted(checkpoint=run, output=tmp_path / "again")
    for name in ("model.safetensors", "config.json", "tokenizer/tokenizer.json"):
        assert (again / name).read_bytes() == (published / name).read_bytes()
    back = converted(checkpoint=again, output=tmp_path / "back")
    chex.assert_trees_all_equal(sedd.load(back).params, sedd.load(run).params)


def test_a_published_folder_becomes_a_run(smoke_run, published, run):
    loaded = sedd.load(run)
    assert loaded.step == 0
    assert loaded.config.model == sedd.load(smoke_run).config.model
    assert loaded.tokenizer.decode(loaded.tokenizer.encode("é")) == "é"
    chex.assert_trees_all_equal(loaded.params, sedd.load(published).params)
    chex.assert_trees_all_equal(loaded.params, sedd.load(run, ema=False).params)


def test_only_what_is_known_of_a_model_of_others_is_written(published, run, tmp_path):
    settings = json.loads((run / "config.json").read_text())
    assert set(settings) == {"family", "graph", "noise", "model", "data"}
    tokenizer = {"tokenizer": "bytes", "tokenizer_path": "data/tokenizer"}
    assert settings["data"] == {"vocab_size": 257} | tokenizer
    again = converted(checkpoint=run, output=tmp_path / "again", to="run")
    assert json.loads((again / "config.json").read_text()) == settings
    # what is left out has its default
    config = from_json((run / "config.json").read_text())
    assert config.model == sedd.load(published).config.model and config.train == Config().train
    gpt2 = converted(checkpoint=GPT2, output=tmp_path / "gpt2")
    settings = json.loads((gpt2 / "config.json").read_text())
    assert set(settings) == {"family", "model", "data"} and settings["data"] == {"vocab_size": 61}
    assert from_json(json.dumps(settings)).family == "autoregressive"
    chex.assert_trees_all_equal(sedd.load(gpt2).params, sedd.load(GPT2).params)


def test_without_a_tokenizer_the_size_is_kept(published, tmp_path):
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        (bare / name).write_bytes((published / name).read_bytes())
    loaded = sedd.load(converted(checkpoint=bare, output=tmp_path / "run"))
    assert loaded.tokenizer is None and loaded.family.num_tokens == 257
    given = converted(checkpoint=bare, output=tmp_path / "given", tokenizer=published / "tokenizer")
    assert sedd.load(given).tokenizer.kind == "bytes"


def test_the_same_layout_takes_one_step_along(smoke_run, tmp_path):
    output = converted(checkpoint=smoke_run, output=tmp_path / "out", to="run", checkpoint_step=10)
    assert [path.name for path in (output / "checkpoints").iterdir()] == ["10"]
    wanted = sedd.load(smoke_run, step=10).params
    chex.assert_trees_all_equal(sedd.load(output).params, wanted)
    assert "| last | 10 |" in card(output)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"learned_positions": True}}, "only .*model.learned_positions=False.*--to=run"),
        ({"noise": {"eps": 1e-2}}, "config.noise.eps=0.001, and this one has 0.01"),
        ({"family": "autoregressive"}, "config.family=diffusion, and this one has autoregressive"),
    ],
)
def test_what_the_published_code_lacks_is_refused(smoke_run, tmp_path, changes, message):
    loaded = sedd.load(smoke_run)
    values = {
        name: dataclasses.replace(getattr(loaded.config, name), **value)
        if isinstance(value, dict)
        else value
        for name, value in changes.items()
    }
    other = dataclasses.replace(loaded, config=dataclasses.replace(loaded.config, **values))
    with pytest.raises(BadInput, match=message):
        export(other, tmp_path / "out", "published", weights="averaged", name="x")
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten_or_left_half_written(published, tmp_path, monkeypatch):
    loaded, out = sedd.load(published), tmp_path / "out"

    def write():
        export(loaded, out, "published", weights="as published", name="x")

    def stop(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(exports, "write_card", stop)
        write()
    assert [path.name for path in tmp_path.iterdir()] == [".out.staging"]
    assert "model/model.safetensors" in names(tmp_path / ".out.staging")
    (tmp_path / ".out.staging" / "model" / "left").touch()
    write()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert not (out / "left").exists()
    before = (out / "README.md").stat().st_mtime_ns
    with pytest.raises(BadInput, match="exists already"):
        write()
    assert (out / "README.md").stat().st_mtime_ns == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    with pytest.raises(BadInput, match="The folder of --output=.*absent/out does not exist"):
        converted(checkpoint=tmp_path, output=tmp_path / "absent" / "out")


@pytest.mark.parametrize("umask", [0o022, 0o027])
def test_who_may_read_a_model_is_said_by_the_umask(tiny, tmp_path, umask):
    before = os.umask(umask)
    try:
        export(tiny, tmp_path / "out", "published", weights="averaged", name="x")
    finally:
        os.umask(before)
    for path in (tmp_path / "out").rglob("*"):
        full = 0o777 if path.is_dir() else 0o666
        assert (path.name, path.stat().st_mode & 0o777) == (path.name, full & ~umask)


def test_the_binary(published, binary, tmp_path):
    out = binary.run("convert", f"--checkpoint={published}", f"--output={tmp_path / 'run'}")
    assert f"sedd_jax.sample --checkpoint={tmp_path / 'run'}" in out
    flags = (f"--checkpoint={published}", f"--output={published}")
    assert "exists already" in binary.refuse("convert", *flags)


class FakeApi:
    """Keeps what it is told; `token` is who asks."""

    calls: tuple | list = ()
    token: str | None = "someone"

    def whoami(self):
        from huggingface_hub.errors import LocalTokenNotFoundError

        if self.token is None:
            raise LocalTokenNotFoundError("Token is required.\nMore words.")

    def create_repo(self, name, **options):
        self.calls.append((name, options))
        return f"https://hub/{name}"

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        self.calls.append((repo_id, names(folder_path)))


@pytest.fixture
def api(monkeypatch):
    huggingface_hub = pytest.importorskip("huggingface_hub")
    fake = type("Api", (FakeApi,), {"calls": []})
    session = type("Session", (), {"head": lambda *args, **options: None})
    monkeypatch.setattr(huggingface_hub, "HfApi", fake)
    monkeypatch.setattr(huggingface_hub, "get_session", session)
    return fake


@pytest.mark.parametrize("public", [False, True])
def test_a_model_is_uploaded_with_its_card(smoke_run, tmp_path, api, capsys, public):
    with flagsaver.flagsaver(public=public):
        output = converted(checkpoint=smoke_run, output=tmp_path / "out", push_to_hub="owner/name")
    assert api.calls == [
        ("owner/name", {"private": not public, "exist_ok": True}),
        ("owner/name", names(output)),
    ]
    assert 'sedd.load("owner/name")' in (output / "README.md").read_text()
    assert "Uploaded to https://hub/owner/name" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["name", "a/b/c", "owner/name@main", "/tmp/x"])
def test_a_name_that_is_none_is_refused_first(smoke_run, tmp_path, api, name):
    with pytest.raises(BadInput, match=f"called OWNER/NAME, not '{name}'"):
        converted(checkpoint=smoke_run, output=tmp_path / "out", push_to_hub=name)
    assert not api.calls and not list(tmp_path.iterdir())


def test_public_without_an_upload_is_refused(smoke_run, tmp_path):
    with flagsaver.flagsaver(public=True), pytest.raises(BadInput, match="--public needs --push"):
        converted(checkpoint=smoke_run, output=tmp_path / "out")


def test_who_is_not_logged_in_hears_so_before_anything_is_done(smoke_run, tmp_path, api):
    api.token = None
    with pytest.raises(BadInput, match="Nothing can be uploaded to owner/name, .*hf auth login"):
        converted(checkpoint=smoke_run, output=tmp_path / "out", push_to_hub="owner/name")
    assert not list(tmp_path.iterdir())


def test_offline_is_said_before_anything_is_done(smoke_run, tmp_path, monkeypatch):
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(BadInput, match="uploaded to owner/name, and .*:9 cannot be reached"):
        converted(checkpoint=smoke_run, output=tmp_path / "out", push_to_hub="owner/name")
    assert not list(tmp_path.iterdir())


def test_a_refusal_after_the_conversion_keeps_the_folder(tmp_path, api, monkeypatch):
    def refuse(*args, **options):
        raise ValueError("no such owner")

    monkeypatch.setattr(api, "create_repo", refuse)
    with pytest.raises(BadInput, match="is complete, but not uploaded .* refuses: no such owner"):
        hub.upload(tmp_path, "owner/name", private=True)

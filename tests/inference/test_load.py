import dataclasses
import shutil
from pathlib import Path

import chex
import jax
import numpy as np
import pytest

import sedd_jax as sedd
from sedd_jax.data.characters import Bytes, Characters
from sedd_jax.errors import BadInput
from sedd_jax.experiment.config import Config, DataConfig, MeshConfig, ModelConfig
from sedd_jax.experiment.mesh import build_mesh
from sedd_jax.inference.build import build_family
from sedd_jax.inference.export import save_published, save_run
from sedd_jax.inference.model import TrainedModel
from sedd_jax.model.sharding import shardings

GPT2 = Path(__file__).parents[1] / "golden" / "gpt2"


def test_a_run_loads_with_all_it_needs(smoke_run, smoke_config):
    checkpoint = sedd.load(smoke_run)
    assert checkpoint.step == 20
    assert checkpoint.config == smoke_config
    assert checkpoint.tokenizer.decode(checkpoint.tokenizer.encode("é")) == "é"
    assert checkpoint.graph.num_states == 258
    assert sedd.load(smoke_run, step=10).step == 10


def test_averaged_weights_are_the_default(smoke_run):
    averaged, raw = sedd.load(smoke_run), sedd.load(smoke_run, ema=False)
    chex.assert_trees_all_equal(averaged.params, sedd.load(smoke_run, ema=True).params)
    table = averaged.params["embedding"]["table"] - raw.params["embedding"]["table"]
    assert float(np.abs(table).max()) > 0


def test_the_folder_can_be_moved(smoke_run, tmp_path):
    shutil.copytree(smoke_run, tmp_path / "elsewhere")
    loaded = sedd.load(tmp_path / "elsewhere")
    assert (loaded.step, loaded.name) == (20, "elsewhere")


def test_what_cannot_be_loaded_is_named(smoke_run, tmp_path):
    with pytest.raises(BadInput, match="There is no folder .*absent"):
        sedd.load(tmp_path / "absent")
    with pytest.raises(BadInput, match="holds neither checkpoints/ .* nor config.json"):
        sedd.load(tmp_path)
    with pytest.raises(BadInput, match="no checkpoint of step 7; it has: 10, 20"):
        sedd.load(smoke_run, step=7)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(BadInput, match="holds no complete checkpoint yet"):
        sedd.load(tmp_path)


def test_damaged_weights_are_refused_and_the_other_steps_named(smoke_run, tmp_path):
    run = shutil.copytree(smoke_run, tmp_path / "run")
    files = [path for path in (run / "checkpoints" / "20" / "ema").rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)
    with pytest.raises(BadInput, match="checkpoints/20 is damaged: .* --checkpoint_step; .*: 10"):
        sedd.load(run)
    assert sedd.load(run, step=10).step == 10


def random_tokens(count, length, vocab_size):
    return np.random.default_rng(1).integers(0, vocab_size, (count, length))


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """A published folder: random weights, a table whose halves are multiples of 128 columns."""
    config = dataclasses.replace(
        Config(),
        data=DataConfig(vocab_size=200),
        model=ModelConfig(hidden_size=16, cond_dim=8, num_blocks=2, num_heads=2, length=16),
    )
    components = build_family(config, 200)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: 0.3 * rng.standard_normal(x.shape).astype(np.float32),
        jax.eval_shape(components.model.init, jax.random.key(0)),
    )
    folder = tmp_path_factory.mktemp("published")
    save_published(TrainedModel(components, params, config, None, None), folder)
    return folder


def log_score(loaded):
    sigma = np.geomspace(0.01, 5, 8).astype(np.float32)
    return np.asarray(loaded.log_score(random_tokens(8, 16, 201), sigma))


MESHES = {
    "data": MeshConfig(),
    "fsdp": MeshConfig(fsdp=8),
    "fsdp and tensor": MeshConfig(data=2, fsdp=2, tensor=2),
}


def check_placement(loaded, config):
    mesh = build_mesh(config)
    wanted = shardings(loaded.params, mesh)
    jax.tree.map(lambda x, s: chex.assert_equal(x.sharding, s), loaded.params, wanted)
    table = loaded.params["embedding"]["table"]
    part = table.addressable_shards[0].data.size
    assert part * config.fsdp * config.tensor == table.size


def test_a_mesh_gives_the_same_scores(network):
    there = sedd.load(network, mesh=MESHES["fsdp and tensor"])
    check_placement(there, MESHES["fsdp and tensor"])
    here = log_score(sedd.load(network))
    np.testing.assert_allclose(log_score(there), here, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def alone(network):
    """What the model answers on one device."""
    return answers(sedd.load(network))


def answers(loaded):
    return (
        log_score(loaded),
        sedd.nll_bound(jax.random.key(1), loaded, random_tokens(8, 16, 200)).nats,
        sedd.generate(jax.random.key(2), loaded, 8, steps=4)[0],
    )


@pytest.mark.slow
def test_a_mesh_gives_the_same_bound(network):
    """Five rows of different lengths, which eight devices do not divide."""
    tokens, lengths = random_tokens(5, 16, 200), np.array([16, 3, 16, 9, 1])
    here, there = (
        sedd.nll_bound(jax.random.key(1), loaded, tokens, lengths=lengths, batch_size=3)
        for loaded in (sedd.load(network), sedd.load(network, mesh=MESHES["fsdp and tensor"]))
    )
    np.testing.assert_allclose(there.nats, here.nats, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", MESHES)
def test_every_mesh_gives_the_same_answers(network, alone, name):
    loaded = sedd.load(network, mesh=MESHES[name])
    check_placement(loaded, MESHES[name])
    for there, here, error in zip(answers(loaded), alone, (1e-5, 1e-5, 0), strict=True):
        np.testing.assert_allclose(there, here, rtol=error, atol=error)


@pytest.mark.slow
def test_a_checkpoint_moves_between_meshes(network, tmp_path):
    there = sedd.load(network, mesh=MESHES["fsdp and tensor"])
    save_run(there, tmp_path)
    here = sedd.load(tmp_path, mesh=build_mesh(MESHES["fsdp"]))
    check_placement(here, MESHES["fsdp"])
    chex.assert_trees_all_equal(jax.device_get(here.params), jax.device_get(there.params))
    one = sedd.load(tmp_path)
    assert {len(x.sharding.device_set) for x in jax.tree.leaves(one.params)} == {1}


def test_a_mesh_that_does_not_fit_is_refused(network):
    with pytest.raises(BadInput, match="num_heads is 2, which .*tensor=8 does not divide"):
        sedd.load(network, mesh=MeshConfig(tensor=8))
    with pytest.raises(BadInput, match="multiple of 3 devices"):
        sedd.load(network, mesh=MeshConfig(fsdp=3))
    with pytest.raises(BadInput, match="has the axes .*'x'.*must have .*'slice'"):
        sedd.load(network, mesh=jax.make_mesh((8,), ("x",)))


def test_the_tokenizer_is_what_lies_beside_or_what_is_given(network, tmp_path):
    folder = shutil.copytree(network, tmp_path / "model")
    assert sedd.load(folder).tokenizer is None
    # 200 tokens with the end of the document
    alphabet = "".join(map(chr, range(200, 399)))
    Characters(alphabet).save(tmp_path / "given")
    assert sedd.load(folder, tokenizer=tmp_path / "given").tokenizer.alphabet == alphabet
    Characters(alphabet[::-1]).save(folder / "tokenizer")
    assert sedd.load(folder).tokenizer.alphabet == alphabet[::-1]
    assert sedd.load(folder, tokenizer=str(tmp_path / "given")).tokenizer.alphabet == alphabet


def test_a_tokenizer_that_does_not_fit_is_refused(network, smoke_run, tmp_path):
    Bytes().save(tmp_path / "bytes")
    with pytest.raises(
        BadInput, match="tokenizer in .*/bytes has 257 tokens and the model in .* 200;"
    ):
        sedd.load(network, tokenizer=tmp_path / "bytes")
    Characters("abc").save(tmp_path / "abc")
    with pytest.raises(BadInput, match="in .*/abc has 4 tokens and the model in .* 257;"):
        sedd.load(smoke_run, tokenizer=tmp_path / "abc")
    Characters("".join(map(chr, range(200, 456)))).save(tmp_path / "letters")
    with pytest.raises(BadInput, match="/letters gives other ids than .* trained with; leave it"):
        sedd.load(smoke_run, tokenizer=tmp_path / "letters")
    own = smoke_run / "data" / "tokenizer"
    assert sedd.load(smoke_run, tokenizer=own).tokenizer.vocab_size == 257
    with pytest.raises(BadInput, match="no tokenizer in .*nor encoder.json and vocab.bpe or vocab"):
        sedd.load(network, tokenizer=network)
    with pytest.raises(BadInput, match="There is no folder absent"):
        sedd.load(network, tokenizer="absent")


def test_the_files_of_gpt2_are_found(network, tmp_path):
    folder = shutil.copytree(network, tmp_path / "model")
    for name in ("encoder.json", "vocab.bpe"):
        (folder / name).write_text("{}")
    (folder / "tokenizer.json").write_text('{"of another kind": 1}')
    with pytest.raises(BadInput, match=r"encoder.json and vocab.bpe in .*model are damaged"):
        sedd.load(folder)


def test_a_repository_of_the_hub_is_loaded_from_its_cache(network, tmp_path, monkeypatch):
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--owner--name"
    shutil.copytree(network, repository / "snapshots" / "c0ffee")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("c0ffee")
    loaded = sedd.load("owner/name")
    assert (loaded.graph.num_states, loaded.name) == (201, "owner/name")  # and not the revision


def test_a_cached_gpt2_is_whole_with_its_tokenizer(tmp_path, monkeypatch):
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repository = tmp_path / "models--owner--name"
    snapshot = shutil.copytree(GPT2, repository / "snapshots" / "c0ffee")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("c0ffee")
    (snapshot / "tokenizer.json").write_text('{"of another kind": 1}')
    with pytest.raises(BadInput, match="is cached in part only, in .*c0ffee, .* cannot be reached"):
        sedd.load("owner/name")
    with pytest.raises(BadInput, match="is cached in part only, in .*c0ffee, .* cannot be reached"):
        sedd.load(GPT2, tokenizer="owner/name")
    Characters("".join(map(chr, range(200, 260)))).save(tmp_path / "given")
    given = sedd.load("owner/name", tokenizer=tmp_path / "given")
    assert given.tokenizer.vocab_size == 61


def test_an_unfinished_download_is_named(network, tmp_path):
    folder = shutil.copytree(network, tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "model.safetensors.incomplete")
    with pytest.raises(BadInput, match="model.safetensors.incomplete was not fetched to its end"):
        sedd.load(folder)

import json
import struct

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from sedd_jax.errors import BadInput
from sedd_jax.inference.load import load
from sedd_jax.model import pretrained
from sedd_jax.model.config import ModelConfig, TransformerConfig
from sedd_jax.model.score_model import score_model

TOKENS, HIDDEN, COND, BLOCKS, HEADS = 5, 8, 4, 3, 2
V = TOKENS + 1
SIZES = {
    "vocab_embed.embedding": (V, HIDDEN),
    "sigma_map.mlp.0.weight": (COND, 256),
    "sigma_map.mlp.0.bias": (COND,),
    "sigma_map.mlp.2.weight": (COND, COND),
    "sigma_map.mlp.2.bias": (COND,),
    "output_layer.norm_final.weight": (HIDDEN,),
    "output_layer.adaLN_modulation.weight": (2 * HIDDEN, COND),
    "output_layer.adaLN_modulation.bias": (2 * HIDDEN,),
    "output_layer.linear.weight": (V, HIDDEN),
    "output_layer.linear.bias": (V,),
}
BLOCK_SIZES = {
    "norm1.weight": (HIDDEN,),
    "attn_qkv.weight": (3 * HIDDEN, HIDDEN),
    "attn_out.weight": (HIDDEN, HIDDEN),
    "norm2.weight": (HIDDEN,),
    "mlp.0.weight": (4 * HIDDEN, HIDDEN),
    "mlp.0.bias": (4 * HIDDEN,),
    "mlp.2.weight": (HIDDEN, 4 * HIDDEN),
    "mlp.2.bias": (HIDDEN,),
    "adaLN_modulation.weight": (6 * HIDDEN, COND),
    "adaLN_modulation.bias": (6 * HIDDEN,),
}
for block in range(BLOCKS):
    SIZES |= {f"blocks.{block}.{name}": size for name, size in BLOCK_SIZES.items()}


def published_config():
    return {
        "tokens": TOKENS,
        "graph": {"type": "absorb", "file": "data", "report_all": False},
        "noise": {"type": "loglinear", "sigma_min": 1e-4, "sigma_max": 20},
        "model": {
            "hidden_size": HIDDEN,
            "cond_dim": COND,
            "length": 16,
            "n_blocks": BLOCKS,
            "n_heads": HEADS,
            "scale_by_sigma": True,
            "dropout": 0.1,
        },
    }


def published_tensors():
    rng = np.random.default_rng(0)
    return {k: rng.standard_normal(size).astype(np.float32) for k, size in SIZES.items()}


@pytest.fixture
def folder(tmp_path):
    """A folder in the published layout."""
    save_file(published_tensors(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(published_config()))
    return tmp_path


@pytest.fixture(scope="module")
def abstract():
    sizes = TransformerConfig(ModelConfig(HIDDEN, COND, BLOCKS, HEADS), V, jnp.dtype("float32"))
    return jax.eval_shape(score_model(sizes).init, jax.random.key(0))


def test_every_tensor_arrives_in_its_place(folder, abstract):
    tensors = published_tensors()
    params = pretrained.read_params(folder, abstract, V)
    jax.tree.map(lambda x, y: np.testing.assert_equal(x.shape, y.shape), params, abstract)
    assert all(x.dtype == np.float32 for x in jax.tree.leaves(params))
    width = HIDDEN // HEADS
    for i in range(BLOCKS):
        block = jax.tree.map(lambda x, i=i: x[i], params["blocks"])
        there = {name: tensors[f"blocks.{i}.{name}"] for name in BLOCK_SIZES}
        query, key, value = there["attn_qkv.weight"].reshape(3, HEADS, width, HIDDEN)
        for part, wanted in zip("012", (query, key, value), strict=True):
            kernel = block["qkv"]["kernel"][:, int(part)]  # [inputs, heads, width]
            np.testing.assert_array_equal(kernel, np.moveaxis(wanted, -1, 0))
        out = there["attn_out.weight"].reshape(HIDDEN, HEADS, width)
        np.testing.assert_array_equal(block["attention_out"]["kernel"], np.moveaxis(out, 0, -1))
        np.testing.assert_array_equal(block["mlp_in"]["kernel"], there["mlp.0.weight"].T)
        np.testing.assert_array_equal(block["mlp_out"]["kernel"], there["mlp.2.weight"].T)
        modulation = there["adaLN_modulation.weight"].T.reshape(COND, 6, HIDDEN)
        np.testing.assert_array_equal(block["modulation"]["kernel"], modulation)
        bias = there["adaLN_modulation.bias"].reshape(6, HIDDEN)
        np.testing.assert_array_equal(block["modulation"]["bias"], bias)
        np.testing.assert_array_equal(block["attention_norm"]["scale"], there["norm1.weight"])
        np.testing.assert_array_equal(block["mlp_norm"]["scale"], there["norm2.weight"])
    head = params["head"]
    np.testing.assert_array_equal(head["kernel"][:, :V], tensors["output_layer.linear.weight"].T)
    np.testing.assert_array_equal(
        params["embedding"]["table"][:V], tensors["vocab_embed.embedding"]
    )
    for padding in (head["kernel"][:, V:], head["bias"][V:], params["embedding"]["table"][V:]):
        assert padding.size and not padding.any()


def test_derived_buffers_are_ignored(folder, abstract):
    buffer = {"rotary_emb.inv_freq": np.array([1, 0.01], np.float32)}
    save_file(published_tensors() | buffer, folder / "model.safetensors")
    pretrained.read_params(folder, abstract, V)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rotary_emb.inv_freq": np.array([1, 0.001])}, r"base 10,000\): it is another network"),
        ({"blocks.1.mlp.0.bias": np.ones(4 * HIDDEN, np.int8)}, "of int8, as quantised weights"),
    ],
)
def test_tensors_of_another_network_are_refused(folder, abstract, changes, message):
    save_file(published_tensors() | changes, folder / "model.safetensors")
    with pytest.raises(BadInput, match=message):
        pretrained.read_params(folder, abstract, V)


def test_settings_without_a_meaning_here_are_told(folder, capfd):
    assert pretrained.read_config(folder).tokens == TOKENS
    assert not capfd.readouterr().err
    config = published_config()
    config["model"]["rope_base"], config["noise"]["eps"] = 5e5, 1e-4
    (folder / "config.json").write_text(json.dumps(config))
    assert pretrained.read_config(folder).tokens == TOKENS
    assert "config.json has model.rope_base, noise.eps, without a m" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"model_type": "llama", "tokens": 9},
            "the model_type 'llama', and the keys model_type, t",
        ),
        (
            {"vocab_size": 9, "hidden": 8},
            "no model_type, and the keys vocab_size, hidden. Read are",
        ),
        ([], r"no model_type, and the keys \(none\). Read are the model_type gpt2, mdlm, udlm or"),
    ],
)
def test_a_model_of_another_kind_is_named(folder, values, message):
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(BadInput, match=f"describes no model that is read: it has {message}"):
        pretrained.read_config(folder)


def test_written_tensors_are_those_that_were_read(folder, abstract, tmp_path):
    config = pretrained.read_config(folder)
    params = pretrained.read_params(folder, abstract, V)
    written = tmp_path / "written"
    written.mkdir()
    pretrained.write_published(written, config, params, V)
    tensors = pretrained.read_tensors(written / "model.safetensors")
    # head of 4 columns: 10000^-(0 / 4), 10000^-(2 / 4)
    np.testing.assert_allclose(tensors.pop("rotary_emb.inv_freq"), [1, 0.01], rtol=1e-6)
    wanted = published_tensors()
    assert tensors.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert tensors[name].tobytes() == tensor.tobytes(), name
    assert pretrained.read_config(written) == config
    settings = json.loads((written / "config.json").read_text())
    assert (settings["tokens"], settings["graph"]["type"]) == (TOKENS, "absorb")
    assert settings["noise"] == published_config()["noise"]
    assert settings["model"] == published_config()["model"]
    again = pretrained.read_params(written, abstract, V)
    jax.tree.map(np.testing.assert_array_equal, again, params)


def test_trained_padding_is_not_written(folder, abstract, tmp_path):
    config = pretrained.read_config(folder)
    params = pretrained.read_params(folder, abstract, V)
    params["head"]["bias"][V:] = 7
    pretrained.write_published(tmp_path, config, params, V)
    assert not pretrained.read_params(tmp_path, abstract, V)["head"]["bias"][V:].any()


def test_the_config_may_be_under_a_key(folder):
    flat = pretrained.read_config(folder)
    (folder / "config.json").write_text(json.dumps({"config": published_config()}))
    assert pretrained.read_config(folder) == flat


@pytest.mark.parametrize("name", pretrained.WEIGHTS)
def test_a_pointer_in_place_of_the_weights_is_named(folder, abstract, name):
    (folder / "model.safetensors").unlink()
    (folder / name).write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 681\n"
    )
    with pytest.raises(BadInput, match=f"{name} is a Git LFS pointer.*git lfs pull"):
        pretrained.read_params(folder, abstract, V)


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, np.float64, np.int64])
def test_other_dtypes_become_float32(folder, abstract, dtype):
    tensors = {name: (8 * x).astype(dtype) for name, x in published_tensors().items()}
    save_file(tensors, folder / "model.safetensors")
    params = pretrained.read_params(folder, abstract, V)
    assert params["head"]["kernel"].dtype == np.float32
    wanted = tensors["output_layer.linear.weight"].T.astype(np.float32)
    np.testing.assert_array_equal(params["head"]["kernel"][:, :V], wanted)


def test_numbers_of_an_unknown_type_are_named(tmp_path):
    header = json.dumps({"x": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}}).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(BadInput, match=f"{path} holds numbers of a type .*float8_e4m3fn"):
        pretrained.read_tensors(path)


@pytest.mark.parametrize(
    "name", ["vocab_embed.embedding", "blocks.2.attn_qkv.weight", "sigma_map.mlp.2.bias"]
)
def test_a_missing_tensor_is_named(folder, abstract, name):
    tensors = published_tensors()
    del tensors[name]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(BadInput, match=f"model.safetensors lacks the tensor {name}"):
        pretrained.read_params(folder, abstract, V)


@pytest.mark.parametrize("name", ["rotary.extra", "blocks.3.norm1.weight"])
def test_an_unexpected_tensor_is_named(folder, abstract, name):
    extra = {name: np.zeros(HIDDEN, np.float32)}
    save_file(published_tensors() | extra, folder / "model.safetensors")
    with pytest.raises(BadInput, match=f"do not belong: {name}"):
        pretrained.read_params(folder, abstract, V)


@pytest.mark.parametrize("name", SIZES)
def test_a_misshapen_tensor_is_named(folder, abstract, name):
    tensors = published_tensors()
    tensors[name] = np.concatenate([tensors[name]] * 2, -1)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(BadInput, match=f"Tensor {name} of {folder}/model.safetensors has shape"):
        pretrained.read_params(folder, abstract, V)


@pytest.mark.parametrize(
    "name",
    ["output_layer.adaLN_modulation.weight", "blocks.1.mlp.0.weight", "vocab_embed.embedding"],
)
def test_a_transposed_tensor_is_refused(folder, abstract, name):
    tensors = published_tensors()
    tensors[name] = np.ascontiguousarray(tensors[name].T)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(BadInput, match=f"Tensor {name} of .* has shape"):
        pretrained.read_params(folder, abstract, V)


def test_config_is_read(folder):
    config = pretrained.read_config(folder)
    assert (config.tokens, config.graph, config.noise) == (TOKENS, "absorb", "loglinear")
    assert (config.hidden_size, config.cond_dim, config.length) == (HIDDEN, COND, 16)
    assert (config.num_blocks, config.num_heads) == (BLOCKS, HEADS)
    assert (config.scale_by_sigma, config.dropout) == (True, 0.1)
    assert config.sigma_max == 20.0 and isinstance(config.sigma_max, float)


@pytest.mark.parametrize("text", ["{", "", b"\xff\xfe{}", "[1]", '"text"'], ids=repr)
def test_a_config_that_is_no_json_object(folder, text):
    (folder / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(BadInput, match="config.json"):
        pretrained.read_config(folder)


@pytest.mark.parametrize("key", ["tokens", "graph.type", "model.n_heads", "noise.type"])
def test_a_missing_key_of_the_config_is_named(folder, key):
    config = published_config()
    *groups, leaf = key.split(".")
    node = config
    for group in groups:
        node = node[group]
    del node[leaf]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadInput, match=f"config.json has no {key}"):
        pretrained.read_config(folder)


@pytest.mark.parametrize(
    ("key", "value", "kind"),
    [
        ("hidden_size", "8", "int"),
        ("hidden_size", 8.0, "int"),
        ("n_blocks", True, "int"),
        ("scale_by_sigma", 1, "bool"),
        ("dropout", None, "float"),
    ],
)
def test_an_ill_typed_key_of_the_config_is_named(folder, key, value, kind):
    config = published_config()
    config["model"][key] = value
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadInput, match=f"model.{key} = .*, which should be {kind}"):
        pretrained.read_config(folder)


def damaged(data):
    """Ways to damage a safetensors file: its header's length, its header, its end."""
    (length,) = struct.unpack("<Q", data[:8])
    header = data[8 : 8 + length]
    yield "empty", b""
    yield "cut in the length", data[:5]
    yield "cut in the header", data[: 8 + length // 2]
    yield "cut in the data", data[:-4]
    yield "too long", data + bytes(4)
    yield "length past the end", struct.pack("<Q", 2**40) + data[8:]
    yield "length too small", struct.pack("<Q", length - 3) + data[8:]
    yield "header no json", data[:8] + header.replace(b"{", b"[") + data[8 + length :]
    yield "longer than allowed", struct.pack("<Q", 2**27) + data[8:]
    offset = header.index(b'"data_offsets":[') + len(b'"data_offsets":[')
    start, end = header[offset:].split(b"]")[0].split(b",")
    for name, offsets in (("past the end", (10**9, 10**9)), ("overlapping", (4, 4))):
        moved = b"%d,%d" % (int(start) + offsets[0], int(end) + offsets[1])
        lying = header[:offset] + moved + header[offset + len(start + b"," + end) :]
        yield f"offsets {name}", struct.pack("<Q", len(lying)) + lying + data[8 + length :]
    yield "unknown dtype", data[:8] + header.replace(b'"F32"', b'"Z32"') + data[8 + length :]
    yield "shape lies", data[:8] + header.replace(b"[8]", b"[9]") + data[8 + length :]


DAMAGES = ("empty", "cut in the length", "cut in the header", "cut in the data", "too long",
           "length past the end", "length too small", "header no json", "unknown dtype",
           "shape lies", "longer than allowed", "offsets past the end",
           "offsets overlapping")  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_safetensors(folder, abstract, damage):
    path = folder / "model.safetensors"
    path.write_bytes(dict(damaged(path.read_bytes()))[damage])
    with pytest.raises(
        BadInput, match="model.safetensors is not a readable safetensors file.*; fetch it"
    ):
        pretrained.read_params(folder, abstract, V)


def test_load_of_a_published_folder(folder):
    loaded = load(folder)
    assert loaded.graph.num_states == V and loaded.graph.mask_id == TOKENS
    assert loaded.tokenizer is None and loaded.step is None
    assert loaded.config.model.length == 16 and loaded.config.graph == "absorb"
    xt = jnp.asarray(np.random.default_rng(1).integers(0, V, (2, 9)))
    log_score = loaded.log_score(xt, jnp.asarray([0.01, 3.0]))
    assert log_score.shape == (2, 9, V) and log_score.dtype == jnp.float32
    assert np.isfinite(log_score).all()
    assert (np.take_along_axis(np.asarray(log_score), np.asarray(xt)[..., None], -1) == 0).all()


def test_load_of_a_uniform_folder(folder):
    config = published_config() | {"tokens": V, "graph": {"type": "uniform"}}
    config["noise"] = {"type": "geometric", "sigma_min": 1e-5, "sigma_max": 10}
    config["model"]["scale_by_sigma"] = False
    (folder / "config.json").write_text(json.dumps(config))
    loaded = load(str(folder))
    assert loaded.graph.num_states == V and loaded.graph.mask_id is None
    np.testing.assert_allclose(loaded.noise.sigma(jnp.asarray([0.0, 1.0])), [1e-5, 10], rtol=1e-5)


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_half_a_published_folder_is_none(folder, missing):
    assert pretrained.is_published(folder)
    (folder / missing).unlink()
    assert not pretrained.is_published(folder)
    with pytest.raises(BadInput, match="holds neither"):
        load(folder)


def test_load_of_nothing(tmp_path):
    with pytest.raises(BadInput, match="There is no folder"):
        load(tmp_path / "absent")
    with pytest.raises(BadInput, match="holds neither"):
        load(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match="file is a file; give the folder that it is in"):
        load(tmp_path / "file")


@pytest.mark.parametrize("options", [{"step": 3}, {"ema": False}])
def test_a_published_folder_has_one_set_of_weights(folder, options):
    with pytest.raises(BadInput, match="one set of weights"):
        load(folder, **options)


@pytest.mark.parametrize(
    ("group", "key", "value"),
    [
        ("graph", "type", "banana"),
        ("graph", "type", "uniform"),  # is not to be scaled by sigma
        ("noise", "type", "banana"),
        ("noise", "sigma_min", 30.0),  # above sigma_max
        ("model", "n_heads", 0),
        ("model", "n_heads", 3),
        ("model", "dropout", 1.5),
        ("model", "hidden_size", -8),
    ],
)
def test_a_config_that_makes_no_model(folder, group, key, value):
    config = published_config()
    config[group][key] = value
    config["tokens"] += config["graph"]["type"] == "uniform"  # V stays that of the weights
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadInput, match="config.json describes no model"):
        load(folder)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_names_may_have_the_prefixes_of_wrappers(folder, abstract, prefix):
    wanted = pretrained.read_params(folder, abstract, V)
    tensors = {prefix + name: x for name, x in published_tensors().items()}
    save_file(tensors, folder / "model.safetensors")
    jax.tree.map(np.testing.assert_array_equal, pretrained.read_params(folder, abstract, V), wanted)
    save_file(tensors | {"more": np.ones(1)}, folder / "model.safetensors")
    with pytest.raises(BadInput, match=r"names with \S+\. before them .* others without \(more\)"):
        pretrained.read_params(folder, abstract, V)

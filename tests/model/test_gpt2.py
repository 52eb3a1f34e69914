"""GPT-2 read from the layout of Hugging Face, against what `transformers` computes."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import sedd_jax as sedd
from sedd_jax.data.tokenizer import GPT2
from sedd_jax.errors import BadInput
from sedd_jax.model import gpt2

GOLDEN = Path(__file__).parents[1] / "golden" / "gpt2"
WEIGHTS = "model.safetensors"


@pytest.fixture
def folder(tmp_path):
    """A copy of the golden folder, to change."""
    return shutil.copytree(GOLDEN, tmp_path / "gpt2")


def change_config(folder, **values):
    config = json.loads((GOLDEN / "config.json").read_text()) | values
    (folder / "config.json").write_text(json.dumps(config))


def change_tensors(folder, change):
    tensors = load_file(GOLDEN / WEIGHTS)
    save_file(change(tensors) or tensors, folder / WEIGHTS)


def logits(folder, tokens):
    checkpoint = sedd.load(folder)
    return jax.jit(checkpoint.model.apply)(checkpoint.params, jnp.asarray(tokens))


def test_logits_are_those_recorded_from_transformers():
    golden = np.load(GOLDEN / "golden.npz")
    found = logits(GOLDEN, golden["tokens"])
    assert np.abs(golden["logits"]).max() > 1  # they are worth comparing
    np.testing.assert_allclose(found, golden["logits"], rtol=1e-5, atol=1e-5)


def test_logits_are_those_of_transformers(tmp_path):
    torch, transformers = (pytest.importorskip(name) for name in ("torch", "transformers"))
    torch.manual_seed(1)
    config = transformers.GPT2Config(
        vocab_size=200, n_positions=16, n_embd=24, n_layer=3, n_head=3,
        bos_token_id=199, eos_token_id=199,
    )  # fmt: skip
    model = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
        model.save_pretrained(tmp_path, max_shard_size="50KB")  # in several files
        tokens = torch.randint(0, 200, (4, 13))
        wanted = model(tokens).logits.numpy()
    assert not (tmp_path / WEIGHTS).exists()
    found = logits(tmp_path, tokens.numpy().astype(np.int32))
    print(f"largest difference of logits: {np.abs(found - wanted).max():.2e}")
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_a_folder_is_loaded_whole():
    checkpoint = sedd.load(GOLDEN)
    config = checkpoint.config
    assert (config.family, config.model.length, config.data.vocab_size) == (
        "autoregressive", 12, 61,
    )  # fmt: skip
    assert checkpoint.model.start == 60
    assert checkpoint.tokenizer is None and checkpoint.step is None
    with pytest.raises(BadInput, match="autoregressive: it has no graph"):
        checkpoint.graph  # noqa: B018


def test_the_tokenizer_is_read_from_the_same_folder(folder, monkeypatch):
    class Opened(GPT2):
        vocab_size = 61

        def __init__(self, folder):
            self.folder = folder

    monkeypatch.setattr("sedd_jax.inference.load.GPT2", Opened)
    for name in ("vocab.json", "merges.txt"):
        (folder / name).touch()
    assert sedd.load(folder).tokenizer.folder == folder


def bare(tensors):
    return {name.removeprefix("transformer."): x for name, x in tensors.items()}


def with_buffers(tensors):
    tensors["transformer.h.0.attn.bias"] = np.tri(12, dtype=np.float32)
    tensors["transformer.h.1.attn.masked_bias"] = np.float32(-1e4).reshape(1)
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"].copy()


@pytest.mark.parametrize("change", [bare, with_buffers])
def test_other_ways_to_write_the_same(folder, change):
    change_tensors(folder, change)
    jax.tree.map(np.testing.assert_array_equal, sedd.load(folder).params, sedd.load(GOLDEN).params)


def test_weights_in_parts(folder):
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    parts = {name: f"part-{i % 2}.safetensors" for i, name in enumerate(tensors)}
    for part in set(parts.values()):
        save_file({k: v for k, v in tensors.items() if parts[k] == part}, folder / part)
    (folder / gpt2.INDEX).write_text(json.dumps({"weight_map": parts}))
    jax.tree.map(np.testing.assert_array_equal, sedd.load(folder).params, sedd.load(GOLDEN).params)
    (folder / "part-1.safetensors").unlink()
    with pytest.raises(BadInput, match=r"names files that are not there: part-1\.safetensors"):
        sedd.load(folder)
    (folder / gpt2.INDEX).write_text("[]")
    with pytest.raises(BadInput, match="has no weight_map"):
        sedd.load(folder)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("activation_function", "relu", "activation_function = 'relu': another network"),
        ("layer_norm_epsilon", 1e-6, "layer_norm_epsilon = 1e-06: another network"),
        ("n_inner", 32, "n_inner = 32: another network than GPT-2's, which has 64"),
        ("scale_attn_by_inverse_layer_idx", True, "scale_attn_by_inverse_layer_idx = True"),
        ("tie_word_embeddings", False, "tie_word_embeddings = False"),
        ("n_head", 3, "n_embd = 16, no multiple of n_head = 3"),
        ("n_embd", "16", "n_embd = '16', which should be int"),
        ("n_layer", 3, "lacks the tensor h.2.ln_1.weight"),
        ("n_positions", 13, r"wpe.weight of .* has shape \(12, 16\), the config needs \(13, 16\)"),
        ("vocab_size", 62, r"wte\.weight of .* has 61 rows, the config has vocab_size = 62"),
        ("vocab_size", 60, "vocab_size = 60 and bos_token_id = 60: the ids are not those of GPT-2"),
        ("vocab_size", 90, "vocab_size = 90 and bos_token_id = 60: the ids are not those of GPT-2"),
        ("bos_token_id", 0, "bos_token_id = 0: .* only padding and a few added tokens may follow"),
        ("bos_token_id", None, "bos_token_id = None: the ids are not those"),
    ],
)
def test_what_is_no_gpt_2_is_refused(folder, key, value, message):
    change_config(folder, **{key: value})
    with pytest.raises(BadInput, match=message):
        sedd.load(folder)


@pytest.mark.parametrize("more", [1, 3])
def test_rows_that_no_text_has_are_left_out(folder, capfd, more):
    def widen(tensors):
        table = tensors["transformer.wte.weight"]
        tensors["transformer.wte.weight"] = np.concatenate([table, table[:more] + 9])
        tensors["lm_head.weight"] = tensors["transformer.wte.weight"].copy()

    change_tensors(folder, widen)
    change_config(folder, vocab_size=61 + more, pad_token_id=61)
    found, wanted = sedd.load(folder), sedd.load(GOLDEN)
    jax.tree.map(np.testing.assert_array_equal, found.params, wanted.params)
    assert (found.config, found.model.start) == (wanted.config, 60)
    line = f"the last {more} of {61 + more} rows of the vocabulary in "
    assert capfd.readouterr().err.count(line) == 1


@pytest.mark.parametrize(
    ("rows", "start", "tokens"),
    [(50257, 50256, 50257), (50258, 50256, 50257), (50304, 50256, 50257), (50304, None, 50257)],
)
def test_the_sizes_of_gpt_2_with_padding(folder, rows, start, tokens):
    config = json.loads((folder / "config.json").read_text()) | {"vocab_size": rows}
    config |= {"bos_token_id": start}
    if start is None:  # its default is the id of GPT-2
        del config["bos_token_id"]
    (folder / "config.json").write_text(json.dumps(config))
    assert gpt2.read_config(folder).tokens == tokens


def test_tensors_that_do_not_fit_are_named(folder):
    change_tensors(folder, lambda tensors: tensors.update(extra=np.zeros(2, np.float32)))
    with pytest.raises(BadInput, match="tensors that do not belong: extra"):
        sedd.load(folder)
    head = {"lm_head.weight": np.zeros((61, 16), np.float32)}
    change_tensors(folder, lambda tensors: tensors.update(head))
    with pytest.raises(BadInput, match=r"has a lm_head\.weight of its own"):
        sedd.load(folder)
    with pytest.raises(BadInput, match="PyTorch layout, which has one set of weights"):
        sedd.load(GOLDEN, step=3)

"""GPT-2 in the layout of Hugging Face: a folder with config.json and a state dict."""

import dataclasses
from pathlib import Path

import numpy as np

from sedd_jax.errors import BadInput, warn
from sedd_jax.model.pretrained import (
    WEIGHTS,
    assemble,
    read_tensors,
)
from sedd_jax.model.settings_file import json_key, read_json, settings_from
from sedd_jax.model.transformer import Params

# of the larger sizes, whose weights are in several files
INDEX = "model.safetensors.index.json"
PARTS = (INDEX, "model-*-of-*.safetensors")

# path here -> name there, without the "transformer." that some files put in front. Matrices are
# [inputs, outputs] in both, with as many axes here as the inputs and outputs have.
_NAMES = {
    "embedding.table": "wte.weight",
    "embedding.positions": "wpe.weight",
    "blocks.attention_norm.scale": "h.{i}.ln_1.weight",
    "blocks.attention_norm.bias": "h.{i}.ln_1.bias",
    "blocks.qkv.kernel": "h.{i}.attn.c_attn.weight",
    "blocks.qkv.bias": "h.{i}.attn.c_attn.bias",
    "blocks.attention_out.kernel": "h.{i}.attn.c_proj.weight",
    "blocks.attention_out.bias": "h.{i}.attn.c_proj.bias",
    "blocks.mlp_norm.scale": "h.{i}.ln_2.weight",
    "blocks.mlp_norm.bias": "h.{i}.ln_2.bias",
    "blocks.mlp_in.kernel": "h.{i}.mlp.c_fc.weight",
    "blocks.mlp_in.bias": "h.{i}.mlp.c_fc.bias",
    "blocks.mlp_out.kernel": "h.{i}.mlp.c_proj.weight",
    "blocks.mlp_out.bias": "h.{i}.mlp.c_proj.bias",
    "head.norm.scale": "ln_f.weight",
    "head.norm.bias": "ln_f.bias",
}
_TOKENS = 50257  # of its tokenizer
_BUFFERS = (".attn.bias", ".attn.masked_bias")  # the causal mask, present in some files


@dataclasses.dataclass(frozen=True)
class GPT2Config:
    """The network's settings in config.json."""

    tokens: int = json_key("vocab_size")  # without rows that belong to no token
    hidden_size: int = json_key("n_embd")
    num_blocks: int = json_key("n_layer")
    num_heads: int = json_key("n_head")
    length: int = json_key("n_positions")
    dropout: float = json_key("resid_pdrop")


# what a config must say, or leave out, to be of this network
_FIXED = {
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
}


def is_gpt2(folder: Path) -> bool:
    """Says whether `folder` has the files of a GPT-2, by the model_type of its config.json.

    Raises:
      BadInput: config.json is not JSON.
    """
    config = folder / "config.json"
    has_weights = any((folder / name).is_file() for name in (*WEIGHTS, INDEX))
    if not has_weights or not config.is_file():
        return False
    values = read_json(config)
    return isinstance(values, dict) and values.get("model_type") == "gpt2"


def read_config(folder: Path) -> GPT2Config:
    """Reads config.json.

    Raises:
      BadInput: not JSON, a key missing or of the wrong type, or a network that is not GPT-2's.
    """
    path = folder / "config.json"
    values = read_json(path)
    config = settings_from(values, GPT2Config, path)
    derived = {"n_inner": 4 * config.hidden_size}
    for key, expected in (_FIXED | derived).items():
        found = values.get(key, expected)
        if found != expected and (key, found) != ("n_inner", None):
            raise BadInput(
                f"{path} has {key} = {found!r}: another network than GPT-2's, which has "
                f"{expected!r}."
            )
    if config.hidden_size % config.num_heads:
        raise BadInput(
            f"{path} has n_embd = {config.hidden_size}, no multiple of n_head = {config.num_heads}."
        )
    return dataclasses.replace(config, tokens=_num_tokens(values, config.tokens, path))


def _num_tokens(values, rows, path):
    """The tokens of `rows` of the table: the last one starts a text, as in GPT-2 itself."""
    start = values.get("bos_token_id", min(rows, _TOKENS) - 1)
    # rows behind it are padding, or of tokens that were added
    if type(start) is not int or not 0.9 * rows <= start + 1 <= rows:
        raise BadInput(
            f"{path} has vocab_size = {rows} and bos_token_id = {start!r}: the ids are not those "
            f"of GPT-2's tokenizer, whose last of {_TOKENS} starts a text; only padding and a few "
            "added tokens may follow it."
        )
    return start + 1


def read_params(folder: Path, abstract: Params, tokens: int) -> Params:
    """Reads the weights into the layout of `CausalModel`, as float32 numpy arrays.

    Args:
      folder: has model.safetensors, whole or in parts, or pytorch_model.bin.
      abstract: the expected parameters, for their shapes.
      tokens: V; the padding of the table is filled with zeros.

    Raises:
      BadInput: a file that cannot be read, or a tensor missing, misshapen or unexpected.
    """
    path, tensors = _read_weights(folder)
    tensors = {name.removeprefix("transformer."): x for name, x in tensors.items()}
    tensors = {name: x for name, x in tensors.items() if not name.endswith(_BUFFERS)}
    unembedding, table = tensors.pop("lm_head.weight", None), tensors.get("wte.weight")
    if unembedding is not None and not np.array_equal(unembedding, table):
        raise BadInput(f"{path} has a lm_head.weight of its own; GPT-2's is wte.weight.")
    rows = read_json(folder / "config.json")["vocab_size"]
    if table is not None and len(table) != rows:
        raise BadInput(
            f"Tensor wte.weight of {path} has {len(table)} rows, the config has vocab_size = "
            f"{rows}."
        )
    if table is not None and rows > tokens:
        warn(
            f"the last {rows - tokens} of {rows} rows of the vocabulary in {path} are left out: "
            "they are padding or added tokens, and no text has them"
        )
        tensors["wte.weight"] = table[:tokens]
    return assemble(_NAMES, tensors, abstract, tokens, path, transposed=False)


def _read_weights(folder):
    """Every tensor by name, and the file that lists them."""
    for path in (folder / name for name in WEIGHTS):
        if path.is_file():
            return path, read_tensors(path)
    path = folder / INDEX
    try:
        parts = sorted({folder / name for name in read_json(path)["weight_map"].values()})
    except (AttributeError, KeyError, TypeError) as error:
        raise BadInput(f"{path} has no weight_map from tensors to files.") from error
    if missing := [part.name for part in parts if not part.is_file()]:
        raise BadInput(f"{path} names files that are not there: {', '.join(missing)}.")
    return path, {name: x for part in parts for name, x in read_tensors(part).items()}

"""GPT-2 in the layout of Hugging Face: a folder with config.json and a state dict."""

import dataclasses
import math
from pathlib import Path

import numpy as np

from sedd_jax.errors import BadInput
from sedd_jax.model.pretrained import (
    WEIGHTS,
    assemble,
    check_shape,
    fill,
    read_json,
    read_tensors,
    settings_from,
)
from sedd_jax.model.stack import Params

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
_BUFFERS = (".attn.bias", ".attn.masked_bias")  # the causal mask, present in some files


@dataclasses.dataclass(frozen=True)
class GPT2Config:
    """What config.json says of the network."""

    tokens: int
    hidden_size: int
    num_blocks: int
    num_heads: int
    length: int
    dropout: float


_CONFIG_KEYS = {
    "tokens": "vocab_size",
    "hidden_size": "n_embd",
    "num_blocks": "n_layer",
    "num_heads": "n_head",
    "length": "n_positions",
    "dropout": "resid_pdrop",
}
# what must be so, or not be said, for the network to be this one
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
    config = settings_from(values, GPT2Config, _CONFIG_KEYS, path)
    # the start of a text is the last token, as in GPT-2 itself
    derived = {"n_inner": 4 * config.hidden_size, "bos_token_id": config.tokens - 1}
    for key, wanted in (_FIXED | derived).items():
        found = values.get(key, wanted)
        if found != wanted and (key, found) != ("n_inner", None):
            raise BadInput(
                f"{path} has {key} = {found!r}: another network than GPT-2's, which has {wanted!r}."
            )
    if config.hidden_size % config.num_heads:
        raise BadInput(
            f"{path} has n_embd = {config.hidden_size}, no multiple of n_head = {config.num_heads}."
        )
    return config


def read_params(folder: Path, abstract: Params, tokens: int) -> Params:
    """Reads the weights into the layout of `causal_model`, as float32 numpy arrays.

    Args:
      folder: has model.safetensors, whole or in parts, or pytorch_model.bin.
      abstract: the parameters wanted, for their shapes.
      tokens: V; the padding of the table is filled with zeros.

    Raises:
      BadInput: a file that cannot be read, or a tensor missing, misshapen or unexpected.
    """
    path, tensors = _read_weights(folder)
    tensors = {name.removeprefix("transformer."): x for name, x in tensors.items()}
    tensors = {name: x for name, x in tensors.items() if not name.endswith(_BUFFERS)}
    outputs, table = tensors.pop("lm_head.weight", None), tensors.get("wte.weight")
    if outputs is not None and not np.array_equal(outputs, table):
        raise BadInput(f"{path} has a lm_head.weight of its own; GPT-2's is wte.weight.")

    def convert(here, tensor, shape, name):
        unpadded = (tokens, shape[1]) if here == "embedding.table" else shape
        check_shape(name, tensor, _shape_there(here, unpadded))
        return fill(tensor, unpadded, shape)

    return assemble(_NAMES, tensors, abstract, convert, path)


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


def _shape_there(here, shape):
    """The shape of a tensor there, where inputs and outputs have one axis each."""
    if not here.endswith(".kernel"):
        return shape if here.startswith("embedding.") else (math.prod(shape),)
    inputs = 2 if here == "blocks.attention_out.kernel" else 1
    return math.prod(shape[:inputs]), math.prod(shape[inputs:])

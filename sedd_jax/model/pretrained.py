"""Weights in the published PyTorch layout: a folder with config.json and a state dict."""

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from sedd_jax.errors import BadInput
from sedd_jax.model.score_model import Params
from sedd_jax.model.torch_file import load_torch_file

WEIGHTS = ("model.safetensors", "pytorch_model.bin")

# path here -> name there; {i} is the block, an axis of its own here. A kernel is the transpose
# of the published matrix, its rows and columns reshaped to this layout's axes.
_NAMES = {
    "embedding.table": "vocab_embed.embedding",
    "sigma.inner.kernel": "sigma_map.mlp.0.weight",
    "sigma.inner.bias": "sigma_map.mlp.0.bias",
    "sigma.outer.kernel": "sigma_map.mlp.2.weight",
    "sigma.outer.bias": "sigma_map.mlp.2.bias",
    "blocks.attention_norm.scale": "blocks.{i}.norm1.weight",
    "blocks.qkv.kernel": "blocks.{i}.attn_qkv.weight",
    "blocks.attention_out.kernel": "blocks.{i}.attn_out.weight",
    "blocks.mlp_norm.scale": "blocks.{i}.norm2.weight",
    "blocks.mlp_in.kernel": "blocks.{i}.mlp.0.weight",
    "blocks.mlp_in.bias": "blocks.{i}.mlp.0.bias",
    "blocks.mlp_out.kernel": "blocks.{i}.mlp.2.weight",
    "blocks.mlp_out.bias": "blocks.{i}.mlp.2.bias",
    "blocks.modulation.kernel": "blocks.{i}.adaLN_modulation.weight",
    "blocks.modulation.bias": "blocks.{i}.adaLN_modulation.bias",
    "head.norm.scale": "output_layer.norm_final.weight",
    "head.modulation.kernel": "output_layer.adaLN_modulation.weight",
    "head.modulation.bias": "output_layer.adaLN_modulation.bias",
    "head.kernel": "output_layer.linear.weight",
    "head.bias": "output_layer.linear.bias",
}
_VOCAB_AXIS = {"embedding.table": 0, "head.kernel": 1, "head.bias": 0}
_BUFFERS = {"rotary_emb.inv_freq"}  # derived, present in some files


@dataclasses.dataclass(frozen=True)
class PublishedConfig:
    """What the published config.json says of the network. `tokens` excludes the mask."""

    tokens: int
    graph: str
    noise: str
    sigma_min: float
    sigma_max: float
    hidden_size: int
    cond_dim: int
    length: int
    num_blocks: int
    num_heads: int
    scale_by_sigma: bool
    dropout: float


_CONFIG_KEYS = {
    "tokens": "tokens",
    "graph": "graph.type",
    "noise": "noise.type",
    "sigma_min": "noise.sigma_min",
    "sigma_max": "noise.sigma_max",
    "hidden_size": "model.hidden_size",
    "cond_dim": "model.cond_dim",
    "length": "model.length",
    "num_blocks": "model.n_blocks",
    "num_heads": "model.n_heads",
    "scale_by_sigma": "model.scale_by_sigma",
    "dropout": "model.dropout",
}


def is_published(folder: Path) -> bool:
    """Says whether `folder` has the files of the published layout."""
    has_weights = any((folder / name).is_file() for name in WEIGHTS)
    return has_weights and (folder / "config.json").is_file()


def read_config(folder: Path) -> PublishedConfig:
    """Reads config.json.

    Raises:
      BadInput: not JSON, or a key missing or of the wrong type.
    """
    return read_settings(folder / "config.json", PublishedConfig, _CONFIG_KEYS)


def read_settings(path: Path, kind: type, keys: dict[str, str]) -> Any:
    """Returns a dataclass of settings from a JSON file, each by its dotted key there.

    Raises:
      BadInput: not JSON, or a key missing or of the wrong type.
    """
    values = read_json(path)
    return kind(
        **{
            field.name: _lookup(values, keys[field.name], field.type, path)
            for field in dataclasses.fields(kind)
        }
    )


def read_json(path: Path) -> Any:
    """Returns what a JSON file holds; BadInput where it is none."""
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise BadInput(f"{path} is not valid JSON: {error}.") from error


def _lookup(values, dotted, kind, path):
    for part in dotted.split("."):
        if not isinstance(values, dict) or part not in values:
            raise BadInput(f"{path} has no {dotted}.")
        values = values[part]
    if kind is float and type(values) is int:
        values = float(values)
    if type(values) is not kind:
        raise BadInput(f"{path} has {dotted} = {values!r}, which should be {kind.__name__}.")
    return values


def read_params(folder: Path, abstract: Params, num_states: int) -> Params:
    """Reads the weights into the layout of `score_model`, as float32 numpy arrays.

    Args:
      folder: has model.safetensors or pytorch_model.bin.
      abstract: the parameters wanted, for their shapes.
      num_states: V; the padding of the vocabulary axis is filled with zeros.

    Raises:
      BadInput: a file that cannot be read, or a tensor missing, misshapen or unexpected.
    """
    path = next(folder / name for name in WEIGHTS if (folder / name).is_file())
    tensors = {name: x for name, x in read_tensors(path).items() if name not in _BUFFERS}

    def convert(here, tensor, shape, name):
        axis = _VOCAB_AXIS.get(here)
        unpadded = tuple(num_states if i == axis else size for i, size in enumerate(shape))
        if here.endswith(".kernel"):
            check_shape(name, tensor, _published_shape(here, unpadded))
            tensor = tensor.T
        else:
            check_shape(name, tensor, unpadded if here == "embedding.table" else _flat(unpadded))
        return fill(tensor, unpadded, shape)

    return assemble(_NAMES, tensors, abstract, convert, path)


def assemble(
    names: dict[str, str],
    tensors: dict[str, np.ndarray],
    abstract: Params,
    convert: Callable[[str, np.ndarray, tuple[int, ...], str], np.ndarray],
    path: Path,
) -> Params:
    """Returns parameters made of the tensors of a file.

    Args:
      names: path here -> name there; {i} is the block, an axis of its own here.
      tensors: by name; used up.
      abstract: the parameters wanted, for their shapes.
      convert: convert(here, tensor, shape, name) -> the leaf `here`, of one block, of that shape.
      path: of the file, for messages.

    Raises:
      BadInput: a tensor is missing, or there are others.
    """
    params: dict[str, Any] = {}
    for here, there in names.items():
        *groups, leaf = here.split(".")
        node, wanted = params, abstract
        for group in groups:
            node, wanted = node.setdefault(group, {}), wanted[group]
        shape = wanted[leaf].shape
        if "{i}" in there:
            blocks = [there.format(i=i) for i in range(shape[0])]
            node[leaf] = np.stack(
                [convert(here, _take(tensors, name, path), shape[1:], name) for name in blocks]
            )
        else:
            node[leaf] = convert(here, _take(tensors, there, path), shape, there)
    if tensors:
        raise BadInput(f"{path} has tensors that do not belong: {', '.join(sorted(tensors))}.")
    return params


def _take(tensors, name, path):
    if name not in tensors:
        raise BadInput(f"{path} lacks the tensor {name}.")
    return tensors.pop(name)


def check_shape(name: str, tensor: np.ndarray, shape: tuple[int, ...]) -> None:
    """Raises BadInput unless the tensor has the shape."""
    if tensor.shape != shape:
        raise BadInput(f"Tensor {name} has shape {tensor.shape}, the config needs {shape}.")


def fill(tensor: np.ndarray, unpadded: tuple[int, ...], shape: tuple[int, ...]) -> np.ndarray:
    """Returns the tensor in float32, in the unpadded shape, filled with zeros up to the shape."""
    leaf = tensor.astype(np.float32).reshape(unpadded)
    return np.pad(leaf, [(0, padded - size) for padded, size in zip(shape, unpadded, strict=True)])


def _flat(shape):
    return (int(np.prod(shape)),)


def _published_shape(here, shape):
    """[out, in] of a kernel: the inputs are its first axis, or (heads, width) for attention_out."""
    inputs = 2 if here == "blocks.attention_out.kernel" else 1
    return int(np.prod(shape[inputs:])), int(np.prod(shape[:inputs]))


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """Reads every tensor of a safetensors or PyTorch file, without PyTorch.

    Raises:
      BadInput: the file is damaged, or a pickle that asks for anything but tensors.
    """
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise BadInput(f"{path} is not a readable safetensors file: {error}.") from error
    tensors = load_torch_file(path)
    return {re.sub(r"^module\.", "", name): tensor for name, tensor in tensors.items()}

"""The published PyTorch layout, a folder with config.json and a state dict: read and written."""

import dataclasses
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from sedd_jax.errors import BadInput
from sedd_jax.model.score_model import Params
from sedd_jax.model.sharding import leaves_by_path
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
_BUFFER = "rotary_emb.inv_freq"  # derived, absent from some files; the published code wants it
_LFS_POINTER = b"version https://git-lfs"


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
    """Reads config.json, whose settings may also be under the key "config".

    Raises:
      BadInput: not JSON, or a key missing or of the wrong type.
    """
    path = folder / "config.json"
    values = read_json(path)
    if isinstance(values, dict) and isinstance(values.get("config"), dict):
        values = values["config"]
    return settings_from(values, PublishedConfig, _CONFIG_KEYS, path)


def settings_from(values: Any, kind: type, keys: dict[str, str], path: Path) -> Any:
    """Returns a dataclass of settings from JSON values, each by its dotted key there.

    Raises:
      BadInput: a key is missing, or its value of the wrong type; `path` is named.
    """
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
    tensors = read_tensors(path)
    tensors.pop(_BUFFER, None)

    def convert(here, tensor, shape, name):
        unpadded = _unpadded(here, shape, num_states)
        check_shape(name, tensor, _published_shape(here, unpadded))
        return fill(tensor.T if here.endswith(".kernel") else tensor, unpadded, shape)

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
      convert: convert(here, tensor, shape, name) -> the leaf `here`, of one block, of that shape;
        the name is for messages, and says the file too.
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
                [
                    convert(here, _take(tensors, name, path), shape[1:], f"{name} of {path}")
                    for name in blocks
                ]
            )
        else:
            node[leaf] = convert(here, _take(tensors, there, path), shape, f"{there} of {path}")
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


def _unpadded(here, shape, num_states):
    axis = _VOCAB_AXIS.get(here)
    return tuple(num_states if i == axis else size for i, size in enumerate(shape))


def _published_shape(here, shape):
    """[out, in] of a kernel: the inputs are its first axis, or (heads, width) for attention_out."""
    if here == "embedding.table":
        return shape
    if not here.endswith(".kernel"):
        return (math.prod(shape),)
    inputs = 2 if here == "blocks.attention_out.kernel" else 1
    return math.prod(shape[inputs:]), math.prod(shape[:inputs])


def write_published(folder: Path, config: PublishedConfig, params: Params, num_states: int) -> None:
    """Writes config.json and model.safetensors, which the published code loads strictly.

    Args:
      folder: has neither of the files.
      config: of the network.
      params: the weights in the layout of `score_model`; `read_params` brings back their bits.
      num_states: V; what lies beyond it on the vocabulary axis is left out.
    """
    from safetensors.numpy import save_file

    values: dict[str, Any] = {}
    for field, dotted in _CONFIG_KEYS.items():
        *groups, key = dotted.split(".")
        node = values
        for group in groups:
            node = node.setdefault(group, {})
        node[key] = getattr(config, field)
    (folder / "config.json").write_text(json.dumps(values, indent=1) + "\n")
    tensors = dict(_published_tensors(params, num_states))
    width = config.hidden_size // config.num_heads
    tensors[_BUFFER] = 1 / 10_000 ** (np.arange(0, width, 2, dtype=np.float32) / np.float32(width))
    save_file(tensors, folder / WEIGHTS[0], metadata={"format": "pt"})


def _published_tensors(params, num_states):
    """Yields the published tensors by name, as float32 arrays that own their memory."""
    leaves = leaves_by_path(params)
    for here, there in _NAMES.items():
        leaf = np.asarray(leaves.pop(here.replace(".", "/")))
        if "{i}" in there:
            for i, part in enumerate(leaf):
                yield there.format(i=i), _publish(here, part, num_states)
        else:
            yield there, _publish(here, leaf, num_states)
    assert not leaves, f"the published layout has no place for {', '.join(leaves)}"


def _publish(here, leaf, num_states):
    """Turns the leaf `here` into the published tensor: the inverse of `convert` above."""
    unpadded = _unpadded(here, leaf.shape, num_states)
    leaf = leaf[tuple(map(slice, unpadded))]
    shape = _published_shape(here, unpadded)
    tensor = leaf.reshape(shape[::-1]).T if here.endswith(".kernel") else leaf.reshape(shape)
    return np.ascontiguousarray(tensor)  # safetensors writes memory as it lies


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """Reads every tensor of a safetensors or PyTorch file, without PyTorch.

    Raises:
      BadInput: the file is damaged, of a type that numpy lacks, or a pickle that asks for anything
        but tensors.
    """
    with path.open("rb") as file:
        if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
            raise BadInput(
                f"{path} is a Git LFS pointer, not the weights: run `git lfs pull` in its folder."
            )
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise BadInput(
                f"{path} is not a readable safetensors file: {error}; fetch it again."
            ) from error
        except (AttributeError, KeyError, TypeError) as error:  # how a type is looked up there
            raise BadInput(
                f"{path} holds numbers of a type that numpy lacks ({error}); convert them to "
                "float32."
            ) from error
    tensors = load_torch_file(path)
    return {re.sub(r"^module\.", "", name): tensor for name, tensor in tensors.items()}

"""The published PyTorch layout, a folder with config.json and a state dict: read and written."""

import dataclasses
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from sedd_jax.errors import BadInput
from sedd_jax.model.settings_file import json_key, read_json, settings_from
from sedd_jax.model.sharding import leaves_by_path
from sedd_jax.model.torch_file import load_torch_file
from sedd_jax.model.transformer import Params

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
BUFFER = "rotary_emb.inv_freq"  # derived, absent from some files; the published code needs it
_WRAPPERS = ("module.", "_orig_mod.")  # of DistributedDataParallel and torch.compile
_QUANTISED = (np.int8, np.uint8, np.bool_)  # their scale stands elsewhere
_LFS_POINTER = b"version https://git-lfs"


@dataclasses.dataclass(frozen=True)
class PublishedConfig:
    """The settings of the published config.json. `tokens` excludes the mask."""

    tokens: int = json_key("tokens")
    graph: str = json_key("graph.type")
    noise: str = json_key("noise.type")
    sigma_min: float = json_key("noise.sigma_min")
    sigma_max: float = json_key("noise.sigma_max")
    hidden_size: int = json_key("model.hidden_size")
    cond_dim: int = json_key("model.cond_dim")
    length: int = json_key("model.length")
    num_blocks: int = json_key("model.n_blocks")
    num_heads: int = json_key("model.n_heads")
    scale_by_sigma: bool = json_key("model.scale_by_sigma")
    dropout: float = json_key("model.dropout")


_SHOWN = 8  # keys in a message
NO_NETWORK = ("graph.file", "graph.report_all", "model.name", "model.type")  # settings besides


def is_published(folder: Path) -> bool:
    """Says whether `folder` has the files of the published layout."""
    has_weights = any((folder / name).is_file() for name in WEIGHTS)
    return has_weights and (folder / "config.json").is_file()


def weights_file(folder: Path) -> Path:
    """Returns the state dict of a folder that has one."""
    return next(folder / name for name in WEIGHTS if (folder / name).is_file())


def read_values(path: Path) -> Any:
    """Reads config.json, whose settings may also be under the key "config"."""
    values = read_json(path)
    inner = values.get("config") if isinstance(values, dict) else None
    return inner if isinstance(inner, dict) else values


def read_config(folder: Path) -> PublishedConfig:
    """Reads config.json.

    Raises:
      BadInput: not JSON, of another kind of model, or a key missing or of the wrong type.
    """
    path = folder / "config.json"
    values = read_values(path)
    if not isinstance(values, dict) or "graph" not in values:
        keys = dict(values) if isinstance(values, dict) else {}
        kind = f"the model_type {keys['model_type']!r}" if "model_type" in keys else "no model_type"
        raise BadInput(
            f"{path} describes no model that is read: it has {kind}, and the keys "
            f"{', '.join([*keys][:_SHOWN]) or '(none)'}. Read are the model_type gpt2, mdlm, udlm "
            "or duo and, without one, graph with tokens, noise and model (SEDD), or model.type "
            "ddit_wot (RADD)."
        )
    return settings_from(values, PublishedConfig, path, NO_NETWORK)


def read_params(folder: Path, abstract: Params, num_states: int) -> Params:
    """Reads the weights into the layout of `score_model`, as float32 numpy arrays.

    Args:
      folder: has model.safetensors or pytorch_model.bin.
      abstract: the expected parameters, for their shapes.
      num_states: V; the padding of the vocabulary axis is filled with zeros.

    Raises:
      BadInput: a file that cannot be read, or a tensor missing, misshapen or unexpected.
    """
    path = weights_file(folder)
    return published_params(read_tensors(path), abstract, num_states, path)


def published_params(
    tensors: dict[str, np.ndarray], abstract: Params, num_states: int, path: Path
) -> Params:
    """Returns published tensors in the layout of `score_model`, see `assemble`.

    Args:
      tensors: by their published names; emptied.
      abstract: the expected parameters, for their shapes.
      num_states: V.
      path: of the file, for messages.
    """
    buffer = tensors.pop(BUFFER, None)
    if buffer is not None and not np.allclose(
        buffer.astype(np.float32), _frequencies(buffer.size), rtol=0.01
    ):
        raise BadInput(
            f"Tensor {BUFFER} of {path} has other frequencies of rotary positions than those here "
            "(base 10,000): it is another network."
        )
    return assemble(_NAMES, tensors, abstract, num_states, path, transposed=True)


def assemble(
    names: dict[str, str],
    tensors: dict[str, np.ndarray],
    abstract: Params,
    num_states: int,
    path: Path,
    *,
    transposed: bool,
) -> Params:
    """Returns float32 parameters made of the tensors of a file.

    Args:
      names: path here -> name in the file; {i} is the block, an axis of its own here.
      tensors: by name; emptied.
      abstract: the expected parameters, for their shapes.
      num_states: V; the padding of the vocabulary axis is filled with zeros.
      path: of the file, for messages.
      transposed: whether matrices in the file are [outputs, inputs].

    Raises:
      BadInput: a tensor is missing, misshapen or unexpected.
    """

    def leaf(here, name, shape):
        unpadded = _unpadded(here, shape, num_states)
        tensor = take(tensors, name, _file_shape(here, unpadded, transposed), path)
        tensor = tensor.T if transposed and here.endswith(".kernel") else tensor
        more = [(0, full - size) for full, size in zip(shape, unpadded, strict=True)]
        return np.pad(tensor.astype(np.float32).reshape(unpadded), more)

    params: dict[str, Any] = {}
    for here, name in names.items():
        *groups, last = here.split(".")
        node, expected = params, abstract
        for group in groups:
            node, expected = node.setdefault(group, {}), expected[group]
        shape = expected[last].shape
        if "{i}" in name:
            blocks = [leaf(here, name.format(i=i), shape[1:]) for i in range(shape[0])]
            node[last] = np.stack(blocks)
        else:
            node[last] = leaf(here, name, shape)
    if tensors:
        raise BadInput(f"{path} has tensors that do not belong: {', '.join(sorted(tensors))}.")
    return params


def take(
    tensors: dict[str, np.ndarray], name: str, shape: tuple[int, ...], path: Path
) -> np.ndarray:
    """Removes a tensor from those of a file, and returns it.

    Args:
      tensors: by name.
      name: of the tensor.
      shape: that it must have.
      path: of the file, for messages.

    Raises:
      BadInput: it is missing, misshapen or quantised.
    """
    if name not in tensors:
        raise BadInput(f"{path} lacks the tensor {name}.")
    tensor = tensors.pop(name)
    if tensor.shape != shape:
        raise BadInput(
            f"Tensor {name} of {path} has shape {tensor.shape}, the config needs {shape}."
        )
    if tensor.dtype in _QUANTISED:
        raise BadInput(
            f"Tensor {name} of {path} is of {tensor.dtype}, as quantised weights are; convert "
            "them to float32 with the code that wrote them."
        )
    return tensor


def _unpadded(here, shape, num_states):
    axis = _VOCAB_AXIS.get(here)
    return tuple(num_states if i == axis else size for i, size in enumerate(shape))


def _file_shape(here, shape, transposed):
    """The shape in a file, where inputs and outputs of a kernel have one axis each."""
    if not here.endswith(".kernel"):
        return shape if here.startswith("embedding.") else (math.prod(shape),)
    inputs = 2 if here == "blocks.attention_out.kernel" else 1
    matrix = math.prod(shape[:inputs]), math.prod(shape[inputs:])
    return matrix[::-1] if transposed else matrix


def write_published(folder: Path, config: PublishedConfig, params: Params, num_states: int) -> None:
    """Writes config.json and model.safetensors, which the published code loads strictly.

    Args:
      folder: has neither of the files.
      config: of the network.
      params: the weights in the layout of `score_model`; `read_params` restores their bits.
      num_states: V; the padding of the vocabulary axis is left out.
    """
    from safetensors.numpy import save_file

    values: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        *groups, key = field.metadata["key"].split(".")
        node = values
        for group in groups:
            node = node.setdefault(group, {})
        node[key] = getattr(config, field.name)
    (folder / "config.json").write_text(json.dumps(values, indent=1) + "\n")
    tensors = dict(_published_tensors(params, num_states))
    width = config.hidden_size // config.num_heads
    tensors[BUFFER] = _frequencies(width // 2)
    save_file(tensors, folder / WEIGHTS[0], metadata={"format": "pt"})
    # safetensors writes a file that only its owner can read, whatever the umask
    shutil.copymode(folder / "config.json", folder / WEIGHTS[0])


def _frequencies(count):
    """Of rotary positions, as the published code computes them."""
    even = np.arange(0, 2 * count, 2, dtype=np.float32)
    return 1 / 10_000 ** (even / np.float32(2 * count))


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
    """The published tensor of the leaf `here`: the inverse of `leaf` in `assemble`."""
    unpadded = _unpadded(here, leaf.shape, num_states)
    leaf = leaf[tuple(map(slice, unpadded))]
    shape = _file_shape(here, unpadded, transposed=True)
    tensor = leaf.reshape(shape[::-1]).T if here.endswith(".kernel") else leaf.reshape(shape)
    return np.ascontiguousarray(tensor)  # safetensors writes the buffer in memory order


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
            return without_wrappers(load_file(path), path)
        except SafetensorError as error:
            raise BadInput(
                f"{path} is not a readable safetensors file: {error}; fetch it again."
            ) from error
        except (AttributeError, KeyError, TypeError) as error:  # how a type is looked up there
            raise BadInput(
                f"{path} holds numbers of a type that numpy lacks ({error}); convert them to "
                "float32."
            ) from error
    return without_wrappers(load_torch_file(path), path)


def without_wrappers(tensors: dict[str, Any], path: Path) -> dict[str, Any]:
    """Returns a state dict without the prefixes that PyTorch's wrappers put before every name.

    Args:
      tensors: by name.
      path: of the file, for messages.

    Raises:
      BadInput: some names have the prefix and others not.
    """
    while wrapped := [name for name in tensors if name.startswith(_WRAPPERS)]:
        prefix = next(it for it in _WRAPPERS if wrapped[0].startswith(it))
        if others := [name for name in tensors if not name.startswith(prefix)]:
            raise BadInput(
                f"{path} has names with {prefix} before them ({wrapped[0]}) and others without "
                f"({others[0]}): save the state dict of the model itself."
            )
        tensors = {name.removeprefix(prefix): x for name, x in tensors.items()}
    return tensors

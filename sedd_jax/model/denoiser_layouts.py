"""MDLM, UDLM, Duo and RADD as published: a folder with config.json and a state dict.

Their trunk is SEDD's and their logits are a softmax over the tokens, of which the ratios are a
closed form (`diffusion.output`):

    layout  config.json              graph      softmax        the network is told
    mdlm    model_type mdlm          absorbing  denoiser       nothing, or sigma (time_conditioning)
    udlm    model_type udlm          uniform    leave one out  sigma, or nothing
    duo     model_type duo           uniform    leave one out  sigma
    radd    model.type ddit_wot      absorbing  denoiser       nothing: it has no weights for it

All are trained with log-linear noise; of these layouts only RADD's names it. A mask is the last
state, as in all models on the hub.

References:
  Sahoo et al., Simple and Effective Masked Diffusion Language Models, 2024 (arXiv 2406.07524).
  Schiff et al., Simple Guidance Mechanisms for Discrete Diffusion Models, 2024 (arXiv 2412.10193).
  Sahoo et al., The Diffusion Duality, 2025 (arXiv 2506.10892).
  Ou et al., Your Absorbing Discrete Diffusion Secretly Models the Conditional Distributions of
    Clean Data, 2024 (arXiv 2406.03736).
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from sedd_jax.errors import BadInput
from sedd_jax.model.pretrained import (
    is_published,
    published_params,
    read_tensors,
    read_values,
    take,
    weights_file,
)
from sedd_jax.model.score_model import FREQUENCIES
from sedd_jax.model.settings_file import json_key, settings_from
from sedd_jax.model.transformer import Params

_PREFIX = "backbone."  # of the network in a Hugging Face class
_CLASSES = "cond_map.embedding_table.weight"  # of a UDLM with classes
_RADD = "ddit_wot"  # its model.type
_MASKED = {"graph": "absorb", "output": "denoiser"}
_UNIFORM = {"graph": "uniform", "output": "leave_one_out"}
_KINDS = {"mdlm": _MASKED, "udlm": _UNIFORM, "duo": _UNIFORM, _RADD: _MASKED}
_GIDD = (
    "is of the type dit, as GIDD's are: their network is told t and not sigma, and the mixture of "
    "mask and uniform noise changes with t, for which there is no graph here (docs/checkpoints.md)."
)


@dataclasses.dataclass(frozen=True)
class DenoiserConfig:
    """The settings of a model. `tokens` excludes the mask."""

    tokens: int
    graph: str
    output: str
    time_conditioning: bool
    hidden_size: int
    cond_dim: int
    length: int
    num_blocks: int
    num_heads: int
    dropout: float
    noise: str = "loglinear"
    sigma_min: float = 1e-4  # of another schedule, as sigma_max
    sigma_max: float = 20.0
    scale_by_sigma: bool = False


@dataclasses.dataclass(frozen=True)
class _Hub:
    """The keys of the Hugging Face classes."""

    states: int = json_key("vocab_size")
    hidden_size: int = json_key("hidden_dim")
    cond_dim: int = json_key("cond_dim")
    length: int = json_key("model_length")
    num_blocks: int = json_key("n_blocks")
    num_heads: int = json_key("n_heads")
    dropout: float = json_key("dropout")
    time_conditioning: bool = json_key("time_conditioning")


@dataclasses.dataclass(frozen=True)
class _Radd:
    """The keys of RADD's settings, of which the network uses these."""

    tokens: int = json_key("tokens")
    noise: str = json_key("noise.type")
    sigma_min: float = json_key("noise.sigma_min")
    sigma_max: float = json_key("noise.sigma_max")
    hidden_size: int = json_key("model.hidden_size")
    length: int = json_key("model.length")
    num_blocks: int = json_key("model.n_blocks")
    num_heads: int = json_key("model.n_heads")
    dropout: float = json_key("model.dropout")


_RADD_OTHERS = ("model.name", "model.type", "model.cond_dim", "model.use_checkpoint", "model.dtype")


def is_denoiser(folder: Path) -> bool:
    """Says whether `folder` has the files of one of these layouts, by its config.json.

    Raises:
      BadInput: config.json is not JSON.
    """
    if not is_published(folder):
        return False
    return _kind(read_values(folder / "config.json")) in (*_KINDS, "dit")


def _kind(values) -> Any:
    """Returns the model_type, or the model.type of a config that has none."""
    if not isinstance(values, dict):
        return None
    model = values.get("model")
    return values.get("model_type", model.get("type") if isinstance(model, dict) else None)


def read_config(folder: Path) -> DenoiserConfig:
    """Reads config.json.

    Raises:
      BadInput: not JSON, a key missing or of the wrong type, or a network that is none of these.
    """
    path = folder / "config.json"
    values = read_values(path)
    kind = _kind(values)
    if kind == "dit":
        raise BadInput(f"The model in {folder} {_GIDD}")
    if kind == _RADD:
        found = settings_from(values, _Radd, path, _RADD_OTHERS)
        # no weights depend on the noise: the modulation is a bias, of a condition of one zero
        return DenoiserConfig(
            **_MASKED, **dataclasses.asdict(found), time_conditioning=False, cond_dim=1
        )
    if kind == "duo":
        values = {"time_conditioning": True} | values
    found = dataclasses.asdict(settings_from(values, _Hub, path))
    states, masks = found.pop("states"), _KINDS[kind] is _MASKED
    if values.get("causal"):
        raise BadInput(f"{path} has causal = true: it is an autoregressive network, not {kind}'s.")
    mask = values.get("mask_token_id")
    if masks and mask not in (None, states - 1):
        raise BadInput(
            f"{path} has mask_token_id = {mask}, and only the last of its {states} states can be "
            "the mask here: move the mask's row of vocab_embed and output_layer.linear to the end."
        )
    return DenoiserConfig(states - masks, **_KINDS[kind], **found)


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
    values, tensors = read_values(folder / "config.json"), read_tensors(path)
    if _kind(values) == _RADD:
        blocks, hidden = abstract["blocks"]["attention_norm"]["scale"].shape
        tensors = _with_modulation(tensors, blocks, hidden, path)
    else:
        tensors = _network(tensors, path)
        if _CLASSES in tensors:
            _give_no_class(tensors, abstract["sigma"]["outer"]["bias"].size, path)
    return published_params(tensors, abstract, num_states, path)


def _network(tensors, path):
    """The tensors of the network alone, by SEDD's names."""
    if outside := sorted(name for name in tensors if not name.startswith(_PREFIX)):
        raise BadInput(
            f"{path} has tensors that are not under {_PREFIX} ({outside[0]}), as those of MDLM, "
            "UDLM and Duo on the hub are: name them so, or leave them out."
        )
    return {name.removeprefix(_PREFIX): x for name, x in tensors.items()}


def _give_no_class(tensors, cond_dim, path):
    """Folds the embedding of "no class", the last, into the biases that it is always added to.

    The condition is silu(sigma_map) + silu(class), and modulation is linear in it.
    """
    num_classes = max(1, *tensors[_CLASSES].shape[:1], 0)
    no_class = take(tensors, _CLASSES, (num_classes, cond_dim), path)[-1].astype(np.float32)
    condition = no_class / (1 + np.exp(-no_class))
    for name in [name for name in tensors if name.endswith("adaLN_modulation.weight")]:
        bias, outputs = name.removesuffix("weight") + "bias", tensors[name].shape[:1]
        weight = take(tensors, name, (*outputs, cond_dim), path)
        tensors[bias] = take(tensors, bias, outputs, path) + weight @ condition
        tensors[name] = weight


def _with_modulation(tensors, num_blocks, hidden_size, path):
    """RADD's tensors as SEDD's: the biases of its norms are shifts, and every branch has a gate 1.

    The weights by which a condition would act are zeros.
    """
    ones, zeros = np.ones(hidden_size, np.float32), np.zeros(hidden_size, np.float32)

    def shift(name):
        return take(tensors, f"{name}.bias", (hidden_size,), path)

    def modulate(name, *parts):
        bias = np.concatenate(parts)
        tensors[f"{name}.bias"], tensors[f"{name}.weight"] = bias, np.zeros((bias.size, 1))

    modulate("output_layer.adaLN_modulation", shift("output_layer.norm_final"), zeros)
    for i in range(num_blocks):
        block = f"blocks.{i}"
        first, second = shift(f"{block}.norm1"), shift(f"{block}.norm2")
        modulate(f"{block}.adaLN_modulation", first, zeros, ones, second, zeros, ones)
    return tensors | {
        "sigma_map.mlp.0.weight": np.zeros((1, FREQUENCIES)),
        "sigma_map.mlp.0.bias": np.zeros(1),
        "sigma_map.mlp.2.weight": np.zeros((1, 1)),
        "sigma_map.mlp.2.bias": np.zeros(1),
    }

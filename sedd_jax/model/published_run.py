"""The folder of a run of the published training script: settings, and checkpoints of everything.

A checkpoint is a dict of the model's state dict, the optimizer's, the averages of the parameters
(`shadow_params`, a list in the order of the parameters) and the step.

References:
  Lou, Meng, Ermon, https://github.com/louaaron/Score-Entropy-Discrete-Diffusion, utils.py, ema.py
"""

import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from sedd_jax.errors import BadInput
from sedd_jax.model.pretrained import (
    BUFFER,
    NO_NETWORK,
    PublishedConfig,
    published_params,
    without_wrappers,
)
from sedd_jax.model.settings_file import settings_from
from sedd_jax.model.torch_file import StoredTensor, load_torch_file
from sedd_jax.model.transformer import Params

_SETTINGS = Path(".hydra") / "config.yaml"
_LATEST = Path("checkpoints-meta") / "checkpoint.pth"
FILES = (_SETTINGS.as_posix(), _LATEST.as_posix())
_OTHERS = "checkpoints/checkpoint_*.pth"


class _Loader(yaml.SafeLoader):
    """YAML in which 1e-4 is a number, as for OmegaConf; PyYAML alone wants a dot in it."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+"), list("-+0123456789")
)


def is_published_run(path: Path) -> bool:
    """Says whether `path` is such a folder, or one of the checkpoints in it."""
    if not (path.exists() and (_folder(path) / _SETTINGS).is_file()):
        return False
    # Hydra makes its folder in runs of any program
    return path.is_file() or (path / _LATEST).is_file() or any(path.glob(_OTHERS))


def read_config(path: Path) -> PublishedConfig:
    """Reads .hydra/config.yaml.

    Raises:
      BadInput: not YAML, or a key missing, of the wrong type or a reference to another.
    """
    settings = _folder(path) / _SETTINGS
    try:
        values = yaml.load(settings.read_text(), _Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadInput(f"{settings} is not valid YAML: {error}.") from error
    return settings_from(values, PublishedConfig, settings, NO_NETWORK)


def read_params(path: Path, abstract: Params, num_states: int, *, ema: bool = True) -> Params:
    """Reads the weights into the layout of `score_model`, as float32 numpy arrays.

    Args:
      path: the folder, for its latest checkpoint, or a checkpoint in it.
      abstract: the expected parameters, for their shapes.
      num_states: V; the padding of the vocabulary axis is filled with zeros.
      ema: read the averaged weights.

    Raises:
      BadInput: no checkpoint, one that cannot be read or has no averages, or a tensor missing,
        misshapen or unexpected.
    """
    file = path / _LATEST if path.is_dir() else path
    if not file.is_file():
        others = sorted(map(str, path.glob(_OTHERS)))
        more = f"; give a checkpoint itself, such as {others[-1]}" if others else ""
        raise BadInput(f"{path} has no {_LATEST}{more}.")
    tensors = load_torch_file(file, functools.partial(_state_dict, ema))
    return published_params(without_wrappers(tensors, file), abstract, num_states, file)


def _folder(path):
    return path if path.is_dir() else path.absolute().parent.parent


def _state_dict(ema: bool, contents: Any) -> dict[str, StoredTensor]:
    """The state dict of the model in a checkpoint, or of its averages."""
    model = contents.get("model") if isinstance(contents, Mapping) else None
    if not isinstance(model, Mapping):
        raise BadInput("it is no checkpoint of the published training script: it has no model.")
    if not ema:
        return dict(model)
    averages = contents.get("ema")
    shadow = averages.get("shadow_params") if isinstance(averages, Mapping) else None
    if not isinstance(shadow, list):
        raise BadInput(
            "it has no averaged weights (ema.shadow_params); --noema, or ema=False, takes the "
            "weights as trained."
        )
    if not all(isinstance(tensor, StoredTensor) for tensor in (*shadow, *model.values())):
        raise BadInput("its model or ema.shadow_params holds other things than tensors.")
    # the order of the parameters, which a buffer is not
    names = [name for name in model if len(shadow) == len(model) or not name.endswith(BUFFER)]
    if [model[name].shape for name in names] != [average.shape for average in shadow]:
        raise BadInput(
            "its averages (ema.shadow_params), which have no names, are not one for each parameter "
            "in their order; --noema, or ema=False, takes the weights as trained."
        )
    return dict(zip(names, shadow, strict=True))

"""Conversion between the settings of a run and those in a published config.json."""

import dataclasses
from operator import attrgetter

from sedd_jax.errors import BadInput
from sedd_jax.experiment.config import Config, parse
from sedd_jax.model.denoiser_layouts import DenoiserConfig
from sedd_jax.model.gpt2 import GPT2Config
from sedd_jax.model.pretrained import PublishedConfig

_FIELDS = (*dataclasses.fields(PublishedConfig), *dataclasses.fields(DenoiserConfig))
_KEYS = {field.name: f"model.{field.name}" for field in _FIELDS} | {
    "tokens": "data.vocab_size",
    "graph": "graph",
    "noise": "noise.schedule",
    "sigma_min": "noise.sigma_min",
    "sigma_max": "noise.sigma_max",
}
_CHOICES = {"graph": ("absorb", "uniform"), "noise.schedule": ("loglinear", "geometric")}
# the published code has one fixed choice of these, and no setting
_FIXED = {
    "family": "diffusion",
    "model.trunk": "transformer",
    "data.condition": "",
    "model.learned_positions": False,
    "model.output": "ratio",
    "model.time_conditioning": True,
    "train.t_min": 1e-3,
    "train.hold": "none",
}
_FIXED_LOGLINEAR = {"noise.eps": 1e-3}


def from_published(published: PublishedConfig | DenoiserConfig | GPT2Config) -> Config:
    """Returns the settings of a published model, with defaults for those that it lacks.

    Raises:
      BadInput: settings that make no model.
    """
    settings = dataclasses.asdict(Config())
    if isinstance(published, GPT2Config):
        settings["family"] = "autoregressive"
        settings["model"]["dtype"] = "float32"  # it scores texts: the same on every device
    for field, value in dataclasses.asdict(published).items():
        group, _, key = _KEYS[field].rpartition(".")
        (settings[group] if group else settings)[key] = value
    settings["data"]["tokenizer"] = "integers"  # until one is found
    return parse(settings)


def to_published(config: Config) -> PublishedConfig:
    """Returns the published settings of a model with `data.vocab_size` tokens.

    Raises:
      BadInput: a model that the published code does not have.
    """
    fixed = _FIXED | (_FIXED_LOGLINEAR if config.noise.schedule == "loglinear" else {})
    for key, values in (_CHOICES | {key: (value,) for key, value in fixed.items()}).items():
        if (ours := attrgetter(key)(config)) not in values:
            words = " or ".join(str(value) or "none" for value in values)
            raise BadInput(
                f"The published layout has only models with config.{key}={words}, and this one has "
                f"{ours}; keep it as a run "
                "folder (--to=run)."
            )
    names = [field.name for field in dataclasses.fields(PublishedConfig)]
    return PublishedConfig(**{name: attrgetter(_KEYS[name])(config) for name in names})

"""Every setting of a run: what it is, its default and its limits.

A config file builds a `ConfigDict` from `default_config()` and overrides what differs; `parse`
turns it into the frozen `Config` below before anything expensive starts. Past that point settings
are plain attributes, known to exist and to be of their type.
"""

import dataclasses
import json
import typing
from typing import Any, Literal

from sedd_jax.data.recipe import Recipe
from sedd_jax.errors import BadInput
from sedd_jax.model.config import ModelConfig


@dataclasses.dataclass(frozen=True)
class NoiseConfig:
    """The noise schedule (paper: log-linear for absorb, geometric for uniform)."""

    schedule: Literal["loglinear", "geometric"] = "loglinear"
    eps: float = 1e-3  # loglinear: probability that a token is unmoved at t = 1
    sigma_min: float = 1e-4  # geometric: total noise at t = 0 ...
    sigma_max: float = 20.0  # ... and at t = 1


@dataclasses.dataclass(frozen=True)
class DataConfig(Recipe):
    """The text and its tokens: prepared before, or by the recipe when the run begins."""

    prepared: str = ""  # folders of `prepare`, FOLDER or FOLDER:WEIGHT,...; empty: by the recipe
    crop: Literal["blocks", "random"] = "random"  # random: block borders shift every epoch


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The training loop."""

    steps: int = 1_300_000
    batch_size: int = 512  # sequences per step, over all devices
    microbatches: int = 1  # parts the batch is split into, gradients averaged
    t_min: float = 1e-3  # times are drawn from [t_min, 1]
    low_discrepancy: bool = True  # spread the times of a batch evenly over their law
    importance: bool = False  # draw noise in proportion to a guess's loss, and reweight
    log_every: int = 100
    max_skipped: int = 10  # steps in a row whose loss or gradient is not finite; then stop
    stall_minutes: float = 30.0  # without a step: report the stack of every thread
    initial: str = ""  # folder, or OWNER/NAME on the hub, of weights to start from; empty: random


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """AdamW, clipping, the learning-rate schedule and the average of the weights."""

    learning_rate: float = 3e-4
    warmup_steps: int = 2500  # linear, from learning_rate / warmup_steps
    decay: Literal["constant", "cosine"] = "constant"  # cosine: to 0 at train.steps
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    ema_decay: float = 0.9999  # warmed up: min(ema_decay, (1 + n) / (10 + n)) at update n
    first_moment: Literal["float32", "bfloat16"] = "float32"  # how AdamW's averages are kept:
    second_moment: Literal["float32", "bfloat16"] = "float32"  # bfloat16 halves their memory


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """The held-out bound and the samples shown while training; both use the averaged weights."""

    every: int = 10_000
    batch_size: int = 512
    max_blocks: int = 4096  # held-out blocks per evaluation, evenly spaced if there are more
    sample_every: int = 50_000
    num_samples: int = 2
    sample_steps: int = 128


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """When to save, and how many of the latest to keep."""

    every: int = 10_000
    keep: int = 2


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along the axes of the mesh; one size may be -1: all that are left."""

    slice: int = 1  # TPU slices, or groups of GPU nodes: copies joined by a slower network
    data: int = -1  # copies of the network
    fsdp: int = 1  # parts of the parameters, which are gathered for use; also splits the batch
    tensor: int = 1  # parts of heads, MLP and vocabulary, which work on the same sequences


@dataclasses.dataclass(frozen=True)
class Config:
    """A run."""

    seed: int = 0
    # autoregressive: the baseline, which knows of no graph and no noise
    family: Literal["diffusion", "autoregressive"] = "diffusion"
    graph: Literal["absorb", "uniform"] = "absorb"
    noise: NoiseConfig = NoiseConfig()
    model: ModelConfig = ModelConfig()  # noqa: RUF009 - frozen
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    optim: OptimConfig = OptimConfig()
    eval: EvalConfig = EvalConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    mesh: MeshConfig = MeshConfig()


def default_config(kind: type[Config] = Config):
    """Returns the defaults above as an `ml_collections.ConfigDict`, for a config file to change."""
    from ml_collections import ConfigDict  # at the command-line edge only

    return ConfigDict(dataclasses.asdict(kind()))


def parse(values: Any, kind: type[Config] = Config) -> Config:
    """Returns the `Config`, of the given kind, that `values`, a ConfigDict or dict, describes.

    Raises:
      BadInput: unknown, missing or ill-typed key, a choice that does not exist, or settings that
        contradict each other; the message holds the dotted key.
    """
    if hasattr(values, "to_dict"):
        values = values.to_dict()
    config = _parse_fields(kind, values, "")
    _check_ranges(config)
    return config


def to_json(config: Config) -> str:
    """Returns the config as indented JSON, which `from_json` reads back."""
    return json.dumps(dataclasses.asdict(config), indent=2)


def from_json(text: str) -> Config:
    """Returns the config that `to_json` wrote, see `from_saved`."""
    return from_saved(json.loads(text))


def from_saved(values: dict) -> Config:
    """Returns the config whose settings were saved, now or before some of them existed.

    A setting that is missing has its default, which is always what was done before it existed.
    """
    return parse(_completed(dataclasses.asdict(Config()), values))


def differences(old: Config, new: Config) -> list[str]:
    """Returns a line "key: old -> new" for every setting that differs."""
    old_flat, new_flat = (flatten(dataclasses.asdict(config)) for config in (old, new))
    return [
        f"{key}: {old_flat[key]!r} -> {new_flat[key]!r}"
        for key in old_flat
        if old_flat[key] != new_flat[key]
    ]


def _completed(defaults, values):
    """The values, with the defaults of what they lack."""
    groups = {
        name: _completed(defaults[name], value)
        for name, value in values.items()
        if isinstance(value, dict) and isinstance(defaults.get(name), dict)
    }
    return defaults | values | groups


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns the settings of nested groups by their dotted keys."""
    flat = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def _parse_fields(cls, values, path):
    if not isinstance(values, dict):
        raise BadInput(f"config.{path.rstrip('.')} must be a group of settings, got {values!r}.")
    fields = {field.name: field.type for field in dataclasses.fields(cls)}
    for name in values:
        if name not in fields:
            raise BadInput(f"config.{path}{name} is not a setting; there are: {', '.join(fields)}.")
    parsed = {}
    for name, kind in fields.items():
        if name not in values:
            raise BadInput(f"config.{path}{name} is missing.")
        parse_value = _parse_fields if dataclasses.is_dataclass(kind) else _parse_leaf
        suffix = "." if dataclasses.is_dataclass(kind) else ""
        parsed[name] = parse_value(kind, values[name], f"{path}{name}{suffix}")
    return cls(**parsed)


def _parse_leaf(kind, value, path):
    if typing.get_origin(kind) is Literal:
        choices = typing.get_args(kind)
        if value not in choices:
            raise BadInput(f"config.{path} must be one of {', '.join(choices)}, got {value!r}.")
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not kind:
        raise BadInput(f"config.{path} must be of type {kind.__name__}, got {value!r}.")
    return value


_POSITIVE = (
    "noise.eps", "noise.sigma_min", "model.hidden_size", "model.cond_dim", "model.num_blocks",
    "model.num_heads", "model.length", "train.steps", "train.batch_size", "train.microbatches",
    "train.t_min", "train.log_every", "optim.learning_rate", "optim.warmup_steps", "optim.eps",
    "optim.clip_norm", "eval.every", "eval.batch_size", "eval.max_blocks", "eval.sample_every",
    "eval.sample_steps", "checkpoint.every", "checkpoint.keep", "train.max_skipped",
    "train.stall_minutes", "data.max_document_mb",
)  # fmt: skip
_NOT_NEGATIVE = ("seed", "data.vocab_size", "optim.weight_decay", "eval.num_samples")
_BELOW_ONE = (
    "noise.eps", "model.dropout", "data.heldout_fraction", "train.t_min", "optim.beta1",
    "optim.beta2", "optim.ema_decay",
)  # fmt: skip


# what means nothing to the autoregressive baseline
_DIFFUSION_ONLY = (
    "graph", "noise.", "model.cond_dim", "model.scale_by_sigma", "model.learned_positions",
    "train.t_min", "train.low_discrepancy", "train.importance", "eval.sample_steps",
)  # fmt: skip


def _check_ranges(config):
    flat = flatten(dataclasses.asdict(config))
    for key in (*_POSITIVE, "data.heldout_fraction"):
        if not flat[key] > 0:
            raise BadInput(f"config.{key} must be positive, got {flat[key]}.")
    for key in _NOT_NEGATIVE + _BELOW_ONE:
        if not flat[key] >= 0:
            raise BadInput(f"config.{key} must not be negative, got {flat[key]}.")
    for key in _BELOW_ONE:
        if not flat[key] < 1:
            raise BadInput(f"config.{key} must be below 1, got {flat[key]}.")

    noise, model, train = config.noise, config.model, config.train
    mesh = dataclasses.asdict(config.mesh)
    causal = config.family == "autoregressive"
    foreign = [line for line in differences(Config(), config) if line.startswith(_DIFFUSION_ONLY)]
    rules = (
        (
            not (causal and foreign),
            f"config.family=autoregressive knows nothing of this setting, leave it at its default: "
            f"config.{'; config.'.join(foreign)}.",
        ),
        (
            all(size == -1 or size > 0 for size in mesh.values())
            and list(mesh.values()).count(-1) <= 1,
            f"config.mesh holds {mesh}: sizes must be positive, and one of them may be -1.",
        ),
        (config.seed < 2**32, f"config.seed must be below 2^32, got {config.seed}."),
        (
            noise.sigma_min < noise.sigma_max,
            f"config.noise.sigma_min ({noise.sigma_min}) must be below config.noise.sigma_max "
            f"({noise.sigma_max}).",
        ),
        (
            model.hidden_size % (model.num_heads if causal else 2 * model.num_heads) == 0,
            f"config.model.hidden_size ({model.hidden_size}) must be a multiple of "
            f"{'' if causal else 'twice '}config.model.num_heads ({model.num_heads}).",
        ),
        (
            config.graph == "absorb" or not model.scale_by_sigma,
            "config.model.scale_by_sigma is only defined for config.graph=absorb; set it to False "
            "for uniform.",
        ),
        (
            model.attention != "splash" or model.length % 128 == 0,
            f"config.model.length ({model.length}) must be a multiple of 128 when "
            "config.model.attention=splash.",
        ),
        (
            model.attention != "cudnn" or model.dtype != "float32",
            "config.model.attention=cudnn takes 16-bit numbers; set config.model.dtype=bfloat16.",
        ),
        (
            train.batch_size % train.microbatches == 0,
            f"config.train.batch_size ({train.batch_size}) must be a multiple of "
            f"config.train.microbatches ({train.microbatches}).",
        ),
        (
            config.eval.max_blocks >= config.eval.batch_size,
            f"config.eval.max_blocks ({config.eval.max_blocks}) must be at least "
            f"config.eval.batch_size ({config.eval.batch_size}).",
        ),
        (
            config.checkpoint.every % train.log_every == 0,
            f"config.checkpoint.every ({config.checkpoint.every}) must be a multiple of "
            f"config.train.log_every ({train.log_every}), so that a resumed run logs the same.",
        ),
        (
            config.optim.decay == "constant" or config.optim.warmup_steps < train.steps,
            f"config.optim.warmup_steps ({config.optim.warmup_steps}) must be below "
            f"config.train.steps ({train.steps}) when config.optim.decay=cosine.",
        ),
        (
            config.data.tokenizer not in ("sentencepiece", "integers")
            or config.data.vocab_size
            or config.data.tokenizer_path
            or config.data.prepared,
            f"config.data.vocab_size must be given when config.data.tokenizer="
            f"{config.data.tokenizer}.",
        ),
        (
            config.data.wrap or config.data.crop == "blocks",
            "config.data.crop must be blocks when config.data.wrap=False: a block is a document.",
        ),
        (
            config.data.tokenizer != "gpt2" or config.data.tokenizer_path or config.data.prepared,
            "config.data.tokenizer_path must name a folder with encoder.json and vocab.bpe, or a "
            "hub id, when config.data.tokenizer=gpt2.",
        ),
    )
    for holds, message in rules:
        if not holds:
            raise BadInput(message)

"""Every setting of a run: what it is, its default and its limits.

A config file builds a `ConfigDict` from `default_config()` and overrides what differs; `parse`
turns it into the frozen `Config` below before anything expensive starts. After that, settings are
plain attributes that exist and have their type. `may_change` marks those that may have other values
in a resumed run: they do not affect the steps already taken (those of the model and the mesh
compute the same numbers up to rounding); `family` marks those of one family, or of some.
"""

import dataclasses
import json
from typing import Any, Literal

from sedd_jax.data.columns import check_condition
from sedd_jax.data.documents import Recipe
from sedd_jax.errors import BadInput
from sedd_jax.model.config import BOTH_DIFFUSIONS, NOISED, WITH_GRAPH, GaussianConfig, ModelConfig
from sedd_jax.system.registry import is_dotted, split_options
from sedd_jax.system.settings import flatten, marked, parse_settings, setting


@dataclasses.dataclass(frozen=True)
class NoiseConfig:
    """The noise schedule (paper: log-linear for absorb, geometric for uniform)."""

    # or the dotted path of a function of this group
    schedule: str = setting("loglinear", names=("loglinear", "geometric"))
    # loglinear: probability that a token is unmoved at t = 1
    eps: float = setting(1e-3, above=0, below=1)
    sigma_min: float = setting(1e-4, above=0)  # geometric: total noise at t = 0 ...
    sigma_max: float = 20.0  # ... and at t = 1


@dataclasses.dataclass(frozen=True)
class DataConfig(Recipe):
    """The text and its tokens: prepared in advance, or by the recipe when the run starts."""

    # folders made by `prepare`, FOLDER or FOLDER:WEIGHT,...; empty: prepare by the recipe
    prepared: str = setting("", may_change=True)
    crop: Literal["blocks", "random"] = "random"  # random: block borders shift every epoch


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The training loop."""

    steps: int = setting(1_300_000, above=0, may_change=True)
    batch_size: int = setting(512, above=0)  # sequences per step, over all devices
    microbatches: int = setting(1, above=0)  # parts the batch is split into, gradients averaged
    # times are drawn from [t_min, 1]
    t_min: float = setting(1e-3, above=0, below=1, family=WITH_GRAPH)
    # or the dotted path of a `diffusion.objective.Objective`
    objective: str = setting(
        "score_entropy",
        names=("score_entropy", "cross_entropy", "d3pm", "concrete_score_matching"),
        family=("diffusion",),
    )
    # stratified: the times of a batch are spread evenly over their distribution
    low_discrepancy: bool = setting(True, family=NOISED)
    # how times are drawn, reweighted; or the dotted path of a class of `diffusion.time_sampling`
    times: str = setting(
        "uniform", names=("uniform", "bell", "learned", "positions"), family=("diffusion",)
    )
    # importance sampling: noise in proportion to the loss of the uniform predictor, reweighted
    importance: bool = setting(False, family=("diffusion",))
    # with this probability a row, and each of several conditions, is not told
    condition_dropout: float = setting(0.1, at_least=0, below=1, family=("diffusion",))
    # which tokens of a row are given, and told to be; or the dotted path of a `diffusion.hold.Hold`
    hold: str = setting(
        "none",
        names=("none", "prefix", "suffix", "tokens", "spans", "mixed"),
        family=("diffusion",),
    )
    log_every: int = setting(100, above=0, may_change=True)
    # where rows go beside metrics.jsonl: tensorboard, wandb, mlflow or the dotted path of an
    # `experiment.trackers.tracker.Tracker`, several with commas, or empty; auto is tensorboard if
    # tensorboardX is installed
    trackers: str = setting("auto", may_change=True)
    # stop after this many steps in a row whose loss or gradient is not finite
    max_skipped: int = setting(10, above=0, may_change=True)
    # minutes without a step after which the stacks of all threads are printed
    stall_minutes: float = setting(30.0, above=0, below=1e6, may_change=True)
    # seconds from SIGTERM to the end of the machine, 30 in Kubernetes by default; 0: enough to save
    grace_seconds: float = setting(0.0, at_least=0, may_change=True)
    # folder, here or in a bucket, or OWNER/NAME on the hub, of weights to start from; empty: random
    initial: str = ""


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """AdamW, clipping, the learning-rate schedule and the average of the weights."""

    learning_rate: float = setting(3e-4, above=0)
    warmup_steps: int = setting(2500, above=0)  # linear, from learning_rate / warmup_steps
    decay: Literal["constant", "cosine"] = "constant"  # cosine: to 0 at train.steps
    beta1: float = setting(0.9, at_least=0, below=1)
    beta2: float = setting(0.999, at_least=0, below=1)
    eps: float = setting(1e-8, above=0)
    weight_decay: float = setting(0.0, at_least=0)
    clip_norm: float = setting(1.0, above=0)
    # warmed up: min(ema_decay, (1 + n) / (10 + n)) at update n
    ema_decay: float = setting(0.9999, at_least=0, below=1)
    first_moment: Literal["float32", "bfloat16"] = "float32"  # type of AdamW's moments:
    second_moment: Literal["float32", "bfloat16"] = "float32"  # bfloat16 halves their memory


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """The held-out bound and the samples shown while training; both use the averaged weights."""

    every: int = setting(10_000, above=0)
    batch_size: int = setting(512, above=0)
    # held-out blocks per evaluation, evenly spaced if there are more
    max_blocks: int = setting(4096, above=0)
    sample_every: int = setting(50_000, above=0)
    num_samples: int = setting(2, at_least=0)
    sample_steps: int = setting(128, above=0, family=BOTH_DIFFUSIONS)
    # or the dotted path of a `diffusion.sampler.Sampler`
    sampler: str = setting(
        "tweedie",
        names=(
            "euler", "tweedie", "first_hitting", "gibbs", "forward_backward", "psi", "remdm_cap",
            "remdm_rescale", "remdm_loop", "spaced", "entropy_bounded", "confidence",
            "theta_trapezoidal", "theta_rk2",
        ),
        family=("diffusion",),
    )  # fmt: skip
    # gc_content, or the dotted path of a function of texts that gives each a number; the checkpoint
    # whose samples have the highest mean is kept. Empty: none
    oracle: str = ""


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """When to save, and how many of the latest to keep."""

    every: int = setting(10_000, above=0)
    keep: int = setting(2, above=0)


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along the axes of the mesh; one size may be -1: all remaining devices."""

    slice: int = 1  # TPU slices, or groups of GPU nodes: copies joined by a slower network
    data: int = -1  # copies of the network
    fsdp: int = 1  # parts of the parameters, which are gathered for use; also splits the batch
    tensor: int = 1  # parts of heads, MLP and vocabulary, which work on the same sequences

    def check(self) -> None:
        """Raises BadInput unless every size is positive, but for one that may be -1."""
        sizes = dataclasses.asdict(self)
        given = [size for size in sizes.values() if size != -1]
        if min(given, default=0) <= 0 or len(given) < len(sizes) - 1:
            raise BadInput(
                f"config.mesh holds {sizes}: sizes must be positive, and one of them may be -1."
            )


@dataclasses.dataclass(frozen=True)
class Config:
    """A run."""

    seed: int = setting(0, at_least=0, below=2**32)
    # autoregressive: the baseline, without graph and noise; gaussian: PLAID, which diffuses
    # embeddings; classifier: of noised tokens, which guides the samples of a diffusion model
    # or the dotted path of a function of config, vocabulary size and placement
    family: str = setting(
        "diffusion", names=("diffusion", "autoregressive", "gaussian", "classifier")
    )
    # or the dotted path of a function of the vocabulary size
    graph: str = setting("absorb", names=("absorb", "uniform", "hybrid"), family=WITH_GRAPH)
    noise: NoiseConfig = setting(NoiseConfig(), family=WITH_GRAPH)
    gaussian: GaussianConfig = setting(GaussianConfig(), family=("gaussian",))
    model: ModelConfig = ModelConfig()  # noqa: RUF009 - frozen
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    optim: OptimConfig = OptimConfig()
    eval: EvalConfig = setting(EvalConfig(), may_change=True)
    checkpoint: CheckpointConfig = setting(CheckpointConfig(), may_change=True)
    mesh: MeshConfig = setting(MeshConfig(), may_change=True)

    @property
    def uses_noise(self) -> bool:
        """Whether the family uses the settings of graph and noise."""
        return self.family not in ("autoregressive", "gaussian")


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
    config = parse_settings(kind, values)
    config.mesh.check()
    config.model.check()
    _check_rules(config)
    return config


def to_json(config: Config) -> str:
    """Returns the config as indented JSON, which `from_json` reads back."""
    return json.dumps(dataclasses.asdict(config), indent=2)


def from_json(text: str) -> Config:
    """Returns the config that `to_json` wrote, see `from_saved`."""
    return from_saved(json.loads(text))


def from_saved(values: dict) -> Config:
    """Returns the config whose settings were saved, now or before some of them existed.

    A missing setting has its default, which is how runs worked before it existed.
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
    """The values, with defaults for missing ones."""
    groups = {
        name: _completed(defaults[name], value)
        for name, value in values.items()
        if isinstance(value, dict) and isinstance(defaults.get(name), dict)
    }
    return defaults | values | groups


def _check_rules(config):
    noise, model, train = config.noise, config.model, config.train
    graph, _ = split_options(config.graph, "config.graph")
    rows = max(1, round(config.checkpoint.every / train.log_every))
    families_of = marked(type(config), "family")
    foreign = [
        line
        for line in differences(Config(), config)
        if not is_dotted(config.family)
        and config.family not in families_of.get(line.partition(":")[0], (config.family,))
    ]
    check_condition(config.data)
    rotary = config.family != "autoregressive"
    rules = (
        (
            not foreign,
            f"config.family={config.family} has no such setting, leave it at its default: "
            f"config.{'; config.'.join(foreign)}.",
        ),
        (
            noise.sigma_min < noise.sigma_max,
            f"config.noise.sigma_min ({noise.sigma_min}) must be below config.noise.sigma_max "
            f"({noise.sigma_max}).",
        ),
        (
            model.trunk == "convolution"
            or model.hidden_size % (model.num_heads * (1 + rotary)) == 0,
            f"config.model.hidden_size ({model.hidden_size}) must be a multiple of "
            f"{'twice ' if rotary else ''}config.model.num_heads ({model.num_heads}).",
        ),
        (
            config.gaussian.gamma_first < config.gaussian.gamma_last,
            f"config.gaussian.gamma_first ({config.gaussian.gamma_first}) must be below "
            f"config.gaussian.gamma_last ({config.gaussian.gamma_last}).",
        ),
        (
            graph not in ("uniform", "hybrid") or not model.scale_by_sigma,
            "config.model.scale_by_sigma is only defined for config.graph=absorb; set it to False "
            f"for {graph}.",
        ),
        (
            not train.importance or train.times == "uniform",
            f"config.train.importance draws times of its own: set it to False with "
            f"config.train.times={train.times}.",
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
            f"config.train.log_every ({train.log_every}), so that a resumed run logs the same; the "
            f"nearest is {rows * train.log_every}.",
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

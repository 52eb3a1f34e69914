"""From settings to a model of its family, by registered names or dotted paths of user code."""

import dataclasses
import os
from collections.abc import Callable, Collection

from sedd_jax.data.conditions import FILE, Conditions
from sedd_jax.diffusion.hold import hold_named
from sedd_jax.diffusion.time_sampling import times_named
from sedd_jax.errors import BadInput
from sedd_jax.experiment.build import build_graph, build_noise
from sedd_jax.experiment.config import Config
from sedd_jax.inference.autoregressive import build_autoregressive
from sedd_jax.inference.classifier import build_classifier, check_classifier
from sedd_jax.inference.family import Family
from sedd_jax.inference.gaussian import build_gaussian
from sedd_jax.inference.sampling import sampler_named
from sedd_jax.inference.score_based import build_score_based, check_objective
from sedd_jax.model.sharding import ANYWHERE, Placement
from sedd_jax.system.registry import Registry, is_dotted

# functions of (config, vocab_size, placement); of a family that can be told something of a row also
# of `conditions`, the sizes of what it is told
FAMILIES: Registry[Callable[..., Family]] = Registry(
    "config.family",
    {
        "diffusion": build_score_based,
        "autoregressive": build_autoregressive,
        "gaussian": build_gaussian,
        "classifier": build_classifier,
    },
    methods=[name for name in vars(Family) if not name.startswith("_")],
    arguments=3,
)


def build_family(
    config: Config,
    vocab_size: int,
    placement: Placement = ANYWHERE,
    conditions: Conditions | None = None,
) -> Family:
    """Builds a model, without its weights, for a tokenizer of `vocab_size` tokens.

    Args:
      config: the settings; dotted paths in them are imported.
      vocab_size: tokens of the tokenizer.
      placement: how activations are sharded over the devices.
      conditions: what the data tell, where `config.data.condition` names columns.

    Raises:
      BadInput: a name that does not exist or cannot be imported, an object that lacks a method, or
        conditions that are not known, or of a family that takes none.
    """
    sizes = ()
    if config.data.condition:
        _check_told(config)
        if conditions is None:
            raise BadInput(
                f"config.data.condition={config.data.condition} names columns, whose classes are "
                f"known to the data alone: give those, or their {FILE}."
            )
        sizes = conditions.sizes
    told = {"conditions": sizes} if FAMILIES.takes(config.family, "conditions") else {}
    return FAMILIES.build(config.family, config, vocab_size, placement, **told)


def _check_told(config):
    if not FAMILIES.takes(config.family, "conditions"):
        raise BadInput(
            f"config.data.condition={config.data.condition} is for families that take conditions, "
            f"and config.family={config.family} takes none: leave it empty, or take diffusion."
        )


def check_names(config: Config) -> None:
    """Raises BadInput unless every name in the settings stands for an object of its kind.

    Imports the dotted paths, and builds the graph, and a family of the user's own, for a small
    vocabulary.
    """
    vocab_size = config.data.vocab_size or 4
    if config.family == "classifier":
        check_classifier(config)
    check_objective(config.train, config.model)
    times_named(config.train.times).proposal(build_noise(config.noise), config.train.t_min)
    hold_named(config.train.hold)
    sampler_named(config.eval.sampler)
    build_graph(config.graph, vocab_size)
    build_noise(config.noise)
    if config.data.condition:
        _check_told(config)
    if is_dotted(config.family):
        data = dataclasses.replace(config.data, condition="")  # its classes are not known yet
        build_family(dataclasses.replace(config, data=data), vocab_size)


def dotted_paths(config: Config) -> set[str]:
    """Returns the dotted paths that building a model of these settings imports."""
    return {
        name for name in (config.family, config.graph, config.noise.schedule) if is_dotted(name)
    }


def check_trusted(
    config: Config, trusted: bool | Collection[str], where: str | os.PathLike[str]
) -> None:
    """Raises BadInput if a saved model names code that is not trusted.

    Args:
      config: the saved settings.
      trusted: True for any code, or the dotted paths that are trusted.
      where: the folder or repository of the model.
    """
    if trusted is True:
        return
    if paths := dotted_paths(config) - set(trusted or ()):
        raise BadInput(
            f"{where} names code of its own ({', '.join(sorted(paths))}), which loading it would "
            "run: give trust_code=True (--trust_code) if you trust it."
        )

"""The arguments of a model of lm-evaluation-harness, and those of its texts."""

import dataclasses
import typing
from collections.abc import Mapping
from types import UnionType
from typing import Any

from sedd_jax.errors import BadInput, check_positive
from sedd_jax.inference.likelihood import check_draws

CONDITIONALS = ("held", "difference")
# names of the most tokens of a text, and their number if none is given
_LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_MOST_TOKENS = 256
_OF_SAMPLING = {"sampler", "steps", "top_p"}


@dataclasses.dataclass(frozen=True)
class Settings:
    """The arguments of the model, by the names of our flags.

    Attributes:
      checkpoint: a run folder, published weights or a repository of the hub, see `load`. The
        harness's own name of it, `pretrained`, is taken too, and names the folder of its results.
      checkpoint_step: to load, or "best"; the latest by default.
      ema: use the averaged weights.
      tokenizer: folder or repository of the tokenizer; that of the model by default.
      trust_code: import and run the code that the model names.
      batch_size: rows at a time; figures do not depend on it.
      seed: of all that is drawn.
      draws: of every continuation.
      times: how they are spread, see `nll_bound`.
      complete: all terms of the bound, else those of the published convention.
      conditional: "held": the bound of a continuation where its context is held; or "difference":
        the bound of both less that of the context, see `continuation_nll`.
      greedy: whether to find out whether greedy decoding gives a continuation; else it is said not
        to.
      sampler: of texts and of greedy decoding; by default see `Backend.sampling`.
      steps: of the sampler, its own default if not given.
      block: tokens of a text drawn at a time.
      temperature: of texts for which the task says nothing.
    """

    checkpoint: str
    checkpoint_step: int | str | None = None
    ema: bool = True
    tokenizer: str | None = None
    trust_code: bool = False
    batch_size: int = 32
    seed: int = 0
    draws: int = 64
    times: str = "low-discrepancy"
    complete: bool = False
    conditional: str = "held"
    greedy: bool = True
    sampler: str | None = None
    steps: int | None = None
    block: int = 32
    temperature: float = 0.0

    def __post_init__(self):
        check_positive(batch_size=self.batch_size, block=self.block)
        check_draws(self.draws, self.times)
        if self.conditional not in CONDITIONALS:
            raise BadInput(
                f"conditional must be one of {', '.join(CONDITIONALS)}, got {self.conditional!r}."
            )


def settings_from(arguments: Mapping[str, Any]) -> Settings:
    """Returns the settings of arguments by name.

    Raises:
      BadInput: no checkpoint, an unknown name, or a value of another type or out of range.
    """
    if "pretrained" in arguments:
        if "checkpoint" in arguments:
            raise BadInput("checkpoint and pretrained are two names of one argument: give one.")
        arguments = dict(arguments)
        arguments["checkpoint"] = arguments.pop("pretrained")
    if "checkpoint" not in arguments:
        raise BadInput("--model_args checkpoint=FOLDER is needed.")
    kinds = typing.get_type_hints(Settings)
    for name, value in arguments.items():
        if name not in kinds:
            raise BadInput(f"There is no model argument {name!r}; there are {', '.join(kinds)}.")
        kind = kinds[name]
        allowed = typing.get_args(kind) if isinstance(kind, UnionType) else (kind,)
        if float in allowed:
            allowed = (*allowed, int)
        if type(value) not in allowed:
            words = " or ".join(each.__name__ for each in allowed if each is not type(None))
            raise BadInput(f"The model argument {name}={value!r} must be of type {words}.")
    return Settings(**arguments)


def texts_from(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Returns arguments of `Backend.generate_until` from a task's `generation_kwargs`.

    Args:
      kwargs: `until`, `max_gen_toks` (or another name of it), `do_sample`, `temperature`, `top_p`,
        `sampler` and `steps`, all optional.

    Raises:
      BadInput: another one.
    """
    given = dict(kwargs)
    until = given.pop("until", None) or []
    limits = [given.pop(name, None) for name in _LIMITS]
    sample, temperature = given.pop("do_sample", None), given.pop("temperature", None)
    if sample is False:
        temperature = 0.0
    elif sample and temperature is None:
        temperature = 1.0
    if unknown := set(given) - _OF_SAMPLING:
        known = ", ".join(sorted(_OF_SAMPLING))
        raise BadInput(
            f"The generation argument {min(unknown)!r} means nothing here; there are until, "
            f"{_LIMITS[0]}, do_sample, temperature, {known}: leave it out."
        )
    return given | {
        "until": [until] if isinstance(until, str) else until,
        "max_tokens": int(next((limit for limit in limits if limit), _MOST_TOKENS)),
        "temperature": None if temperature is None else float(temperature),
    }

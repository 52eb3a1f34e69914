"""The settings of `sedd_jax.exact`: those of a run, and how much to enumerate."""

import dataclasses

from sedd_jax.errors import BadInput
from sedd_jax.experiment.config import Config

MAX_STATES = 4096


@dataclasses.dataclass(frozen=True)
class ExactSettings:
    """The size of the check."""

    support: float = 1.0  # share of the clean sequences that the data law gives a probability
    max_steps: int = 256  # samplers are followed for 1, 2, 4, ... steps up to this power of 2
    num_samples: int = 65_536  # drawn to confirm a computed law
    num_draws: int = 1_048_576  # conditional draws for every figure on rare tokens
    repeats: int = 128  # of every estimate of the bound, to measure its variance


@dataclasses.dataclass(frozen=True)
class ExactConfig(Config):
    """A run on an enumerable space: data.vocab_size tokens, model.length positions."""

    exact: ExactSettings = ExactSettings()


def check_settings(config: ExactConfig) -> None:
    """Refuses settings that cannot be enumerated.

    Raises:
      BadInput: too many states, or a figure out of range; the message holds the dotted key.
    """
    exact, tokens, length = config.exact, config.data.vocab_size, config.model.length
    num_states = tokens + (config.graph == "absorb")
    rules = (
        (config.family == "diffusion", "config.family must be diffusion: its laws are checked."),
        (tokens >= 2, f"config.data.vocab_size must be at least 2, got {tokens}."),
        (
            num_states**length <= MAX_STATES,
            f"config.data.vocab_size={tokens} and config.model.length={length} make "
            f"{num_states}^{length} sequences; at most {MAX_STATES} can be enumerated.",
        ),
        (length >= 2, f"config.model.length must be at least 2, got {length}."),
        (
            exact.support * tokens**length >= 2,
            f"config.exact.support={exact.support} leaves less than 2 sequences.",
        ),
        (0 < exact.support <= 1, f"config.exact.support must be in (0, 1], got {exact.support}."),
        (
            exact.max_steps >= 64 and exact.max_steps.bit_count() == 1,
            f"config.exact.max_steps must be a power of 2, 64 or more, got {exact.max_steps}.",
        ),
        (
            exact.num_samples >= 4096 and exact.num_draws >= 2**18 and exact.repeats >= 16,
            "config.exact.num_samples must be at least 4096, num_draws at least 262144, and "
            "repeats at least 16.",
        ),
    )
    for holds, message in rules:
        if not holds:
            raise BadInput(message)

"""The ways to draw samples from a diffusion model, as one setting."""

import dataclasses
from collections.abc import Callable

from sedd_jax.diffusion.published_race import RacedScore
from sedd_jax.diffusion.reverse import SAMPLERS
from sedd_jax.diffusion.score import Score
from sedd_jax.errors import BadInput, check_positive
from sedd_jax.model.score_model import ScoreModel

MOST_STEPS = 2**20  # their times are float32


def _raced(model: ScoreModel) -> Callable[..., Score]:
    return lambda params, xt, sigma, **options: RacedScore(
        xt, model.apply(params, xt, sigma, **options)
    )


# how tokens are drawn from a network's answer
PRECISIONS: dict[str, Callable[[ScoreModel], Callable[..., Score]]] = {
    "exact": lambda model: model.score,
    "published": _raced,
}


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How samples are drawn (Algorithm 2).

    Attributes:
      steps: reverse steps before the final denoising step, at least 1.
      sampler: the rule of the reverse step, "tweedie" or "euler".
      precision: "exact", or "published" for the float32 race of `diffusion.published_race`, which
        loses rare tokens and writes out B L V numbers: only to show what it does.
    """

    steps: int = 128
    sampler: str = "tweedie"
    precision: str = "exact"

    def check(self) -> None:
        """Raises BadInput for a setting that cannot be."""
        check_positive(steps=self.steps)
        if self.steps > MOST_STEPS:
            raise BadInput(f"steps must be at most {MOST_STEPS:,}, got {self.steps:,}.")
        for name, choices in (("sampler", SAMPLERS), ("precision", PRECISIONS)):
            value = getattr(self, name)
            if value not in choices:
                raise BadInput(f"{name} must be one of {', '.join(choices)}, got {value!r}.")

"""The ways to draw samples from a diffusion model, as one setting."""

import dataclasses
from collections.abc import Callable

from sedd_jax.diffusion.graph import Graph
from sedd_jax.diffusion.published_race import RacedScore
from sedd_jax.diffusion.reverse import SAMPLERS
from sedd_jax.diffusion.score import Score
from sedd_jax.errors import BadInput, check_positive
from sedd_jax.model.score_model import ScoreModel

CONDITIONINGS = ("clamp", "renoise", "resample")
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
      conditioning: what held tokens are on the way: "clamp", clean, which is exact under the
        absorbing graph; under the uniform graph also "renoise", as noised as the rest, or
        "resample", that and `particles` copies of every row, weighed by the held tokens: see
        `inference.conditioning`.
      particles: copies of every row, each an evaluation of the network at every step.
      overlap: tokens of the text before that a window of a row longer than the trained length
        holds; half the trained length by default.
    """

    steps: int = 128
    sampler: str = "tweedie"
    precision: str = "exact"
    conditioning: str = "clamp"
    particles: int = 1
    overlap: int | None = None

    def check(self, graph: Graph | None = None) -> None:
        """Raises BadInput for a setting that cannot be, or not under the graph."""
        check_positive(steps=self.steps)
        if self.steps > MOST_STEPS:
            raise BadInput(f"steps must be at most {MOST_STEPS:,}, got {self.steps:,}.")
        for name, choices in (
            ("sampler", SAMPLERS),
            ("precision", PRECISIONS),
            ("conditioning", CONDITIONINGS),
        ):
            value = getattr(self, name)
            if value not in choices:
                raise BadInput(f"{name} must be one of {', '.join(choices)}, got {value!r}.")
        check_positive(particles=self.particles)
        if self.particles > 1 and self.conditioning != "resample":
            raise BadInput(
                f"particles={self.particles} are for conditioning='resample' alone, got "
                f"{self.conditioning!r}."
            )
        if graph is not None and graph.mask_id is not None and self.conditioning != "clamp":
            raise BadInput(
                f"conditioning={self.conditioning!r} is for the uniform graph: under the absorbing "
                "graph 'clamp' is exact."
            )

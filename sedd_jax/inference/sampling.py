"""The ways to draw samples from a diffusion model, as one setting."""

import dataclasses
from collections.abc import Callable

from sedd_jax.diffusion.graph import Graph
from sedd_jax.diffusion.published_race import RacedScore
from sedd_jax.diffusion.reverse import SAMPLERS
from sedd_jax.diffusion.score import Score
from sedd_jax.diffusion.temperature import NO_FILTER, TokenFilter
from sedd_jax.errors import BadInput, check_positive
from sedd_jax.model.score_model import ScoreModel

CONDITIONINGS = ("clamp", "renoise", "resample")
MOST_STEPS = 2**20  # their times are float32
DEFAULT_STEPS = 128
FIRST_HITTING = "first_hitting"
SAMPLER_NAMES = (*SAMPLERS, FIRST_HITTING)


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
      steps: reverse steps before the final denoising step, at least 1; 128 if not given, but for
        "first_hitting", which then draws one token a call.
      sampler: the rule of the reverse step, "tweedie" or "euler", or "first_hitting" (absorbing
        graph), which calls the network only where something happens.
      precision: "exact", or "published" for the float32 race of `diffusion.published_race`, which
        loses rare tokens and writes out B L V numbers: only to show what it does.
      temperature: 1 for the model's law. Else a departure from it: tokens are drawn with weights
        ** (1 / temperature), 0 for the likeliest. It changes which token is drawn, not when.
      top_p: 1 for the model's law. Else a departure from it: tokens are drawn from the fewest that
        have this mass.
      conditioning: what held tokens are on the way: "clamp", clean, which is exact under the
        absorbing graph; under the uniform graph also "renoise", as noised as the rest, or
        "resample", clean in `particles` copies of every row that are weighed by them, which is
        exact for many copies and many steps (Tweedie's): see `inference.conditioning`.
      particles: copies of every row, each an evaluation of the network at every step.
      overlap: tokens of the text before that a window of a row longer than the trained length
        holds; half the trained length by default.
    """

    steps: int | None = None
    sampler: str = "tweedie"
    precision: str = "exact"
    temperature: float = 1.0
    top_p: float = 1.0
    conditioning: str = "clamp"
    particles: int = 1
    overlap: int | None = None

    def __post_init__(self):
        if self.steps is None and self.sampler != FIRST_HITTING:
            object.__setattr__(self, "steps", DEFAULT_STEPS)

    @property
    def token_filter(self) -> TokenFilter:
        """How sharply a token is drawn."""
        return TokenFilter(self.temperature, self.top_p)

    def most_calls(self, length: int) -> int:
        """Returns the most network evaluations that a row of `length` tokens can take."""
        calls = length if self.steps is None else self.steps + 1
        return min(calls, length) if self.sampler == FIRST_HITTING else calls

    def check(self, graph: Graph | None = None) -> None:
        """Raises BadInput for a setting that cannot be, or not on the graph."""
        if self.steps is not None:
            check_positive(steps=self.steps)
            if self.steps > MOST_STEPS:
                raise BadInput(f"steps must be at most {MOST_STEPS:,}, got {self.steps:,}.")
        check_positive(particles=self.particles)
        for name, choices in (
            ("sampler", SAMPLER_NAMES),
            ("precision", PRECISIONS),
            ("conditioning", CONDITIONINGS),
        ):
            value = getattr(self, name)
            if value not in choices:
                raise BadInput(f"{name} must be one of {', '.join(choices)}, got {value!r}.")
        self.token_filter.check()
        if self.precision == "published" and self.token_filter != NO_FILTER:
            raise BadInput(
                "precision='published' draws by the model's law alone: leave temperature and top_p "
                "at 1."
            )
        if graph and self.sampler == FIRST_HITTING and graph.mask_id is None:
            raise BadInput(
                "sampler='first_hitting' needs the absorbing graph, whose positions leave the mask "
                "once; this model has the uniform graph: take tweedie or euler."
            )
        if self.particles > 1 and self.conditioning != "resample":
            raise BadInput(
                f"particles={self.particles} are for conditioning='resample' alone, got "
                f"{self.conditioning!r}."
            )
        if self.conditioning == "resample" and self.sampler != "tweedie":
            raise BadInput(
                "conditioning='resample' needs sampler='tweedie': a large step of another gives "
                f"held tokens a probability of 0, got {self.sampler!r}."
            )
        if graph and graph.mask_id is not None and self.conditioning != "clamp":
            raise BadInput(
                f"conditioning={self.conditioning!r} is for the uniform graph: under the absorbing "
                "graph, which this model has, 'clamp' is exact."
            )

"""How samples are drawn: the settings of each family's generator."""

import dataclasses
import functools
import math

from sedd_jax.diffusion.adaptive import Confidence, EntropyBounded
from sedd_jax.diffusion.euler import Euler
from sedd_jax.diffusion.first_hitting import FirstHitting
from sedd_jax.diffusion.gibbs import Gibbs
from sedd_jax.diffusion.graph import Graph
from sedd_jax.diffusion.guidance import RATIOS
from sedd_jax.diffusion.renoising import (
    ForwardBackward,
    Psi,
    RemdmCap,
    RemdmLoop,
    RemdmRescale,
)
from sedd_jax.diffusion.sampler import Sampler
from sedd_jax.diffusion.second_order import ThetaRK2, ThetaTrapezoidal
from sedd_jax.diffusion.spaced import Spaced
from sedd_jax.diffusion.temperature import TokenFilter
from sedd_jax.diffusion.tweedie import Tweedie
from sedd_jax.errors import BadInput, check_positive
from sedd_jax.system.registry import Registry

SAMPLERS: Registry[type[Sampler]] = Registry(
    "sampler",
    {
        "euler": Euler,
        "tweedie": Tweedie,
        "first_hitting": FirstHitting,
        "gibbs": Gibbs,
        "forward_backward": ForwardBackward,
        "psi": Psi,
        "remdm_cap": RemdmCap,
        "remdm_rescale": RemdmRescale,
        "remdm_loop": RemdmLoop,
        "spaced": Spaced,
        "entropy_bounded": EntropyBounded,
        "confidence": Confidence,
        "theta_trapezoidal": ThetaTrapezoidal,
        "theta_rk2": ThetaRK2,
    },
    methods=[name for name in vars(Sampler) if not name.startswith("_")],
)
CONDITIONINGS = ("clamp", "resample")
TEMPERINGS = ("token", "conditional")
MAX_STEPS = 2**20  # their times are float32


@functools.cache
def sampler_named(name: str) -> Sampler:
    """Returns the sampler of a short name or a dotted path, which is imported.

    Options follow the name: "gibbs(spacing=2, share=0.25)".

    Raises:
      BadInput: no such sampler or option, or one that is no `diffusion.sampler.Sampler`.
    """
    return SAMPLERS.build(name)


def samplers_for(graph: Graph) -> tuple[str, ...]:
    """Returns the names of the samplers that are defined on the graph."""
    return tuple(name for name in SAMPLERS.names if sampler_named(name).serves(graph))


@dataclasses.dataclass(frozen=True)
class TokenSampling:
    """How an autoregressive model draws: each token given those before it.

    Attributes:
      temperature: 1 for the model's distribution; logits are divided by it, 0 takes the most likely
        token.
      top_p: 1 for the model's distribution; below, tokens are drawn from the smallest set with this
        probability (nucleus sampling; Holtzman et al. 2019, arXiv 1904.09751).
    """

    temperature: float = 1.0
    top_p: float = 1.0

    @property
    def token_filter(self) -> TokenFilter:
        """Temperature and top-p."""
        return TokenFilter(self.temperature, self.top_p)


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How a diffusion model draws (Algorithm 2).

    Attributes:
      steps: network evaluations before the final denoising step, at least 1; 128 if not given,
        except for "first_hitting", "spaced", "entropy_bounded" and "confidence", which then take at
        most one network evaluation per position. A sampler with several evaluations a step leaves
        out what is too little for a step.
      sampler: "tweedie", "euler", "first_hitting" (absorbing graph), which evaluates the network
        only when a position changes, "spaced" (absorbing graph), which draws positions far apart
        together, "gibbs", which spends half of the evaluations on drawing positions again, others
        of `SAMPLERS`, or the dotted path of a `diffusion.sampler.Sampler`. Options of a sampler
        follow its name: "gibbs(spacing=2)".
      temperature: 1 for the model's distribution. Else a departure from it: tokens are drawn with
        weights ** (1 / temperature), 0 takes the most likely one.
      top_p: 1 for the model's distribution. Else a departure from it: tokens are drawn from the
        smallest set with this probability.
      tempering: what temperature and top-p act on: "token", which token a changing position takes,
        but not when it changes; or "conditional" (not under the absorbing graph), the distribution
        of a token given all others, from which the sampler takes both. See `Score.tempered`.
      conditioning: how given tokens are held: "clamp", clean, which is exact under the absorbing
        graph; under others also "resample", clean in `particles` copies of every row that are
        weighted by the probability of these tokens, which is exact for many copies and many steps
        (Tweedie's): see `inference.conditioning`.
      particles: copies of every row, each a network evaluation at every step.
      overlap: tokens of the preceding text that a window of a row longer than the trained length
        holds; half the trained length by default.
      guidance: g, the power of the evidence for the condition of a row and for the classifier: 1
        for the conditional distribution, 0 for the unconditional one, more to exaggerate. See
        `diffusion.guidance`; other values than 0 and 1 evaluate the network twice.
      classifier: the dotted path of a function that takes the graph, and options that follow the
        name, and returns log p_t(c | x_t) as a function of noised tokens and noise, an `Evidence`;
        or the name of a trained one, see `inference.classifier`.
      classifier_ratios: how its ratios between neighbours are computed: "exact", each evaluated,
        for few states; or "first_order", by one gradient with respect to one-hot tokens.
      constraint: what the clean tokens must satisfy: "count(tokens=(1, 2), at_least=20)",
        "forbid(tokens=(4,))", or a function as `classifier` has, whose evidence is not raised to a
        power. See `diffusion.constraint` for where it is exact.
    """

    steps: int | None = None
    sampler: str = "tweedie"
    temperature: float = 1.0
    top_p: float = 1.0
    conditioning: str = "clamp"
    particles: int = 1
    overlap: int | None = None
    tempering: str = "token"
    guidance: float = 1.0
    classifier: str | None = None
    classifier_ratios: str = "exact"
    constraint: str | None = None

    def __post_init__(self):
        if self.steps is None:
            object.__setattr__(self, "steps", self.method.default_steps)

    @property
    def method(self) -> Sampler:
        """The sampler itself."""
        return sampler_named(self.sampler)

    @property
    def token_filter(self) -> TokenFilter:
        """Temperature and top-p."""
        return TokenFilter(self.temperature, self.top_p)

    def max_nfe(self, length: int) -> int:
        """Returns the most network evaluations that a copy of a row of `length` tokens takes."""
        return self.method.max_nfe(self.steps, length)

    def check(self, graph: Graph | None = None) -> None:
        """Raises BadInput for a setting that is out of range, or not defined on the graph."""
        if self.steps is not None:
            check_positive(steps=self.steps)
            if self.steps > MAX_STEPS:
                raise BadInput(f"steps must be at most {MAX_STEPS:,}, got {self.steps:,}.")
        check_positive(particles=self.particles)
        method = self.method
        if self.steps is not None and self.steps < method.evaluations_per_step:
            raise BadInput(
                f"sampler={self.sampler!r} takes {method.evaluations_per_step} network evaluations "
                f"a step: steps must be at least {method.evaluations_per_step}, got {self.steps}."
            )
        if self.conditioning not in CONDITIONINGS:
            raise BadInput(
                f"conditioning must be one of {', '.join(CONDITIONINGS)}, got "
                f"{self.conditioning!r}."
            )
        self.token_filter.check()
        self._check_tempering(graph)
        self._check_guidance()
        if graph and not method.serves(graph):
            raise BadInput(
                f"sampler={self.sampler!r} needs {method.needs}; this model has the "
                f"{type(graph).__name__.lower()} graph: take {', '.join(samplers_for(graph))}."
            )
        if self.particles > 1 and self.conditioning != "resample":
            raise BadInput(
                f"particles={self.particles} are for conditioning='resample' alone, got "
                f"{self.conditioning!r}."
            )
        if self.conditioning == "resample" and not method.weighs_held_tokens:
            raise BadInput(
                "conditioning='resample' needs sampler='tweedie': a large step of another gives "
                f"held tokens a probability of 0, got {self.sampler!r}."
            )
        if graph and graph.absorbs and self.conditioning != "clamp":
            raise BadInput(
                f"conditioning={self.conditioning!r} is for the other graphs: under the absorbing "
                "graph, which this model has, 'clamp' is exact."
            )

    def _check_guidance(self):
        if not math.isfinite(self.guidance):
            raise BadInput(f"guidance must be finite, got {self.guidance}.")
        if self.classifier_ratios not in RATIOS:
            raise BadInput(
                f"classifier_ratios must be one of {', '.join(RATIOS)}, got "
                f"{self.classifier_ratios!r}."
            )
        if self.classifier is None and self.classifier_ratios != "exact":
            raise BadInput(
                f"classifier_ratios={self.classifier_ratios!r} are those of a classifier: give one."
            )

    def _check_tempering(self, graph):
        if self.tempering not in TEMPERINGS:
            raise BadInput(
                f"tempering must be one of {', '.join(TEMPERINGS)}, got {self.tempering!r}."
            )
        if self.tempering == "token":
            return
        if self.temperature == 0:
            raise BadInput(
                "temperature=0 means nothing with tempering='conditional': every position would "
                "take its likeliest token in the first step, at any noise; take 0.1 or more, or "
                "tempering='token'."
            )
        if self.method.blends_outputs:
            raise BadInput(
                f"tempering='conditional' does not go with sampler={self.sampler!r}, which blends "
                "two outputs of the network: take tweedie, or tempering='token'."
            )
        if graph and graph.absorbs:
            raise BadInput(
                "tempering='conditional' is for the other graphs: under the absorbing graph, "
                "which this model has, when a position leaves the mask does not depend on the "
                "text, and tempering='token' already tempers its token given all others."
            )

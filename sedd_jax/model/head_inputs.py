"""What the log-scores of a position are computed from.

Shapes: D hidden; *s any leading axes, B L or N rows.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Float, Int

from sedd_jax.diffusion.blend import Blend
from sedd_jax.diffusion.graph import Graph, align
from sedd_jax.diffusion.output import add_limit


class HeadInputs(NamedTuple):
    """What the log-scores of a position are computed from: its logits minus `shift`; 0 at x_t.

    Attributes:
      hidden: activations that are multiplied with the unembedding.
      shift: subtracted from the logits.
      xt: noised tokens, which are left.
      floor: states of a lower log-score have a score of 0; None for no floor.
      second: what the ratios are blended with; None for nothing.
      added: to the ratios, by a network whose output is a softmax; None for nothing.
      guide: the output that these log-scores are averaged with; None for nothing.
    """

    hidden: Float[Array, "*s D"]
    shift: Float[Array, "*s"]
    xt: Int[Array, "*s"]
    floor: Float[Array, "*s"] | None = None
    second: "Second | None" = None
    added: "Added | None" = None
    guide: "Guide | None" = None

    def lowered(self, by: Float[Array, "*s"]) -> "HeadInputs":
        """Returns the inputs of log-scores that are lower by this much."""
        added = self.added and Added(self.added.log_offset - by, self.added.graph)
        guide = self.guide and self.guide._replace(inputs=self.guide.inputs.lowered(by))
        return self._replace(shift=self.shift + by, added=added, guide=guide)

    def guided(self, other: "HeadInputs", weight: Float[Array, "*s"]) -> "HeadInputs":
        """Returns the inputs of the log-scores weight * these + (1 - weight) * those of `other`.

        Logits are linear in the activations, so the average of these will do, and its log-scores
        cost one product. Where something is added to the ratios, there are two.

        Args:
          other: inputs of the same network at the same tokens.
          weight: of these.
        """
        if self.added is not None:
            return self._replace(guide=Guide(other, weight))

        def average(a, b):
            share = align(weight, a.ndim)
            return (share * a + (1 - share) * b).astype(a.dtype)  # the weight is float32

        both = self.hidden, other.hidden
        return self._replace(hidden=average(*both), shift=average(self.shift, other.shift))


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=("log_offset",), meta_fields=("graph",)
)
@dataclasses.dataclass(frozen=True)
class Added:
    """The term offset * pi_y that is added to exp(logit - shift), see `diffusion.output`.

    Attributes:
      log_offset: of every position, [*s].
      graph: of pi.
    """

    log_offset: Any  # not Float[Array, "*s"]: a tree may hold something else, such as shardings
    graph: Graph

    def to(self, log_score: Float[Array, "..."], states: Int[Array, "..."]) -> Float[Array, "..."]:
        """Returns the log of the sum with exp(log_score); of the mask, without a logit, the term.

        Args:
          log_score: of every position, or of some states of every position on a further axis.
          states: their states, see `at_states`.
        """
        return add_limit(self.graph, log_score, self.log_offset, states)


class Guide(NamedTuple):
    """Another output of the network at the same tokens: log-scores are averaged with its own.

    Attributes:
      inputs: of the other output.
      weight: of the first output; the other has 1 - weight.
    """

    inputs: HeadInputs
    weight: Float[Array, "*s"]

    def average(
        self, first: Float[Array, "..."], other: Float[Array, "..."]
    ) -> Float[Array, "..."]:
        """Returns the average of log-scores, of `*s` or with an axis more."""
        weight = align(self.weight, first.ndim)
        return weight * first + (1 - weight) * other


class Second(NamedTuple):
    """A second output of the network, and how the first is blended with it.

    Attributes:
      first_xt: the tokens that the network saw at the first, where the ratio is 1.
      inputs: the second output.
      blend: of both.
    """

    first_xt: Int[Array, "*s"]
    inputs: HeadInputs
    blend: Blend


def scaled(log_score: Float[Array, "*s"], temperature: float) -> Float[Array, "*s"]:
    """Returns the log-scores by the temperature, or themselves where it is 1."""
    return log_score if temperature == 1 else log_score / temperature

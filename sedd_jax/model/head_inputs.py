"""What the log-scores of a position are computed from.

Shapes: D hidden; *s any leading axes, B L or N rows.
"""

from typing import NamedTuple

from jaxtyping import Array, Float, Int

from sedd_jax.diffusion.score import Blend


class HeadInputs(NamedTuple):
    """What the log-scores of a position are computed from: its logits minus `shift`; 0 at x_t.

    Attributes:
      hidden: activations that are multiplied with the unembedding.
      shift: subtracted from the logits.
      xt: noised tokens, which are left.
      floor: states of a lower log-score have a score of 0; None for no floor.
      second: what the ratios are blended with; None for nothing.
      added: to the ratios, by a network whose output is a softmax; None for nothing.
    """

    hidden: Float[Array, "*s D"]
    shift: Float[Array, "*s"]
    xt: Int[Array, "*s"]
    floor: Float[Array, "*s"] | None = None
    second: "Second | None" = None
    added: "Added | None" = None

    def lowered(self, by: Float[Array, "*s"]) -> "HeadInputs":
        """Returns the inputs of log-scores that are lower by this much."""
        added = self.added and Added(*(x if x is None else x - by for x in self.added))
        return self._replace(shift=self.shift + by, added=added)


class Added(NamedTuple):
    """What is added to exp(logit - shift), see `diffusion.output`.

    Attributes:
      log_token: log of what is added to the ratios of the tokens.
      log_mask: log-score of the mask, which has no logit; None for a graph without one.
    """

    log_token: Float[Array, "*s"]
    log_mask: Float[Array, "*s"] | None


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

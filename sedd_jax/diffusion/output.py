"""What a network's logits stand for, and the ratios that follow from them.

SEDD's network emits log-ratios. The networks of other papers emit a softmax q over the tokens, of
which the ratios are a closed form (docs/maths.md, section 2). With pi the graph's limit, E =
expm1(sigma), x the current state of the position and y != x:

    denoiser:       q_y = p(x0 = y | x_t)            score_y = q_y / (E pi_x) + c pi_y
                    c = (1 - q_x) / pi_x + q_x E / (1 + E pi_x)
    leave one out:  q_y = p(x0 = y | x_t but for     score_y = (q_y + E pi_y) / (q_x + E pi_x)
                          this position)

Under the absorbing graph they are the same at a masked position, q_y / E, and only there does
anything change. Under the uniform graph they differ, since the token that is there is evidence too:
p(x0 = y | x_t) is q_y p(x_t | y), normalised.

References:
  Sahoo et al., Simple and Effective Masked Diffusion Language Models, 2024 (arXiv 2406.07524), and
    Shi et al., Simplified and Generalized Masked Diffusion for Discrete Data, 2024 (arXiv
    2406.04329): the denoiser as a softmax over the tokens.
  Austin et al., Structured Denoising Diffusion Models in Discrete State-Spaces, 2021 (arXiv
    2107.03006), Eq. 4, and Schiff et al., Simple Guidance Mechanisms for Discrete Diffusion Models,
    2024 (arXiv 2412.10193): a softmax in the place of x_0, whose optimum is the leave-one-out
    distribution.
"""

import abc
import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from sedd_jax.diffusion.graph import Graph, align, leading, over_positions
from sedd_jax.diffusion.score import DenseScore, OfStates


class Softmax(NamedTuple):
    """What the ratios of a position need to know of all its logits.

    Attributes:
      log_rest: log of the sum of exp(logit) over all tokens but the current state.
      logit: of the current state; -inf at the mask.
    """

    log_rest: Float[Array, "*s"]
    logit: Float[Array, "*s"]

    @property
    def log_total(self) -> Float[Array, "*s"]:
        """Log of the sum over all tokens."""
        return jnp.logaddexp(self.log_rest, self.logit)


class Ratios(NamedTuple):
    """Ratios as a function of the logits: exp(logit - shift) + offset pi_y; the mask has no logit.

    Attributes:
      shift: subtracted from the logits.
      offset: factor of the limit, positive; without effect where pi_y is 0.
    """

    shift: Float[Array, "*s"]
    offset: Float[Array, "*s"]


@dataclasses.dataclass(frozen=True)
class Output(abc.ABC):
    """A softmax over the tokens, and what it stands for.

    Attributes:
      graph: the token graph.
    """

    graph: Graph

    @abc.abstractmethod
    def ratios(self, sigma: Float[Array, "*s"], xt: Int[Array, "*s"], softmax: Softmax) -> Ratios:
        """Returns the ratios that follow from the logits; finite, and of no use where pi_x is 0.

        Args:
          sigma: total noise of every position, positive.
          xt: noised tokens.
          softmax: of the logits.
        """

    @abc.abstractmethod
    def log_posterior(
        self,
        sigma: Float[Array, "*s"],
        xt: Int[Array, "*s"],
        softmax: Softmax,
        logits: Float[Array, "*s C"],
        at_xt: Bool[Array, "*s C"],
    ) -> Float[Array, "*s C"]:
        """Returns log p(x0 | x_t) of some tokens.

        Args:
          sigma: total noise of every position, positive.
          xt: noised tokens.
          softmax: of the logits.
          logits: of these tokens.
          at_xt: which of them is x_t.
        """

    def of_states(
        self,
        sigma: Float[Array, "*s"],
        xt: Int[Array, "*s"],
        softmax: Softmax,
        logits: Float[Array, "*s C"],
        states: Int[Array, "C"],
    ) -> OfStates:
        """Returns the output at some states.

        Args:
          sigma: total noise of every position, positive.
          xt: noised tokens.
          softmax: of the logits.
          logits: of these states; of no effect at the mask.
          states: of the graph.
        """
        shift, offset = self.ratios(sigma, xt, softmax)
        log_score = add_limit(self.graph, logits - shift[..., None], jnp.log(offset), states)
        columns = leading(states, logits.ndim)
        at_xt, token = columns == xt[..., None], columns < self.graph.num_tokens
        here = softmax.logit[..., None], jnp.ones_like(at_xt[..., :1])
        log_posterior, log_stays = (
            self.log_posterior(sigma, xt, softmax, *each) for each in ((logits, at_xt), here)
        )
        return OfStates(
            states,
            log_score,
            jnp.where(token, log_posterior, -jnp.inf),
            log_stays[..., 0],
        )

    def dense(
        self, sigma: Float[Array, "B *L"], xt: Int[Array, "B L"], logits: Float[Array, "B L V"]
    ) -> DenseScore:
        """Returns the output, written out, as a `Score`: the oracle of the streamed one.

        Args:
          sigma: total noise of rows or of positions, positive.
          xt: noised tokens.
          logits: of all states; that of the mask is ignored.
        """
        sigma = jnp.broadcast_to(over_positions(sigma), xt.shape)
        states = jnp.arange(self.graph.num_states)
        columns = leading(states, logits.ndim)
        at_xt, token = columns == xt[..., None], columns < self.graph.num_tokens
        softmax = Softmax(
            jax.nn.logsumexp(jnp.where(token & ~at_xt, logits, -jnp.inf), axis=-1),
            jnp.where(token & at_xt, logits, -jnp.inf).max(-1),
        )
        output = self.of_states(sigma, xt, softmax, logits, states)
        return DenseScore(xt, jnp.where(at_xt, 0, output.log_score), output.log_posterior)

    def _odds(self, sigma, xt):
        """E pi_x, and its logarithm."""
        odds = _expm1(sigma) * self.graph.limit[xt]
        return odds, jnp.log(odds)


class Denoiser(Output):
    """The softmax is p(x0 | x_t)."""

    def ratios(self, sigma, xt, softmax):
        limit, (odds, log_odds) = self.graph.limit[xt], self._odds(sigma, xt)
        changes = limit > 0
        shift = softmax.log_total + jnp.where(changes, log_odds, 0)
        stays = jax.nn.sigmoid(softmax.logit - softmax.log_rest)
        leaves = jax.nn.sigmoid(softmax.log_rest - softmax.logit)  # 1 - stays, without cancellation
        offset = leaves / jnp.where(changes, limit, 1) + stays * _expm1(sigma) / (1 + odds)
        return Ratios(shift, jnp.where(changes, offset, 1))

    def log_posterior(self, sigma, xt, softmax, logits, at_xt):
        return logits - softmax.log_total[..., None]


class LeaveOneOut(Output):
    """The softmax is p(x0 | x_t but for the position itself)."""

    def ratios(self, sigma, xt, softmax):
        _, log_odds = self._odds(sigma, xt)
        log_total = softmax.log_total
        log_here = jnp.logaddexp(softmax.logit - log_total, log_odds)  # of q_x + E pi_x
        return Ratios(log_total + log_here, _expm1(sigma) * jnp.exp(-log_here))

    def log_posterior(self, sigma, xt, softmax, logits, at_xt):
        # p(x_t | y) is in proportion to [y = x] + E pi_x
        odds, log_odds = self._odds(sigma, xt)
        evidence = jnp.where(at_xt, jnp.log1p(odds)[..., None], log_odds[..., None])
        log_norm = jnp.logaddexp(softmax.log_rest + log_odds, softmax.logit + jnp.log1p(odds))
        return logits + evidence - log_norm[..., None]


def _expm1(sigma):
    """E, which does not overflow: exp(-80) is nothing beside any probability."""
    return jnp.expm1(jnp.minimum(sigma, 80.0))


OUTPUTS = {"denoiser": Denoiser, "leave_one_out": LeaveOneOut}


def output_named(name: str, graph: Graph) -> Output | None:
    """Returns what the logits of `config.model.output` stand for; None for "ratio": log-scores."""
    return None if name == "ratio" else OUTPUTS[name](graph)


def add_limit(
    graph: Graph,
    log_score: Float[Array, "..."],
    log_offset: Float[Array, "*s"],
    states: Int[Array, "..."],
) -> Float[Array, "..."]:
    """Returns log(exp(log_score) + offset pi_y); at the mask, which has no logit, log(offset pi_y).

    Args:
      graph: of pi.
      log_score: of every position, or of some states of every position on a further axis.
      log_offset: of every position.
      states: their states, see `at_states`.
    """
    if graph.equal_limit == 0:
        return log_score  # a mask that is left has no ratio that counts
    log_offset = align(log_offset, log_score.ndim)
    if graph.equal_limit is not None:
        return jnp.logaddexp(log_score, log_offset + math.log(graph.equal_limit))
    states = leading(states, log_score.ndim)
    added = log_offset + jnp.log(graph.limit)[states]
    total = jnp.logaddexp(log_score, added)
    return total if graph.mask_id is None else jnp.where(states == graph.mask_id, added, total)

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
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from sedd_jax.diffusion.graph import Graph
from sedd_jax.diffusion.score import DenseScore


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
        self, sigma: Float[Array, "*s"], xt: Int[Array, "*s"], log_q: Float[Array, "*s V"]
    ) -> Float[Array, "*s V"]:
        """Returns log p(x0 | x_t), -inf at the mask.

        Args:
          sigma: total noise of every position, positive.
          xt: noised tokens.
          log_q: log of the softmax, -inf at the mask.
        """

    def score(
        self, sigma: Float[Array, "*s"], xt: Int[Array, "*s"], logits: Float[Array, "*s V"]
    ) -> tuple[Float[Array, "*s V"], Float[Array, "*s V"]]:
        """Returns the log-scores, 0 at x_t, and log p(x0 | x_t), written out.

        Args:
          sigma: total noise of every position, positive.
          xt: noised tokens.
          logits: of all states; that of the mask is ignored.
        """
        at_xt, limit = self._at_xt(xt), self.graph.limit
        token = jnp.arange(limit.size) < self.graph.num_tokens
        token, limit = (x.reshape((1,) * xt.ndim + (-1,)) for x in (token, limit))
        logits = jnp.where(token, logits, -jnp.inf)
        softmax = Softmax(
            jax.nn.logsumexp(jnp.where(at_xt, -jnp.inf, logits), axis=-1),
            jnp.where(at_xt, logits, -jnp.inf).max(-1),
        )
        shift, offset = self.ratios(sigma, xt, softmax)
        log_score = jnp.logaddexp(
            logits - shift[..., None], jnp.log(offset)[..., None] + jnp.log(limit)
        )
        log_q = logits - softmax.log_total[..., None]
        return jnp.where(at_xt, 0, log_score), self.log_posterior(sigma, xt, log_q)

    def dense(
        self, sigma: Float[Array, "B"], xt: Int[Array, "B L"], logits: Float[Array, "B L V"]
    ) -> DenseScore:
        """Returns the output, written out, as a `Score`: the oracle of the streamed one.

        Args:
          sigma: total noise, positive.
          xt: noised tokens.
          logits: of all states; that of the mask is ignored.
        """
        sigma = jnp.broadcast_to(sigma[:, None], xt.shape)
        return DenseScore(xt, *self.score(sigma, xt, logits))

    def _at_xt(self, xt):
        return jax.nn.one_hot(xt, self.graph.num_states, dtype=bool)

    def _odds(self, sigma, xt):
        """E pi_x, and its logarithm."""
        odds = jnp.expm1(sigma) * self.graph.limit[xt]
        return odds, jnp.log(odds)


class Denoiser(Output):
    """The softmax is p(x0 | x_t)."""

    def ratios(self, sigma, xt, softmax):
        limit, (odds, log_odds) = self.graph.limit[xt], self._odds(sigma, xt)
        changes = limit > 0
        shift = softmax.log_total + jnp.where(changes, log_odds, 0)
        stays = jax.nn.sigmoid(softmax.logit - softmax.log_rest)
        leaves = jax.nn.sigmoid(softmax.log_rest - softmax.logit)  # 1 - stays, without cancellation
        offset = leaves / jnp.where(changes, limit, 1) + stays * jnp.expm1(sigma) / (1 + odds)
        return Ratios(shift, jnp.where(changes, offset, 1))

    def log_posterior(self, sigma, xt, log_q):
        return log_q


class LeaveOneOut(Output):
    """The softmax is p(x0 | x_t but for the position itself)."""

    def ratios(self, sigma, xt, softmax):
        _, log_odds = self._odds(sigma, xt)
        log_total = softmax.log_total
        log_here = jnp.logaddexp(softmax.logit - log_total, log_odds)  # of q_x + E pi_x
        return Ratios(log_total + log_here, jnp.expm1(sigma) * jnp.exp(-log_here))

    def log_posterior(self, sigma, xt, log_q):
        # p(x_t | y) is in proportion to [y = x] + E pi_x
        odds, log_odds = (x[..., None] for x in self._odds(sigma, xt))
        evidence = jnp.where(self._at_xt(xt), jnp.log1p(odds), log_odds)
        return jax.nn.log_softmax(log_q + evidence, axis=-1)


OUTPUTS = {"denoiser": Denoiser, "leave_one_out": LeaveOneOut}

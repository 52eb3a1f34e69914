"""Training losses, given the score of a network (Algorithm 1)."""

import abc
import dataclasses
from typing import Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from sedd_jax.diffusion.graph import Graph
from sedd_jax.diffusion.importance import NoisedBatch
from sedd_jax.diffusion.noise import Noise
from sedd_jax.diffusion.padding import zero_padding
from sedd_jax.diffusion.score import ScoreFn
from sedd_jax.diffusion.score_entropy import target


@runtime_checkable
class Objective(Protocol):
    """A loss over a batch, differentiable in the network's parameters."""

    @abc.abstractmethod
    def __call__(
        self,
        graph: Graph,
        noise: Noise,
        score_fn: ScoreFn,
        batch: NoisedBatch,
        x0: Int[Array, "B L"],
    ) -> Float[Array, ""]:
        """Returns the mean loss of the rows, nats per sequence.

        Args:
          graph: the token graph.
          noise: the schedule.
          score_fn: maps (x_t, sigma) to a `Score`.
          batch: times, noised tokens and weights, and held tokens, which have no loss.
          x0: clean tokens.
        """


@dataclasses.dataclass(frozen=True)
class NamedObjective(Objective):
    """An objective with options, which are fields with defaults, and facts about it.

    Attributes:
      needs_softmax: takes log p(x0 | x_t), so `config.model.output` must be a softmax.
      grid: T, if it is defined at the times i / T, i = 1 .. T, alone; None for all times.
    """

    needs_softmax = False

    @property
    def grid(self) -> int | None:
        return None

    def is_bound(self, graph: Graph) -> bool:
        """Returns whether its mean is the diffusion term of a bound on -log p(x0).

        With a `grid` the bound is that of a process of T steps, and the last of them is in it.
        """
        del graph
        return False


def dwdse_loss(
    graph: Graph,
    noise: Noise,
    score_fn: ScoreFn,
    t: Float[Array, "B"],
    xt: Int[Array, "B L"],
    x0: Int[Array, "B L"],
    lengths: Int[Array, "B"] | None = None,
    held: Bool[Array, "B L"] | None = None,
) -> Float[Array, "B"]:
    """Returns the diffusion-weighted denoising score entropy, nats per sequence (Algorithm 1).

    For evaluation; training differentiates `mean_dwdse_loss`.

    dsigma(t) times the score entropy summed over positions. Its integral over t, mean over x_t, is
    the diffusion term of the bound on the negative log-likelihood (Theorem 3.6, Eq. 9).

    Args:
      graph: the token graph.
      noise: the schedule.
      score_fn: maps (x_t, sigma) to a `Score`; called once.
      t: times in (0, 1].
      xt: x0 noised to sigma(t).
      x0: clean tokens.
      lengths: of the rows, None for full ones. Padding contributes no loss; bind the lengths into
        `score_fn` too.
      held: tokens that are clean in `xt` and contribute no loss; None: none.
    """
    sigma = noise.sigma(t)
    ratios = target(graph, sigma, xt, x0)
    weight = ratios.weight if held is None else jnp.where(held, 0, ratios.weight)
    ratios = ratios._replace(weight=zero_padding(weight, lengths))
    entropy = score_fn(xt, sigma).entropy(ratios)
    return noise.dsigma(t) * entropy.sum(-1)


def mean_dwdse_loss(
    graph: Graph, noise: Noise, score_fn: ScoreFn, batch: NoisedBatch, x0: Int[Array, "B L"]
) -> Float[Array, ""]:
    """Returns the weighted mean of `dwdse_loss` over a batch: score entropy as an `Objective`.

    It is linear in the weights, and its gradient in them is the loss of every row.

    Args:
      graph: the token graph.
      noise: the schedule.
      score_fn: maps (x_t, sigma) to a `Score`; called once.
      batch: times, noised tokens, weights and held tokens.
      x0: clean tokens.
    """
    sigma = noise.sigma(batch.t)
    weight = batch.weight * noise.dsigma(batch.t) / len(x0)
    score = score_fn(batch.xt, sigma)
    ratios = target(graph, sigma, batch.xt, x0)
    return score.weighted_entropy(ratios._replace(weight=batch.free(ratios.weight)), weight)


class ScoreEntropy(NamedObjective):
    """The paper's objective, `mean_dwdse_loss`, of any output.

    Of a softmax under the absorbing graph it is the weighted cross-entropy, the bound of MDLM and
    MD4; under the uniform graph, of a leave-one-out softmax, the bound of UDLM and Duo.

    References:
      Schiff et al., Simple Guidance Mechanisms for Discrete Diffusion Models, 2024 (arXiv
        2412.10193), Eq. 18.
      Sahoo et al., The Diffusion Duality, 2025 (arXiv 2506.10892).
    """

    def __call__(
        self,
        graph: Graph,
        noise: Noise,
        score_fn: ScoreFn,
        batch: NoisedBatch,
        x0: Int[Array, "B L"],
    ) -> Float[Array, ""]:
        return mean_dwdse_loss(graph, noise, score_fn, batch, x0)

    def is_bound(self, graph: Graph) -> bool:
        return True

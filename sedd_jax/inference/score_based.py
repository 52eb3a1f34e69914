"""Diffusion models: a graph, a noise schedule and a network that gives scores."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from sedd_jax.data.column_statistics import ColumnSize
from sedd_jax.diffusion.concrete_score import ConcreteScoreMatching
from sedd_jax.diffusion.cross_entropy import CrossEntropy
from sedd_jax.diffusion.d3pm import D3PM
from sedd_jax.diffusion.denoiser import denoise_weights
from sedd_jax.diffusion.graph import Graph
from sedd_jax.diffusion.hold import NONE, free_shares, hold_named
from sedd_jax.diffusion.importance import (
    Proposal,
    bound_proposal,
    guess_proposal,
    on_grid,
    plain_proposal,
    propose,
    propose_by_position,
    propose_rows,
)
from sedd_jax.diffusion.noise import Noise
from sedd_jax.diffusion.objective import Objective, ScoreEntropy, dwdse_loss
from sedd_jax.diffusion.output import output_named
from sedd_jax.diffusion.padding import turned, zero_padding
from sedd_jax.diffusion.score_entropy import prior_kl
from sedd_jax.diffusion.time_sampling import times_named
from sedd_jax.errors import BadInput
from sedd_jax.experiment.build import build_graph, build_noise, network_config
from sedd_jax.experiment.config import Config, TrainConfig
from sedd_jax.inference.control import guess_control
from sedd_jax.inference.family import (
    STRATIFIED,
    BatchLoss,
    Control,
    DrawnTimes,
    LearnedDraw,
    RowLoss,
    draw_quantiles,
    sampling_settings,
)
from sedd_jax.inference.generator import Generator, build_generator
from sedd_jax.inference.guidance import check_guidance
from sedd_jax.inference.prompt import Prompt
from sedd_jax.inference.sampling import Sampling
from sedd_jax.model.conditions import dropped
from sedd_jax.model.config import ModelConfig
from sedd_jax.model.context import NOTHING, Context
from sedd_jax.model.score_model import ScoreModel, network_flops, score_model
from sedd_jax.model.sharding import ANYWHERE, Placement
from sedd_jax.system.registry import Registry

# functions of five arguments, or classes of such functions with options
OBJECTIVES: Registry[Objective | Callable[..., Objective]] = Registry(
    "config.train.objective",
    {
        "score_entropy": ScoreEntropy,
        "cross_entropy": CrossEntropy,
        "d3pm": D3PM,
        "concrete_score_matching": ConcreteScoreMatching,
    },
    arguments=5,
    classes=True,
)


def objective_named(text: str) -> Objective:
    """Returns the objective of a short name or a dotted path, which is imported.

    Options follow the name of a class: "d3pm(steps=100)".

    Raises:
      BadInput: no such objective or option.
    """
    return OBJECTIVES.build(text)


def check_objective(train: TrainConfig, model: ModelConfig) -> None:
    """Raises BadInput unless there is such an objective, and it can train such an output."""
    objective = objective_named(train.objective)
    if getattr(objective, "needs_softmax", False) and model.output == "ratio":
        raise BadInput(
            f"config.train.objective={train.objective} trains a softmax over the clean token: set "
            "config.model.output to denoiser or leave_one_out."
        )


class ScoreBased(NamedTuple):
    """A diffusion model of the paper, as a `Family`."""

    graph: Graph
    noise: Noise
    model: ScoreModel

    exact_likelihood = False
    complete_bound = False
    infills = True

    @property
    def num_tokens(self) -> int:
        return self.graph.num_tokens

    @property
    def num_states(self) -> int:
        return self.graph.num_states

    @property
    def max_length(self) -> int | None:
        return self.model.max_length

    @property
    def summary(self) -> str:
        return f"{self.num_states} states ({type(self.graph).__name__.lower()} graph)"

    def objective(self, config: TrainConfig) -> BatchLoss:
        graph, noise, model = self
        objective, times = objective_named(config.objective), times_named(config.times)
        hold, proposal = hold_named(config.hold), self.training_proposal(config)

        def draw(time_key, noise_key, x0, state=(), condition=None):
            del condition  # the noise does not depend on it
            current = self.training_proposal(config, state) if times.learns else proposal
            quantiles = times.quantiles(time_key, x0.shape, config.low_discrepancy)
            held = None
            if hold is not None:
                noise_key, hold_key = jax.random.split(noise_key)
                held = hold.draw(hold_key, x0.shape)
            noised = propose_by_position if times.per_position else propose
            return noised(noise_key, current, graph, noise, quantiles, x0, held=held)

        def loss(params, batch, x0, key, condition=None):
            if condition is not None:
                key, told_key = jax.random.split(key)
                condition = dropped(told_key, condition, config.condition_dropout)
            context = model.told(Context(batch.held, condition))
            score_fn = functools.partial(model.score, params, key=key, context=context)
            return objective(graph, noise, score_fn, batch, x0)

        def weighted_loss(params, batch, x0, key, factors, condition=None):
            batch = batch._replace(weight=batch.weight * factors)
            return loss(params, batch, x0, key, condition)

        def update(state, batch, losses):
            losses = jnp.where(batch.weight > 0, losses / batch.weight, 0)
            return times.update(state, config.t_min, batch.t, losses)

        learned = LearnedDraw(times.init(), weighted_loss, update) if times.learns else None
        return BatchLoss(draw, loss, learned)

    def training_proposal(self, config: TrainConfig, state: Any = ()) -> Proposal:
        """Returns the distribution of times and moved positions that training draws from.

        Args:
          config: the settings of training.
          state: of learned times; () for that before training.
        """
        if config.importance:
            proposal = guess_proposal(self.graph, self.noise, config.t_min)
        else:
            times = times_named(config.times)
            proposal = times.proposal(self.noise, config.t_min, state)
        grid = getattr(objective_named(config.objective), "grid", None)
        return proposal if grid is None else on_grid(proposal, grid)

    def row_loss(self, t_min: float, times: str) -> RowLoss:
        return sequence_loss(self, self.proposal(t_min, times))

    def control(self, t_min: float) -> Control:
        return guess_control(*self, self.proposal(t_min, STRATIFIED))

    def proposal(self, t_min: float, times: str) -> Proposal:
        """Returns the distribution of times and moved positions that a bound is estimated from.

        Args:
          t_min: the smallest time.
          times: how times are spread, see `draw_quantiles`.
        """
        return _proposal(self.graph, self.noise, t_min, times)

    def reconstruction_loss(self, t_min: float) -> RowLoss:
        graph, noise, model = self

        def loss(params, keys, x0, lengths=None, context=NOTHING, start=None):
            sigma = jnp.broadcast_to(noise.sigma(t_min), x0.shape[:1])
            xt = jax.vmap(graph.sample_transition)(keys, turned(x0, start), sigma)
            xt = turned(xt, start, back=True)
            xt = xt if context.given is None else jnp.where(context.given, x0, xt)
            score = model.score(params, xt, sigma, lengths=lengths, context=model.told(context))
            weights = functools.partial(denoise_weights, graph, xt, sigma=sigma)
            active = zero_padding(graph.limit[xt] > 0, lengths)
            active = active if context.given is None else active & ~context.given
            return -zero_padding(score.log_prob(weights, active, x0), lengths).sum(-1)

        return loss

    def draw_times(
        self, key: Key[Array, ""], times: str, t_min: float, draws: int, rows: int
    ) -> DrawnTimes:
        quantiles, weights = draw_quantiles(key, times, draws, rows)
        proposal = self.proposal(t_min, times)
        t = np.interp(quantiles, proposal.quantiles, proposal.edges)
        return DrawnTimes(quantiles, t, weights)

    def prior_nll(self) -> float:
        return float(jax.jit(lambda: prior_kl(self.graph, self.noise.sigma(jnp.array(1.0))))())

    def sampling(self, **settings: Any) -> Sampling:
        sampling = sampling_settings(Sampling, "diffusion", settings)
        sampling.check(self.graph)
        check_guidance(sampling, self.graph, self.model)
        if sampling.conditioning != "clamp" and self.model.told_given:
            raise BadInput(
                f"conditioning={sampling.conditioning!r} is for networks that are not told which "
                "tokens are given: this one is (config.train.hold), take 'clamp'."
            )
        return sampling

    def generator(self, sampling: Sampling, *, t_min: float, trace: bool = False) -> Generator:
        return build_generator(*self, sampling, t_min=t_min, trace=trace)

    def check_prompt(self, prompt: Prompt) -> None:
        del prompt  # tokens may be given anywhere

    def max_nfe(self, sampling: Sampling, length: int) -> int:
        return sampling.particles * sampling.max_nfe(length)

    def training_share(self, config: TrainConfig) -> float:
        share = share_with_loss(self.graph, self.noise, self.training_proposal(config))
        # given tokens have none, and how many there are depends on the length by less than 1/L
        return share * float(free_shares(hold_named(config.hold), length=256).mean())

    def forward_flops(self, config: ModelConfig, share: float = 1.0) -> float:
        return network_flops(config, self.num_states, share)


def build_score_based(
    config: Config,
    vocab_size: int,
    placement: Placement = ANYWHERE,
    conditions: tuple[ColumnSize, ...] = (),
) -> ScoreBased:
    """Builds the pieces of a diffusion model.

    Args:
      config: the settings.
      vocab_size: tokens of the tokenizer.
      placement: how activations are sharded over the devices.
      conditions: what the network is told of a row.
    """
    graph = build_graph(config.graph, vocab_size)
    network = network_config(
        config.model,
        graph.num_states,
        placement,
        conditions=conditions,
        told_given=config.train.hold != NONE,
    )
    output = output_named(config.model.output, graph)
    return ScoreBased(graph, build_noise(config.noise), score_model(network, placement, output))


def sequence_loss(family: ScoreBased, proposal: Proposal) -> RowLoss:
    """Returns f(params, keys [B], quantiles [B], x0 [B, L], lengths, context, start) -> nats [B].

    The loss of every row at one (t, x_t), a function of its own key and tokens, not of its padding.
    Noise is counted from position `start` [B] of a row, before which all tokens are given; None: 0.
    For any proposal the mean over uniform quantiles is that of the DWDSE loss over t uniform on
    [t_min, 1].

    Args:
      family: the model.
      proposal: distribution of times and moved positions; the quantiles are of its times.
    """
    graph, noise, model = family

    def loss(params, keys, quantiles, x0, lengths=None, context=NOTHING, start=None):
        of_rows = quantiles, x0, lengths, context.given, start
        batch = propose_rows(keys, proposal, graph, noise, *of_rows)
        told = model.told(context)
        score_fn = functools.partial(model.score, params, lengths=lengths, context=told)
        noised = batch.t, batch.xt, x0, lengths, batch.held
        return batch.weight * dwdse_loss(graph, noise, score_fn, *noised)

    return loss


def share_with_loss(graph: Graph, noise: Noise, proposal: Proposal) -> float:
    """Returns the mean share of positions that have a loss; the head computes these alone.

    Under the uniform graph all positions have a loss. Under the absorbing graph masked ones do: the
    mean of 1 - exp(-sigma(t)) over the distribution of t, by the midpoint rule. Importance sampling
    weights the number of masks of a sequence too, which adds at most 1/L and is left out.

    Args:
      graph: the token graph.
      noise: the schedule.
      proposal: distribution of the times.
    """
    if not graph.absorbs:
        return 1.0
    if proposal.discrete:
        t, density = proposal.edges[1:], proposal.density
    else:
        t = np.linspace(proposal.edges[0], proposal.edges[-1], 2 * 4096 + 1)[1::2]
        density = proposal.density[np.searchsorted(proposal.edges[1:-1], t)]
    masked = -np.expm1(-np.asarray(noise.sigma(t)))
    return float(np.average(masked, weights=density))


@functools.lru_cache(maxsize=8)  # tabulating the guess's loss takes a second
def _proposal(graph, noise, t_min, times):
    if times == "quadrature":
        return plain_proposal(t_min)
    return (bound_proposal if times == STRATIFIED else guess_proposal)(graph, noise, t_min)

"""Samplers at real length: true scores of a Markov chain or an HMM, so all error is the sampler's.

Excess: the mean of -log p(sample) under the data, less the entropy of the data, in nats per token.
It is 0 for an exact sampler, and positive for one whose samples are less likely than the data's;
the TV of pairs of neighbours also sees samples that are too likely.
"""

import dataclasses
import functools
import math
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from sedd_jax.diffusion.graph import Graph, absorbing, uniform
from sedd_jax.diffusion.noise import Noise
from sedd_jax.errors import BadInput
from sedd_jax.experiment.config import Config
from sedd_jax.inference.batches import row_keys
from sedd_jax.inference.prompt import Prompt
from sedd_jax.inference.sampling import Sampling
from sedd_jax.inference.score_based import ScoreBased
from sedd_jax.system.settings import setting
from sedd_jax.verification.markov import HiddenMarkov, markov_model

GRAPHS = {"absorb": absorbing, "uniform": uniform}  # samplers are measured under these
_BATCH_TOKENS = 2**17  # drawn at a time
ENTROPY_TOKENS = 2**22  # drawn to estimate the entropy of an HMM
_ROUNDS = 3  # of timed runs
MAX_STATES = 1024  # tokens, or hidden states: an evaluation costs their square at every position


@dataclasses.dataclass(frozen=True)
class OracleSettings:
    """The data and the size of the check."""

    hidden: int = setting(0, at_least=0)  # states of an HMM; 0: a Markov chain of the tokens
    # of the Dirichlet distribution of the rows of the matrices: small for data that are surer
    concentration: float = setting(0.3, above=0)
    # samplers take 8, 16, 32, ... steps up to this power of 2
    max_steps: int = setting(1024, at_least=8)
    # network evaluations of single rows for every figure: rows times steps
    evaluations: int = setting(8192, at_least=1024)
    # rows of 64, 256, ... tokens up to so many show the dependence on the length
    max_length: int = setting(4096, at_least=64)


@dataclasses.dataclass(frozen=True)
class OracleConfig(Config):
    """A check of samplers on data.vocab_size tokens and model.length positions, on both graphs."""

    oracle: OracleSettings = OracleSettings()


class Excess(NamedTuple):
    """How far samples are from the data.

    Attributes:
      mean: excess, nats per token.
      error: its standard error, over rows.
      impossible: rows of probability 0, which are left out of the mean.
      bigram_tv: total variation of the pairs of neighbours to those of the data; above 0 for few
        samples of the data, too.
      evaluations: network evaluations of a row, the mean.
    """

    mean: float
    error: float
    impossible: int
    bigram_tv: float
    evaluations: float


class Oracle:
    """The data of a config, and their entropy at one length."""

    def __init__(self, model: HiddenMarkov, length: int, seed: int):
        """Computes the entropy; from ENTROPY_TOKENS drawn tokens for an HMM.

        Args:
          model: the data.
          length: tokens of a row, at least 2.
          seed: of drawn samples.

        Raises:
          BadInput: the length is below 2.
        """
        if length < 2:
            raise BadInput(f"The oracle needs rows of at least 2 tokens, got length={length}.")
        self.model, self.length, self.seed = model, length, seed
        self._log_prob = jax.jit(model.log_prob)
        entropy, self.entropy_error = model.entropy(length), 0.0
        if math.isnan(entropy):
            rows = ENTROPY_TOKENS // length
            nll = -self._log_probs(self.data(rows, jax.random.key(seed + 1)))
            entropy, self.entropy_error = nll.mean(), nll.std() / np.sqrt(rows) / length
        self.entropy = float(entropy) / length

    def data(self, rows: int, key: jax.Array) -> Int[np.ndarray, "B L"]:
        """Draws rows of the data."""
        return np.asarray(self.model.sample(key, rows, self.length))

    def excess(self, samples: Int[np.ndarray, "B L"], evaluations: float = 0) -> Excess:
        """Returns how far samples are from the data.

        Args:
          samples: rows of tokens.
          evaluations: network evaluations of a row.
        """
        log_prob = self._log_probs(samples)
        possible = np.isfinite(log_prob)
        per_token = -log_prob[possible] / self.length - self.entropy
        error = math.nan
        if len(per_token) > 1:
            error = math.hypot(
                per_token.std(ddof=1) / math.sqrt(len(per_token)), self.entropy_error
            )
        tv = abs(_bigrams(samples, self.model.num_tokens) - self._true_bigrams).sum() / 2
        mean = float(per_token.mean()) if len(per_token) else math.nan
        return Excess(mean, error, int((~possible).sum()), float(tv), evaluations)

    def draw(
        self,
        graph: Graph,
        noise: Noise,
        sampling: Sampling,
        rows: int,
        t_min: float,
        first_row: int = 0,
    ) -> tuple[Int[np.ndarray, "B L"], float]:
        """Returns at least so many rows by a sampler with true scores, and their evaluations.

        Args:
          graph: the token graph.
          noise: the schedule.
          sampling: how to draw.
          rows: the number of rows.
          t_min: the time at which the steps end.
          first_row: number of the first row; other rows are other draws.
        """
        size = max(min(_BATCH_TOKENS // self.length, rows), 1)
        draw = self._compiled(graph, noise, sampling, size, t_min)
        samples, evaluations = zip(
            *(draw(start) for start in range(first_row, first_row + rows, size)), strict=True
        )
        return np.concatenate(samples), float(np.mean(evaluations))

    def seconds(
        self, graph: Graph, noise: Noise, samplings: list[Sampling], rows: int, t_min: float
    ) -> Float[np.ndarray, "R W"]:
        """Returns the seconds that each way takes for a batch, in rounds of all ways.

        Args:
          graph: the token graph.
          noise: the schedule.
          samplings: ways to draw.
          rows: of the batch.
          t_min: the time at which the steps end.
        """
        programs = [self._compiled(graph, noise, each, rows, t_min) for each in samplings]
        rounds = [[_seconds(program) for program in programs] for _ in range(_ROUNDS + 1)]
        return np.array(rounds[1:])  # the first has cold caches

    def _compiled(self, graph, noise, sampling, size, t_min):
        """Maps the number of the first row to a batch of samples, and their evaluations."""
        family = ScoreBased(graph, noise, markov_model(graph))
        tokens = np.zeros((size, self.length), np.int32)
        prompt, params = Prompt(tokens, np.zeros(tokens.shape, bool)), self.model.params
        generator = jax.jit(family.generator(sampling, t_min=t_min))

        def keys(start):
            return row_keys(jax.random.key(self.seed), start + jnp.arange(size))

        compiled = generator.lower(params, keys(0), prompt).compile()

        def draw(start):
            samples, diagnostics = compiled(params, keys(start), prompt)
            return np.asarray(samples), np.asarray(diagnostics.evaluations)

        return draw

    def _log_probs(self, tokens):
        size = max(_BATCH_TOKENS // self.length, 1)
        parts = [tokens[start : start + size] for start in range(0, len(tokens), size)]
        return np.concatenate([np.asarray(self._log_prob(part), np.float64) for part in parts])

    @functools.cached_property
    def _true_bigrams(self):
        """The probability of a pair of neighbours, the mean over positions, [N, N]."""
        model, marginal = self.model, self.model.initial
        total = np.zeros_like(model.transition)
        for _ in range(self.length - 1):
            total += marginal[:, None] * model.transition
            marginal = marginal @ model.transition
        return model.emission.T @ (total / (self.length - 1)) @ model.emission


def _seconds(program):
    started = time.perf_counter()
    program(0)
    return time.perf_counter() - started


def _bigrams(samples, num_tokens):
    pairs = samples[:, :-1] * num_tokens + samples[:, 1:]
    counts = np.bincount(pairs.ravel(), minlength=num_tokens**2)
    return counts.reshape(num_tokens, num_tokens) / pairs.size


def check_oracle_settings(config: OracleConfig, samplers: tuple[str, ...]) -> None:
    """Refuses settings and samplers before anything is computed.

    Args:
      config: the settings.
      samplers: names or dotted paths of samplers.

    Raises:
      BadInput: a setting is out of range; the message holds the dotted key.
    """
    oracle, tokens = config.oracle, config.data.vocab_size
    rules = (
        (
            config.family == "diffusion",
            "config.family must be diffusion.",
        ),
        (
            2 <= tokens <= MAX_STATES,
            f"config.data.vocab_size must be from 2 to {MAX_STATES}, got {tokens}.",
        ),
        (
            oracle.hidden <= MAX_STATES,
            f"config.oracle.hidden must be at most {MAX_STATES}, got {oracle.hidden}.",
        ),
        (
            config.model.length >= 2,
            f"config.model.length must be at least 2, got {config.model.length}.",
        ),
        (
            oracle.max_steps.bit_count() == 1,
            f"config.oracle.max_steps must be a power of 2, got {oracle.max_steps}.",
        ),
    )
    for holds, message in rules:
        if not holds:
            raise BadInput(message)
    for name in samplers:
        sampling = Sampling(sampler=name)
        if not any(sampling.method.serves(graph(2)) for graph in GRAPHS.values()):
            raise BadInput(f"The sampler {name} serves neither graph.")

"""Samplers at real length: true scores of a Markov chain or an HMM, so all error is the sampler's.

Excess: the mean of -log p(sample) under the data, less the entropy of the data, in nats per token.
It is 0 for an exact sampler, and positive for one whose samples are less likely than the data's;
the TV of pairs of neighbours also sees samples that are too likely.
"""

import dataclasses
import functools
import math
import time
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from sedd_jax.diffusion.graph import GRAPHS, Graph
from sedd_jax.diffusion.noise import Noise
from sedd_jax.display.plot import Plot
from sedd_jax.display.table import Table
from sedd_jax.errors import BadInput
from sedd_jax.experiment.build import build_noise
from sedd_jax.experiment.config import Config
from sedd_jax.inference.batches import row_keys
from sedd_jax.inference.prompt import Prompt
from sedd_jax.inference.sampling import Sampling
from sedd_jax.inference.score_based import ScoreBased
from sedd_jax.system.settings import setting
from sedd_jax.verification.markov import HiddenMarkov, markov_model, random_model
from sedd_jax.verification.report import Claim, Section

_BATCH_TOKENS = 2**18  # drawn at a time
_ERRORS = 4.5  # standard errors that a claim allows
ENTROPY_TOKENS = 2**22  # drawn to estimate the entropy of an HMM
LENGTH_STEPS = 64  # of the dependence on the length


@dataclasses.dataclass(frozen=True)
class OracleSettings:
    """The data and the size of the check."""

    hidden: int = setting(0, at_least=0)  # states of an HMM; 0: a Markov chain of the tokens
    # of the Dirichlet distribution of the rows of the matrices: small for data that are surer
    concentration: float = setting(0.3, above=0)
    # samplers take 8, 16, 32, ... steps up to this power of 2
    max_steps: int = setting(256, at_least=8)
    # network evaluations of single rows for every figure: rows times steps
    evaluations: int = setting(8192, at_least=1024)
    # rows of 64, 128, ... tokens up to this power of 2 show the dependence on the length
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
      bigram_tv: total variation of the pairs of neighbours to those of the data.
      seconds: to draw a row, without compilation.
    """

    mean: float
    error: float
    impossible: int
    bigram_tv: float
    seconds: float


class Oracle:
    """The data of a config, and their entropy at one length."""

    def __init__(self, model: HiddenMarkov, length: int, seed: int):
        """Computes the entropy; from ENTROPY_TOKENS drawn tokens for an HMM.

        Args:
          model: the data.
          length: tokens of a row.
          seed: of drawn samples.
        """
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

    def excess(self, samples: Int[np.ndarray, "B L"], seconds: float = math.nan) -> Excess:
        """Returns how far samples are from the data.

        Args:
          samples: rows of tokens.
          seconds: that it took to draw a row.
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
        return Excess(mean, error, int((~possible).sum()), float(tv), seconds)

    def sample(
        self, graph: Graph, noise: Noise, sampling: Sampling, rows: int, t_min: float
    ) -> Excess:
        """Draws rows by a sampler with true scores and returns their `Excess`.

        Args:
          graph: the token graph.
          noise: the schedule.
          sampling: how to draw.
          rows: the number of rows.
          t_min: the time at which the steps end.
        """
        family = ScoreBased(graph, noise, markov_model(graph))
        size = max(min(_BATCH_TOKENS // self.length, rows), 1)
        tokens = np.zeros((size, self.length), np.int32)
        prompt, params = Prompt(tokens, np.zeros(tokens.shape, bool)), self.model.params
        seeds = jax.random.key(self.seed)
        keys = [row_keys(seeds, start + jnp.arange(size)) for start in range(0, rows, size)]
        generator = jax.jit(family.generator(sampling, t_min=t_min))
        draw = generator.lower(params, keys[0], prompt).compile()
        started = time.monotonic()
        samples = [np.asarray(draw(params, each, prompt)[0]) for each in keys]
        seconds = (time.monotonic() - started) / (len(keys) * size)
        return self.excess(np.concatenate(samples), seconds)

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
    oracle = config.oracle
    rules = (
        (config.data.vocab_size >= 2, "config.data.vocab_size must be at least 2."),
        (config.model.length >= 2, "config.model.length must be at least 2."),
        *(
            (
                getattr(oracle, name).bit_count() == 1,
                f"config.oracle.{name} must be a power of 2, got {getattr(oracle, name)}.",
            )
            for name in ("max_steps", "max_length")
        ),
    )
    for holds, message in rules:
        if not holds:
            raise BadInput(message)
    for name in samplers:
        sampling = Sampling(sampler=name)
        if not any(sampling.method.serves(graph(2)) for graph in GRAPHS.values()):
            raise BadInput(f"The sampler {name} serves neither graph.")


def oracle_sections(config: OracleConfig, samplers: tuple[str, ...]) -> Iterator[Section]:
    """Yields the sections of the report, one after another as they are computed.

    Args:
      config: the settings.
      samplers: names or dotted paths of samplers.
    """
    settings, noise = config.oracle, build_noise(config.noise)
    model = random_model(
        config.seed, config.data.vocab_size, settings.hidden, settings.concentration
    )
    oracle = Oracle(model, config.model.length, config.seed)
    yield _check_data(oracle, settings)
    graphs = {name: graph(model.num_tokens) for name, graph in GRAPHS.items()}
    for name, graph in graphs.items():
        serving = [each for each in samplers if Sampling(sampler=each).method.serves(graph)]
        yield _check_samplers(oracle, name, graph, noise, serving, config)
    yield _check_lengths(model, graphs, noise, config)


def _check_data(oracle, settings):
    """The data's own samples, and the rounding of the scores."""
    rows = max(settings.evaluations // 8, 2)
    own = oracle.excess(oracle.data(rows, jax.random.key(oracle.seed)))
    row = oracle.data(1, jax.random.key(oracle.seed + 2))
    graph, sigma = GRAPHS["uniform"](oracle.model.num_tokens), jnp.array([1e-3])
    found = np.asarray(jax.jit(markov_model(graph).apply)(oracle.model.params, row, sigma))
    with jax.enable_x64(True):
        exact = jax.jit(markov_model(graph).apply)(oracle.model.params, row, sigma.astype(float))
    off = float(np.abs(found - np.asarray(exact)).max())
    claims = [
        Claim(
            "samples of the data: |excess| in standard errors",
            abs(own.mean) / own.error,
            "<=",
            _ERRORS,
        ),
        Claim("log-scores in float32 and float64: largest difference", off, "<=", 1e-3),
    ]
    title = f"The data: {oracle.model.num_tokens} tokens, length {oracle.length}"
    columns = ("entropy, nats/token", "samples", "excess", "+-", "bigram TV")
    row = (oracle.entropy, rows, own.mean, own.error, own.bigram_tv)
    return Section("Oracle", claims, [Table(title, columns, [row])])


def _check_samplers(oracle, graph_name, graph, noise, samplers, config):
    """Excess of every sampler by network evaluations."""
    settings, t_min = config.oracle, config.train.t_min
    rows, curves, impossible, last = [], {}, 0, {}
    for name in samplers:
        points = []
        for steps in (2**i for i in range(3, settings.max_steps.bit_length())):
            sampling = Sampling(sampler=name, steps=steps)
            count = max(settings.evaluations // steps, 2)
            found = oracle.sample(graph, noise, sampling, count, t_min)
            nfe = sampling.max_nfe(oracle.length)
            rows.append((name, nfe, found.mean, found.error, found.bigram_tv, found.seconds))
            points.append((nfe, found.mean, found.error))
            impossible += found.impossible
        last[name] = points[-1]
        curves[name] = _above_zero(points)
    # sampler error falls as 1 / steps or faster
    surely = [nfe * (mean - _ERRORS * error) for nfe, mean, error in last.values()]
    claims = [
        Claim(f"{graph_name}: samples of probability 0", impossible, "<=", 0),
        Claim(
            f"{graph_name}: excess x evaluations at the most steps, less {_ERRORS} standard "
            "errors, worst sampler",
            max(surely, default=math.nan),
            "<=",
            4.0,
        ),
    ]
    title = f"{graph_name}: excess of the samples over the entropy, nats per token, true scores"
    columns = ("sampler", "evaluations", "excess", "+-", "bigram TV", "seconds a row")
    label = "excess, nats per token"
    plot = Plot(f"oracle_{graph_name}", "network evaluations", label, curves)
    return Section(f"Samplers, {graph_name} graph", claims, [Table(title, columns, rows)], [plot])


def _check_lengths(model, graphs, noise, config):
    """Excess of whole rows at a fixed number of steps, by length."""
    settings, rows, curves = config.oracle, [], {}
    for length in (2**i for i in range(6, settings.max_length.bit_length())):
        oracle = Oracle(model, length, config.seed)
        for graph_name, graph in graphs.items():
            for name in ("euler", "tweedie"):
                sampling = Sampling(sampler=name, steps=LENGTH_STEPS)
                count = max(8 * settings.evaluations // length, 2)
                found = oracle.sample(graph, noise, sampling, count, config.train.t_min)
                rows.append((graph_name, name, length, found.mean * length, found.error * length))
                curves.setdefault(f"{name}, {graph_name}", []).append(rows[-1][2:])
    shown = {name: _above_zero(points) for name, points in curves.items()}
    slopes = [
        (name, float(np.polyfit(np.log(x), np.log(y), 1)[0]))
        for name, (x, y, _) in shown.items()
        if len(x) > 1
    ]
    title = f"Excess of a row, nats, at {LENGTH_STEPS} steps"
    tables = [
        Table(title, ("graph", "sampler", "length", "excess", "+-"), rows),
        Table("Slope of the excess over the length, log-log", ("sampler", "slope"), slopes),
    ]
    plot = Plot("oracle_lengths", "tokens of a row", "excess of a row, nats", shown)
    return Section("Dependence on the length", [], tables, [plot])


def _above_zero(points):
    """A curve of (x, y, error), of the points that a logarithmic axis can show."""
    shown = [point for point in points if point[1] > 0]
    return tuple(map(list, zip(*shown, strict=True))) if shown else ([], [], [])

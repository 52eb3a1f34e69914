"""Quality at equal entropy: samplers at several temperatures, compared at the entropy of real text.

A lower temperature buys generative perplexity with entropy, so neither says anything without the
other. Samples of one sampler at several temperatures are a curve, its frontier: log perplexity over
the unigram entropy of a sample. Its value at the entropy of real text is the one number by which
samplers and budgets are compared. It is interpolated linearly between the two neighbouring points,
or extrapolated beyond the last two, and then says so.

The perplexity is the one by tokens where it is known. Its logarithm is the mean of -log p_ref of a
token, the part of KL(samples || p_ref) that the scoring model sees; the other part is the joint
entropy of the samples, for which the entropy here stands in: see docs/evaluation.md. The mean of
the perplexities of single samples has no such meaning, and is used for ids without text alone.

Errors are by samples (delta method). Entropy and perplexity of one sample go together, and row i of
all temperatures comes from the same random key; both covariances are respected. The error of the
entropy of real text is one for all samplers, and stands apart.

References:
  Pynadath, Shi and Zhang, Generative Frontiers: Why Evaluation Matters for Diffusion Language
    Models, 2026 (arXiv 2604.02718).
"""

import dataclasses
import json
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from sedd_jax.evaluation.record import Label, Record, real_names, sampler_names

# the default grid
TEMPERATURES = (0.85, 0.9, 0.95, 1.0, 1.05)
BY_TOKENS, BY_SAMPLES = "gen_perplexity_tokens", "gen_perplexity_samples"
CONVENTIONS = {BY_TOKENS: "by tokens", BY_SAMPLES: "by samples"}  # the first one that is known


class Matched(NamedTuple):
    """Samples of one sampler at a given entropy.

    Attributes:
      perplexity: generative perplexity there.
      stderr: its standard error, by samples.
      slope: of log perplexity over entropy there; NaN for a single point.
      evaluations: network evaluations of a sample there.
      temperatures: those of the points that it was computed from.
      beyond: nats between that entropy and the nearest one of the samples; 0: interpolated.
    """

    perplexity: float
    stderr: float
    slope: float
    evaluations: float
    temperatures: tuple[float, ...]
    beyond: float

    @property
    def how(self) -> str:
        """How it was computed, in words."""
        if len(self.temperatures) == 1:
            return f"one point, {self.beyond:.2f} nats away"
        return f"extrapolated by {self.beyond:.2f} nats" if self.beyond else "interpolated"


def temperature_of(record: Record) -> float:
    """Returns the temperature of samples."""
    return record.protocol.get("temperature", 1.0)


def matched(records: Sequence[Record], entropy: float, figure: str = BY_SAMPLES) -> Matched:
    """Returns the perplexity of samples at an entropy.

    Of samples with the same entropy those with the lowest perplexity count.

    Args:
      records: of one sampler and number of steps, at different temperatures.
      entropy: of real text, nats.
      figure: the name of the perplexity.
    """
    points = sorted((_point(record, figure) for record in records), key=lambda it: it[:2])
    points = [it for i, it in enumerate(points) if not i or it.entropy > points[i - 1].entropy]
    x = np.array([point.entropy for point in points])
    beyond = float(max(x[0] - entropy, entropy - x[-1], 0))
    low = high = points[0]
    share, slope = 0.0, math.nan
    if len(points) > 1:
        left = int(np.clip(np.searchsorted(x, entropy) - 1, 0, len(x) - 2))
        low, high = points[left : left + 2]
        share = (entropy - low.entropy) / (high.entropy - low.entropy)
        slope = (high.log_perplexity - low.log_perplexity) / (high.entropy - low.entropy)
    # what a sample changes: its log perplexity, less what its entropy explains
    along = np.array([-np.nan_to_num(slope), 1.0])
    parts = (1 - share) * low.deviations @ along, share * high.deviations @ along
    paired = low.by_sample and high.by_sample
    changes = sum(parts) if paired else np.concatenate(parts)
    value = math.exp(low.log_perplexity + share * (high.log_perplexity - low.log_perplexity))
    return Matched(
        value,
        value * float(np.linalg.norm(changes)),
        slope,
        low.evaluations + share * (high.evaluations - low.evaluations),
        tuple(sorted({low.temperature, high.temperature})),
        beyond,
    )


class _Point(NamedTuple):
    """Samples at one temperature.

    Attributes:
      entropy: nats.
      log_perplexity: nats.
      deviations: what every sample adds to both, above or below their means: the squares of a
        combination sum to its squared standard error.
      by_sample: whether they are known; else two made-up ones, with errors that are independent.
      temperature: of the samples.
      evaluations: of the network, of a sample.
    """

    entropy: float
    log_perplexity: float
    deviations: Float[np.ndarray, "N 2"]
    by_sample: bool
    temperature: float
    evaluations: float


def _point(record, figure):
    found, names = record.figures, ("entropy", figure)
    values = np.array([found[name] for name in names])
    scale = np.array([1.0, 1 / found[figure]])  # of the logarithm
    by_sample = all(f"{name}_by_sample" in found for name in names)
    if by_sample:
        each = np.array([found[f"{name}_by_sample"] for name in names]).T - values
        deviations = scale * each / math.sqrt(len(each) * (len(each) - 1))
    else:  # a record of an earlier version
        deviations = np.diag(scale * [found[f"{name}_stderr"] for name in names])
    cost = found.get("evaluations", math.nan)
    log_perplexity = math.log(found[figure])
    return _Point(values[0], log_perplexity, deviations, by_sample, temperature_of(record), cost)


class Frontier(NamedTuple):
    """Records that differ in their temperature alone, by temperature."""

    name: str
    records: list[Record]

    @property
    def steps(self) -> int | None:
        """Of the sampler."""
        return self.records[0].protocol.get("steps")


class Section(NamedTuple):
    """Frontiers under one scoring model, at the entropy of one real text.

    Attributes:
      title: names the real text.
      real: its record.
      figures: the perplexities that all have, the one to compare by first.
      frontiers: of samplers and steps.
    """

    title: str
    real: Record
    figures: list[str]
    frontiers: list[Frontier]

    @property
    def level(self) -> float:
        """The entropy of real text, nats."""
        return self.real.figures["entropy"]

    @property
    def figure(self) -> str:
        """The perplexity to compare by."""
        return self.figures[0]

    def matched(self, frontier: Frontier, figure: str | None = None) -> Matched:
        """Returns a frontier at the entropy of real text, by default by `figure`."""
        return matched(frontier.records, self.level, figure or self.figure)

    def level_stderr(self, found: Matched) -> float:
        """Returns how far the error of that entropy moves a matched perplexity."""
        slope = 0.0 if math.isnan(found.slope) else abs(found.slope)
        return found.perplexity * slope * self.real.figures.get("entropy_stderr", 0.0)


def own_temperature(records: Sequence[Record]) -> list[Record]:
    """Returns the records without those that differ from one of temperature 1 in that alone."""
    kept = set()
    for group in _groups(records):
        plain = [it for it in group if temperature_of(it) == 1]
        kept |= set(map(id, plain or group))
    return [record for record in records if id(record) in kept]


def _groups(records):
    found: dict[str, list[Record]] = {}
    for record in records:
        protocol = {key: it for key, it in record.protocol.items() if key != "temperature"}
        found.setdefault(json.dumps([record.model, protocol], sort_keys=True), []).append(record)
    return [sorted(group, key=temperature_of) for group in found.values()]


def sections(records: Sequence[Record], label: Label) -> Iterator[Section]:
    """Yields the frontiers of records beside every real text that was read in the same way.

    Without several temperatures, a scoring model or real text there is none.

    Args:
      records: of samples and real text.
      label: names models.
    """
    reals: dict[str, list[Record]] = {}
    for record in records:
        if record.is_real:
            name = (record.protocol.get("reference") or {}).get("name")
            reals.setdefault(json.dumps([name, _read_as(record)]), []).append(record)
    largest = [max(group, key=lambda it: it.figures["samples"]) for group in reals.values()]
    for title, real in zip(real_names(largest), largest, strict=True):
        groups = _groups(
            [it for it in records if not it.is_real and _read_as(it) == _read_as(real)]
        )
        drawn = [it for group in groups for it in group]
        figures = [it for it in CONVENTIONS if _all_have(it, [real, *drawn])]
        if figures and any(len(group) > 1 for group in groups):
            names = sampler_names([_plain(group[0]) for group in groups], label)
            frontiers = sorted(
                map(Frontier, names, groups), key=lambda it: (it.name, it.steps or 0)
            )
            yield Section(title, real, figures, frontiers)


def _read_as(record):
    """What a generative perplexity and an entropy must share to be comparable."""
    judge = record.protocol.get("judge") or {}
    read = [judge.get(key) for key in ("weights", "window", "start")]
    model = [record.model.get(key) for key in ("tokenizer", "fingerprint")]
    return [record.protocol.get("length"), *read, *model]


def _all_have(figure, records):
    return all(math.isfinite(it.figures.get(figure, math.nan)) for it in records)


def _plain(record):
    protocol = {key: it for key, it in record.protocol.items() if key != "temperature"}
    return dataclasses.replace(record, protocol=protocol)

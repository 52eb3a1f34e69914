"""Quality of samples, for one sampler setting or for a sweep over samplers and steps.

Dull samples have a low generative perplexity: a record also has their diversity and settings.
"""

import dataclasses
import functools
import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from sedd_jax.diffusion.temperature import NO_FILTER
from sedd_jax.display.table import duration, in_brackets
from sedd_jax.errors import BadInput, check_positive
from sedd_jax.evaluation.measures import read_reference
from sedd_jax.evaluation.record import Record, describe_model, find_cached, log_on_primary, save
from sedd_jax.evaluation.sample_figures import Measures
from sedd_jax.evaluation.scoring_model import ScoringModel
from sedd_jax.inference.family import Family, sampling_names
from sedd_jax.inference.generate import check_rows, generate
from sedd_jax.inference.model import TrainedModel
from sedd_jax.inference.sampling import Sampling
from sedd_jax.system.processes import (
    assert_equal_across_processes,
    broadcast_from_primary,
    run_primary_first,
)
from sedd_jax.system.progress import progress

REAL = "real text"  # in place of a sampler
_TITLES = {
    "gen_perplexity_samples": "generative perplexity by samples",
    "gen_perplexity_tokens": "by tokens",
    "entropy": "entropy",
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What to sample: each of `samplers` x `steps` x `temperatures` is one record.

    Attributes:
      num_samples: of each record.
      length: tokens of a sample; the trained length by default.
      steps: of a diffusion model, evaluations before the final one, if any; None for the
        sampler's own.
      samplers: of a diffusion model, names from `inference.sampling`.
      temperatures: of the distribution of a token; several make a frontier.
      top_p: mass of the nucleus.
      tempering: of a diffusion model, what both act on.
      seed: sample i is a function of (seed, i).
      batch_size: samples at a time.
      mauve: whether to measure MAUVE against the reference.
    """

    num_samples: int = 64
    length: int | None = None
    steps: tuple[int | None, ...] = (None,)
    samplers: tuple[str, ...] = ("tweedie",)
    temperatures: tuple[float, ...] = (1.0,)
    top_p: float = 1.0
    tempering: str = "token"
    seed: int = 0
    batch_size: int = 32
    mauve: bool = False

    def sweep(self, family: Family) -> list[Any]:
        """Returns every sampler setting of a model, see `Family.sampling`.

        Raises:
          BadInput: a setting out of range, or not defined on the model's graph.
        """
        names, default = sampling_names(family), Settings()
        common = {
            name: getattr(self, name)  # else the family refuses it
            for name in ("top_p", "tempering")
            if name in names or getattr(self, name) != getattr(default, name)
        }
        swept = {"sampler": self.samplers, "steps": self.steps}
        axes = {name: swept[name] for name in swept if name in names}
        if "temperature" in names or self.temperatures != default.temperatures:
            axes["temperature"] = self.temperatures
        grid = (dict(zip(axes, each, strict=True)) for each in itertools.product(*axes.values()))
        return list(dict.fromkeys(family.sampling(**each, **common) for each in grid))

    def check(self) -> None:
        """Raises BadInput for a setting out of range for every model."""
        check_positive(batch_size=self.batch_size)
        if not self.steps:
            raise BadInput("steps is empty, so that nothing would be drawn; leave it out.")
        if not self.temperatures:
            raise BadInput("temperatures are empty: nothing would be drawn; leave them out.")
        if twice := [it for it in self.temperatures if self.temperatures.count(it) > 1]:
            raise BadInput(f"temperature={twice[0]:g} is given twice; give each once.")
        for each in itertools.product(self.steps, self.samplers, self.temperatures):
            Sampling(*each, top_p=self.top_p, tempering=self.tempering).check()
        if self.num_samples < 2:
            raise BadInput(f"num_samples is {self.num_samples}; a standard error needs at least 2.")
        if self.length is not None and self.length < 4:
            raise BadInput(f"length is {self.length}; repeated 4-grams need at least 4 tokens.")


class SamplerConfig(NamedTuple):
    """A source of texts.

    Attributes:
      name: in the name of the record.
      evaluations: the most network evaluations that a text takes.
      protocol: its part of the protocol of the record.
      draw: () -> tokens [N, L] and the mean network evaluations per row.
      twin: a source with the same distribution, which all such sources share; None: itself.
    """

    name: str
    evaluations: int
    protocol: dict[str, Any]
    draw: Callable[[], tuple[np.ndarray, float]]
    twin: "SamplerConfig | None" = None


class Plan(NamedTuple):
    """What `run` will do, checked by `plan`.

    Attributes:
      configs: sources of texts.
      queries: their records, without figures.
      twins: for each the query of which it may take the figures, see `same_distribution`; of most
        it is their own.
      measures: computes the figures.
    """

    configs: list[SamplerConfig]
    queries: list[Record]
    twins: list[Record]
    measures: Measures


def plan(
    checkpoint: TrainedModel,
    settings: Settings,
    *,
    averaged: bool = True,
    scorer: TrainedModel | None = None,
    reference: str | None = None,
) -> Plan:
    """Returns the plan to measure every sampler setting, and the real text if there is one.

    Args:
      checkpoint: the model.
      settings: what to sample.
      averaged: whether the weights of the checkpoint are averages.
      scorer: a causal model for generative perplexity and MAUVE, on the mesh of the checkpoint.
      reference: real text, "heldout" or a file.

    Raises:
      BadInput: invalid settings, a scoring model that cannot read the samples, no such text, or no
        package for MAUVE.
      FloatingPointError: weights that are not finite.
    """
    settings.check()
    length = checkpoint.config.model.length if settings.length is None else settings.length
    check_rows(checkpoint, settings.num_samples, length, settings.batch_size)
    scoring = scorer and ScoringModel(scorer, length, settings.batch_size)
    real = reference and read_reference(reference, checkpoint, length, settings.num_samples)
    measures = Measures(checkpoint, settings.num_samples, scoring, real, settings.mauve)
    configs = _sampler_configs(checkpoint, settings, length)
    if real:
        configs.append(_real_text(real))
    common = {"length": length, "samples": settings.num_samples, "seed": settings.seed}
    model = describe_model(checkpoint, averaged=averaged)

    def query(config):
        return Record("quality", config.name, model, common | measures.protocol | config.protocol)

    twins = [query(config.twin or config) for config in configs]
    return Plan(configs, list(map(query, configs)), twins, measures)


def same_distribution(checkpoint: TrainedModel, sampling: Any) -> Any:
    """Returns settings with the same samples, up to rounding, that all such settings share.

    Euler's steps are Tweedie's under the absorbing graph with log-linear noise, with any scores; at
    temperature 1 without top-p it is all the same what both act on. (First hitting with T steps has
    the distribution of T Tweedie steps with normalised ratios alone.)

    Args:
      checkpoint: the model.
      sampling: settings of its generator.
    """
    if not isinstance(sampling, Sampling):
        return sampling
    config = checkpoint.config
    if (config.graph, config.noise.schedule) == ("absorb", "loglinear"):
        name, bracket, options = sampling.sampler.partition("(")
        if name == "euler":
            sampling = dataclasses.replace(sampling, sampler=f"tweedie{bracket}{options}")
    if sampling.token_filter == NO_FILTER:
        sampling = dataclasses.replace(sampling, tempering="token")
    return sampling


def run(planned: Plan, folder: Path) -> list[Record]:
    """Returns a record for every source of the plan, from `folder` where it is cached there.

    All processes of a job call this; process 0 writes, and reports progress on stderr.

    Args:
      planned: what to do.
      folder: of the records.

    Raises:
      FloatingPointError: a network produced NaN or Inf.
    """
    configs, queries, twins, measures = planned
    assert_equal_across_processes(repr(queries), "data or settings")
    cached = _known(folder, queries)
    rows = list(zip(configs, queries, twins, cached, strict=True))
    others = [twin for _, query, twin, record in rows if record is None and twin != query]
    known = [*zip(others, _known(folder, others), strict=True), *zip(twins, cached, strict=True)]
    shared = {twin.file: record for twin, record in known if record is not None}
    remaining = sum(config.evaluations for config, *_, record in rows if record is None)
    done, began = 0, time.monotonic()
    records = []
    for config, query, twin, record in rows:
        if record is None:
            if same := shared.get(twin.file):
                figures = _with_note(same.figures, f"The samples are those of {same.name}.")
            else:
                started = time.monotonic()
                tokens, evaluations = config.draw()
                cost = {"evaluations": evaluations, "seconds": time.monotonic() - started}
                figures = {"samples": len(tokens)} | cost | measures(tokens)
                done += config.evaluations
            record = dataclasses.replace(query, figures=figures)
            run_primary_first(functools.partial(save, folder, record), lambda: None)
            remaining -= config.evaluations
        shared.setdefault(twin.file, record)
        records.append(record)
        found = _in_words(record.figures)
        if remaining and done:
            seconds = (time.monotonic() - began) * remaining / done
            found.append(f"{duration(seconds)} left")
        log_on_primary(f"{len(records)}/{len(rows)}  {record.name}: {', '.join(found)}")
    return records


def _known(folder, queries):
    """The records of queries; None where there is none, on other processes without figures."""
    # process 0 alone looks: others may not see the folder, or see a file that was just written
    found = run_primary_first(
        lambda: [find_cached(folder, query) for query in queries], lambda: [None] * len(queries)
    )
    return [
        (record or query) if broadcast_from_primary(record is not None) else None
        for record, query in zip(found, queries, strict=True)
    ]


def _with_note(figures, note):
    return figures | {"notes": [*figures.get("notes", []), note]}


def _in_words(figures):
    return [
        f"{title} {figures[name]:.4g}{in_brackets(figures[f'{name}_stderr'], '.2g')}"
        for name, title in _TITLES.items()
        if name in figures
    ]


def _short(value):
    return value if isinstance(value, str) else f"{value:g}"


def _real_text(reference):
    """The reference itself: the figures of perfect samples."""
    protocol = {"sampler": REAL, "samples": len(reference.rows), "seed": None}
    protocol |= {"reference": reference.facts}
    return SamplerConfig(REAL.replace(" ", "-"), 0, protocol, lambda: (reference.rows, 0))


def _sampler_configs(checkpoint, settings, length):
    key, family, kind = jax.random.key(settings.seed), checkpoint.family, checkpoint.config.family
    shape = {
        "num_samples": settings.num_samples,
        "length": length,
        "batch_size": settings.batch_size,
    }
    final_step = (
        f"one draw that removes all noise left at t = {checkpoint.config.train.t_min:g}, "
        "never the mask"
    )

    def config(sampling):
        defaults, options = dataclasses.asdict(type(sampling)()), dataclasses.asdict(sampling)
        always = {"sampler": kind} | options
        if family.infills:
            always = {name: options[name] for name in ("sampler", "steps")}
        departures = {  # from the model's own distribution
            name: it for name, it in options.items() if name not in always and it != defaults[name]
        }
        protocol = always | {"final_step": "none"} | departures
        if family.infills and not sampling.method.rows_differ:
            protocol["final_step"] = final_step
        parts = [always[name] for name in ("sampler", "steps") if name in always]
        parts += [f"{name.replace('_', '-')}-{_short(it)}" for name, it in departures.items()]
        name = "-".join(str(part) for part in parts if part is not None)

        def draw():
            with progress(name) as advance:
                tokens, found = generate(key, checkpoint, **shape, **options, progress=advance)
            return tokens, float(found.evaluations.mean())

        return SamplerConfig(name, family.max_nfe(sampling, length), protocol, draw)

    def source(sampling):
        same = same_distribution(checkpoint, sampling)
        return config(sampling)._replace(twin=None if same == sampling else config(same))

    return list(map(source, settings.sweep(family)))

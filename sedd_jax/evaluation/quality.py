"""How good samples are, for one way to sample or for many: steps, samplers.

Generative perplexity alone can be had for nothing, by dull samples; so a record always says how
varied they were and how they were drawn.
"""

import dataclasses
import functools
import itertools
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from sedd_jax.errors import BadInput, check_positive
from sedd_jax.evaluation.measures import Measures
from sedd_jax.evaluation.record import Record, answered, identity, save
from sedd_jax.evaluation.reference import read_reference
from sedd_jax.evaluation.scoring_model import Judge
from sedd_jax.inference.family import Family
from sedd_jax.inference.generate import check_rows, generate
from sedd_jax.inference.model import TrainedModel
from sedd_jax.inference.sampling import Sampling
from sedd_jax.system.processes import (
    assert_equal_across_processes,
    broadcast_from_primary,
    is_primary,
    run_primary_first,
)
from sedd_jax.system.progress import progress

REAL = "real text"  # stands where other rows have a sampler
_TITLES = {
    "gen_perplexity_samples": "generative perplexity by samples",
    "gen_perplexity_tokens": "by tokens",
    "entropy": "entropy",
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What to sample. Each of `samplers` x `steps` is one record.

    Attributes:
      num_samples: of each record.
      length: tokens of a sample; the trained length by default.
      steps: reverse steps before the final one, None for the sampler's own; of a diffusion
        model, as the next.
      samplers: see `inference.sampling`.
      temperature: how sharply tokens are drawn, as the next.
      top_p: the nucleus.
      seed: sample i is a function of (seed, i).
      batch_size: samples at a time.
      mauve: measure that too, against the reference.
    """

    num_samples: int = 64
    length: int | None = None
    steps: tuple[int | None, ...] = (None,)
    samplers: tuple[str, ...] = ("tweedie",)
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    batch_size: int = 32
    mauve: bool = False

    def sweep(self, family: Family) -> list[Any]:
        """Returns the settings of every way to sample, see `Family.sampling`.

        Raises:
          BadInput: a setting out of range, or not defined on the model's graph.
        """
        common = {"temperature": self.temperature, "top_p": self.top_p}
        if not family.infills:
            return [family.sampling(**common)]
        product = itertools.product(self.samplers, self.steps)
        ways = [family.sampling(sampler=name, steps=steps, **common) for name, steps in product]
        return list(dict.fromkeys(ways))

    def check(self) -> None:
        """Raises BadInput for a setting out of range, whatever the model."""
        check_positive(batch_size=self.batch_size)
        for sampler, steps in itertools.product(self.samplers, self.steps):
            Sampling(steps, sampler, self.temperature, self.top_p).check()
        if self.num_samples < 2:
            raise BadInput(f"num_samples is {self.num_samples}; an error needs 2 at least.")
        if self.length is not None and self.length < 4:
            raise BadInput(f"length is {self.length}; repeated 4-grams need 4 tokens at least.")


class _Way(NamedTuple):
    """A way to come by texts: its name, the most it costs, its protocol, and how to do it.

    `draw` returns tokens [N, L] and the calls of the network for a row, on average.
    """

    name: str
    evaluations: int
    protocol: dict[str, Any]
    draw: Callable[[], tuple[np.ndarray, float]]


class Plan(NamedTuple):
    """What `run` is to do, known to be possible: see `plan`."""

    ways: list[_Way]
    questions: list[Record]
    measures: Measures


def plan(
    checkpoint: TrainedModel,
    settings: Settings,
    *,
    averaged: bool = True,
    judge: TrainedModel | None = None,
    reference: str | None = None,
) -> Plan:
    """Returns the plan to measure every way to sample, and the real text if there is any.

    Args:
      checkpoint: the model.
      settings: what to sample.
      averaged: whether the weights of the checkpoint are the averaged ones.
      judge: a causal model, for generative perplexity and MAUVE; on the mesh of the checkpoint.
      reference: real text, "heldout" or a file.

    Raises:
      BadInput: settings that cannot be, a judge that cannot read the samples, no such text, or no
        package for MAUVE.
      FloatingPointError: weights that are not finite.
    """
    settings.check()
    length = checkpoint.config.model.length if settings.length is None else settings.length
    check_rows(checkpoint, settings.num_samples, length, settings.batch_size)
    judging = judge and Judge(judge, length, settings.batch_size)
    real = reference and read_reference(reference, checkpoint, length, settings.num_samples)
    measures = Measures(checkpoint, settings.num_samples, judging, real, settings.mauve)
    ways = _ways(checkpoint, settings, length)
    if real:
        ways.append(_real_text(real))
    common = {"length": length, "samples": settings.num_samples, "seed": settings.seed}
    model = identity(checkpoint, averaged=averaged)
    questions = [
        Record("quality", way.name, model, common | measures.protocol | way.protocol)
        for way in ways
    ]
    return Plan(ways, questions, measures)


def run(planned: Plan, folder: Path) -> list[Record]:
    """Returns a record for every way of the plan, from `folder` where it is answered there.

    All processes of a job call this; the lead writes, and says how far it is on stderr.

    Args:
      planned: what to do.
      folder: of the records.

    Raises:
      FloatingPointError: a network gave what is not finite.
    """
    ways, questions, measures = planned
    assert_equal_across_processes(repr(questions), "data or settings")

    def look():
        return [answered(folder, question) for question in questions]

    # on the lead alone: others may see no such folder, or a file that was just written
    known = run_primary_first(look, lambda: [None] * len(questions))
    known = [
        (record or question) if broadcast_from_primary(record is not None) else None
        for record, question in zip(known, questions, strict=True)
    ]
    asked = [way.evaluations for way, record in zip(ways, known, strict=True) if record is None]
    told = _Told(len(ways), sum(asked))
    records = []
    for way, question, record in zip(ways, questions, known, strict=True):
        if record is None:
            began = time.monotonic()
            tokens, evaluations = way.draw()
            sampled = {"evaluations": evaluations, "seconds": time.monotonic() - began}
            figures = {"samples": len(tokens)} | sampled | measures(tokens)
            record = dataclasses.replace(question, figures=figures)
            run_primary_first(functools.partial(save, folder, record), lambda: None)
            told.count(way.evaluations)
        records.append(record)
        told.say(record)
    return records


def _real_text(reference):
    """What samples would be at their best."""
    protocol = {"sampler": REAL, "samples": len(reference.rows), "seed": None}
    protocol |= {"reference": reference.about}
    return _Way(REAL.replace(" ", "-"), 0, protocol, lambda: (reference.rows, 0))


def _ways(checkpoint, settings, length):
    key, count, family = jax.random.key(settings.seed), settings.num_samples, checkpoint.family
    rows = {"num_samples": count, "length": length, "batch_size": settings.batch_size}
    final = (
        f"one draw that removes all noise left at t = {checkpoint.config.train.t_min:g}, "
        "never the mask"
    )

    def way(sampling):
        usual, options = dataclasses.asdict(type(sampling)()), dataclasses.asdict(sampling)
        departures = {  # what follows the model's distribution need not be named
            name: value
            for name, value in options.items()
            if name not in ("sampler", "steps") and value != usual[name]
        }
        named = {name: options[name] for name in ("sampler", "steps") if name in options}
        protocol = {"sampler": checkpoint.config.family, "final_step": "none"} | named | departures
        if family.infills and not sampling.method.draws_times:
            protocol["final_step"] = final
        name = _name(**{"sampler": checkpoint.config.family, "steps": None} | named | departures)

        def drawn():
            with progress(name) as advance:
                tokens, found = generate(key, checkpoint, **rows, **options, progress=advance)
            return tokens, float(found.evaluations.mean())

        return _Way(name, family.max_nfe(sampling, length), protocol, drawn)

    return list(map(way, settings.sweep(family)))


def _name(sampler, steps, **departures):
    """What a way is called."""
    parts = [sampler, steps]
    parts += [f"{name.replace('_', '-')}-{value:g}" for name, value in departures.items()]
    return "-".join(str(part) for part in parts if part is not None)


class _Told:
    """Says on stderr, on the lead only, what was found and how long the rest will take."""

    def __init__(self, ways: int, evaluations: int):
        self._ways, self._said, self._left, self._done = ways, 0, evaluations, 0
        self._began = time.monotonic()

    def count(self, evaluations: int) -> None:
        """Counts calls of the network."""
        self._done, self._left = self._done + evaluations, self._left - evaluations

    def say(self, record: Record) -> None:
        """Prints a line for a record."""
        self._said += 1
        if not is_primary():
            return
        figures = record.figures
        found = [
            f"{title} {figures[name]:.4g} (+-{figures[f'{name}_stderr']:.2g})"
            for name, title in _TITLES.items()
            if name in figures
        ]
        if self._left and self._done:
            seconds = (time.monotonic() - self._began) * self._left / self._done
            found.append(f"{duration(seconds)} left")
        line = f"{self._said}/{self._ways}  {record.name}: {', '.join(found)}"
        print(line, file=sys.stderr, flush=True)

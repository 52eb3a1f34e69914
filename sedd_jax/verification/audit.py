"""An audit of training objectives on a space that can be enumerated.

Is the number that an objective reports a bound on -log p(x_0) of the model, for every x_0? Are the
true scores its minimum? Is the gradient of a batch that of the expectation, and how much does it
vary? Do samples come from the data after training?

An upper bound on -log p(x_0) of any distribution p has sum over x_0 of exp(-bound) <= 1. A number
that fails this is a bound of no model at all.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from sedd_jax.diffusion.graph import Graph
from sedd_jax.diffusion.objective import Objective
from sedd_jax.diffusion.output import output_named
from sedd_jax.display.table import Cell, Table
from sedd_jax.experiment.config import Config
from sedd_jax.inference.build import build_family
from sedd_jax.inference.score_based import check_objective, objective_named
from sedd_jax.verification.exact.objectives import true_model
from sedd_jax.verification.exact.reverse_process import ReverseProcess
from sedd_jax.verification.exact.scores import exact_params
from sedd_jax.verification.exact.space import Distribution, Space, total_variation
from sedd_jax.verification.metropolis import check_metropolis
from sedd_jax.verification.objectives import (
    gradients,
    minimum,
    numbers,
    random_process,
)
from sedd_jax.verification.report import Claim, Section
from sedd_jax.verification.training import GAP_TOLERANCE, MAX_DISTANCE, build_training

SET_SIZE = 65_536  # sequences of the training set
SAMPLER_STEPS = 256
MAX_BIAS = 5.0  # standard errors, in the worst direction


class Audit(NamedTuple):
    """What is found about an objective.

    Attributes:
      section: of the report.
      row: in the table of all objectives.
      trained: the process of the network that it trained.
      variance: of the gradient of one row, see `Gradients`.
    """

    section: Section
    row: tuple[Cell, ...]
    trained: ReverseProcess
    variance: float


def claims_bound(objective: Objective, graph: Graph) -> bool:
    """Returns whether an objective says by `is_bound` that it is the diffusion term of a bound."""
    return hasattr(objective, "is_bound") and objective.is_bound(graph)


def audit(
    config: Config, space: Space, data: Distribution, reference: float | None = None
) -> Audit:
    """Returns the findings about `config.train.objective` with `config.model.output`.

    Args:
      config: the settings of the training.
      space: all sequences.
      data: distribution of the data.
      reference: variance of the gradient of score entropy with the same output, see `Gradients`;
        None: it is computed.
    """
    name, t_min = config.train.objective, config.train.t_min
    objective = objective_named(name)
    output = output_named(config.model.output, space.graph)
    family = build_family(config, config.data.vocab_size)
    training_set = np.random.default_rng(config.seed).choice(len(data), SET_SIZE, p=data)
    trained = build_training(family, config, space)(training_set)
    true = family._replace(model=true_model(output, space))
    processes = {
        "true": ReverseProcess(true, exact_params(data), space),
        "trained": ReverseProcess(family, trained, space),
        "random": random_process(config, family, space),
    }
    reported = {scores: numbers(objective, each, t_min) for scores, each in processes.items()}
    least = minimum(objective, output, space, family.noise, data, seed=config.seed)
    found = gradients(config, processes["random"], data)
    if name == "score_entropy":
        reference = found.variance
    elif reference is None:
        of_entropy = dataclasses.replace(config.train, objective="score_entropy")
        of_entropy = dataclasses.replace(config, train=of_entropy)
        reference = gradients(of_entropy, processes["random"], data).variance
    sampling = {"steps": SAMPLER_STEPS, "sampler": "tweedie", "t_min": t_min}
    distance = total_variation(processes["trained"].sampler_distribution(**sampling), data)
    is_bound = claims_bound(objective, space.graph)
    # a bound that is tight leaves no room between samples and data; squared errors may be small
    # where ratios of rare tokens are far off
    near = f"trained on {SET_SIZE}: TV of samples to the data"
    claims = [
        *(_bound_claims(reported) if is_bound else []),
        Claim("expected loss: largest derivative at the true scores", least.at_truth, "<=", 1e-8),
        Claim("... and half a nat away", least.elsewhere, ">=", 1e-6),
        Claim("mean gradient of batches - exact, standard errors", found.bias, "<=", MAX_BIAS),
        *([Claim(near, distance, "<=", MAX_DISTANCE)] if is_bound else []),
    ]
    gap = min(each.gap for each in reported.values())
    row = (
        name,
        config.model.output,
        "yes" if is_bound else "no",
        gap,
        least.summary,
        found.bias,
        found.variance,
        found.variance / reference,
        distance,
    )
    title = f"Objective {name}, output {config.model.output}"
    table = _table_of_numbers(reported, data[space.clean])
    return Audit(Section(title, claims, [table]), row, processes["trained"], found.variance)


def check_audits(config: Config, audits: Sequence[tuple[str, str]]) -> None:
    """Raises BadInput unless every objective exists and can train its output.

    Args:
      config: the settings of the training.
      audits: an output and an objective each.
    """
    for output, name in audits:
        own = _with(config, output, name)
        check_objective(own.train, own.model)


def check_objectives(
    config: Config, audits: Sequence[tuple[str, str]], space: Space, data: Distribution
) -> Iterator[Section]:
    """Yields the audit of every objective, then a table of all.

    Args:
      config: the settings of the training.
      audits: an output and an objective each: a name with options, or a dotted path.
      space: all sequences.
      data: distribution of the data.
    """
    rows, references = [], {}
    for output, name in audits:
        own = _with(config, output, name)
        found = audit(own, space, data, references.get(output))
        if name == "score_entropy":
            references[output] = found.variance
        yield found.section
        if name == "concrete_score_matching":
            yield check_metropolis(space, found.trained.family.noise, data, found.trained)
        rows.append(found.row)
    title = (
        "All objectives. Least difference of the number to -log p, in nats. Gradients at random "
        "logits: variance of one row over the squared mean, and relative to score entropy"
    )
    columns = (
        "objective",
        "output",
        "claims a bound",
        "least difference to -log p",
        "minimum",
        "bias, standard errors",
        "variance / square",
        "relative",
        "TV of samples",
    )
    yield Section("Objectives", [], [Table(title, columns, rows)])


def pairs_of(space: Space) -> tuple[tuple[str, str], ...]:
    """Returns an output and an objective each: those of the library that belong together."""
    rows = [
        ("ratio", "score_entropy"),
        ("ratio", "concrete_score_matching"),
        ("denoiser", "score_entropy"),
        ("denoiser", "cross_entropy"),
        ("denoiser", "cross_entropy(weighted=False)"),
        ("denoiser", "d3pm(steps=64)"),
    ]
    if not space.graph.absorbs:  # else both softmaxes are the same
        rows += [
            ("leave_one_out", "score_entropy"),
            ("leave_one_out", "d3pm(steps=64, auxiliary=0.01)"),
        ]
    return tuple(rows)


def _with(config, output, objective):
    """The settings with another output and objective."""
    scaled = config.model.scale_by_sigma and output == "ratio"
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, output=output, scale_by_sigma=scaled),
        train=dataclasses.replace(config.train, objective=objective),
    )


def _table_of_numbers(reported, clean):
    rows = [
        (
            scores,
            float(clean @ each.reported),
            float(clean @ each.nll),
            each.gap,
            float((each.reported - each.nll).max()),
            each.total,
        )
        for scores, each in reported.items()
    ]
    title = "The objective's number and -log p of the reverse process, nats, mean over the data"
    columns = ("scores", "number", "-log p", "least difference", "largest", "sum of exp(-number)")
    return Table(title, columns, rows)


def _bound_claims(reported):
    """That a number is a bound, whatever the scores."""
    for scores, each in reported.items():
        least = f"{scores} scores: number + log p, least over x_0"
        yield Claim(least, each.gap, ">=", -GAP_TOLERANCE)
        yield Claim("... sum of exp(-number) over x_0", each.total, "<=", 1 + GAP_TOLERANCE)

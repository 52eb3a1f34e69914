"""What a sampler is guided by: the condition of the model, a classifier, a constraint."""

import functools
from collections.abc import Callable
from typing import Any

import jax

from sedd_jax.diffusion.constraint import count, forbid
from sedd_jax.diffusion.graph import Graph
from sedd_jax.diffusion.guidance import Evidence, guided, on_schedule, times_evidence
from sedd_jax.diffusion.score import ScoreFn
from sedd_jax.errors import BadInput
from sedd_jax.inference.sampling import Sampling
from sedd_jax.model.conditions import untold
from sedd_jax.model.context import NOTHING
from sedd_jax.model.score_model import Params, ScoreModel
from sedd_jax.system.registry import Registry, is_dotted

# functions of (graph, options) that return an `Evidence`
CLASSIFIERS: Registry[Callable[..., Evidence]] = Registry("classifier", {}, ["__call__"], 1)
CONSTRAINTS: Registry[Callable[..., Evidence]] = Registry(
    "constraint", {"count": count, "forbid": forbid}, ["__call__"], 1
)

# (params, arguments of `NetworkFn` by name) -> the ratios that samples are drawn by
Guided = Callable[[Params, dict[str, Any]], ScoreFn]


def check_guidance(sampling: Sampling, graph: Graph, model: ScoreModel) -> None:
    """Raises BadInput unless there are such a classifier and such a constraint.

    Args:
      sampling: how to draw.
      graph: the token graph.
      model: the network, which may have a trained classifier.
    """
    classifier = sampling.classifier
    if classifier is not None and model.classifier is None:
        if not is_dotted(classifier):
            raise BadInput(
                "classifier must be package.module:function, or a trained classifier as sedd.load "
                f"returns it, got {classifier!r}."
            )
        CLASSIFIERS.build(classifier, graph)
    if sampling.constraint is not None:
        CONSTRAINTS.build(sampling.constraint, graph)


def nothing_to_guide_by(power: float) -> BadInput:
    """Returns the error of guidance without evidence, which would draw as if nothing were asked."""
    return BadInput(
        f"guidance={power:g} has nothing to guide by: give every row a condition of the model, or "
        "give a classifier."
    )


def build_guided(graph: Graph, model: ScoreModel, sampling: Sampling) -> Guided:
    """Returns what gives the ratios that samples are drawn by.

    Args:
      graph: the token graph.
      model: the network.
      sampling: how to draw.
    """
    trained, classifier = model.classifier, None
    if trained is None and sampling.classifier:
        classifier = CLASSIFIERS.build(sampling.classifier, graph)
    constraint = sampling.constraint and CONSTRAINTS.build(sampling.constraint, graph)
    power, ratios, states = sampling.guidance, sampling.classifier_ratios, graph.num_states

    def guided_score_fn(params, known):
        score_fn = functools.partial(model.score, params, **known)
        context, evidence = known.get("context", NOTHING), classifier
        if trained:
            classes = context.condition[trained.column.name]
            evidence = trained.evidence(params["classifier"], classes)
            context = trained.without_class(context)
        told = bool(jax.tree.leaves(context.condition))
        if power != 1 and not (told or evidence):
            raise nothing_to_guide_by(power)
        if (evidence or constraint) and "lengths" in known:
            raise BadInput(
                "A classifier or a constraint takes rows without padding: rows of one length, and "
                "in a batch job those of the trained length."
            )
        if told and power != 1:
            alone = context._replace(condition=untold(context.condition))
            unguided = functools.partial(model.score, params, **known | {"context": alone})
            score_fn = guided(score_fn, unguided, power)
        if evidence:
            score_fn = times_evidence(score_fn, evidence, power, ratios, states)
        if constraint:
            score_fn = times_evidence(score_fn, constraint, 1.0, "exact", states)
        # with g = 0 or 1 alone the ratios are those of the network; a blend of two outputs needs
        # theirs themselves
        product = (told and power not in (0, 1)) or (evidence and power != 0) or constraint
        scales = product and not sampling.method.blends_outputs
        return on_schedule(score_fn, graph) if scales else score_fn

    return guided_score_fn

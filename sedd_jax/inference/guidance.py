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
from sedd_jax.model.score_model import Params, ScoreModel
from sedd_jax.system.registry import Registry

# functions of (graph, options) that return an `Evidence`
CLASSIFIERS: Registry[Callable[..., Evidence]] = Registry("classifier", {}, ["__call__"], 1)
CONSTRAINTS: Registry[Callable[..., Evidence]] = Registry(
    "constraint", {"count": count, "forbid": forbid}, ["__call__"], 1
)

# (params, arguments of `NetworkFn` by name) -> the ratios that samples are drawn by
Guided = Callable[[Params, dict[str, Any]], ScoreFn]


def check_guidance(sampling: Sampling, graph: Graph) -> None:
    """Raises BadInput unless there are such a classifier and such a constraint."""
    for registry, name in ((CLASSIFIERS, sampling.classifier), (CONSTRAINTS, sampling.constraint)):
        if name is not None:
            registry.build(name, graph)


def build_guided(graph: Graph, model: ScoreModel, sampling: Sampling) -> Guided:
    """Returns what gives the ratios that samples are drawn by.

    Args:
      graph: the token graph.
      model: the network.
      sampling: how to draw.
    """
    classifier = sampling.classifier and CLASSIFIERS.build(sampling.classifier, graph)
    constraint = sampling.constraint and CONSTRAINTS.build(sampling.constraint, graph)
    power, ratios, states = sampling.guidance, sampling.classifier_ratios, graph.num_states

    def guided_score_fn(params, known):
        score_fn = functools.partial(model.score, params, **known)
        context = known.get("context")
        told = context is not None and bool(jax.tree.leaves(context.condition))
        if power != 1 and not (told or classifier):
            raise BadInput(
                f"guidance={power:g} has nothing to guide by: give a condition or a classifier."
            )
        if (classifier or constraint) and "lengths" in known:
            raise BadInput(
                "A classifier or a constraint takes rows without padding: rows of one length, and "
                "in a batch job those of the trained length."
            )
        if told and power != 1:
            alone = context._replace(condition=untold(context.condition))
            unguided = functools.partial(model.score, params, **known | {"context": alone})
            score_fn = guided(score_fn, unguided, power)
        if classifier:
            score_fn = times_evidence(score_fn, classifier, power, ratios, states)
        if constraint:
            score_fn = times_evidence(score_fn, constraint, 1.0, "exact", states)
        # with g = 0 or 1 alone the ratios are those of the network; a blend of two outputs needs
        # theirs themselves
        product = (told and power not in (0, 1)) or (classifier and power != 0) or constraint
        scales = product and not sampling.method.blends_outputs
        return on_schedule(score_fn, graph) if scales else score_fn

    return guided_score_fn

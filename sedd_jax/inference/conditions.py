"""Conditions of rows as a user gives them, by column with values as in the data."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from sedd_jax.data.conditions import Conditions, Tree
from sedd_jax.errors import BadInput
from sedd_jax.inference.guidance import nothing_to_guide_by
from sedd_jax.inference.model import TrainedModel
from sedd_jax.inference.prompt import Prompt
from sedd_jax.model.context import Context

Told = Mapping[str, Any]  # the values of a row by column


def conditions_of(model: TrainedModel) -> Conditions:
    """Returns what a model can be told.

    Raises:
      BadInput: nothing.
    """
    if model.conditions is None:
        raise BadInput(
            "This model has no conditions, and was asked for some: it was trained without "
            "config.data.condition."
        )
    return model.conditions


def condition_tree(
    model: TrainedModel, condition: Told | Sequence[Told] | None, count: int
) -> Tree | None:
    """Returns conditions as the network is told them; None where nothing is.

    Args:
      model: the model.
      condition: of all rows, or of each.
      count: the number of rows.

    Raises:
      BadInput: no such column or class, a value of another kind, or a wrong number of rows.
    """
    if condition is None:
        return None
    rows = [condition] * count if isinstance(condition, Mapping) else list(condition)
    if len(rows) != count:
        raise BadInput(f"There are conditions of {len(rows)} rows, and {count} rows.")
    return conditions_of(model).encode(rows)


def told_prompt(
    model: TrainedModel, prompt: Prompt, condition: Told | Sequence[Told] | None = None
) -> Prompt:
    """Returns a prompt with conditions: a model that has any is told nothing where none are given.

    Args:
      model: the model.
      prompt: the rows, which may have encoded conditions already.
      condition: of all rows, or of each.

    Raises:
      BadInput: as `condition_tree`, or conditions are given twice.
    """
    if condition is not None and prompt.condition is not None:
        raise BadInput("The prompt has conditions already: leave condition out.")
    if prompt.condition is not None:
        conditions_of(model).check(prompt.condition)
        return prompt
    if condition is None:
        condition = {} if model.conditions else None
    return prompt._replace(condition=condition_tree(model, condition, len(prompt.tokens)))


def context_of(
    model: TrainedModel, condition: Told | Sequence[Told] | None, count: int
) -> dict[str, Context]:
    """Returns the argument `context` of a loss by its name, or nothing.

    Args:
      model: the model.
      condition: of all rows, or of each.
      count: the number of rows.

    Raises:
      BadInput: as `condition_tree`.
    """
    tree = condition_tree(model, condition, count)
    return {} if tree is None else {"context": Context(condition=tree)}


def check_guided(model: TrainedModel, sampling: Any, condition: Tree | None = None) -> None:
    """Checks that the model has what the guidance of its samples needs.

    Args:
      model: the model.
      sampling: how to draw, of its family.
      condition: of the rows, encoded; None: not known yet, or the model has none.

    Raises:
      BadInput: there is no classifier, and it has no conditions or a row is told none; or it was
        not trained without its conditions; or a row has no class that a trained classifier knows.
    """
    trained = getattr(model.model, "classifier", None)
    if trained and condition is not None and (condition[trained.column.name] < 0).any():
        name = trained.column.name
        raise BadInput(
            f"The classifier guides every row towards a class of {name!r}, and a row has none: "
            f"give its condition, {name}=..."
        )
    power = getattr(sampling, "guidance", 1)
    if power == 1:
        return
    told = model.conditions is not None and (condition is None or _all_told(condition))
    if not told and sampling.classifier is None:
        raise nothing_to_guide_by(power)
    if getattr(model.model, "conditions", ()) and not model.config.train.condition_dropout:
        raise BadInput(
            f"guidance={power:g} compares a condition with none, and this model was always told "
            "its conditions: train with config.train.condition_dropout above 0."
        )


def _all_told(condition):
    """Whether every row is told something."""
    columns = map(np.asarray, jax.tree.leaves(condition))
    told = [~np.isnan(x) if x.dtype.kind == "f" else x >= 0 for x in columns]
    return np.any([x.reshape(len(x), -1).any(1) for x in told], axis=0).all()

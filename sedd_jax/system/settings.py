"""Settings as frozen dataclasses, whose fields state the limits of their values."""

import dataclasses
import typing
from collections.abc import Iterator
from typing import Any, Literal, TypeVar

from sedd_jax.errors import BadInput
from sedd_jax.system.registry import is_dotted, split_options

T = TypeVar("T")


def setting(
    default: Any,
    *,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    names: tuple[str, ...] | None = None,
    **marks: Any,
) -> Any:
    """Returns a field of a dataclass of settings.

    Args:
      default: its value where none is given.
      above: the value must be larger than this.
      at_least: the value must not be smaller than this.
      below: the value must be smaller than this.
      names: the value must be one of these, or have the form `package.module:function`.
      **marks: further properties, see `marked`; those of a group hold for all its fields.
    """
    limits = {"above": above, "at_least": at_least, "below": below, "names": names}
    return dataclasses.field(default=default, metadata={"limits": limits, "marks": marks})


def parse_settings(kind: type[T], values: Any, path: str = "") -> T:
    """Returns the settings that nested dictionaries describe.

    Args:
      kind: a dataclass, whose fields are leaves of one type, choices or dataclasses again.
      values: every field by its name.
      path: dotted, of the group, with a dot at its end; for messages.

    Raises:
      BadInput: unknown, missing or ill-typed key, a choice that does not exist, or a value outside
        its limits; the message holds the dotted key.
    """
    if not isinstance(values, dict):
        raise BadInput(f"config.{path.rstrip('.')} must be a group of settings, got {values!r}.")
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for name in values:
        if name not in fields:
            raise BadInput(f"config.{path}{name} is not a setting; there are: {', '.join(fields)}.")
    parsed = {}
    for name, field in fields.items():
        if name not in values:
            raise BadInput(f"config.{path}{name} is missing.")
        if dataclasses.is_dataclass(field.type):
            parsed[name] = parse_settings(field.type, values[name], f"{path}{name}.")
        else:
            parsed[name] = _parse_leaf(field.type, values[name], path + name)
            _check_limits(field.metadata.get("limits", {}), parsed[name], path + name)
    return kind(**parsed)


def _parse_leaf(kind, value, path):
    if typing.get_origin(kind) is Literal:
        choices = typing.get_args(kind)
        if value not in choices:
            raise BadInput(f"config.{path} must be one of {', '.join(choices)}, got {value!r}.")
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not kind:
        raise BadInput(f"config.{path} must be of type {kind.__name__}, got {value!r}.")
    return value


def _check_limits(limits, value, path):
    names = limits.get("names")
    if names and split_options(value, f"config.{path}")[0] not in names and not is_dotted(value):
        raise BadInput(
            f"config.{path} must be one of {', '.join(names)}, or package.module:function, got "
            f"{value!r}."
        )
    above, at_least, below = (limits.get(name) for name in ("above", "at_least", "below"))
    must = None  # so written that a NaN is outside any limit
    if above is not None and not value > above:
        must = "be positive" if above == 0 else f"be above {above}"
    elif at_least is not None and not value >= at_least:
        must = "not be negative" if at_least == 0 else f"be at least {at_least}"
    elif below is not None and not value < below:
        must = f"be below {below}"
    if must:
        raise BadInput(f"config.{path} must {must}, got {value}.")


def marked(kind: type, mark: str) -> dict[str, Any]:
    """Returns the settings of a dataclass that carry a mark: its value, by their dotted keys."""
    return {key: marks[mark] for key, marks in _leaves(kind, {}) if mark in marks}


def _leaves(kind, marks) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every setting that is no group: its dotted key and its marks, those of its groups too."""
    for field in dataclasses.fields(kind):
        own = marks | field.metadata.get("marks", {})
        if dataclasses.is_dataclass(field.type):
            yield from ((f"{field.name}.{key}", each) for key, each in _leaves(field.type, own))
        else:
            yield field.name, own


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns the settings of nested groups by their dotted keys."""
    flat = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat

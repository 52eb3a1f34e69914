"""Settings of a network in a file that others wrote: looked up by their keys, with their types."""

import dataclasses
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from sedd_jax.errors import BadInput, first_line, warn


def json_key(dotted: str) -> Any:
    """Returns a field of a dataclass of settings that stands under this dotted key of a file."""
    return dataclasses.field(metadata={"key": dotted})


def settings_from(values: Any, kind: type, path: Path, others: Collection[str] = ()) -> Any:
    """Returns a dataclass of settings from JSON values.

    Args:
      values: of the file.
      kind: the dataclass; its fields are made by `json_key`.
      path: of the file, for messages.
      others: dotted keys that the network does not depend on. More of them, in the groups that
        `kind` reads, are warned of: they may be of another network.

    Raises:
      BadInput: a key is missing, or its value has the wrong type.
    """
    fields = dataclasses.fields(kind)
    found = kind(**{f.name: _lookup(values, f.metadata["key"], f.type, path) for f in fields})
    known = {f.metadata["key"] for f in fields} | set(others)
    groups = {key.split(".")[0] for key in known if "." in key}
    keys = {f"{group}.{key}" for group in groups for key in values[group]}
    if unknown := sorted(keys - known):
        warn(
            f"{path} has {', '.join(unknown)}, without a meaning here: the network is built as if "
            "they were not there"
        )
    return found


def read_json(path: Path) -> Any:
    """Returns the contents of a JSON file; raises BadInput where it is not valid."""
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise BadInput(
            f"{path} is damaged or no JSON ({first_line(error)}); put back a copy or make it again."
        ) from error


def _lookup(values, dotted, kind, path):
    for part in dotted.split("."):
        if not isinstance(values, dict) or part not in values:
            raise BadInput(f"{path} has no {dotted}.")
        values = values[part]
        if isinstance(values, str) and "${" in values:
            raise BadInput(f"{path} has {dotted} = {values!r}: write what it stands for there.")
    if kind is float and type(values) is int:
        values = float(values)
    if type(values) is not kind:
        raise BadInput(f"{path} has {dotted} = {values!r}, which should be {kind.__name__}.")
    return values

"""Choices by name: a short name of ours, or the dotted path of the user's own object."""

import importlib
import re
from collections.abc import Collection, Mapping
from typing import Any, Generic, TypeVar

from sedd_jax.errors import BadInput

T = TypeVar("T")
DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


def is_dotted(name: str) -> bool:
    """Returns whether a name has the form `package.module:function`."""
    return bool(DOTTED.fullmatch(name))


class Registry(Generic[T]):
    """What a setting can name.

    A dotted path is imported when it is looked up, which runs the code of its module: look up names
    that the user gave, and of those that came with somebody's checkpoint only trusted ones.
    """

    def __init__(self, kind: str, entries: Mapping[str, T], methods: Collection[str] = ()):
        """Holds the entries.

        Args:
          kind: what the entries are called in messages, for instance "sampler".
          entries: by short name.
          methods: attributes that the objects must have, see `check`.
        """
        self._kind, self._entries, self._methods = kind, dict(entries), tuple(methods)

    @property
    def names(self) -> tuple[str, ...]:
        """The short names."""
        return tuple(self._entries)

    def check_name(self, name: str, setting: str) -> None:
        """Raises BadInput unless the name is a short one or has the form of a dotted path."""
        if name not in self._entries and not is_dotted(name):
            raise BadInput(
                f"{setting} must be one of {', '.join(self._entries)}, or package.module:function, "
                f"got {name!r}."
            )

    def __getitem__(self, name: str) -> T:
        """Returns the entry of a name. Raises BadInput if unknown, or if it cannot be imported."""
        self.check_name(name, self._kind)
        if name in self._entries:
            return self._entries[name]
        module, _, attribute = name.partition(":")
        try:
            found = getattr(importlib.import_module(module), attribute)
        except ImportError as error:
            raise BadInput(
                f"{self._kind}={name}: {module} cannot be imported ({error})."
            ) from error
        except AttributeError as error:
            raise BadInput(f"{self._kind}={name}: {module} has no {attribute}.") from error
        if not callable(found):
            raise BadInput(f"{self._kind}={name} must be a function or a class, got {found!r}.")
        return found

    def check(self, name: str, made: Any) -> Any:
        """Returns what an entry has made. BadInput: it lacks a method."""
        if lacking := [method for method in self._methods if not hasattr(made, method)]:
            raise BadInput(f"{self._kind}={name} gives {made!r}, which lacks {', '.join(lacking)}.")
        return made

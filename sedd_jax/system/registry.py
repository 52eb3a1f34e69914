"""Choices by name: a short name of ours, or the dotted path of the user's own object."""

import ast
import importlib
import inspect
import re
from collections.abc import Collection, Mapping
from typing import Any, Generic, TypeVar

from sedd_jax.errors import BadInput, first_line

T = TypeVar("T")
DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


def is_dotted(name: str) -> bool:
    """Returns whether a name has the form `package.module:function`, options aside."""
    return bool(DOTTED.fullmatch(name.partition("(")[0]))


def split_options(text: str, setting: str) -> tuple[str, dict[str, Any]]:
    """Returns the name and the options of `name(option=value, ...)`; a bare name has none.

    Args:
      text: the name, with options or without.
      setting: that holds it, for messages.

    Raises:
      BadInput: the text has another form, or gives an option twice; values are numbers, strings,
        True and False.
    """
    name, bracket, rest = text.partition("(")
    if not bracket:
        return text, {}
    try:
        call = ast.parse(f"_({rest}", mode="eval").body
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and not call.args:
            options = {word.arg: ast.literal_eval(word.value) for word in call.keywords}
            if len(options) == len(call.keywords):
                return name, options
    except (SyntaxError, ValueError, TypeError):
        pass
    raise BadInput(f"{setting}={text}: options are written as name(option=value, ...), each once.")


class Registry(Generic[T]):
    """What a setting can name.

    A dotted path is imported when it is looked up, which runs the code of its module: look up names
    that the user gave, and of those that came with somebody's checkpoint only trusted ones.
    """

    def __init__(
        self,
        kind: str,
        entries: Mapping[str, T],
        methods: Collection[str] = (),
        arguments: int = 0,
        classes: bool = False,
    ):
        """Holds the entries.

        Args:
          kind: what the entries are called in messages, for instance "sampler".
          entries: by short name.
          methods: attributes that the objects which entries make must have, see `build`.
          arguments: number of positional arguments that an entry is called with.
          classes: an entry may be a class of such functions, made of its options alone; `build`
            makes it, and returns any other entry as it is.
        """
        self._kind, self._entries, self._methods = kind, dict(entries), tuple(methods)
        self._arguments, self._classes = arguments, classes

    @property
    def names(self) -> tuple[str, ...]:
        """The short names."""
        return tuple(self._entries)

    def check_name(self, name: str, setting: str) -> None:
        """Raises BadInput unless the name is a short one or has the form of a dotted path."""
        name, _ = split_options(name, setting)
        if name not in self._entries and not is_dotted(name):
            short = f"one of {', '.join(self._entries)}, or " if self._entries else ""
            raise BadInput(f"{setting} must be {short}package.module:function, got {name!r}.")

    def __getitem__(self, name: str) -> T:
        """Returns the entry of a name. BadInput: there is none, or it cannot be imported."""
        return self._found(name, {})

    def _found(self, name, options):
        self.check_name(name, self._kind)
        if name in self._entries:
            return self._entries[name]
        module, _, attribute = name.partition(":")
        try:
            imported = importlib.import_module(module)
        except Exception as error:  # whatever the user's module raises
            raise self._refusal(name, f"{module} cannot be imported ({_said(error)})") from error
        if not hasattr(imported, attribute):
            raise self._refusal(name, f"{module} has no {attribute}")
        found = getattr(imported, attribute)
        if not callable(found):
            raise self._refusal(name, f"it must be a function or a class, got {found!r}")
        try:
            signature = inspect.signature(found)
            known = {option: None for option in options if option in signature.parameters}
            arguments = 0 if self._classes and isinstance(found, type) else self._arguments
            signature.bind(*[None] * arguments, **known)
        except TypeError as error:
            raise self._refusal(
                name, f"it must take {self._arguments} positional arguments ({error})"
            ) from error
        except ValueError:
            pass  # a builtin has no signature; calling it tells
        return found

    def takes(self, text: str, argument: str) -> bool:
        """Returns whether the entry of a name, with options or without, has such an argument."""
        entry = self._found(*split_options(text, self._kind))
        return argument in inspect.signature(entry).parameters

    def build(self, text: str, *args: Any, **given: Any) -> Any:
        """Returns what the entry of a name makes of arguments and options.

        Args:
          text: a short name or a dotted path, with options or without: `name(option=value)`.
          *args: of the entry.
          **given: arguments by name, which are then no options.

        Raises:
          BadInput: there is no such entry or option, a dotted path fails, or what it makes lacks a
            method.
        """
        name, options = split_options(text, self._kind)
        entry = self._found(name, options)
        if self._classes and not isinstance(entry, type):
            if options:
                raise self._refusal(text, f"{name} is a function, which has no options")
            return entry
        if options:
            parameters = [*inspect.signature(entry).parameters.values()][len(args) :]
            parameters = [each for each in parameters if each.name not in given]
            options = self._checked_options(text, parameters)
        try:
            made = entry(*args, **given, **options)
        except BadInput as error:
            if options:
                raise self._refusal(text, str(error).removesuffix(".")) from error
            raise
        except Exception as error:
            if name in self._entries:
                raise
            raise self._refusal(name, f"calling it fails ({_said(error)})") from error
        if lacking := [method for method in self._methods if not hasattr(made, method)]:
            raise self._refusal(name, f"it gives {made!r:.80}, which lacks {', '.join(lacking)}")
        return made

    def _checked_options(self, text, parameters):
        name, options = split_options(text, self._kind)
        defaults = {it.name: it.default for it in parameters}
        for option, value in options.items():
            if option not in defaults:
                has = f"has the options {', '.join(defaults)}" if defaults else "has no options"
                raise self._refusal(text, f"{name} {has}, got {option}")
            kind = type(defaults[option])
            if type(value) is int and abs(value) >= 2**31:
                raise self._refusal(text, f"{option} does not fit into 32 bits")
            if kind is float and type(value) is int:
                options[option] = float(value)
            elif kind in (int, float, str, bool) and type(value) is not kind:
                raise self._refusal(text, f"{option} must be of type {kind.__name__}")
        return options

    def _refusal(self, name, reason):
        return BadInput(f"{self._kind}={name}: {reason}.")


def _said(error):
    return f"{type(error).__name__}: {first_line(error)}"

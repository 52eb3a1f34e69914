"""Packages that are heavy or optional: imported where they are used, their errors in one line."""

import importlib
from types import ModuleType

from sedd_jax.errors import BadInput


def package(name: str, requirement: str, user: str) -> ModuleType:
    """Imports the package `name` for `user`; BadInput says how to install it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise BadInput(
            f"{user} needs the package {name.partition('.')[0]}: pip install {requirement}"
        ) from error


def first_line(error: Exception) -> str:
    """What a package says is wrong, as a part of a sentence."""
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")

"""Optional and heavy packages, imported where they are used."""

import importlib
import importlib.util
from types import ModuleType

from sedd_jax.errors import BadInput


def package(name: str, requirement: str, user: str) -> ModuleType:
    """Imports a package that may not be installed.

    Args:
      name: the module, dotted if it is inside a package.
      requirement: what pip is given to install it.
      user: who needs it, as the subject of the message: "The tokenizer 'gpt2'".

    Returns:
      The module.

    Raises:
      BadInput: the package cannot be imported; the message says how to install it.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise BadInput(_missing(name, requirement, user)) from error


def check_installed(name: str, requirement: str, user: str) -> None:
    """Raises BadInput unless a package is installed, without importing it, which may take seconds.

    Args:
      name: the module.
      requirement: what pip is given to install it.
      user: who needs it, as the subject of the message.
    """
    if importlib.util.find_spec(name) is None:
        raise BadInput(_missing(name, requirement, user))


def _missing(name, requirement, user):
    return f"{user} needs the package {name.partition('.')[0]}: pip install {requirement}"

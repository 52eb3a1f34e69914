"""Config files: the flag that names one, where those of this project are, and their bases."""

import dataclasses
import functools
import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

from absl import flags
from ml_collections import ConfigDict, config_flags

from sedd_jax.errors import BadInput, first_line
from sedd_jax.experiment.config import from_saved
from sedd_jax.model.settings_file import read_json

# of an installed package, and of a checkout
_PLACES = (Path(__file__).parents[1] / "configs", Path(__file__).parents[2] / "configs")
SHIPPED = next((place for place in _PLACES if place.is_dir()), _PLACES[0])

# a flag that is defined here counts as one of the binary that asks for it
flags.disclaim_key_flags()


def define_config_flag(
    description: str, complete: Callable[[ConfigDict, Sequence[str]], None] | None = None
) -> flags.FlagHolder:
    """Defines `--config=FILE`, or FILE:ARGUMENT, and `--config.NAME=VALUE` for its settings.

    The file is found by `find_config`; a line on stderr names one that is not here. A file that
    ends in .json has saved settings, as `config.json` of a run.

    Args:
      description: of the flag.
      complete: changes the settings of the file, given the command line, before the flags for
        single settings, which change only what is there.
    """
    holder = config_flags.DEFINE_config_file("config", None, description)
    parser = flags.FLAGS[holder.name].parser
    parser.parse = functools.partial(_completed, functools.partial(_parse, parser.parse), complete)
    return holder


def _completed(parse, complete, path):
    config = parse(path)
    if complete and isinstance(config, ConfigDict):
        with config.unlocked():
            complete(config, sys.argv)
    return config


def _parse(parse, path):
    if path.endswith(".json"):
        return saved_config(Path(path))
    file, colon, argument = path.partition(":")
    found = f"{_found(file)}{colon}{argument}"
    try:
        return parse(found)
    except ModuleNotFoundError as error:
        if error.name != "configs":
            raise
        raise BadInput(
            f"{file} imports configs, which works in the root of a checkout alone: take "
            "config_beside(__file__, NAME) of sedd_jax.experiment.config_files."
        ) from error
    except (KeyError, TypeError, ValueError) as error:
        first = error.__context__ or error  # the second one holds a traceback
        raise BadInput(f"{path} fails with {type(first).__name__}: {first_line(first)}.") from error


def saved_config(path: Path) -> ConfigDict:
    """Returns the settings in a JSON file, as a config file would.

    Raises:
      BadInput: there is no such file, or it holds something else.
    """
    if not path.is_file():
        raise BadInput(f"there is no file {path}.")
    values = read_json(path)
    if not isinstance(values, dict):
        raise BadInput(f"{path} holds no settings of a run.")
    return ConfigDict(dataclasses.asdict(from_saved(values)))


@functools.cache  # one line is enough
def _found(file):
    path = find_config(file)
    if path != Path(file) and path.stem != file:
        print(f"There is no {file} here: {path} is read.", file=sys.stderr, flush=True)
    return path


def find_config(file: str) -> Path:
    """Returns the file of that name or, if there is none, this project's: NAME or configs/NAME.py.

    Raises:
      BadInput: there is neither.
    """
    path = Path(file)
    if file and path.exists() and not path.is_dir():
        return path
    shipped = SHIPPED / (path.name if path.parent == Path("configs") else f"{path.name}.py")
    if path.parent in (Path("configs"), Path()) and shipped.is_file():
        return shipped
    names = ", ".join(sorted(path.stem for path in SHIPPED.glob("*.py")))
    raise BadInput(
        f"there is no file {file or '(an empty name)'}; NAME and configs/NAME.py work from every "
        f"folder, with NAME one of {names}."
    )


def config_module(path: Path) -> ModuleType:
    """Returns the module of a config file."""
    spec = importlib.util.spec_from_file_location(f"configs.{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def config_beside(file: str, name: str) -> ModuleType:
    """Returns another config as a module, for a config that changes it.

    Args:
      file: `__file__` of the config that asks.
      name: of the other, without .py: in the same folder, or else one of this project.

    Raises:
      BadInput: there is no such config.
    """
    own, shipped = Path(file).with_name(f"{name}.py"), SHIPPED / f"{name}.py"
    path = own if own.is_file() else shipped
    if not path.is_file():
        raise BadInput(f"{file} changes the config {name}, but there is no {own}, nor {shipped}.")
    return config_module(path)

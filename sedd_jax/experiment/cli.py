"""How a binary starts and ends: flags, the compilation cache, one line for bad input."""

import dataclasses
import errno
import hashlib
import os
import platform
import re
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import app, flags, logging

from sedd_jax.errors import BadInput, Halted, first_line
from sedd_jax.experiment.config import Config, MeshConfig, parse
from sedd_jax.system.console import as_typed
from sedd_jax.system.mirror import errors_by_address

# errors of a disk or of permissions, which are not the program's fault
_OF_THE_MACHINE = (
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE,
    errno.ENOTDIR,
)  # fmt: skip
CACHE_VARIABLE = "JAX_COMPILATION_CACHE_DIR"


# flags that are defined here count as flags of the binary that asks for them
flags.disclaim_key_flags()


def define_model_flags() -> Callable[[], dict[str, Any]]:
    """Defines the flags that name a model.

    Returns:
      A function that returns their values, the arguments of `inference.load.load`; it raises
      BadInput if no model is named.
    """
    checkpoint = flags.DEFINE_string(
        "checkpoint",
        None,
        "Run folder or folder of published weights, here or in a bucket, or OWNER/NAME on the hub.",
    )
    step = flags.DEFINE_string(
        "checkpoint_step", None, "Step to load, or best; the latest by default."
    )
    ema = flags.DEFINE_bool("ema", True, "Use the averaged weights.")
    tokenizer = flags.DEFINE_string(
        "tokenizer", None, "Folder, or OWNER/NAME, of the tokenizer; that of the model by default."
    )
    trust_code = flags.DEFINE_bool(
        "trust_code", False, "Import and run the code that the model names as its own."
    )

    def named():
        if not checkpoint.value:
            raise BadInput("--checkpoint=FOLDER is needed.")
        given = {"step": step, "ema": ema, "tokenizer": tokenizer, "trust_code": trust_code}
        values = {name: flag.value for name, flag in given.items()}
        if step.value not in (None, "best"):  # of a run that measures it
            if not step.value.isdigit():
                raise BadInput(f"--checkpoint_step={step.value} must be a step, or best.")
            values["step"] = int(step.value)
        return {"path": checkpoint.value} | values

    return named


def define_process_flags() -> tuple[flags.FlagHolder, ...]:
    """Defines the flags that say how the processes of a job find each other.

    Returns:
      The flags, in the order of the arguments of `joining.initialize_distributed`.
    """
    return (
        flags.DEFINE_enum(
            "distributed", "auto", ["auto", "yes", "no"],
            "Join the other processes of the job: as --coordinator or the environment says (auto), "
            "by JAX's own detection of the cluster (yes), or not at all (no).",
        ),
        flags.DEFINE_string("coordinator", None, "host:port of process 0 of the job."),
        flags.DEFINE_integer("num_processes", None, "Processes of the job."),
        flags.DEFINE_integer("process_id", None, "The number of this process, from 0."),
        flags.DEFINE_integer(
            "patience", 300, "Seconds to wait for the other processes at the start.", lower_bound=1
        ),
    )  # fmt: skip


def config_from(
    flag: flags.FlagHolder, kind: type[Config] = Config, example: str = "tiny"
) -> Config:
    """Returns the settings of the file that a `--config` flag names.

    Args:
      flag: the flag.
      kind: of the settings.
      example: name of such a file, to show if none is given.

    Raises:
      BadInput: no such file, or settings that `parse` refuses.
    """
    if flag.value is None:
        raise BadInput(f"--config=FILE is needed, for example --config=configs/{example}.py.")
    try:
        return parse(flag.value, kind)
    except OSError as error:
        raise BadInput(f"--config names a file that cannot be read: {error}") from error


def mesh_from(flag: flags.FlagHolder) -> MeshConfig | None:
    """Returns the mesh of a list flag, AXIS:SIZE,...; "data" takes the remaining devices."""
    if flag.value is None:
        return None
    try:
        sizes = [(axis, int(size)) for axis, size in (each.split(":") for each in flag.value)]
        if len(dict(sizes)) < len(sizes):
            raise ValueError("an axis is given twice")
        return MeshConfig(**dict(sizes))
    except (TypeError, ValueError) as error:
        names = ", ".join(field.name for field in dataclasses.fields(MeshConfig))
        raise BadInput(
            f"--{flag.name}={','.join(flag.value)} must be AXIS:SIZE,... with different axes among "
            f"{names}."
        ) from error


def named_files(flag: flags.FlagHolder) -> dict[str, str]:
    """Returns the files of a list flag, NAME=FILE,..., by their names."""
    pairs = [entry.partition("=") for entry in flag.value]
    if wrong := [name for name, _, path in pairs if not (name and path)]:
        raise BadInput(f"--{flag.name} takes NAME=FILE,..., as in ptb=test.txt; got {wrong[0]!r}.")
    files = {name: path for name, _, path in pairs}
    if len(files) < len(pairs):
        raise BadInput(f"--{flag.name} names a data set twice; each has one file.")
    return files


def refuse_flags_of_others(family: str, flags_of: Mapping[str, Sequence[flags.FlagHolder]]) -> None:
    """Raises BadInput for a flag that was given and that models of this family do not have.

    Args:
      family: of the model.
      flags_of: the flags that one family alone has.
    """
    for other in flags_of.keys() - {family}:
        for flag in flags_of[other]:
            if flag.present:
                raise BadInput(f"--{flag.name} is for {other} models; this one is {family}.")


def run(main: Callable[..., None], *, takes_names: bool = False) -> None:
    """Parses the flags and calls `main`; bad input prints one line and exits with code 2.

    Args:
      main: what the binary does; with `takes_names` it is given the arguments that are no flags.
      takes_names: whether there may be such arguments.
    """

    def parse_flags(argv):
        try:
            rest = flags.FLAGS(argv)
        except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
            _fail(error)
        if len(rest) > 1 and not takes_names:
            _fail(f"unexpected argument {rest[1]!r}; settings are given as --name=value.")
        return rest

    def guarded(argv):
        cache_programs()
        try:
            with errors_by_address():
                main(argv[1:]) if takes_names else main()
        except BadInput as error:
            _fail(error)
        except Halted as error:
            _fail(error, error.exit_code)
        except FloatingPointError as error:
            _fail(error, 1)
        except OSError as error:
            if isinstance(error, BrokenPipeError):
                # the interpreter would write the rest at its end, and fail
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                _fail("the program that read the output has ended.", 128 + signal.SIGPIPE)
            if error.errno not in _OF_THE_MACHINE:
                raise
            _fail(f"{error.filename or 'a file'}: {error.strerror}.", 1)
        except (RuntimeError, AssertionError):
            _check_devices()
            raise

    binary = sys.modules["__main__"]
    binary.__doc__ = as_typed(binary.__doc__ or "")  # what --help prints
    logging.set_verbosity(logging.ERROR)
    logging.get_absl_handler().addFilter(_is_news)
    app.run(guarded, flags_parser=parse_flags)


def _check_devices():
    """Ends the process if JAX has no devices: the error came from there."""
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        why = str(error) and f" ({first_line(error)})"
        _fail(
            f"JAX finds no devices for JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')}{why}; "
            "correct it, or unset it to use the devices of this machine."
        )


def _is_news(record):
    """Whether to print what a library logs: Orbax and asyncio log pages of what is raised later.

    Of several processes, one whose part of a checkpoint fails waits for the others before it can
    raise, so there errors are printed.
    """
    return record.levelno > logging.converter.STANDARD_ERROR or jax.distributed.is_initialized()


def cache_programs() -> None:
    """Turns on JAX's persistent compilation cache, in the user's cache folder.

    Where JAX_COMPILATION_CACHE_DIR is set, JAX follows that, and an empty one means no cache. Each
    kind of processor has its own folder: home folders are shared between machines, and a program
    for one may not run on another. Nothing is ever deleted: JAX's limit of size needs a lock on
    every read, which home folders on a network may not have.
    """
    if CACHE_VARIABLE in os.environ:
        return
    try:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # a user without a home, as in some containers: nothing is kept
        return
    folder = home / "sedd_jax" / hashlib.sha256(_processor().encode()).hexdigest()[:12]
    jax.config.update("jax_compilation_cache_dir", str(folder))


def _processor():
    description = Path("/proc/cpuinfo")
    if not description.exists():
        return platform.machine() + platform.processor()
    lines = description.read_text().splitlines()
    return "".join(sorted({line for line in lines if line.startswith(("flags", "Features"))}))


def _fail(reason, exit_code=2):
    if isinstance(reason, AttributeError):  # which may hold the KeyError that it comes from
        reason = next(iter(reason.args), "")
    text = _setting(reason) if isinstance(reason, KeyError) else " ".join(str(reason).split())
    print(f"error: {as_typed(text)}", file=sys.stderr)
    sys.exit(exit_code)


def _setting(error):
    """Says which setting there is not; a ConfigDict's own words are in quotes, some twice."""
    text = str(error)
    near = re.search(r'Did you mean "([^"]+)" instead of "([^"]+)"', text)
    name = near[2] if near else text.strip("'\"\\")
    return f"{name!r} is no setting of the config" + (f": {near[1]!r} is." if near else ".")

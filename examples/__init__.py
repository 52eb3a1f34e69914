"""Demonstrations on problems small enough to print: `python -m examples.NAME`."""

from pathlib import Path

from sedd_jax.errors import BadInput


def new_file(workdir: str | None, name: str) -> Path:
    """Returns the path of a new file in `workdir`, which is created if absent.

    Raises:
      BadInput: `workdir` is missing, it cannot be created, or it has such a file already.
    """
    if not workdir:
        raise BadInput("--workdir=FOLDER is needed.")
    path = Path(workdir) / name
    if path.exists():
        raise BadInput(f"{path} exists already; give --workdir another name.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"--workdir={workdir} cannot be made: {error}") from error
    return path

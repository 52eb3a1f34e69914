"""Where the checkpoints of a run are: a local folder, or one in a bucket that Orbax writes to."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sedd_jax.system import bucket, mirror
from sedd_jax.system.bucket import is_address, parse

FOLDER = "checkpoints"
DAMAGED_FOLDER = "damaged"
COMMITTED = "commit_success.txt"  # in a bucket, where a folder cannot be renamed in one step


def place(run: Path, name: str = FOLDER) -> Any:
    """Returns a folder of a run as Orbax takes it: a Path, or one of etils for a bucket."""
    address = mirror.address_of(run)
    if address is None:
        return run.resolve() / name
    from etils import epath

    from sedd_jax.experiment import orbax_buckets

    orbax_buckets.hide_closed_loops()
    if address.scheme == "s3":
        orbax_buckets.teach_s3()
    return epath.Path(str(address / name))


@contextlib.contextmanager
def options_of(run: Path) -> Iterator[dict[str, Any]]:
    """Yields further options of a CheckpointManager, which is made in the body."""
    if mirror.address_of(run) is None:
        yield {}
        return
    folder = place(run)
    with listed(folder.parent):
        if parse(folder).scheme == "gs":
            yield {}
            return
        from sedd_jax.experiment.orbax_buckets import temporary_path_class

        # there are no folders to make, and s3fs would ask whether there is the bucket
        yield {"temporary_path_class": temporary_path_class(), "create": False}


def listed(folder: Any) -> contextlib.AbstractContextManager[None]:
    """Returns a context in which nobody writes in a folder that `place` returned.

    In a bucket Orbax asks for one object after another, which one listing answers.
    """
    if is_address(folder):
        return bucket.listed(parse(folder))
    return contextlib.nullcontext()


def has(run: Path, name: str = FOLDER) -> bool:
    """Returns whether a run has a folder for checkpoints, or one of another name."""
    if mirror.address_of(run) is None:
        return (run / name).is_dir()
    return bool(mirror.entries_of(run / name))


def last_saved(run: Path) -> int | None:
    """Returns the step of the newest checkpoint in a run folder, perhaps damaged; None if none."""
    if mirror.address_of(run) is None:
        names = [path.name for path in (run / FOLDER).glob("[0-9]*")]
    else:
        names = [
            name.removesuffix(f"/{COMMITTED}")
            for name in mirror.entries_of(run / FOLDER)
            if name.endswith(f"/{COMMITTED}")
        ]
    return max((int(name) for name in names if name.isdigit()), default=None)


def set_aside(step: Any, aside: Any) -> Any:
    """Moves the folder of a step into another one, under a new name, and returns its place.

    In a bucket the mark of completeness goes first, so that no half of a checkpoint has it.
    """
    target, number = aside / step.name, 1
    while target.exists():
        target, number = aside / f"{step.name}.{number}", number + 1
    if is_address(step):
        bucket.move(parse(step), parse(target), first=COMMITTED)
    else:
        aside.mkdir(exist_ok=True)
        step.rename(target)
    return target

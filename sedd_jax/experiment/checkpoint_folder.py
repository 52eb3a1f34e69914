"""Where the checkpoints of a run are: a local folder, or one in a bucket that Orbax writes to."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from orbax.checkpoint._src.path import atomicity, gcs_utils
from orbax.checkpoint._src.serialization import tensorstore_utils

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

    if address.scheme == "s3":
        _teach_s3()
    return epath.Path(str(address / name))


@contextlib.contextmanager
def options_of(run: Path) -> Iterator[dict[str, Any]]:
    """Yields further options of a CheckpointManager, which is made in the body."""
    if mirror.address_of(run) is None:
        yield {}
        return
    folder = place(run)
    with listed(folder.parent):
        more = {"temporary_path_class": atomicity.CommitFileTemporaryPath}
        # there are no folders to make, and s3fs would ask whether there is the bucket
        yield more | ({"create": False} if parse(folder).scheme == "s3" else {})


def listed(folder: Any) -> contextlib.AbstractContextManager[None]:
    """Returns a context in which nobody writes in a folder that `place` returned.

    In a bucket Orbax asks for one object after another, which one listing answers.
    """
    if is_address(folder):
        _hide_closed_loops()
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


def _hide_closed_loops() -> None:
    """Keeps futures of TensorStore quiet that end after the save they belong to has failed.

    Orbax has then closed their event loop, and each prints a page about that.
    """
    before = sys.unraisablehook
    if getattr(before, "hides_closed_loops", False):
        return

    def hook(unraisable):
        if str(unraisable.exc_value) != "Event loop is closed":
            before(unraisable)

    hook.hides_closed_loops = True
    sys.unraisablehook = hook


def _teach_s3() -> None:
    """Lets Orbax give s3:// to TensorStore's driver; it knows gs:// alone (0.12.8).

    Its other parts go through etils, which knows both.
    """
    if getattr(tensorstore_utils, "_knows_s3", False):
        return
    normalize, uses_driver = tensorstore_utils._normalize_path, tensorstore_utils._use_gcs_driver
    spec_of = gcs_utils.get_kvstore_for_gcs

    def is_s3(path):
        return path.startswith("s3:/")

    def normalized(path):
        return normalize(path).replace("s3:/", "s3://") if is_s3(path) else normalize(path)

    def spec(path):
        return _s3_spec(path) if is_s3(path) else spec_of(path)

    tensorstore_utils._normalize_path = normalized
    tensorstore_utils._use_gcs_driver = lambda path: is_s3(path) or uses_driver(path)
    gcs_utils.get_kvstore_for_gcs = spec
    tensorstore_utils._knows_s3 = True


def _s3_spec(path: str) -> dict[str, Any]:
    """Returns TensorStore's description of a folder in S3, at the endpoint that boto would use."""
    bucket, _, key = path.removeprefix("s3://").partition("/")
    spec = {"driver": "s3", "bucket": bucket, "path": key.rstrip("/")}
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if endpoint:
        spec |= {"endpoint": endpoint, "aws_region": region or "us-east-1"}
    elif region:
        spec["aws_region"] = region
    if "AWS_ACCESS_KEY_ID" in os.environ:  # else it looks for files, and logs that there are none
        spec["aws_credentials"] = {"type": "environment"}
    return spec

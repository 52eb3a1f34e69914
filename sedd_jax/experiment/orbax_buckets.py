"""What Orbax lacks in buckets. It reaches into private parts of it, for runs in buckets alone."""

import contextlib
import os
import sys
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

from sedd_jax.errors import BadInput, first_line


def hide_closed_loops() -> None:
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


def temporary_path_class() -> type:
    """Returns how a checkpoint in S3 is finished: by a last object, as Orbax does at gs://.

    Raises:
      BadInput: this version of Orbax has other parts.
    """
    with _known_parts():
        from orbax.checkpoint._src.path.atomicity import CommitFileTemporaryPath

        return CommitFileTemporaryPath


def teach_s3() -> None:
    """Lets Orbax give s3:// to TensorStore's driver; it knows gs:// alone (0.12.8).

    Its other parts go through etils, which knows both.

    Raises:
      BadInput: this version of Orbax has other parts.
    """
    with _known_parts():
        from orbax.checkpoint._src.path import gcs_utils
        from orbax.checkpoint._src.serialization import tensorstore_utils

        if getattr(tensorstore_utils, "_knows_s3", False):
            return
        normalize = tensorstore_utils._normalize_path
        uses_driver = tensorstore_utils._use_gcs_driver
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


@contextlib.contextmanager
def _known_parts() -> Iterator[None]:
    try:
        yield
    except (ImportError, AttributeError) as error:
        raise BadInput(
            f"Orbax {version('orbax-checkpoint')} cannot be taught to write to s3:// "
            f"({first_line(error)}): pip install orbax-checkpoint==0.12.8, or give a folder or an "
            "address gs://."
        ) from error


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

"""Folders by name: local ones, and those of the Hugging Face hub, from its cache or the network."""

import contextlib
import importlib
import pathlib
import re
from collections.abc import Iterator, Sequence
from types import ModuleType

from sedd_jax.errors import BadInput

REACH_SECONDS = 3.0  # the hub's own client tries for 20 seconds before it says it is offline

_ID = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([\w./-]+))?")


def folder(name: str | pathlib.Path, patterns: Sequence[str]) -> pathlib.Path:
    """Returns the folder `name`: a local one as it is, else a repository of the hub, downloaded.

    What the cache of the hub holds whole is taken from there, without asking for a newer one.

    Args:
      name: a local folder, or OWNER/NAME or OWNER/NAME@REVISION on the hub.
      patterns: the files wanted of a repository, as in "*.json".

    Raises:
      BadInput: neither a folder nor a repository that is cached or can be reached.
    """
    local = pathlib.Path(name)
    if local.is_dir():
        return local
    match = _ID.fullmatch(str(name))
    if not match:
        raise BadInput(f"There is no folder {name}.")
    repository, revision = match.groups()
    here = f"There is no folder {name}"
    client = hub(f"{here}; for a repository of the hub")
    from huggingface_hub.errors import IncompleteSnapshotError, LocalEntryNotFoundError

    def snapshot(**options):
        return pathlib.Path(
            client.snapshot_download(
                repository, revision=revision, allow_patterns=list(patterns), **options
            )
        )

    try:
        return snapshot(local_files_only=True)
    except IncompleteSnapshotError as error:
        cached = f"is cached in part only, in {error.snapshot_path}"
    except LocalEntryNotFoundError:
        cached = "is not in the cache"
    with answering(f"{here}, the repository of that name on the hub {cached}"):
        return snapshot()


def hub(purpose: str) -> ModuleType:
    """Returns the package `huggingface_hub`; BadInput, which begins with `purpose`, without it."""
    try:
        return importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise BadInput(
            f'{purpose} the package huggingface_hub is needed: pip install "sedd_jax[hub]"'
        ) from error


@contextlib.contextmanager
def answering(otherwise: str) -> Iterator[None]:
    """Runs the body if the hub can be reached, and turns what it answers into a sentence.

    Args:
      otherwise: what the sentence begins with.

    Raises:
      BadInput: the hub cannot be reached, or refuses.
    """
    import httpx2
    from huggingface_hub import constants, errors, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=REACH_SECONDS)
        yield
    except (httpx2.TransportError, errors.OfflineModeIsEnabled) as error:
        raise BadInput(
            f"{otherwise}, and {constants.ENDPOINT} cannot be reached ({_line(error)})."
        ) from error
    except (errors.LocalTokenNotFoundError, errors.GatedRepoError) as error:
        raise BadInput(
            f"{otherwise}, and the hub wants to know who asks: hf auth login."
        ) from error
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, ValueError) as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        advice = "; is the name right, and are you logged in (hf auth login)?"
        raise BadInput(
            f"{otherwise}, and the hub refuses: {_line(error)}"
            f"{advice if status in (401, 403, 404) else ''}"
        ) from error


def _line(error):
    return next((line for line in str(error).splitlines() if line), type(error).__name__).strip()

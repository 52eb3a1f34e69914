"""Folders by name: local ones, and those of the Hugging Face hub, from its cache or the network."""

import contextlib
import importlib
import pathlib
import re
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType

from sedd_jax.errors import BadInput

REACH_SECONDS = 3.0  # the hub's own client tries for 20 seconds before it says it is offline

_ID = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([\w./-]+))?")


def folder(
    name: str | pathlib.Path,
    patterns: Sequence[str],
    whole: Callable[[pathlib.Path], bool],
    either: Sequence[Sequence[str]] = ((),),
) -> pathlib.Path:
    """Returns the folder `name`: a local one as it is, else a repository of the hub, downloaded.

    What the cache of the hub holds whole is taken from there, without asking for a newer one.

    Args:
      name: a local folder, or OWNER/NAME or OWNER/NAME@REVISION on the hub.
      patterns: the files wanted of a repository, as in "*.json".
      whole: says whether a cached folder will do; the hub itself does not know of one that was
        filled file by file.
      either: more patterns, in groups; only the first group that the repository has is wanted.

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
        for group in either:
            wanted = {"revision": revision, "allow_patterns": [*patterns, *group]}
            found = pathlib.Path(client.snapshot_download(repository, **wanted, **options))
            if any(any(found.glob(pattern)) for pattern in group):
                break
        return found

    try:
        part = snapshot(local_files_only=True)
        if whole(part):
            return part
    except IncompleteSnapshotError as error:
        part = error.snapshot_path
    except LocalEntryNotFoundError:
        part = None
    cached = f"is cached in part only, in {part}" if part else "is not in the cache"
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


def check_upload(name: str) -> None:
    """Raises BadInput unless the hub can be reached and knows who would upload to OWNER/NAME."""
    match = _ID.fullmatch(name)
    if not match or match.group(2):
        raise BadInput(f"A repository of the hub is called OWNER/NAME, not {name!r}.")
    client = hub("To upload")
    with answering(f"Nothing can be uploaded to {name}"):
        client.HfApi().whoami()


def upload(folder: pathlib.Path, name: str, *, private: bool) -> str:
    """Uploads a folder to the repository OWNER/NAME, made if there is none; returns its address.

    Args:
      folder: what to upload; files of the same names are replaced in a new revision.
      name: of the repository.
      private: whether a new repository is for its owner only.

    Raises:
      BadInput: the hub cannot be reached, or refuses.
    """
    api = hub("To upload").HfApi()
    with answering(f"{folder} is complete, but not uploaded to {name}"):
        address = api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, commit_message="Model of sedd_jax")
    return str(address)

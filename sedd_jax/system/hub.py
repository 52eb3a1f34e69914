"""Folders by name: local ones, and repositories of the Hugging Face hub, cached or downloaded."""

import contextlib
import pathlib
import re
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType

from sedd_jax.errors import BadInput, first_line
from sedd_jax.system.packages import package

REACH_SECONDS = 3.0  # the hub's own client tries for 20 seconds before it reports being offline

_ID = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([\w./-]+))?")


def folder(
    name: str | pathlib.Path,
    patterns: Sequence[str],
    is_complete: Callable[[pathlib.Path], bool],
    alternatives: Sequence[Sequence[str]] = ((),),
) -> pathlib.Path:
    """Returns a local folder unchanged, or downloads a repository of the hub.

    A complete copy in the hub's cache is used without asking for a newer revision.

    Args:
      name: a local folder, or OWNER/NAME or OWNER/NAME@REVISION on the hub.
      patterns: the files to download, as in "*.json".
      is_complete: returns whether a cached folder has all that is needed; the hub's client does not
        know for a folder that was filled file by file.
      alternatives: more patterns, in groups; only the first group that the repository has is
        downloaded.

    Returns:
      The local folder.

    Raises:
      BadInput: `name` is a file, or no folder and no repository that is cached or can be reached.
    """
    local = pathlib.Path(name)
    if local.is_dir():
        return local
    if local.is_file():
        raise BadInput(f"{name} is a file; give the folder that it is in.")
    match = _ID.fullmatch(str(name))
    if not match:
        raise BadInput(f"There is no folder {name}.")
    repository, revision = match.groups()
    here = f"There is no folder {name}"
    client = _client(f"{here}; a repository of the hub")
    from huggingface_hub.errors import IncompleteSnapshotError, LocalEntryNotFoundError

    def snapshot(**options):
        for group in alternatives:
            wanted = {"revision": revision, "allow_patterns": [*patterns, *group]}
            found = pathlib.Path(client.snapshot_download(repository, **wanted, **options))
            if any(any(found.glob(pattern)) for pattern in group):
                break
        return found

    try:
        part = snapshot(local_files_only=True)
        if is_complete(part):
            return part
    except IncompleteSnapshotError as error:
        part = error.snapshot_path
    except LocalEntryNotFoundError:
        part = None
    cached = f"is cached in part only, in {part}" if part else "is not in the cache"
    with answering(f"{here}, the repository of that name on the hub {cached}"):
        return snapshot()


def _client(user: str) -> ModuleType:
    return package("huggingface_hub", '"sedd_jax[hub]"', user)


@contextlib.contextmanager
def answering(otherwise: str) -> Iterator[None]:
    """Runs the body if the hub can be reached, and turns the hub's errors into a sentence.

    Args:
      otherwise: the beginning of that sentence.

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
            f"{otherwise}, and {constants.ENDPOINT} cannot be reached ({first_line(error)})."
        ) from error
    except (errors.LocalTokenNotFoundError, errors.GatedRepoError) as error:
        raise BadInput(
            f"{otherwise}, and the hub wants to know who asks: hf auth login."
        ) from error
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, ValueError) as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        advice = "; is the name right, and are you logged in (hf auth login)?"
        raise BadInput(
            f"{otherwise}, and the hub refuses: {first_line(error)}"
            f"{advice if status in (401, 403, 404) else ''}"
        ) from error


def check_upload(name: str) -> None:
    """Raises BadInput unless the hub can be reached and somebody is logged in to upload."""
    match = _ID.fullmatch(name)
    if not match or match.group(2):
        raise BadInput(f"A repository of the hub is called OWNER/NAME, not {name!r}.")
    client = _client("An upload")
    with answering(f"Nothing can be uploaded to {name}"):
        client.HfApi().whoami()


def upload(folder: pathlib.Path, name: str, *, private: bool) -> str:
    """Uploads a folder to a repository of the hub, which is created if absent.

    Args:
      folder: what to upload; files of the same names are replaced in a new revision.
      name: OWNER/NAME of the repository.
      private: whether only the owner can see a new repository.

    Returns:
      The URL of the repository.

    Raises:
      BadInput: the hub cannot be reached, or refuses.
    """
    api = _client("An upload").HfApi()
    with answering(f"{folder} is complete, but not uploaded to {name}"):
        address = api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, commit_message="Model of sedd_jax")
    return str(address)

"""Finds and reads the texts of data sets: below a folder, in named files, or remotely."""

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from sedd_jax.data.documents import BLANK, Fault, Recipe
from sedd_jax.data.signatures import decoded
from sedd_jax.data.sources import format_of, pieces
from sedd_jax.data.tables import HUGGING_FACE, TFDS
from sedd_jax.errors import BadInput
from sedd_jax.evaluation.datasets import DETOKENIZERS, TEXT_SETS, Split, TextSet
from sedd_jax.system import bucket, mirror
from sedd_jax.system.bucket import is_address, parse

_REMOTE = (HUGGING_FACE, TFDS)
_TABLES = ("jsonl", "csv", "tsv", "parquet")
_SHARD = re.compile(r"-\d+-of-(\d+)")


class Text(NamedTuple):
    """The documents of a split of a data set, detokenised.

    Attributes:
      source: names of the files, without their folders, or a corpus of `data.sources`.
      split: test or validation; for a file of `--sources` the one that is assumed.
      detokenizer: its name.
      documents: the texts.
    """

    source: str
    split: str
    detokenizer: str
    documents: Sequence[str]

    @property
    def sha256(self) -> str:
        """The checksum of the documents."""
        digest = hashlib.sha256()
        for document in self.documents:
            encoded = document.encode()
            digest.update(b"%d " % len(encoded) + encoded)
        return digest.hexdigest()


class DatasetCatalog:
    """The data sets whose texts are available."""

    def __init__(
        self,
        folder: str | Path | None,
        sources: dict[str, str] | None = None,
        download: bool = False,
    ):
        """Lists the files.

        Args:
          folder: searched with all subfolders, here or in a bucket; None for no folder.
          sources: by data set, a file or a corpus of `data.tables` that takes precedence.
          download: whether to fetch what is missing.

        Raises:
          BadInput: no such folder, data set or file, or a corpus that needs --download.
        """
        self._files = {} if folder is None else _listed(folder)
        self._folder = None if folder is None else _name(folder)
        self._sources, self._download = sources or {}, download
        for name, source in self._sources.items():
            if name not in TEXT_SETS:
                raise BadInput(f"--sources names {name!r}; there are {', '.join(TEXT_SETS)}.")
            if _is_remote(source) and not download:
                raise BadInput(f"--sources names {source} for {name}; --download fetches it.")
            if not source.startswith(_REMOTE) and not _fetched(source).is_file():
                raise BadInput(f"--sources names {source} for {name}, which is no file.")

    def find(self, name: str, split: Split) -> list[str]:
        """Returns the files of a data set, or the corpus that holds it, or [].

        Raises:
          BadInput: files in two folders match, or some of a set of files are missing.
        """
        if name in self._sources:
            return [self._sources[name]]
        for pattern in TEXT_SETS[name].files:
            ending = re.compile(f"(^|/){_filled(pattern, split)}$", re.IGNORECASE)
            if found := [file for at, file in self._files.items() if ending.search(at)]:
                self._check_one_set(name, found)
                return found
        remote = _filled(TEXT_SETS[name].remote, split)
        return [remote] if self._download and remote else []

    def _check_one_set(self, name, found):
        places = {file.rpartition("/")[0] for file in found}
        shards = _SHARD.search(Path(found[0]).name)
        wanted = int(shards[1]) if shards else 1
        if len(places) > 1 or len(found) > wanted:
            raise BadInput(
                f"There is more than one {name} below {self._folder}, {found[0]} and {found[-1]}; "
                f"name one with --sources={name}=FILE."
            )
        if len(found) < wanted:
            raise BadInput(
                f"{places.pop()} holds {len(found)} of the {wanted} files of {name}; get them "
                f"all, or name one with --sources={name}=FILE."
            )

    def missing(self, name: str, split: Split) -> str:
        """Returns what was searched for, in words."""
        known = TEXT_SETS[name]
        wanted = known.advice or " or ".join(known.files).replace("\\", "")
        return (
            f"{name}: {_filled(wanted, split)}"
            + (f", below {self._folder}" if self._folder else ", below --data=FOLDER")
            + f" or by --sources={name}=FILE"
            + (", or --download" if known.remote and not self._download else "")
        )

    def read(self, name: str, split: Split) -> Text:
        """Returns the text of a data set.

        Raises:
          BadInput: it is missing, cannot be read, is empty, or is another version.
        """
        found = self.find(name, split)
        if not found:
            raise BadInput(f"There is no data for {self.missing(name, split)}.")
        known = TEXT_SETS[name]
        detokenize = DETOKENIZERS[known.detokenizer]
        rows = [row for source in found for row in _rows(known, source, split)]
        if not any(rows):
            raise BadInput(f"There is no text in {found[0]}, the data of {name}.")
        if known.foreign and any(known.foreign in row for row in rows):
            raise BadInput(
                f"{found[0]} has {known.foreign} in it, so it is another version of {name}; get "
                f"{_filled(known.advice, split)}."
            )
        names = [each if _is_remote(each) else Path(each).name for each in found]
        source = names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"
        assumed = f"as given, for {split}" if name in self._sources else split
        return Text(source, assumed, known.detokenizer, [detokenize(row) for row in rows])


def _listed(folder: str | Path) -> dict[str, str]:
    """The files below a folder, by their path from the folder above it.

    Patterns may match the folder's own name, but not its parents.
    """
    if is_address(folder):
        address = parse(folder, "--data")
        if found := bucket.entries(address):
            return {f"{address.name}/{name}": str(address / name) for name in sorted(found)}
    elif Path(folder).is_dir():
        top = Path(folder).absolute()
        below = sorted(_files_below(top))
        return {path.relative_to(top.parent).as_posix(): str(path) for path in below}
    raise BadInput(f"There is no folder {_name(folder)} to look for data in: --data.")


def _name(folder: str | Path) -> str:
    return str(parse(folder) if is_address(folder) else folder)


def _fetched(source: str) -> Path:
    """The file of a source that is none of `_REMOTE`."""
    return mirror.local_file(source, "The data set")


def _files_below(folder: Path) -> Iterator[Path]:
    """The files, also behind links to folders; each folder once, real paths first."""
    seen, starts = set(), [folder]
    for start in starts:  # grows
        for root, folders, files in os.walk(start):
            status = os.stat(root)
            if (place := (status.st_dev, status.st_ino)) in seen:
                folders.clear()
                continue
            seen.add(place)
            starts += [path for name in sorted(folders) if (path := Path(root, name)).is_symlink()]
            yield from (path for name in files if (path := Path(root, name)).is_file())


def _filled(pattern: str, split: Split) -> str:
    """A pattern with the names of the split; old benchmarks shorten validation."""
    short = {"test": "test", "validation": "valid"}[split]
    return pattern.replace("SPLIT", split).replace("SHORT", short)


def _is_remote(source):
    """Whether a source is a corpus whose name is not a local folder."""
    name = source.partition(":")[2]
    local = Path(name).is_dir() or Path(name.rpartition(":")[0] or name).is_dir()
    return source.startswith(_REMOTE) and not local


def _rows(known: TextSet, source: str, split: Split) -> list[str]:
    """The documents of a file or a corpus, blank ones included."""
    source = source if source.startswith(_REMOTE) else str(_fetched(source))
    if source.startswith(_REMOTE) or format_of(Path(source)) in _TABLES:
        recipe = Recipe(field=known.field)
        documents = ((p, document) for p in pieces(recipe, source) for document in p.documents())
        return [_text(piece, it.content, it.where) for piece, it in documents]
    text = decoded(Path(source).read_bytes(), source).replace("\r\n", "\n").replace("\r", "\n")
    try:
        return known.rows(text, split)
    except BadInput as error:
        raise BadInput(f"{source} {error}; get it again.") from error


def _text(piece, content, where):
    if content == BLANK:
        return ""
    if isinstance(content, Fault):
        raise BadInput(f"{piece.place(where)} {content.reason}.")
    return content

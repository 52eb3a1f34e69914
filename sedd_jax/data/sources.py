"""The corpus of a recipe, as the pieces that workers read."""

import collections
import glob
import os
import pathlib
import platform
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from sedd_jax.data import signatures
from sedd_jax.data.columns import NO_FIELDS, Fields, check_tells, fields_of
from sedd_jax.data.csv_files import table
from sedd_jax.data.documents import Document, Piece, Recipe, RowRange
from sedd_jax.data.separators import is_text, unescaped
from sedd_jax.data.sequences import array_records, arrays
from sedd_jax.data.tables import HUGGING_FACE, TFDS, hugging_face, parquet, tfds
from sedd_jax.data.text_files import FASTA, FASTQ, JSON_LINES, codec, head_of, plain_text, records
from sedd_jax.errors import BadInput, warn
from sedd_jax.system.bucket import is_address
from sedd_jax.system.files import check_readable

EMBEDDED_CORPUS = "pydoc"
# the format of a file by the ending of its name, in any case
_FORMATS = {
    ".txt": "text",
    **dict.fromkeys((".jsonl", ".ndjson", ".json"), "jsonl"),
    ".csv": "csv",
    ".tsv": "tsv",
    **dict.fromkeys((".fa", ".fasta", ".fna", ".faa", ".ffn", ".frn", ".fas"), "fasta"),
    **dict.fromkeys((".fastq", ".fq"), "fastq"),
    ".parquet": "parquet",
    **dict.fromkeys((".npy", ".npz"), "npy"),
    ".uint16": "uint16",
    ".uint32": "uint32",
    ".array_record": "array_record",
}
_TEXT = frozenset({"text", "csv", "tsv", "jsonl", "fasta", "fastq"})  # may be compressed
# often settings or labels: read only if they are named, or if config.data.format is that of tables
_NAMED_ONLY = frozenset({".json", ".csv", ".tsv"})
# never read as text, unless config.data.format says so
_NOT_TEXT = frozenset({".bin", ".xz", ".bz2", ".lz4", ".zip", ".tar", ".7z", ".rar"})


def pieces(recipe: Recipe, corpus: str) -> list[Piece]:
    """Returns the pieces of a corpus, always the same ones in the same order.

    Args:
      recipe: how a file becomes documents: `format`, `separator`, `field`, `condition`,
        `max_document_mb`.
      corpus: "pydoc" (the help topics of the running Python, about 0.5 MB of English, one document
        per topic, so the text depends on the version of Python), a file, a pattern of file names, a
        folder (all files below it whose suffixes are known), or what `tfds` and `hugging_face`
        describe.

    Raises:
      BadInput: the corpus is missing, damaged or of no known format.
    """
    fields, limit = fields_of(recipe), recipe.max_document_mb * 2**20
    if corpus == EMBEDDED_CORPUS:
        check_tells(fields, corpus, "help topics")
        return [_Topics()]
    if corpus.startswith(TFDS):
        return tfds(corpus, fields, limit)
    if corpus.startswith(HUGGING_FACE):
        return hugging_face(corpus, fields, limit)
    if is_address(corpus):
        raise BadInput(
            f"The corpus {corpus} is in a bucket, and is read from a disk: copy it first (gcloud "
            "storage cp -r, aws s3 cp --recursive)."
        )
    found, doubts = [], []
    files = _files(corpus, recipe.format)
    for path, form in files:
        found += _read(recipe, fields, path, form, doubts) or [_Nothing(path, 0, 0, 0, 0)]
    for missing in _missing_shards(path for path, _ in files if str(path) != corpus):
        warn(missing)
    if doubts:
        more = f", and {len(doubts) - 1:,} more likewise" if len(doubts) > 1 else ""
        warn(f"{doubts[0]}{more}; config.data.format says what it is")
    return found


def warn_without_effect(recipe: Recipe, found: list[Piece]) -> None:
    """Warns of settings that no piece of the corpora uses."""
    default, separator = Recipe(), unescaped(recipe.separator)
    unused = {
        "field": (
            recipe.field != default.field
            and not any(getattr(it, "fields", NO_FIELDS).text for it in found),
            "the corpus has no JSON lines and no tables",
        ),
        "separator": (
            separator and not any(is_text(it, separator) for it in found),
            "the corpus has no text files",
        ),
        "heldout_fraction": (
            recipe.heldout_corpus and recipe.heldout_fraction != default.heldout_fraction,
            "all of heldout_corpus is held out, and nothing of corpus",
        ),
    }
    for name, (is_unused, why) in unused.items():
        if is_unused:
            warn(f"config.data.{name}={getattr(recipe, name)!r} has no effect: {why}")


def passed_by(corpus: str, wanted: str) -> dict[str, int]:
    """Returns how many files of a corpus are not read, by their endings.

    Args:
      corpus: as for `pieces`.
      wanted: the format of its files, or "auto".
    """
    if corpus in ("", EMBEDDED_CORPUS) or corpus.startswith((TFDS, HUGGING_FACE)):
        return {}
    return dict(collections.Counter(_listed(corpus, wanted)[1]).most_common())


def _read(
    recipe: Recipe, fields: Fields, path: pathlib.Path, form: str, doubts: list[str]
) -> list[Piece]:
    """Returns the pieces of one file; adds to the `doubts` that its format is the right one."""
    check_readable(path)
    limit = recipe.max_document_mb * 2**20
    if codec(path) and form not in _TEXT:
        raise BadInput(f"{path} is compressed, and {form} is not read so; decompress it.")
    if form in _TEXT:
        named = recipe.format != "auto"
        if doubt := signatures.check(path, head_of(path), form, named=named):
            doubts.append(f"{path} {doubt}")
    elif form.startswith("uint"):
        head = head_of(path)
        signatures.check_known(path, head, form)
        if doubt := signatures.doubt_of_ids(head, form):
            doubts.append(f"{path} {doubt}")
    match form:
        case "text" | "fastq":
            check_tells(fields, path, form)
            text_format = FASTQ if form == "fastq" else plain_text(unescaped(recipe.separator))
            return records(path, text_format, NO_FIELDS, limit)
        case "jsonl":
            return records(path, JSON_LINES, fields, limit)
        case "fasta":
            return records(path, FASTA, fields._replace(text=""), limit)
        case "csv" | "tsv":
            return table(path, form, fields, limit)
        case "parquet":
            return parquet(path, fields, limit)
        case "array_record":
            check_tells(fields, path, form)
            return array_records(path, limit)
        case _:
            return arrays(path, form, fields, limit)


def _files(corpus: str, wanted: str) -> list[tuple[pathlib.Path, str]]:
    """Returns the files of a corpus, each with its format."""
    files, passed = _listed(corpus, wanted)
    if files:
        return files
    path = pathlib.Path(corpus)
    if not path.is_dir():
        raise BadInput(
            f"There is no corpus at {corpus}; give a file, a folder, a pattern that matches files, "
            f"or '{EMBEDDED_CORPUS}'."
        )
    if (path / "manifest.json").is_file():
        raise BadInput(
            f"The corpus folder {path} holds prepared data by its manifest.json; give it as "
            "config.data.prepared."
        )
    known = f"a known format ({', '.join(_FORMATS)})"
    there = ", ".join(f"{name} {count}" for name, count in passed_by(corpus, wanted).items())
    raise BadInput(
        f"The corpus folder {path} has no files of "
        f"{known if wanted == 'auto' else f'the format {wanted} by their names'}"
        f"{f' but others ({there})' if passed else ''}; give a pattern such as {path / '*'} and "
        "set config.data.format (a data set that save_to_disk wrote is given as hf:FOLDER)."
    )


def _missing_shards(files: Iterable[pathlib.Path]) -> list[str]:
    """Returns what is missing of sets of files that are numbered as in "a-00001-of-00008.jsonl"."""
    sets = collections.defaultdict(set)
    for file in files:
        if found := re.search(r"(\d+)-of-(\d+)", file.name):
            name = file.name.replace(found[0], f"*-of-{found[2]}")
            sets[file.with_name(name), int(found[2])].add(found[1])
    return [
        f"{total - len(numbers)} of the {total} files {pattern} are missing"
        for (pattern, total), numbers in sets.items()
        if len(numbers) < total
    ]


def _listed(corpus: str, wanted: str) -> tuple[list[tuple[pathlib.Path, str]], list[str]]:
    """Returns the files to read, each with its format, and the endings of those passed by."""
    path, files, passed = pathlib.Path(corpus), [], []
    if path.is_dir():
        for file in _below(path, passed):
            ending = _ending(file)
            form = _FORMATS.get(ending)
            is_meant = ending not in _NAMED_ONLY or (form == wanted and form != "jsonl")
            if form and wanted in ("auto", form) and is_meant:
                files.append((file, form))
            else:
                passed.append((ending + _compression(file)) or "no ending")
        return files, passed
    named = [path] if path.is_file() else map(pathlib.Path, glob.glob(corpus, recursive=True))
    for file in sorted(named):
        if not file.is_file():
            # "**" matches folders beside the files below them
            if "**" not in corpus or not file.is_dir():
                passed.append("folder" if file.is_dir() else _missing(file))
        elif wanted != "auto":
            files.append((file, wanted))
        elif _ending(file) in _NOT_TEXT or file.suffix.lower() in _NOT_TEXT:
            raise BadInput(
                f"{file} is no text by its ending; set config.data.format: uint16 or uint32 "
                "for raw ids, or text, or unpack it."
            )
        else:
            files.append((file, _FORMATS.get(_ending(file), "text")))
    return files, passed


def _below(folder: pathlib.Path, passed: list[str]) -> list[pathlib.Path]:
    """Returns the files below a folder in order; adds to `passed` what cannot be read."""
    files = []
    walk = os.walk(folder, onerror=lambda error: passed.append("unreadable folder"))
    for root, folders, names in walk:
        folders[:] = [name for name in folders if not name.startswith(".")]
        passed += ["linked folder" for name in folders if os.path.islink(os.path.join(root, name))]
        found = [pathlib.Path(root, name) for name in names if not name.startswith(".")]
        other = [file for file in found if not file.is_file()]
        passed += map(_missing, other)
        files += [file for file in found if file.is_file()]
    return sorted(files)


def _missing(path: pathlib.Path) -> str:
    return "special file" if path.exists() else "broken link"


def format_of(path: pathlib.Path) -> str | None:
    """Returns the format of a file by the ending of its name, None if that is unknown."""
    return _FORMATS.get(_ending(path))


def _compression(path: pathlib.Path) -> str:
    return path.suffix.lower() if codec(path) else ""


def _ending(path: pathlib.Path) -> str:
    """Returns the ending of a name, without that of compression or the number of a shard."""
    name = path.name[: len(path.name) - len(_compression(path))]
    return pathlib.PurePath(re.sub(r"-\d+-of-\d+$", "", name)).suffix.lower()


@dataclass(frozen=True)
class _Nothing(RowRange):
    """A file without rows, so that it is among the sources, and is warned of."""

    @property
    def name(self) -> str:
        return str(self.source)

    def documents(self) -> Iterator[Document]:
        return iter(())


@dataclass(frozen=True)
class _Topics(Piece):
    """The help topics of the running Python."""

    name = EMBEDDED_CORPUS
    size = 500_000

    def documents(self) -> Iterator[Document]:
        from pydoc_data import topics

        for number, topic in enumerate(topics.topics.values()):
            yield Document(topic, number)

    def place(self, where: int) -> str:
        return f"{EMBEDDED_CORPUS}, topic {where + 1}"

    def version(self) -> str:
        return platform.python_version()

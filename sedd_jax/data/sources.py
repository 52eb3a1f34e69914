"""The corpus of a recipe, as the pieces that workers read."""

import glob
import pathlib
import platform
import re
from collections.abc import Iterator
from dataclasses import dataclass

from sedd_jax.data.documents import Document, Piece, Recipe
from sedd_jax.data.sequences import array_records, arrays
from sedd_jax.data.tables import HUGGING_FACE, TFDS, hugging_face, parquet, tfds
from sedd_jax.data.text_files import CODECS, FASTA, JSON_LINES, plain_text, records
from sedd_jax.errors import BadInput

EMBEDDED_CORPUS = "pydoc"
# the format of a file by the suffix of its name
_FORMATS = {
    ".txt": "text",
    ".json": "jsonl",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".fa": "fasta",
    ".fasta": "fasta",
    ".parquet": "parquet",
    ".npy": "npy",
    ".npz": "npy",
    ".uint16": "uint16",
    ".uint32": "uint32",
    ".array_record": "array_record",
}
_COMPRESSIBLE = frozenset({"text", "jsonl", "fasta"})  # formats whose files may be compressed


def pieces(recipe: Recipe, corpus: str) -> list[Piece]:
    """Returns the pieces of a corpus, always the same ones in the same order.

    Args:
      recipe: how a file becomes documents: `format`, `separator`, `field`, `max_document_mb`.
      corpus: "pydoc" (the help topics of the running Python, about 0.5 MB of English, one document
        per topic, so the text depends on the version of Python), a file, a pattern of file names, a
        folder (all files below it whose suffixes are known), or what `tfds` and `hugging_face`
        describe.

    Raises:
      BadInput: the corpus is missing, damaged or of no known format.
    """
    if corpus == EMBEDDED_CORPUS:
        return [_Topics()]
    limit = recipe.max_document_mb * 2**20
    if corpus.startswith(TFDS):
        return tfds(corpus, recipe.field, limit)
    if corpus.startswith(HUGGING_FACE):
        return hugging_face(corpus, recipe.field, limit)
    return [
        piece for path, form in _files(corpus, recipe.format) for piece in _read(recipe, path, form)
    ]


def _read(recipe: Recipe, path: pathlib.Path, form: str) -> list[Piece]:
    """Returns the pieces of one file."""
    limit = recipe.max_document_mb * 2**20
    if path.suffix in CODECS and form not in _COMPRESSIBLE:
        raise BadInput(f"{path} is compressed, and {form} is not read so; decompress it.")
    match form:
        case "text":
            return records(path, plain_text(recipe.separator), recipe.field, limit)
        case "jsonl":
            return records(path, JSON_LINES, recipe.field, limit)
        case "fasta":
            return records(path, FASTA, recipe.field, limit)
        case "parquet":
            return parquet(path, recipe.field, limit)
        case "array_record":
            return array_records(path, limit)
        case _:
            return arrays(path, form, limit)


def _files(corpus: str, wanted: str) -> list[tuple[pathlib.Path, str]]:
    """Returns the files of a corpus, each with its format."""
    path = pathlib.Path(corpus)
    if path.is_dir():
        below = [file for file in sorted(path.rglob("*")) if not _is_hidden(file, path)]
        found = [(file, _FORMATS.get(_ending(file))) for file in below if file.is_file()]
        # .json files often hold settings: such a file is read only if it is named
        files = [
            (file, form)
            for file, form in found
            if form and wanted in ("auto", form) and _ending(file) != ".json"
        ]
        if not files:
            known = f"a known format ({', '.join(_FORMATS)})"
            raise BadInput(
                f"The corpus folder {path} has no files of "
                f"{known if wanted == 'auto' else f'the format {wanted} by their names'}; give a "
                f"pattern such as {path / '*'} and set data.format."
            )
        return files
    named = (
        [path] if path.is_file() else sorted(map(pathlib.Path, glob.glob(corpus, recursive=True)))
    )
    files = [file for file in named if file.is_file()]
    if not files:
        raise BadInput(
            f"There is no corpus at {corpus}; give a file, a folder, a pattern that matches files, "
            f"or '{EMBEDDED_CORPUS}'."
        )
    return [
        (file, _FORMATS.get(_ending(file), "text") if wanted == "auto" else wanted)
        for file in files
    ]


def _is_hidden(file: pathlib.Path, folder: pathlib.Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(folder).parts)


def _ending(path: pathlib.Path) -> str:
    """Returns the suffix of a name, without that of compression or the number of a shard."""
    name = path.name.removesuffix(path.suffix) if path.suffix in CODECS else path.name
    return pathlib.PurePath(re.sub(r"-\d+-of-\d+$", "", name)).suffix


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

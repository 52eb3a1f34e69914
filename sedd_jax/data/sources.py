"""Where documents come from: the corpus of a recipe as the pieces that workers read."""

import glob
import hashlib
import pathlib
import platform
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sedd_jax.data.documents import BLANK, Document, Fault, Piece
from sedd_jax.data.recipe import Recipe
from sedd_jax.data.records import CODECS, FASTA, JSON_LINES, Layout, parse_text, records
from sedd_jax.data.sequences import array_records, arrays
from sedd_jax.data.tables import HUGGING_FACE, TFDS, hugging_face, parquet, tfds
from sedd_jax.errors import BadInput

EMBEDDED_CORPUS = "pydoc"
# The format of a file by the ending of its name.
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
# Those of which a file may be compressed.
_COMPRESSIBLE = frozenset({"text", "jsonl", "fasta"})
# A cut looks for a line break within this many characters.
_NEARBY = 1000


def pieces(recipe: Recipe, corpus: str) -> list[Piece]:
    """The parts of `corpus`, always the same ones in the same order.

    `corpus` is "pydoc" (the help topics of the running Python, about 0.5 MB of English, one
    document per topic, so the text depends on the version of Python), a file, a pattern of file
    names, a folder (all files below it whose endings are known), or what `tfds` and `hugging_face`
    describe. The recipe says how a file becomes documents (`format`, `separator`, `field`,
    `max_document_mb`). Raises BadInput for what is missing, damaged or of no known format.
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


def load_documents(corpus: str, separator: str) -> list[str]:
    """The texts of `corpus`, each as it stands, line ends too; blank ones are left out.

    Raises BadInput for what `pieces` refuses, for a document that cannot be used, and for a corpus
    that is nothing but white space.
    """
    documents = []
    for piece in pieces(Recipe(separator=separator), corpus):
        for content, where in piece.documents():
            if not isinstance(content, Fault):
                documents.append(content)
            elif content != BLANK:
                raise BadInput(f"{piece.place(where)} {content.reason}; mend it or leave it out.")
    if not documents:
        raise BadInput(f"The corpus {corpus} is empty: it holds nothing but white space.")
    return documents


def split_documents(
    documents: Sequence[str], heldout_fraction: float
) -> tuple[list[str], list[str]]:
    """Splits whole documents into (train, heldout), the order kept inside each part.

    Distinct texts are taken as held-out in the order of their SHA-256 until `heldout_fraction` of
    all characters is reached, and at least one text is left on each side: which text goes where
    depends on nothing but the texts themselves, not on their order, and the copies of a text stay
    together. If there is only one distinct text, it is cut after (1 - heldout_fraction) of it, at
    the next line boundary if one is near. Raises BadInput for a fraction outside (0, 1) and for
    text too short to split.
    """
    if not 0 < heldout_fraction < 1:
        raise BadInput(
            f"heldout_fraction is {heldout_fraction}, it must lie between 0 and 1, both excluded."
        )
    by_digest = sorted(set(documents), key=lambda text: hashlib.sha256(text.encode()).digest())
    if len(by_digest) < 2:
        halves = [_cut(document, heldout_fraction) for document in documents]
        return [head for head, _ in halves], [tail for _, tail in halves]
    copies = {text: 0 for text in by_digest}
    for document in documents:
        copies[document] += 1
    wanted = heldout_fraction * sum(map(len, documents))
    heldout, characters = set(), 0
    for text in by_digest[:-1]:
        if characters >= wanted:
            break
        heldout.add(text)
        characters += copies[text] * len(text)
    return (
        [document for document in documents if document not in heldout],
        [document for document in documents if document in heldout],
    )


def _cut(text: str, heldout_fraction: float) -> tuple[str, str]:
    if len(text) < 2:
        raise BadInput(
            f"The corpus is a single document of {len(text)} character(s), too short to hold a "
            "part of it out; give more text."
        )
    cut = min(max(round((1 - heldout_fraction) * len(text)), 1), len(text) - 1)
    # At most half of the tail is given away for the sake of a whole line.
    newline = text.find("\n", cut - 1, cut + min(_NEARBY, (len(text) - cut) // 2))
    cut = cut if newline < 0 else newline + 1
    return text[:cut], text[cut:]


def _read(recipe: Recipe, path: pathlib.Path, form: str) -> list[Piece]:
    """The pieces of one file."""
    limit = recipe.max_document_mb * 2**20
    if path.suffix in CODECS and form not in _COMPRESSIBLE:
        raise BadInput(f"{path} is compressed, and {form} is not read so; decompress it.")
    match form:
        case "text":
            layout = Layout(recipe.separator.encode(), parse_text)
            return records(path, layout, recipe.field, limit)
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
    """The files of `corpus`, each with its format."""
    path = pathlib.Path(corpus)
    if path.is_dir():
        below = [file for file in sorted(path.rglob("*")) if not _is_hidden(file, path)]
        found = [(file, _FORMATS.get(_ending(file))) for file in below if file.is_file()]
        # Settings are kept in .json files too: such a file is read only when it is named.
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
    """The ending of a name, without that of a compressed file or the number of a shard."""
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

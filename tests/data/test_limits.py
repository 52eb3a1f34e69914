"""The table of docs/limits.md: what becomes of each source in each case, a test a cell."""

import functools
import gzip
import json
import os
import pathlib
import shutil

import numpy as np
import pytest

from sedd_jax.data.characters import Characters
from sedd_jax.data.documents import Fault, Recipe
from sedd_jax.data.preparation import _groups, prepare_blocks
from sedd_jax.data.prepared import open_blocks
from sedd_jax.data.sources import pieces
from sedd_jax.errors import BadInput

# the words are those of the page
TABLE = """
source       | empty   | one byte | cut     | lengthened | one bit | BOM     | CRLF | nulls   | wrong type | huge    | many small | unreadable
text         | none    | read     | unseen  | unseen     | unseen  | read    | read | read    | invalid    | invalid | joined     | refused
gzip         | refused | refused  | refused | refused    | refused | read    | read | read    | refused    | invalid | joined     | refused
zstd         | refused | refused  | refused | refused    | refused | read    | read | read    | refused    | invalid | joined     | refused
JSON lines   | none    | invalid  | invalid | invalid    | unseen  | read    | read | invalid | invalid    | invalid | joined     | refused
CSV          | none    | refused  | unseen  | invalid    | unseen  | read    | read | read    | refused    | refused | joined     | refused
TSV          | none    | refused  | unseen  | invalid    | unseen  | read    | read | read    | refused    | refused | joined     | refused
FASTA        | none    | invalid  | unseen  | unseen     | unseen  | read    | read | read    | invalid    | invalid | joined     | refused
FASTQ        | none    | invalid  | invalid | invalid    | unseen  | read    | read | read    | refused    | invalid | joined     | refused
Parquet      | refused | refused  | refused | refused    | unseen  | refused | read | invalid | refused    | invalid | joined     | refused
npy          | refused | refused  | refused | refused    | unseen  | refused | -    | -       | refused    | invalid | joined     | refused
npz          | refused | refused  | refused | refused    | refused | refused | -    | -       | refused    | invalid | joined     | refused
raw ids      | refused | refused  | unseen  | unseen     | unseen  | -       | -    | -       | refused    | invalid | joined     | refused
ArrayRecord  | refused | refused  | refused | refused    | refused | refused | -    | -       | invalid    | invalid | joined     | refused
TFDS         | refused | refused  | refused | refused    | refused | refused | read | -       | invalid    | invalid | -          | refused
Hugging Face | refused | refused  | refused | refused    | unseen  | refused | read | invalid | refused    | invalid | -          | refused
prepared     | refused | refused  | refused | refused    | refused | refused | -    | -       | refused    | -       | -          | refused
"""  # noqa: E501
HEADER, *ROWS = [[cell.strip() for cell in row.split("|")] for row in TABLE.strip().splitlines()]
CELLS = [(row[0], *cell) for row in ROWS for cell in zip(HEADER[1:], row[1:], strict=True)]

# columns of a data set
COLUMNS = {
    "text": ["ACGTACGT", "GATTACAG", "TTTTGGGG"],
    "CRLF": ["AC\r\nGT", "A\r\n", "\r\nC"],
    "huge": ["A" * (2**20 + 1), "A", "C"],  # the limit is 2^20 bytes here
    "wrong type": [1, 2, 3],
}
TEXTS, LINES = COLUMNS["text"], COLUMNS["CRLF"]
IDS = [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12]]
LARGE_IDS = [1] * (2**19 + 1)
SEPARATOR = "\n%\n"
PLAIN = b"plain words\n"
ZSTD = "28b52ffd0458f1000041434754414347540a250a47415454414341470a250a545454544747474708078aa0"


def as_json(documents, end):
    return [json.dumps({"text": document}) for document in documents]


def as_table(delimiter, documents, end):
    rows = [f"{number}{delimiter}{document}" for number, document in enumerate(documents)]
    return [f"number{delimiter}text", *rows]


def as_fasta(documents, end):
    return [f">name{end}{document}" for document in documents]


def as_fastq(documents, end):
    return [f"@name{end}{text}{end}+{end}{'I' * len(text)}" for text in documents]


def write_lines(frame, path, documents, end="\n"):
    path.write_bytes("".join(line + end for line in frame(documents, end)).encode())


def write_text(path, documents):
    path.write_bytes(SEPARATOR.join(documents).encode())


def write_gzip(path, documents):
    path.write_bytes(gzip.compress(SEPARATOR.join(documents).encode()))


def write_zstd(path, documents):
    if documents == TEXTS:  # with a checksum, as the program zstd writes it
        path.write_bytes(bytes.fromhex(ZSTD))
        return
    pa = pytest.importorskip("pyarrow")
    with pa.CompressedOutputStream(str(path), "zstd") as file:
        file.write(SEPARATOR.join(documents).encode())


def write_parquet(path, documents):
    pa, pq = (pytest.importorskip(name) for name in ("pyarrow", "pyarrow.parquet"))
    pq.write_table(pa.table({"text": documents}), path, use_dictionary=False, compression="none")


def write_npy(path, documents):
    np.save(path, np.array(documents))


def write_npz(path, documents):
    np.savez_compressed(path, x=np.array(documents))


def write_raw(path, documents):
    np.array(documents, "<u2").tofile(path)


def write_array_record(path, documents):
    module = pytest.importorskip("array_record.python.array_record_module")
    writer = module.ArrayRecordWriter(str(path), "group_size:1,uncompressed")
    for document in documents:
        writer.write(
            document if isinstance(document, bytes) else np.array(document, "<u2").tobytes()
        )
    writer.close()


# by source: a name, how it is written, and what is of the wrong type there
FILES = {
    "text": ("a.txt", write_text, b"na\xefve"),
    "gzip": ("a.txt.gz", write_gzip, PLAIN),
    "zstd": ("a.txt.zst", write_zstd, PLAIN),
    "JSON lines": ("a.jsonl", functools.partial(write_lines, as_json), b'{"text": 5}\n'),
    "CSV": ("a.csv", functools.partial(write_lines, functools.partial(as_table, ",")), PLAIN),
    "TSV": ("a.tsv", functools.partial(write_lines, functools.partial(as_table, "\t")), PLAIN),
    "FASTA": ("a.fa", functools.partial(write_lines, as_fasta), PLAIN),
    "FASTQ": ("a.fq", functools.partial(write_lines, as_fastq), PLAIN),
    "Parquet": ("a.parquet", write_parquet, [0.5]),
    "npy": ("a.npy", write_npy, [[0.5]]),
    "npz": ("a.npz", write_npz, [[0.5]]),
    "raw ids": ("a.uint16", write_raw, b"\x93NUMPY\1\0"),
    "ArrayRecord": ("a.uint16.array_record", write_array_record, [b"123"]),
}
OF_IDS = ("npy", "npz", "raw ids", "ArrayRecord")
DAMAGE = {
    "empty": lambda content: b"",
    "one byte": lambda content: content[:1],
    "cut": lambda content: content[: len(content) // 4 * 2],
    "lengthened": lambda content: content + b"more",
    "one bit": lambda content: with_one_bit_changed(content),
    "BOM": lambda content: b"\xef\xbb\xbf" + content,
}


def with_one_bit_changed(content):
    """Changes a bit inside a document, or in the middle of what is compressed."""
    inside = (
        TEXTS[1].encode(),
        np.array(IDS[1], "<i8").tobytes(),
        np.array(IDS[1], "<u2").tobytes(),
    )
    found = (content.find(document) for document in inside)
    position = next((it for it in found if it >= 0), len(content) // 2)
    return content[:position] + bytes([content[position] ^ 2]) + content[position + 1 :]


def outcome(corpus, path, documents, field="text"):
    """Returns what becomes of a corpus, as a word of the table."""
    recipe = Recipe(corpus=str(corpus), separator=SEPARATOR, field=field, max_document_mb=1)
    try:
        found = [
            (content if isinstance(content, Fault | str) else content.tolist(), piece.place(where))
            for piece in pieces(recipe, recipe.corpus)
            for content, where, _ in piece.documents()
        ]
    except BadInput as error:
        assert str(path) in str(error) and "\n" not in str(error)
        return "refused"
    assert all(place.startswith(str(corpus)) for _, place in found)
    contents = [content for content, _ in found]
    if any(isinstance(content, Fault) for content in contents):
        return "invalid"
    return "none" if not contents else "read" if contents == documents else "unseen"


def of_file(folder, source, case, monkeypatch):
    """Returns the outcome for a source that is a file."""
    name, write, wrong = FILES[source]
    path, good = folder / name, IDS if source in OF_IDS else TEXTS
    wanted = [[*range(1, 13)]] if source == "raw ids" else good
    match case:
        case "CRLF" if write in (write_text, write_gzip, write_zstd, write_parquet):
            write(path, LINES)
            wanted = LINES
        case "CRLF":
            write(path, good, "\r\n")
        case "BOM" if write in (write_gzip, write_zstd):
            write(path, [f"\ufeff{TEXTS[0]}", *TEXTS[1:]])
        case "nulls":
            wanted = [TEXTS[0], None if source in ("JSON lines", "Parquet") else "AC\0GT"]
            write(path, wanted)
        case "wrong type" if isinstance(wrong, bytes):
            path.write_bytes(wrong)
        case "wrong type":
            write(path, wrong)
        case "huge":
            write(path, [LARGE_IDS] if source in OF_IDS else COLUMNS["huge"])
        case "many small":
            write(path, good)
            for number in range(9):
                shutil.copy(path, folder / f"{number}{name}")
            parts = pieces(Recipe(separator=SEPARATOR), f"{folder}/*")
            assert len([d for part in parts for d in part.documents()]) == 10 * len(wanted)
            return "joined" if len(list(_groups(parts))) < len(parts) else "apart"
        case _:
            write(path, good)
            if case in DAMAGE:
                path.write_bytes(DAMAGE[case](path.read_bytes()))
            if (source, case) == ("text", "one byte"):
                wanted = [TEXTS[0][0]]
    if case == "unreadable":
        monkeypatch.setattr(os, "access", lambda *rest: False)
    return outcome(path, path, wanted)


def of_data_set(folder, source, case, monkeypatch, tfds_folder):
    """Returns the outcome for a data set of several columns."""
    if source == "TFDS":
        shutil.copytree(tfds_folder, folder, dirs_exist_ok=True)
        path = min(folder.glob("*.array_record*"))
    else:
        datasets = pytest.importorskip("datasets")
        datasets.disable_progress_bars()
        data_set = datasets.Dataset.from_dict(COLUMNS | {"nulls": [None, "A", "C"]})
        data_set.save_to_disk(folder)
        path = min(folder.glob("*.arrow"))
    if case in DAMAGE:
        path.write_bytes(DAMAGE[case](path.read_bytes()))
    if case == "unreadable":
        monkeypatch.setattr(os, "access", lambda *rest: False)
    column = case if case in (*COLUMNS, "nulls") else "text"
    corpus = f"{'tfds' if source == 'TFDS' else 'hf'}:{folder}"
    path = corpus if case == "wrong type" else path  # of a column, not of a file
    return outcome(corpus, path, COLUMNS.get(column), column)


def of_prepared(folder, case, monkeypatch):
    """Returns the outcome for prepared data."""
    write_text(folder / "a.txt", TEXTS)
    recipe = Recipe(corpus=str(folder / "a.txt"), separator=SEPARATOR)
    prepare_blocks(folder / "data", recipe, 4)
    path = folder / "data" / "train-00000.bin"
    if case in DAMAGE:
        path.write_bytes(DAMAGE[case](path.read_bytes()))
    if case == "wrong type":
        path = folder / "data" / "tokenizer"
        Characters("ACGT").save(path)
    if case == "unreadable":
        monkeypatch.setattr(os, "access", lambda *rest: False)
    with pytest.raises(BadInput) as caught:
        open_blocks(folder / "data", 4)
    assert str(path) in str(caught.value)
    return "refused"


def test_the_page_has_this_table():
    page = (pathlib.Path(__file__).parents[2] / "docs" / "limits.md").read_text()
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines()]
    assert [line for line in lines if len(line) == len(HEADER) and "---" not in line] == [
        HEADER,
        *ROWS,
    ]


@pytest.fixture(scope="module")
def tfds_folder(tmp_path_factory, write_tfds):
    return write_tfds(tmp_path_factory.mktemp("tfds"), {"train": COLUMNS}, num_shards=1)


@pytest.mark.parametrize(("source", "case", "word"), [cell for cell in CELLS if cell[2] != "-"])
def test_a_cell_of_the_table(tmp_path, monkeypatch, request, source, case, word):
    if source == "prepared":
        found = of_prepared(tmp_path, case, monkeypatch)
    elif source in FILES:
        found = of_file(tmp_path, source, case, monkeypatch)
    else:
        made = request.getfixturevalue("tfds_folder") if source == "TFDS" else None
        found = of_data_set(tmp_path, source, case, monkeypatch, made)
    assert found == word

import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sedd_jax.data.columns import check_condition, condition_text, parse_columns
from sedd_jax.data.documents import Fault, Recipe
from sedd_jax.data.sources import pieces
from sedd_jax.errors import BadInput

CONDITION = "class,activity:number"
ROWS = [("EI", 0.25), ("N", -3.0)]


def told(path, condition=CONDITION, **settings):
    """What every document of a file tells, or why it cannot be used."""
    recipe = Recipe(condition=condition, wrap=False, **settings)
    found = [d for piece in pieces(recipe, str(path)) for d in piece.documents()]
    return [
        d.content.reason
        if isinstance(d.content, Fault)
        else tuple(each.tolist() if isinstance(each, np.ndarray) else each for each in d.told)
        for d in found
    ]


def write(tmp_path, form):
    path = tmp_path / f"a.{form}"
    texts = ["ACGT", "GGCC"]
    match form:
        case "jsonl":
            rows = [
                {"text": text, "class": name, "activity": number, "other": 1}
                for text, (name, number) in zip(texts, ROWS, strict=True)
            ]
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        case "csv" | "tsv":
            mark = {"csv": ";", "tsv": "\t"}[form]
            rows = [(name, text, str(x)) for text, (name, x) in zip(texts, ROWS, strict=True)]
            lines = [("class", "text", "activity"), *rows]
            path.write_text("".join(mark.join(line) + "\n" for line in lines))
        case "fa":
            path.write_text(
                ">one class=EI activity=0.25\nAC\nGT\n>two [class=N] [activity=-3]\nGGCC\n"
            )
        case "parquet":
            names, numbers = zip(*ROWS, strict=True)
            pq.write_table(pa.table({"text": texts, "activity": numbers, "class": names}), path)
        case "npz":
            names, numbers = zip(*ROWS, strict=True)
            tokens = np.array([[0, 1, 2, 3], [2, 2, 1, 1]])
            np.savez(path, x=tokens, activity=np.array(numbers), **{"class": np.array(names)})
    return path


@pytest.mark.parametrize("form", ["jsonl", "csv", "tsv", "fa", "parquet", "npz"])
def test_columns_of_every_format_are_told(tmp_path, form):
    assert told(write(tmp_path, form)) == [("EI", [0.25]), ("N", [-3.0])]


def test_columns_of_tfds_and_hugging_face_are_told(tmp_path, write_tfds):
    columns = {"text": ["ab", "cd"], "class": ["EI", "N"], "activity": [1, 2]}
    folder = write_tfds(tmp_path / "tfds", {"train": columns}, 1)
    assert told(f"tfds:{folder}") == [("EI", [1.0]), ("N", [2.0])]
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict(columns).save_to_disk(tmp_path / "hub")
    assert told(f"hf:{tmp_path / 'hub'}") == [("EI", [1.0]), ("N", [2.0])]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"class": "EI"}, "tells no 'activity', which config.data.condition names"),
        ({"class": None, "activity": 1}, "tells no 'class'"),
        ({"class": " ", "activity": 1}, "tells no 'class'"),
        ({"class": 0.5, "activity": 1}, "no class in 'class' but the float 0.5; .*class:number"),
        ({"class": "EI", "activity": float("nan")}, "no finite number in 'activity' but nan"),
        ({"class": "EI", "activity": "high"}, "no number in 'activity' but 'high'"),
        ({"class": "EI", "activity": [1.0]}, "no number in 'activity' but a list"),
        ({"class": "EI", "activity": True}, "no number in 'activity' but True"),
        ({"class": "\ud800", "activity": 1}, "no UTF-8 text in 'class'"),
    ],
)
def test_a_row_that_tells_no_condition_is_a_fault(tmp_path, row, reason):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": "x"} | row) + "\n")
    (found,) = told(path)
    assert re.search(reason, found)


def test_a_header_of_fasta_tells_a_column_once_and_spaces_in_brackets(tmp_path):
    path = tmp_path / "a.fa"
    headers = [
        "s1 [organism=Homo sapiens] [class=E I][activity=1]",
        "s2 class=EI activity=1 class=IE",
        "s3 class=EI activity=1 class=EI a=1 a=2",
        "s4 class=a=b activity=[1]",
    ]
    path.write_text("".join(f">{header}\r\nAC\r\n" for header in headers))
    assert told(path, "class")[0] == ("E I",)
    assert told(path)[0] == ("E I", [1.0])
    assert told(path)[1] == "has several values of 'class' in its header"
    assert told(path)[2] == ("EI", [1.0])
    assert told(path, "class,activity:vector")[3] == ("a=b", [1.0])


def test_a_class_in_another_encoding_is_a_fault(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes("text,class\nAC,b\xeata\nGT,beta\n".encode("latin-1"))
    assert told(path, "class") == ["has no UTF-8 text in 'class' but b'b\\xeata'", ("beta",)]


def test_vectors_are_lists_or_numbers_in_a_text(tmp_path):
    path = tmp_path / "a.jsonl"
    values = [[1, 2.5], "[1, 2.5]", "1 2.5", [1, None], []]
    path.write_text("".join(json.dumps({"text": "x", "v": value}) + "\n" for value in values))
    *good, bad, empty = told(path, "v:vector")
    assert good == [([1.0, 2.5],)] * 3
    assert "no finite vector in 'v' but nan" in bad
    assert "no finite vector in 'v' but an empty one" in empty


@pytest.mark.parametrize(
    ("form", "content"),
    [("txt", b"a"), ("fastq", b"@a\nAC\n+\nII\n"), ("uint16", b"ab")],
)
def test_formats_without_columns_are_refused(tmp_path, form, content):
    (tmp_path / f"a.{form}").write_bytes(content)
    with pytest.raises(BadInput, match=r"condition names columns, and .* has none; give JSON"):
        told(tmp_path / f"a.{form}")


def test_arrays_that_do_not_match_are_refused(tmp_path):
    tokens = np.zeros((3, 4), int)
    for arrays, message in [
        ({"x": tokens, "class": np.arange(2)}, "has 3 rows and 'class' the shape"),
        ({"x": tokens}, "has no field 'class' but x; set config.data.condition"),
        ({"x": tokens, "y": tokens, "class": np.arange(3)}, "2 arrays that may be the documents"),
        ({"x": np.arange(3), "class": np.arange(3)}, "has one dimension"),
    ]:
        np.savez(tmp_path / "a.npz", **arrays)
        with pytest.raises(BadInput, match=message):
            told(tmp_path / "a.npz", "class")
    np.savez(tmp_path / "a.npz", x=tokens, y=tokens + 1, **{"class": np.arange(3)})
    assert told(tmp_path / "a.npz", "class", field="y") == [(0,), (1,), (2,)]


def test_a_table_without_the_column_is_refused(tmp_path):
    (tmp_path / "a.csv").write_text("text,class\nx,1\n")
    with pytest.raises(BadInput, match=r"no field 'activity' but text, class; .*data.condition"):
        told(tmp_path / "a.csv")


def test_the_text_of_a_condition():
    columns = parse_columns(" class , activity:number,v: vector")
    assert condition_text(columns) == "class:label,activity:number,v:vector"
    assert parse_columns(condition_text(columns)) == columns and parse_columns("") == ()
    for wrong, message in [
        ("class:colour", "KIND is label, number or vector"),
        ("a,,b", "write NAME or NAME:KIND"),
        ("a b", "a name has no space"),
        ("a,a:number", "names a column twice"),
    ]:
        with pytest.raises(BadInput, match=message):
            parse_columns(wrong)
    with pytest.raises(BadInput, match="a condition is that of one document: set .*wrap=False"):
        check_condition(Recipe(condition="class"))

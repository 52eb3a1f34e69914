import pickle

import pytest

from sedd_jax.data import csv_files
from sedd_jax.data.documents import BLANK, Fault, Recipe
from sedd_jax.data.sources import pieces
from sedd_jax.errors import BadInput


def read(path, content, **settings):
    """All documents of a table as (content, line)."""
    path.write_bytes(content)
    parts = pickle.loads(pickle.dumps(pieces(Recipe(**settings), str(path))))
    assert all(part.name == str(path) and part.size == len(content) for part in parts)
    places = [(d.content, part.place(d.where)) for part in parts for d in part.documents()]
    return [(found, int(place.removeprefix(f"{path}, line "))) for found, place in places]


def test_a_cell_is_a_document_with_its_line(tmp_path):
    content = (
        b'id,text,b\n1,"two\nlines",x\n2,,\n3,NA,"\n"\n4, na\xefve ,x\n5,"","\n"\n6,y\n7,\xc3\xa9,z'
    )
    not_utf8 = ": the byte at offset 3 of the field 'text' does not decode"
    assert read(tmp_path / "a.csv", content) == [
        ("two\nlines", 2),
        (BLANK, 4),
        ("NA", 5),
        (Fault("is not UTF-8 text", not_utf8), 7),
        (BLANK, 8),
        (Fault("has more or fewer fields than the first line", ": 2 instead of 3"), 10),
        ("é", 11),
    ]
    assert read(tmp_path / "a.csv", content, field="id")[:2] == [("1", 2), ("2", 4)]


def test_the_delimiter_is_that_of_the_header(tmp_path):
    for name, content in (
        ("a.csv", b'"text",id\n"a;b",1\n'),
        ("b.csv", b'"id";"text"\n1;"a;b"\n'),
        ("c.tsv", b"id\ttext\n1\ta;b\n"),
    ):
        assert read(tmp_path / name, content) == [("a;b", 2)]


def test_quotes_are_letters_of_a_tsv_file(tmp_path):
    content = b'text\tid\r\n"a" b\r\t1\r\n\n"c"\t2\n"d\t3\n"e ""f"""\t4\nx\t"y\tz"\n'
    quoted = Fault("has a field in quotes, as in CSV", "; set config.data.format=csv")
    fields = Fault("has more or fewer fields than the first line", ": 3 instead of 2")
    found = [('"a" b\r', 2), ('"c"', 4), ('"d', 5), (quoted, 6), (fields, 7)]
    assert read(tmp_path / "a.tsv", content) == found
    content = b'text\tid\n"e ""f"""\t4\nx\t"y\tz"\n'
    assert read(tmp_path / "a.tsv", content, format="csv") == [('e "f"', 2), ("x", 3)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"id, text\n1,x",
            "a.csv, the names of its columns, has no field 'text' but id, ' text'; set",
        ),
        (b"text,text\nx,y", "a.csv has more than one column 'text'; rename one"),
        (b"text\rid\n1,x\n", r"a.csv, line 1 is no row of CSV \(new-line character"),
        (b'text\nx\n"y\nz', r"a.csv, line 3 is no row of CSV \(unexpected end of data\): a fi"),
        (b'text\n"y" z\n', r"a.csv, line 2 is no row of CSV \(',' expected after '\"'\)"),
        (
            b"text\n" + b"x" * (2**20 + 1),
            "line 2 is larger than the 1 MB of config.data.max_document_mb",
        ),
        (
            b'text\n"' + (b"x" * 1023 + b"\n") * 2**11,
            r"line 2 is no row of CSV \(field larger than field lim",
        ),
    ],
)
def test_a_table_that_cannot_be_read_is_named(tmp_path, content, message):
    with pytest.raises(BadInput, match=message):
        read(tmp_path / "a.csv", content, max_document_mb=1)


def test_an_empty_table_has_no_rows(tmp_path):
    for name in ("a.csv", "a.tsv"):
        assert read(tmp_path / name, b"") == read(tmp_path / name, b"text\n") == []
        assert read(tmp_path / name, b"\n\ntext\n\nx\n") == [("x", 5)]


def test_memory_does_not_grow_with_a_table(tmp_path, monkeypatch):
    blocks = []

    def counted(file, path):
        for _ in range(1000):
            blocks.append(1)
            yield b"1,x\n" if len(blocks) > 2 else b"id,text\n"

    monkeypatch.setattr(csv_files, "blocks", counted)
    (tmp_path / "a.csv").write_text("x")
    (part,) = pieces(Recipe(), str(tmp_path / "a.csv"))
    blocks.clear()
    next(part.documents())
    assert len(blocks) < 5

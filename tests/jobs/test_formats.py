"""Samples as files of every format, read back by what reads such files."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from sedd_jax.data.characters import Bytes, Characters, Integers
from sedd_jax.data.columns import NO_FIELDS, Fields, parse_columns
from sedd_jax.data.text_files import FASTA, Records
from sedd_jax.errors import BadInput
from sedd_jax.jobs.formats import FORMATS, check_format
from sedd_jax.jobs.output import read_records, write_new

DNA = Characters("ACGT", eod=False)
TEXTS = ["ACGT" * 25, "GAT", "A"]
CONDITIONS = [{"class": "EI", "activity": 0.5}, {"class": "I E", "activity": -1.0}]


def records(texts=TEXTS, conditions=None):
    """As `sample` makes them, without most settings."""
    made = []
    for index, text in enumerate(texts):
        tokens = DNA.encode(text).tolist()
        made.append({"index": index, "seed": 3, "evaluations": 5, "tokens": tokens, "text": text})
        if conditions:
            made[-1]["condition"] = conditions[index]
    return made


def written(tmp_path, name, *made):
    path = tmp_path / name
    write_new(path, *made)
    return path


def test_fasta_is_read_back_by_the_reader_of_training_data(tmp_path):
    path = written(tmp_path, "x.fasta", records())
    found = [document.content for document in Records(path, FASTA, NO_FIELDS, 2**20).documents()]
    assert found == TEXTS
    assert max(map(len, path.read_text().splitlines())) == 80


def test_the_header_of_fasta_has_id_and_conditions(tmp_path):
    made = records(["GAT", "ACG"], CONDITIONS)
    made[1]["id"] = "second one"
    path = written(tmp_path, "x.fa", made)
    assert path.read_text().splitlines() == [
        ">sample_0 class=EI activity=0.5 seed=3", "GAT",
        ">second_one [class=I E] activity=-1.0 seed=3", "ACG",
    ]  # fmt: skip
    fields = Fields("text", parse_columns("class,activity:number"))
    told = [document.told for document in Records(path, FASTA, fields, 2**20).documents()]
    assert [(name, *number) for name, number in told] == [("EI", 0.5), ("I E", -1.0)]


def test_what_a_sample_is_not_told_stays_empty(tmp_path):
    made = records(["GAT", "ACG"], [{"class": None, "dose": 1.5}, {"class": "EI", "dose": None}])
    vectors = records(["GAT", "ACG"], [{"v": [1.0, 2.5]}, {"v": None}])
    with np.load(written(tmp_path, "v.npz", vectors)) as found:
        np.testing.assert_array_equal(found["v"], [[1, 2.5], [np.nan, np.nan]])
    assert ">sample_0 v=1.0,2.5 seed=3" in written(tmp_path, "v.fa", vectors).read_text()
    assert written(tmp_path, "x.fa", made).read_text().splitlines()[::2] == [
        ">sample_0 dose=1.5 seed=3", ">sample_1 class=EI seed=3"
    ]  # fmt: skip
    assert written(tmp_path, "x.csv", made).read_text().splitlines()[1:] == [
        "0,3,5,,1.5,GAT", "1,3,5,EI,,ACG"
    ]  # fmt: skip
    with np.load(written(tmp_path, "x.npz", made)) as found:  # and no pickle
        assert found["class"].tolist() == ["", "EI"]
        np.testing.assert_array_equal(found["dose"], [1.5, np.nan])


def test_a_sequence_ends_where_its_document_does(tmp_path):
    (record,) = records(["GAT"])
    path = written(tmp_path, "x.fa", [record | {"text": "GAT<|endoftext|>AC"}])
    assert path.read_text().splitlines()[1:] == ["GAT"]


def test_csv_has_conditions_in_columns(tmp_path):
    path = written(tmp_path, "x.csv", records(["GAT", "ACG"], CONDITIONS))
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["index", "seed", "evaluations", "class", "activity", "text"]
    assert [row["class"] for row in rows] == ["EI", "I E"]
    assert [row["text"] for row in rows] == ["GAT", "ACG"]


def test_csv_quotes_what_a_text_may_hold(tmp_path):
    text = 'a "quoted",\nbroken line'
    (record,) = records([""])
    path = written(tmp_path, "x.csv", [record | {"text": text}])
    with path.open(newline="") as file:
        assert [row["text"] for row in csv.DictReader(file)] == [text]


def test_npz_marks_the_end_of_shorter_rows(tmp_path):
    with np.load(written(tmp_path, "x.npz", records(["GAT", "A"], CONDITIONS))) as found:
        np.testing.assert_array_equal(found["tokens"], [[2, 0, 3], [0, -1, -1]])
        assert found["lengths"].tolist() == [3, 1]
        assert found["text"].tolist() == ["GAT", "A"]
        assert found["activity"].tolist() == [0.5, -1]


def test_a_condition_does_not_hide_a_column(tmp_path):
    path = written(tmp_path, "x.csv", records(["A"], [{"index": 7, "text": "b"}]))
    header, row = path.read_text().splitlines()
    assert header == "index,seed,evaluations,condition.index,condition.text,text"
    assert row == "0,3,5,7,b,A"
    made = records(["A"], [{"tokens": "a", "file": "b", "seed": 9}])
    with np.load(written(tmp_path, "x.npz", made)) as found:
        assert found["tokens"].tolist() == [[0]]
        assert found["condition.tokens"] == "a" and found["condition.file"] == "b"
    header = written(tmp_path, "x.fa", made).read_text().splitlines()[0]
    assert header == ">sample_0 condition.tokens=a condition.file=b condition.seed=9 seed=3"


def test_ids_stand_for_text_where_there_is_none(tmp_path):
    made = [record | {"text": None} for record in records(["GAT"])]
    assert written(tmp_path, "x.txt", made).read_text() == "--- sample ---\n2 0 3\n"


def test_json_lines_hold_whole_records_and_come_back_in_order(tmp_path):
    made = records()
    path = written(tmp_path, "x.jsonl", made[::-1])
    assert [json.loads(line) for line in path.read_text().splitlines()] == made[::-1]
    assert read_records(path) == made


@pytest.mark.parametrize("name", [f"x{suffix}" for suffix in FORMATS])
def test_no_file_is_written_over(tmp_path, name):
    path = written(tmp_path, name, records())
    before = path.read_bytes()
    with pytest.raises(BadInput, match="cannot be made .*: the samples are in"):
        write_new(path, records())
    assert path.read_bytes() == before


@pytest.mark.parametrize("name", ["x", "x.json", "x.fasta.gz", "x.FA"])
def test_an_ending_of_no_format_is_refused(name):
    with pytest.raises(BadInput, match=f"{name} does not end in one of .jsonl, .txt, .csv, .npz"):
        check_format(Path(name))


@pytest.mark.parametrize("tokenizer", [None, Bytes(), Integers(4), Characters("AC ")])
def test_fasta_of_anything_but_letters_is_refused(tokenizer):
    with pytest.raises(BadInput, match="give a name that ends in .jsonl"):
        check_format(Path("x.fasta"), tokenizer, loaded=True)
    check_format(Path("x.csv"), tokenizer, loaded=True)
    check_format(Path("x.fasta"), DNA, loaded=True)

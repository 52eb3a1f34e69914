import hashlib
import json

import numpy as np
import pytest

from sedd_jax.data.corpus_statistics import Survey, Surveyor
from sedd_jax.data.documents import BLANK, Document, Fault, Piece
from sedd_jax.data.heldout import BINS, bin_of
from sedd_jax.data.workers import Task
from sedd_jax.errors import BadInput


class Listed(Piece):
    name, size = "listed", 1

    def __init__(self, *contents):
        self.contents, self.read = contents, 0

    def documents(self):
        for number, content in enumerate(self.contents, 1):
            self.read = number
            yield Document(content, number)

    def place(self, where):
        return f"listed, line {where}"

    def version(self):
        return "1"


def _survey(folder, *documents):
    survey = Survey()
    survey.add(Surveyor(folder, refuse=False, letters=True)(Task(0, "corpus", Listed(*documents))))
    return survey


def test_a_survey_counts_hashes_and_spells(tmp_path):
    survey = _survey(tmp_path, "aé", "b", BLANK, "aé", np.array([7, 9], np.uint16))
    digest = hashlib.sha256()
    ids = np.array([7, 9], np.uint16).tobytes()
    for content in ("aé".encode(), b"b", "aé".encode(), ids):
        digest.update(len(content).to_bytes(8, "little"))
        digest.update(content)
    assert survey.pieces == [
        # an id counts as a character and as a byte
        {"documents": 4, "characters": 7, "utf8_bytes": 9, "sha256": digest.hexdigest()}
    ]
    assert survey.sha256 == hashlib.sha256(digest.hexdigest().encode()).hexdigest()
    assert survey.letters == {"a", "é", "b"}
    expected = np.zeros(BINS, np.int64)
    expected[[bin_of("aé".encode()), bin_of(b"b"), bin_of(ids)]] = 4, 1, 2
    np.testing.assert_array_equal(survey.histogram, expected)
    assert survey.skipped == {"is blank": 1}


def test_two_lists_of_documents_never_look_alike(tmp_path):
    for number, documents in enumerate((["ab", "c"], ["a", "bc"])):
        (tmp_path / str(number)).mkdir()
        survey = _survey(tmp_path / str(number), *documents)
        (tmp_path / str(number) / "sum").write_text(survey.sha256)
    assert (tmp_path / "0" / "sum").read_text() != (tmp_path / "1" / "sum").read_text()


def test_bad_documents_are_counted_by_what_is_wrong(tmp_path):
    faults = [
        Fault("is no text", ": byte 3"),
        Fault("is no text", ": byte 9"),
        Fault("has no field 'x'"),
    ]
    survey = _survey(tmp_path, "a", *faults)
    assert survey.skipped == {"is no text": 2, "has no field 'x'": 1}
    assert survey.pieces[0]["documents"] == 1


@pytest.mark.parametrize("fault", [BLANK, Fault("has no field 'x'")])
def test_the_first_fault_ends_a_survey_that_refuses(tmp_path, fault):
    piece = Listed("a", "b", fault, "c", Fault("is never seen"))
    message = f"listed, line 3 {fault.reason}; mend it or set config.data.bad_documents=skip"
    with pytest.raises(BadInput, match=message):
        Surveyor(tmp_path, refuse=True, letters=False)(Task(0, "corpus", piece))
    assert piece.read == 3
    assert list(tmp_path.iterdir()) == []


def test_what_was_surveyed_is_not_read_again(tmp_path):
    surveyor = Surveyor(tmp_path, refuse=True, letters=False)
    path = surveyor(Task(7, "corpus", Listed("a")))
    before = json.loads(path.read_text())
    again = Listed("b")
    assert surveyor(Task(7, "corpus", again)) == path
    assert again.read == 0 and json.loads(path.read_text()) == before

import hashlib

import numpy as np
import pytest

import sedd_jax as sedd
from sedd_jax.data.prepared import open_data
from sedd_jax.errors import BadInput
from sedd_jax.evaluation.reference import read_reference


@pytest.fixture(scope="module")
def checkpoint(smoke_run):
    return sedd.load(smoke_run)


def test_the_text_held_out(checkpoint, smoke_run):
    blocks = open_data(smoke_run / "data", 16).heldout
    found = read_reference("heldout", checkpoint, 16, 4)
    quarters = [number * len(blocks) // 4 for number in range(4)]
    np.testing.assert_array_equal(found.rows, [blocks[number] for number in quarters])
    assert found.name == "heldout"


def test_a_file(checkpoint, tmp_path):
    path = tmp_path / "real.txt"
    path.write_text("abcdéfghi")  # ten bytes
    found = read_reference(str(path), checkpoint, 3, 100)
    assert [bytes(row.astype(np.uint8)) for row in found.rows] == [b"abc", "dé".encode(), b"fgh"]
    assert found.name == "real.txt"
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert len(read_reference(str(path), checkpoint, 3, 2).rows) == 2


def test_bad_references(checkpoint, causal, tmp_path):
    path = tmp_path / "real.txt"
    with pytest.raises(BadInput, match="There is no reference text .*real.txt"):
        read_reference(str(path), checkpoint, 4, 2)
    path.write_text("abc")
    with pytest.raises(BadInput, match="has 3 tokens, less than 4"):
        read_reference(str(path), checkpoint, 4, 2)
    path.write_bytes(b"\xff")
    with pytest.raises(BadInput, match="is no text in UTF-8"):
        read_reference(str(path), checkpoint, 4, 2)
    with pytest.raises(BadInput, match="The checkpoint is no run with its data"):
        read_reference("heldout", causal, 4, 2)

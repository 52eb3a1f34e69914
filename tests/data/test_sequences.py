import io
import pickle
import zipfile

import numpy as np
import pytest

from sedd_jax.data import documents as documents_module
from sedd_jax.data import sequences
from sedd_jax.data.documents import BLANK, Fault, Recipe
from sedd_jax.data.sources import pieces
from sedd_jax.errors import BadInput


def read(path, **settings):
    """All documents of `path` as (list of ids or fault, place)."""
    parts = pickle.loads(pickle.dumps(pieces(Recipe(**settings), str(path))))
    return [
        (content if isinstance(content, Fault) else content.tolist(), part.place(where))
        for part in parts
        for content, where, _ in part.documents()
    ]


@pytest.mark.parametrize("dtype", ["uint8", "<u2", ">u2", "int32", "int64"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_a_row_of_an_npy_file_is_a_document(tmp_path, monkeypatch, dtype, order):
    rows = np.arange(60).reshape(12, 5)
    path = tmp_path / "a.npy"
    np.save(path, np.asarray(rows, dtype, order=order))
    expected = [(row.tolist(), f"{path}, row {i + 1}") for i, row in enumerate(rows)]
    assert read(path) == expected
    monkeypatch.setattr(documents_module, "PIECE_BYTES", 40)
    assert len(pieces(Recipe(), str(path))) > 1
    assert read(path) == expected


def test_an_npy_file_is_mapped_and_one_dimension_is_read_in_runs(tmp_path, monkeypatch):
    np.save(tmp_path / "a.npy", np.arange(7))
    (part,) = pieces(Recipe(), str(tmp_path / "a.npy"))
    ((content, *_),) = part.documents()
    assert content.tolist() == list(range(7)) and isinstance(content, np.memmap)
    assert part.size == (tmp_path / "a.npy").stat().st_size
    np.savez(tmp_path / "a.npz", x=np.arange(7))
    monkeypatch.setattr(sequences, "_RUN", 4)
    for name, place in (("a.npy", "a.npy"), ("a.npz", "a.npz, array 'x'")):
        runs = [
            ([0, 1, 2, 3], f"{tmp_path / place}, run 1"),
            ([4, 5, 6], f"{tmp_path / place}, run 2"),
        ]
        assert read(tmp_path / name) == runs


def test_every_array_of_an_npz_file_is_read(tmp_path):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, first=np.array([[1, 2], [3, 4]]), second=np.array([5], np.uint16))
    assert read(path) == [
        ([1, 2], f"{path}, array 'first', row 1"),
        ([3, 4], f"{path}, array 'first', row 2"),
        ([5], f"{path}, array 'second', run 1"),
    ]
    assert len({part.name for part in pieces(Recipe(), str(path))}) == 2


@pytest.mark.parametrize("form", ["uint16", "uint32"])
def test_a_raw_file_is_read_in_runs(tmp_path, monkeypatch, form):
    for name, settings in ((f"a.{form}", {}), ("train.bin", {"format": form})):
        path = tmp_path / name
        np.array([1, 2, 60_000], form).astype(f"<u{4 if form == 'uint32' else 2}").tofile(path)
        assert read(path, **settings) == [([1, 2, 60_000], f"{path}, run 1")]
        with monkeypatch.context() as context:
            context.setattr(sequences, "_RUN", 2)
            context.setattr(documents_module, "PIECE_BYTES", 1)
            assert len(pieces(Recipe(**settings), str(path))) == 2
            runs = [([1, 2], f"{path}, run 1"), ([60_000], f"{path}, run 2")]
            assert read(path, **settings) == runs
        path.write_bytes(b"12345")
        with pytest.raises(BadInput, match=f"{name} is damaged, .* make it again"):
            read(path, **settings)


def test_ids_that_cannot_be_used_are_faults_with_their_place(tmp_path):
    path = tmp_path / "a.npy"
    np.save(path, np.array([[1, 2, 3], [4, -5, -6]]))
    assert read(path) == [
        ([1, 2, 3], f"{path}, row 1"),
        (Fault("has a negative id", ": -5 at position 1"), f"{path}, row 2"),
    ]
    np.save(path, np.zeros(2**18, np.int64))
    assert read(path, max_document_mb=2) == [([0] * 2**18, f"{path}, run 1")]
    too_large = Fault("is larger than the 1 MB of config.data.max_document_mb")
    assert read(path, max_document_mb=1) == [(too_large, f"{path}, run 1")]
    np.savez(tmp_path / "a.npz", empty=np.zeros((2, 0), int))
    assert [content for content, _ in read(tmp_path / "a.npz")] == [BLANK, BLANK]


@pytest.mark.parametrize("array", [np.ones((2, 3)), np.ones((2, 3, 4), int), np.ones(3, bool)])
def test_an_array_of_something_else_is_refused(tmp_path, array):
    np.save(tmp_path / "a.npy", array)
    np.savez(tmp_path / "a.npz", x=array)
    for name, whose in (("a.npy", "array of .*a.npy"), ("a.npz", "array 'x' of .*a.npz")):
        message = (
            f"The {whose} has the type {array.dtype} and {array.ndim} dimensions; give integers"
        )
        with pytest.raises(BadInput, match=message):
            read(tmp_path / name)


def _npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no array",
        _npy(np.arange(100))[:-8],
        _npy(np.arange(100)) + bytes(8),
        _npy(np.arange(100))[:20],
    ],
)
def test_a_damaged_npy_file_is_named(tmp_path, content):
    path = tmp_path / "a.npy"
    path.write_bytes(content)
    with pytest.raises(BadInput, match="a.npy is damaged, cut short or of another format"):
        read(path)


def test_a_damaged_npz_file_is_named(tmp_path):
    path = tmp_path / "a.npz"
    for save in (np.savez, np.savez_compressed):
        save(path, x=np.random.default_rng(0).integers(0, 2**40, 1000), y=np.arange(10))
        content = path.read_bytes()
        flip = content[:2000] + bytes(100) + content[2100:]
        for damaged in (b"", content[:-30], content[:-1], content[:3000], content + b"more", flip):
            path.write_bytes(damaged)
            with pytest.raises(BadInput, match="a.npz is damaged, cut short or of another format"):
                read(path)
    path.write_bytes(b"")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes.txt", "no array")
    with pytest.raises(BadInput, match="a.npz is damaged.*notes.txt in it is no array"):
        read(path)
    np.savez(path, x=np.arange(9))
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = b"a comment is no damage"
    assert len(read(path)) == 1


def test_python_objects_are_named_for_what_they_are(tmp_path):
    rows = np.array([[1, 2], [3]], object)
    np.save(tmp_path / "a.npy", rows)
    np.savez(tmp_path / "a.npz", x=rows)
    for name, whose in (("a.npy", "array of .*a.npy"), ("a.npz", "array 'x' of .*a.npz")):
        message = rf"The {whose} holds Python objects \(dtype object\).*; save it as integers"
        with pytest.raises(BadInput, match=message):
            read(tmp_path / name)


def _write_records(path, records):
    writer = pytest.importorskip("array_record.python.array_record_module").ArrayRecordWriter(
        str(path), "group_size:1"
    )
    for record in records:
        writer.write(record)
    writer.close()


@pytest.mark.parametrize("form", ["uint16", "uint32"])
def test_a_record_of_an_array_record_file_is_a_document(tmp_path, monkeypatch, form):
    ids = [list(range(i + 1)) for i in range(150)]
    dtype = {"uint16": "<u2", "uint32": "<u4"}[form]
    for ending in ("", "-00000-of-00002"):
        path = tmp_path / f"a.{form}.array_record{ending}"
        _write_records(path, [np.array(row, dtype).tobytes() for row in ids])
        expected = [(row, f"{path}, record {i + 1}") for i, row in enumerate(ids)]
        assert read(path) == expected
    monkeypatch.setattr(documents_module, "PIECE_BYTES", 1000)
    assert len(pieces(Recipe(), str(path))) > 1
    assert read(path) == expected


def test_a_record_that_holds_no_whole_numbers_is_a_fault(tmp_path):
    path = tmp_path / "a.uint32.array_record"
    _write_records(path, [b"\1\0\0\0", b"\1\0\0"])
    assert [content for content, _ in read(path)] == [
        [1],
        Fault("is no uint32 numbers", ": it has 3 bytes"),
    ]


def test_an_array_record_file_that_cannot_be_read_is_named(tmp_path):
    path = tmp_path / "a.uint16.array_record"
    _write_records(path, [bytes(100)] * 100)
    content = bytearray(path.read_bytes())
    (tmp_path / "a.array_record").write_bytes(content)
    with pytest.raises(
        BadInput, match="a.array_record does not say what its records hold; call it"
    ):
        read(tmp_path / "a.array_record")
    _write_records(tmp_path / "b.uint16.array_record", [])
    assert read(tmp_path / "b.uint16.array_record") == []  # whole, and without records
    content[300] ^= 255
    for damaged in (content, content[:-100], b"", b"something else"):
        path.write_bytes(damaged)
        with pytest.raises(BadInput, match="a.uint16.array_record is damaged, cut short or of"):
            read(path)

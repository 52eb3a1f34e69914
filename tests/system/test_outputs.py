"""Single files that a program writes into a bucket."""

import pytest

from sedd_jax.errors import BadInput
from sedd_jax.system import mirror
from sedd_jax.system.outputs import create, opened_file, output_file

OUT = "gs://bucket/some/out[1].txt"


def test_a_file_is_fetched_and_uploaded_without_a_look_at_those_beside_it(memory_bucket):
    name = OUT.replace("[1]", "")
    memory_bucket.objects = {"some/out.txt": b"old", "some/other": b"large"}
    with output_file(name, "--output") as path:
        assert path.name == "out.txt" and path.read_bytes() == b"old"
        assert not (path.parent / "other").exists()
        path.write_bytes(b"new")
    assert memory_bucket.objects["some/out.txt"] == b"new"
    assert "list" not in {request for request, _ in memory_bucket.requests}


def test_a_new_file_never_replaces_another(memory_bucket):
    with opened_file(OUT, "--output") as path:
        written = path.with_name("written")
        written.write_bytes(b"mine")
        create(written, path)
        written.write_bytes(b"late")
        with pytest.raises(FileExistsError):
            create(written, path)
    assert memory_bucket.objects == {"some/out[1].txt": b"mine", "some/written": b"late"}


def test_an_output_that_cannot_be_written_is_refused_first(memory_bucket):
    with (
        pytest.raises(BadInput, match="--output: There is no bucket gs://buckte"),
        output_file("gs://buckte/out", "--output"),
    ):
        pytest.fail("entered")
    with pytest.raises(BadInput, match="add the name of a file"), opened_file("gs://bucket", "-o"):
        pytest.fail("entered")


def test_errors_name_addresses(memory_bucket):
    with (
        pytest.raises(BadInput) as caught,
        mirror.errors_by_address(),
        opened_file(OUT, "--output") as path,
    ):
        raise BadInput(f"{path} is no such file.")
    assert str(caught.value) == f"{OUT} is no such file."

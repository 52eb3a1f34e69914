"""Folders of buckets as local folders."""

import pytest

from sedd_jax.errors import BadInput, Halted
from sedd_jax.system import mirror
from sedd_jax.system.outputs import output_file


def test_a_folder_is_fetched_without_what_is_large(memory_bucket):
    memory_bucket.objects = {
        "runs/a/config.json": b"{}",
        "runs/a/evaluations/x.json": b"1",
        "runs/a/checkpoints/5/params": b"large",
        "runs/a/lock": b"",
        "runs/ab/config.json": b"another",
    }
    folder = mirror.local("gs://bucket/runs/a/")
    assert folder.name == "a" and mirror.shown(folder / "config.json") == (
        "gs://bucket/runs/a/config.json"
    )
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert found == {"config.json", "evaluations/x.json"}
    assert mirror.entries_of(folder / "checkpoints").keys() == {"5/params"}
    assert mirror.local("gs://bucket/runs/a") == folder


def test_what_changes_is_uploaded_and_nothing_else(memory_bucket):
    memory_bucket.objects = {"out/old": b"1", "out/other": b"2"}
    with mirror.opened("gs://bucket/out", "--output") as folder, mirror.synced(folder):
        assert (folder / "old").read_bytes() == b"1"
        (folder / "new").write_bytes(b"3")
        (folder / "x.tmp").write_bytes(b"")
        mirror.push(folder / "new")
        assert memory_bucket.objects["out/new"] == b"3"
        (folder / "old").write_bytes(b"10")
    written = [key for name, key in memory_bucket.requests if name == "write"]
    assert [key for key in written if "probe" not in key] == ["out/new", "out/old"]
    assert not folder.exists()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gs://bucket/nothing", "There is nothing in gs://bucket/nothing"),
        ("gs://other/run", "There is no bucket gs://other"),
        ("gs:/bucket/run", "begins with gs://"),
        ("gcs://bucket/run", "begins with gs://"),
        ("gs://", "begins with gs://"),
    ],
)
def test_names_of_nothing(memory_bucket, name, words):
    with pytest.raises(BadInput, match=words):
        mirror.local(name)


def test_no_access_is_said_before_anything_is_written(memory_bucket):
    memory_bucket.fault = PermissionError("read-only")
    with (
        pytest.raises(BadInput, match="gs://bucket/out refuses the access: read-only"),
        mirror.opened("gs://bucket/out", "--output") as folder,
        mirror.synced(folder),
    ):
        pytest.fail("entered")
    memory_bucket.fault = ConnectionError("reset")
    with pytest.raises(Halted, match="gs://bucket/out has not answered"):
        mirror.local("gs://bucket/out")


def test_of_a_folder_only_what_is_asked_for_is_fetched(memory_bucket):
    names = ("pytorch_model.bin", "train-00000.bin", "config.json", "tensorboard/events")
    memory_bucket.objects = {f"a/{name}": b"1" for name in names}
    folder = mirror.local("gs://bucket/a", only=("*.json", "pytorch_model.bin"))
    assert {path.name for path in folder.iterdir()} == {"pytorch_model.bin", "config.json"}
    assert mirror.entries_of(folder).keys() == set(names)


def interrupted(*arguments):
    raise KeyboardInterrupt


def test_what_cannot_be_uploaded_stays(memory_bucket, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(mirror.tempfile, "tempdir", str(tmp_path))
    words = "refuses the access: read-only.* What is not uploaded is in"
    with (
        pytest.raises(BadInput, match=f"^gs://bucket/out.txt {words} {tmp_path}/sedd_jax-"),
        output_file("gs://bucket/out.txt", "--output") as path,
    ):
        path.write_bytes(b"rows")
        memory_bucket.fault = PermissionError("read-only")
    memory_bucket.fault = None
    with pytest.raises(KeyError), output_file("gs://bucket/out.txt", "--output") as path:
        path.write_bytes(b"more")
        memory_bucket.fault = PermissionError("read-only")
        raise KeyError("of the program")
    assert "last files of gs://bucket are not uploaded: gs" in capsys.readouterr().err
    memory_bucket.fault = None
    monkeypatch.setattr(memory_bucket, "upload", interrupted)
    with (
        pytest.raises(Halted, match=f"^Interrupted. What is not uploaded is in {tmp_path}"),
        output_file("gs://bucket/out.txt", "--output") as path,
    ):
        path.write_bytes(b"last")
    found = {path.read_bytes() for path in tmp_path.rglob("out.txt")}
    assert found == {b"rows", b"more", b"last"}


def test_a_process_without_its_lease_uploads_nothing(memory_bucket, monkeypatch):
    class Ended(BaseException):  # in the place of `os._exit`
        pass

    def end():
        raise Ended

    with pytest.raises(Ended), mirror.opened("gs://bucket/out", "--output") as folder:
        monkeypatch.setattr(mirror.lease, "check", end)
        (folder / "rows").write_bytes(b"of the past")
        mirror.push(folder)
    assert memory_bucket.objects == {}

import errno
import os
from pathlib import Path

import pytest

from sedd_jax.errors import BadInput
from sedd_jax.system.files import atomic_write, atomic_write_json, check_output_path


def test_a_file_takes_the_place_of_another(tmp_path):
    path = tmp_path / "a.json"
    atomic_write(path, b"one")
    atomic_write(path, b"two")
    assert path.read_bytes() == b"two"
    assert os.listdir(tmp_path) == ["a.json"]


def test_two_at_once_do_not_meet(tmp_path, monkeypatch):
    """The second writes while the first is about to take its place."""
    path, replace = tmp_path / "a.json", os.replace

    def second(temporary, target):
        monkeypatch.setattr(os, "replace", replace)
        atomic_write(path, b"second")
        replace(temporary, target)

    monkeypatch.setattr(os, "replace", second)
    atomic_write(path, b"first")
    assert path.read_bytes() == b"first"
    assert os.listdir(tmp_path) == ["a.json"]


def test_what_fails_leaves_nothing(tmp_path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError):
        atomic_write(tmp_path / "taken", b"text")
    assert os.listdir(tmp_path) == ["taken"]


def test_a_full_disk_is_told_with_the_file(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space") as error:
        atomic_write(tmp_path / "a.txt", "new")
    assert error.value.filename == str(tmp_path / "a.txt") and not any(tmp_path.iterdir())


def test_json_ends_with_a_newline(tmp_path):
    atomic_write_json(tmp_path / "a.json", {"ä": [1, None]}, indent=1)
    assert (tmp_path / "a.json").read_bytes() == b'{\n "\\u00e4": [\n  1,\n  null\n ]\n}\n'


def test_an_output_path_is_checked_before_the_work(tmp_path, monkeypatch):
    (tmp_path / "taken").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    monkeypatch.chdir(tmp_path)
    check_output_path(Path("new"))
    check_output_path(tmp_path / "taken", must_be_new=False)
    for path, options, message in (
        ("taken", {}, "^taken exists already; give --output another name.$"),
        ("folder", {"flag": "--html"}, "^folder exists already; give --html another name.$"),
        ("dangling", {}, "^dangling exists already"),
        ("folder", {"must_be_new": False}, "^--output=folder is not a file"),
        ("none/new", {}, "^The folder of --output=none/new does not exist; make it first.$"),
        ("gs://bucket/new", {}, "^--output is gs://bucket/new, but .*mount the bucket"),
    ):
        with pytest.raises(BadInput, match=message):
            check_output_path(Path(path), **options)
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(BadInput, match="^The folder of --output=new is read-only"):
        check_output_path(Path("new"))

"""Files are whole, whoever writes them."""

import os

import pytest

from sedd_jax.system.files import write_whole


def test_a_file_takes_the_place_of_another(tmp_path):
    path = tmp_path / "a.json"
    write_whole(path, b"one")
    write_whole(path, b"two")
    assert path.read_bytes() == b"two"
    assert os.listdir(tmp_path) == ["a.json"]


def test_two_at_once_do_not_meet(tmp_path, monkeypatch):
    """The second writes while the first is about to take its place."""
    path, replace = tmp_path / "a.json", os.replace

    def second(temporary, target):
        monkeypatch.setattr(os, "replace", replace)
        write_whole(path, b"second")
        replace(temporary, target)

    monkeypatch.setattr(os, "replace", second)
    write_whole(path, b"first")
    assert path.read_bytes() == b"first"
    assert os.listdir(tmp_path) == ["a.json"]


def test_what_fails_leaves_nothing(tmp_path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError):
        write_whole(tmp_path / "taken", b"text")
    assert os.listdir(tmp_path) == ["taken"]

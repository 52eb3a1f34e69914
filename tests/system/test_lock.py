import errno
import fcntl
import os
import shutil

import pytest

from sedd_jax.errors import BadInput
from sedd_jax.system.lock import exclusive


def test_a_lock_whose_file_was_removed_meanwhile_is_taken_anew(tmp_path, monkeypatch):
    """The one before lets go between our opening of the file and our locking of it."""
    flock, path = fcntl.flock, tmp_path / "lock"

    def late(file, operation):
        monkeypatch.setattr(fcntl, "flock", flock)
        path.unlink()
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with exclusive(path, "wait"):
        assert fcntl.flock is flock
        assert path.exists()


def test_the_lock_of_another_one_is_not_removed(tmp_path):
    path = tmp_path / "draft" / "lock"
    with exclusive(path, "wait"):
        shutil.rmtree(path.parent)  # the work is done, and another process begins some
        with exclusive(path, "wait"):
            assert path.exists()
        path.parent.mkdir()
        path.write_text("another one")
    assert path.read_text() == "another one"
    path.unlink()
    with (
        exclusive(path, "wait"),
        pytest.raises(BadInput, match="draft is in use by process .*wait"),
        exclusive(path, "wait"),
    ):
        pass
    assert not path.exists()


@pytest.mark.parametrize("number", [errno.ENOTSUP, errno.ENOLCK, errno.ENOSYS])
def test_without_locks_work_goes_on_and_says_so(tmp_path, monkeypatch, capsys, number):
    def flock(file, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with exclusive(tmp_path / "lock", "wait"), exclusive(tmp_path / "lock", "wait"):
        pass
    first, second = capsys.readouterr().out.splitlines()
    assert first == second
    assert first.startswith(f"{tmp_path} cannot be locked ({os.strerror(number)}): make sure")


def test_other_faults_of_the_file_system_are_raised(tmp_path, monkeypatch):
    def flock(file, operation):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", flock)
    with (
        pytest.raises(OSError, match="Input/output error"),
        exclusive(tmp_path / "lock", "wait"),
    ):
        pass

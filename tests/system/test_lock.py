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
    assert not path.exists()


def test_the_lock_of_another_one_is_not_removed(tmp_path):
    path = tmp_path / "work" / "lock"
    with exclusive(path, "wait"):
        shutil.rmtree(path.parent)  # the work is done, and another process begins some
        with exclusive(path, "wait"):
            assert path.exists()
        path.parent.mkdir()
        path.write_text("another one")
    assert path.read_text() == "another one"


def test_a_held_lock_is_refused_as_often_as_it_is_asked_for(tmp_path):
    path = tmp_path / "work" / "lock"
    with exclusive(path, "choose another folder", tmp_path / "subject"):
        for _ in range(2):
            with (
                pytest.raises(BadInput) as refused,
                exclusive(path, "choose another folder", tmp_path / "subject"),
            ):
                pass
            assert str(refused.value).startswith(
                f"{tmp_path / 'subject'} is in use by process {os.getpid()} on "
            )
            assert str(refused.value).endswith("stop it, or choose another folder.")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.ENOTSUP, errno.ENOLCK, errno.ENOSYS])
def test_without_locks_the_work_continues_and_says_so(tmp_path, monkeypatch, capsys, number):
    def flock(file, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with exclusive(tmp_path / "lock", "wait"), exclusive(tmp_path / "lock", "wait"):
        pass
    first, second = capsys.readouterr().err.splitlines()
    assert first == second
    assert first.startswith(
        f"warning: {tmp_path} cannot be locked ({os.strerror(number)}): make sure"
    )


def test_other_faults_of_the_file_system_are_raised(tmp_path, monkeypatch):
    def flock(file, operation):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", flock)
    with (
        pytest.raises(OSError, match="Input/output error"),
        exclusive(tmp_path / "lock", "wait"),
    ):
        pass

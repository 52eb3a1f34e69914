import jax
import pytest

from sedd_jax.experiment.compilation import VARIABLE, keep_programs


@pytest.fixture
def setting(monkeypatch):
    """Where JAX keeps programs; put back after the test."""
    before = jax.config.jax_compilation_cache_dir
    yield lambda: jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", before)


def test_programs_are_kept_in_the_user_s_cache(monkeypatch, setting, tmp_path):
    monkeypatch.delenv(VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    keep_programs()
    assert setting().startswith(str(tmp_path / "sedd_jax"))


def test_each_kind_of_processor_has_a_folder(monkeypatch, setting):
    monkeypatch.delenv(VARIABLE)
    folders = set()
    for processor in ("avx2", "avx512", "avx2"):
        monkeypatch.setattr(
            "sedd_jax.experiment.compilation._processor", lambda name=processor: name
        )
        keep_programs()
        folders.add(setting())
    assert len(folders) == 2


def test_a_folder_that_the_user_names_stays(monkeypatch, setting):
    monkeypatch.setenv(VARIABLE, "")
    before = setting()
    keep_programs()
    assert setting() == before

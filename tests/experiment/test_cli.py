import logging
import os
import sys

import jax
import pytest

from sedd_jax.experiment import cli
from sedd_jax.experiment.cli import CACHE_VARIABLE, _check_devices, _is_news, cache_programs


@pytest.fixture
def setting(monkeypatch):
    """Where JAX keeps programs; put back after the test."""
    before = jax.config.jax_compilation_cache_dir
    yield lambda: jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", before)


def test_programs_are_cached_in_the_user_s_cache(monkeypatch, setting, tmp_path):
    monkeypatch.delenv(CACHE_VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cache_programs()
    assert setting().startswith(str(tmp_path / "sedd_jax"))


def test_each_kind_of_processor_has_a_folder(monkeypatch, setting):
    monkeypatch.delenv(CACHE_VARIABLE)
    folders = set()
    for processor in ("avx2", "avx512", "avx2"):
        monkeypatch.setattr("sedd_jax.experiment.cli._processor", lambda name=processor: name)
        cache_programs()
        folders.add(setting())
    assert len(folders) == 2


def test_a_folder_that_the_user_names_stays(monkeypatch, setting):
    monkeypatch.setenv(CACHE_VARIABLE, "")
    before = setting()
    cache_programs()
    assert setting() == before


@pytest.mark.parametrize("several", [False, True])
def test_errors_that_libraries_log_are_printed_where_there_are_several_processes(
    several, monkeypatch
):
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: several)
    record = logging.makeLogRecord({"levelno": logging.ERROR})
    assert _is_news(record) == several
    assert _is_news(logging.makeLogRecord({"levelno": logging.CRITICAL}))


def test_an_output_that_nobody_reads_ends_with_a_sentence(monkeypatch, capsys, setting):
    read, write = os.pipe()
    os.close(read)
    monkeypatch.setattr(cli.app, "run", lambda main, flags_parser: main(["train"]))
    with open(write, "w") as pipe, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", pipe)
        with pytest.raises(SystemExit, match="141"):
            cli.run(lambda: print("a line", flush=True))
    assert capsys.readouterr().err == "error: the program that read the output has ended.\n"


def test_where_jax_has_no_devices_that_is_what_is_said(monkeypatch, capsys):
    _check_devices()

    def fail():
        raise RuntimeError("Unable to initialize backend 'foo'")

    monkeypatch.setattr(jax, "devices", fail)
    monkeypatch.setenv("JAX_PLATFORMS", "foo")
    with pytest.raises(SystemExit):
        _check_devices()
    assert capsys.readouterr().err.startswith(
        "error: JAX finds no devices for JAX_PLATFORMS=foo (Unable to initialize backend 'foo');"
    )

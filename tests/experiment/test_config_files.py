"""Config files from any folder, from a checkout or an installed package."""

import functools
import sys
from pathlib import Path

import pytest
from absl import flags
from ml_collections import config_flags

from sedd_jax.errors import BadInput
from sedd_jax.experiment.config import parse, to_json
from sedd_jax.experiment.config_files import (
    SHIPPED,
    _parse,
    config_beside,
    find_config,
    saved_config,
)

ROOT = Path(__file__).parents[2]


def test_a_file_here_comes_before_one_of_this_project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_config("configs/owt_small.py") == SHIPPED / "owt_small.py"
    Path("configs").mkdir()
    for own in Path("configs/owt_small.py"), Path("owt_small"):
        assert find_config(str(own)) == SHIPPED / "owt_small.py"
        own.touch()
        assert find_config(str(own)) == own
        assert find_config(str(own.absolute())) == own.absolute()


@pytest.mark.parametrize(
    "name",
    ["configs/absent.py", "configs", "my/configs/tiny.py", "my/tiny", "tiny.py", "absent", ""],
)
def test_a_file_that_is_not_there_is_named_with_those_there_are(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    with pytest.raises(BadInput, match=f"no file {name or '.an empty name.'}; .* owt_small, "):
        find_config(name)


@pytest.mark.parametrize("name", sorted(path.stem for path in SHIPPED.glob("*.py")))
def test_a_config_is_read_where_nothing_of_the_checkout_can_be_imported(
    tmp_path, monkeypatch, name
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [path for path in sys.path if path not in ("", str(ROOT))])
    monkeypatch.setitem(sys.modules, "configs", None)
    found = config_beside(str(tmp_path / "own.py"), name).get_config()
    assert found.train.steps > 0


def test_a_config_that_needs_the_root_of_a_checkout_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "configs", None)

    def parse(path):
        assert path == f"{SHIPPED / 'owt_small.py'}:paper"
        from configs import tiny  # noqa: F401

    for _ in range(2):
        with pytest.raises(BadInput, match="owt_small.py imports configs, .* take config_beside"):
            _parse(parse, "configs/owt_small.py:paper")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("There is no configs/owt_small.py here: ")


@pytest.mark.parametrize(
    ("argument", "said"),
    [("tiny.py:x", "TypeError: get_config.. takes 0"), ("owt_small_uniform.py:x", "KeyError: 'x'")],
)
def test_a_config_that_fails_is_one_line(argument, said):
    parser = config_flags.DEFINE_config_file("config", flag_values=flags.FlagValues())
    parse = parser._flagvalues["config"].parser.parse
    with pytest.raises(BadInput, match=f"configs/{argument} fails with {said}"):
        _parse(parse, f"configs/{argument}")


def test_saved_settings_are_a_config_too(tmp_path):
    config = parse(config_beside(str(tmp_path / "own.py"), "tiny").get_config())
    saved = tmp_path / "config.json"
    saved.write_text(to_json(config))
    values = flags.FlagValues()
    holder = config_flags.DEFINE_config_file("config", flag_values=values)
    parser = values["config"].parser
    parser.parse = functools.partial(_parse, parser.parse)
    values(["binary", f"--config={saved}"])
    assert parse(holder.value) == config
    for text, said in (("[]", "holds no settings of a run"), ("{", "is damaged or no JSON")):
        saved.write_text(text)
        with pytest.raises(BadInput, match=said):
            saved_config(saved)
    with pytest.raises(BadInput, match="there is no file absent.json"):
        _parse(None, "absent.json")


def test_a_config_changes_the_one_beside_it(tmp_path):
    (tmp_path / "tiny.py").write_text("def get_config():\n    return 'of its own'\n")
    assert config_beside(str(tmp_path / "own.py"), "tiny").get_config() == "of its own"
    with pytest.raises(BadInput, match="own.py changes the config absent, but there is no"):
        config_beside(str(tmp_path / "own.py"), "absent")

"""What the README promises, held to it."""

import importlib
import re
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sedd_jax.experiment.config import default_config, parse
from sedd_jax.inference.build import check_names

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
TABLE = re.findall(r"^\|.*\| `(sedd\.[\w.]+)` \| `(tests/[\w/.]+)` \|$", README, re.MULTILINE)


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_ci_runs_the_test_command_of_the_readme():
    (command,) = (
        line for block in blocks("bash") for line in block.splitlines() if line.endswith("pytest")
    )
    assert command in (ROOT / ".ci" / "run").read_text().splitlines()


def test_the_example_runs(capsys):
    (example,) = blocks("python")
    exec(compile(example, "README.md", "exec"), {})
    printed = capsys.readouterr().out.strip().splitlines()
    promised = [line.split("# prints ")[1] for line in example.splitlines() if "# prints " in line]
    assert printed == promised


def test_the_table_covers_the_paper():
    assert len(TABLE) >= 10


@pytest.mark.parametrize(("function", "test"), TABLE)
def test_every_row_of_the_table_names_something_that_exists(function, test):
    value = importlib.import_module("sedd_jax")
    for part in function.split(".")[1:]:
        value = getattr(value, part)
    assert callable(value)
    assert function.rsplit(".", 1)[-1] in (ROOT / test).read_text()


def test_the_example_of_extending_is_code_that_the_settings_can_name(monkeypatch):
    example, own = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs" / "extending.md").read_text(), re.DOTALL
    )
    module = types.ModuleType("my_code")
    monkeypatch.setitem(sys.modules, "my_code", module)
    exec(compile(example, "extending.md", "exec"), module.__dict__)
    config = default_config()
    config.graph, config.noise.schedule = "my_code:zipf(power=0.5)", "my_code:quadratic"
    config.model.scale_by_sigma = False
    config.train.objective, config.eval.sampler = "my_code:per_token", "my_code:EqualNoise"
    check_names(parse(config))
    t = jnp.array([0.2, 0.7])
    sigma, dsigma = module.quadratic(default_config().noise)
    np.testing.assert_allclose(dsigma(t), jax.vmap(jax.grad(sigma))(t), rtol=1e-5)
    of_config = {"__file__": str(ROOT / "own.py")}
    exec(compile(own, "extending.md", "exec"), of_config)
    assert parse(of_config["get_config"]()).optim.learning_rate == 1e-4


def test_documents_link_to_files_that_exist():
    for document in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\((?!http)([^)#]+)", document.read_text()):
            assert (document.parent / target).exists(), (document, target)


def test_documents_name_tests_that_exist():
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (ROOT / "docs" / "maths.md").read_text())
    assert len(named) > 20
    for path, name in named:
        assert f"def {name}(" in (ROOT / path).read_text(), (path, name)

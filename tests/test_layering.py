"""The house has floors: imports go down only, and flax stays behind the model's door."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "sedd_jax"
# low to high; a module may import from its own floor and from those below
FLOORS = [
    {"errors"},
    {"system"},
    {"diffusion", "data", "display"},
    {"model"},
    {"experiment"},
    {"runtime"},  # former names
    {"inference"},
    {"training"},
    {"jobs"},
    {"verification"},
    {"evaluation"},
    {"planning"},
    {"comparison"},
    {
        "compare",
        "train",
        "sample",
        "demo",
        "exact",
        "prepare",
        "convert",
        "evaluate",
        "report",
        "plan",
        "lm_eval",
    },
]
HLO_COST = PACKAGE / "planning" / "hlo_cost"
MODULES = sorted(PACKAGE.rglob("*.py"))


def room(path):
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def floor(name):
    return next(i for i, rooms in enumerate(FLOORS) if name in rooms)


def imports(source):
    """Every module that `source` imports, wherever the import stands, as dotted names."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the floor"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def upward(name, source):
    """The imports in `source`, a module of the room `name`, that go up or sideways."""
    for target in imports(source):
        parts = target.split(".")
        if parts[0] != "sedd_jax" or len(parts) < 2:
            continue
        other = parts[1]
        if other != name and floor(other) >= floor(name):
            yield target


def test_every_module_has_a_floor():
    assert {room(path) for path in MODULES} - {"__init__"} == set().union(*FLOORS)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down_only(path):
    if path != PACKAGE / "__init__.py":  # re-exports from everywhere, by name, on first use
        assert list(upward(room(path), path.read_text())) == []


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_the_model_imports_flax(path):
    if room(path) != "model":
        assert not [name for name in imports(path.read_text()) if name.split(".")[0] == "flax"]


@pytest.mark.parametrize("path", sorted(HLO_COST.glob("*.py")), ids=lambda path: path.name)
def test_the_cost_model_imports_nothing_of_the_package_but_itself(path):
    own = [name for name in imports(path.read_text()) if name.split(".")[0] == "sedd_jax"]
    assert all(name.startswith("sedd_jax.planning.hlo_cost.") for name in own)


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("diffusion", "from sedd_jax.model import transformer"),
        ("diffusion", "def f():\n    from sedd_jax.data.prepared import Dataset"),
        ("model", "import sedd_jax.experiment.config"),
        ("experiment", "from sedd_jax import inference"),
        ("inference", "from sedd_jax.train import train"),
    ],
)
def test_the_check_sees_an_upward_import(name, source):
    assert list(upward(name, source))


def test_the_check_sees_flax_in_a_function():
    assert "flax.nnx" in list(imports("def f():\n    from flax import nnx"))

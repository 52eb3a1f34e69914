import dataclasses

import pytest

from sedd_jax.errors import BadInput
from sedd_jax.system.settings import flatten, marked, parse_settings, setting


@dataclasses.dataclass(frozen=True)
class Group:
    rate: float = setting(0.5, at_least=0, below=1, kind="a")
    size: int = setting(3, above=2)


@dataclasses.dataclass(frozen=True)
class Settings:
    seed: int = setting(0, at_least=-1)
    group: Group = setting(Group(), changes=True)
    name: str = ""


def values(**changes):
    tree = dataclasses.asdict(Settings())
    return tree | {"group": tree["group"] | changes}


def test_values_inside_the_limits_are_taken():
    assert parse_settings(Settings, values()) == Settings()
    assert parse_settings(Settings, values(rate=0, size=4)).group == Group(0.0, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rate": -0.1}, "config.group.rate must not be negative, got -0.1"),
        ({"rate": 1.0}, "config.group.rate must be below 1, got 1.0"),
        ({"rate": float("nan")}, "config.group.rate must not be negative, got nan"),
        ({"size": 2}, "config.group.size must be above 2, got 2"),
    ],
)
def test_values_outside_the_limits_are_named(changes, message):
    with pytest.raises(BadInput, match=message):
        parse_settings(Settings, values(**changes))


def test_marks_of_a_group_are_those_of_its_settings_too():
    assert marked(Settings, "changes") == {"group.rate": True, "group.size": True}
    assert marked(Settings, "kind") == {"group.rate": "a"}
    assert marked(Settings, "absent") == {}


def test_flat_keys_are_dotted():
    flat = {"seed": 0, "group.rate": 0.5, "group.size": 3, "name": ""}
    assert flatten(dataclasses.asdict(Settings())) == flat

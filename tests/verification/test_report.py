import json
import struct

import numpy as np
import pytest

from configs import exact_absorb, exact_conditions, exact_uniform
from sedd_jax.display.plot import Plot
from sedd_jax.display.table import Table
from sedd_jax.errors import BadInput
from sedd_jax.experiment.config import parse
from sedd_jax.verification.report import (
    Claim,
    ExactConfig,
    Section,
    check_settings,
    render,
    write,
)


@pytest.mark.parametrize(
    ("figure", "relation", "limit", "holds"),
    [
        (1.0, "<=", 2.0, True),
        (2.0, "<=", 2.0, True),
        (2.1, "<=", 2.0, False),
        (1.9, ">=", 2.0, False),
        (2.0, ">=", 2.0, True),
        (3.0, ">=", 2.0, True),
        (float("inf"), "<=", 2.0, False),
        (float("inf"), ">=", 2.0, True),
        (float("-inf"), "<=", 2.0, True),
        (float("nan"), "<=", 2.0, False),
        (float("nan"), ">=", 2.0, False),
        (np.float32("nan"), "<=", float("inf"), False),
        (np.float64("nan"), ">=", float("-inf"), False),
    ],
)
def test_a_claim_holds_within_its_limit_and_never_without_a_number(figure, relation, limit, holds):
    assert Claim("a claim", figure, relation, limit).holds is holds


def section():
    claims = [
        Claim("small", 1.23456e-7, "<=", 1e-6),
        Claim("large", float("inf"), "<=", 2.0),
        Claim("lost", float("nan"), ">=", 0.5),
    ]
    table = Table("By steps", ("steps", "rule", "TV"), [(16, "euler", 0.123456), (32, "x", 1e-9)])
    x = [16.0, 32.0]
    curves = {"euler": (x, [0.1, 0.05]), "tweedie": (x, [0.01, 0.004])}
    return Section("Steps", claims, [table], [Plot("steps", "steps", "TV", curves)])


def test_render_shows_tables_and_then_claims_in_columns():
    assert render(section()) == (
        "## Steps\n"
        "\n"
        "By steps\n"
        "\n"
        "| steps | rule  | TV    |\n"
        "|-------|-------|-------|\n"
        "| 16    | euler | 0.123 |\n"
        "| 32    | x     | 1e-09 |\n"
        "\n"
        "| claim | figure   | limit    | holds |\n"
        "|-------|----------|----------|-------|\n"
        "| small | 1.23e-07 | <= 1e-06 | yes   |\n"
        "| large | inf      | <= 2     | NO    |\n"
        "| lost  | nan      | >= 0.5   | NO    |\n"
    )


def test_write_makes_strict_json_with_every_figure(tmp_path):
    write([section(), Section("Empty", [])], tmp_path, {"seed": 3})

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    text = (tmp_path / "report.json").read_text()
    report = json.loads(text, parse_constant=refuse)
    assert report["seed"] == 3
    first, second = report["sections"]
    assert second == {"title": "Empty", "claims": [], "tables": []}
    assert first["title"] == "Steps"
    assert first["claims"] == [
        {
            "statement": "small",
            "figure": 1.23456e-7,
            "relation": "<=",
            "limit": 1e-6,
            "holds": True,
        },
        {"statement": "large", "figure": "inf", "relation": "<=", "limit": 2.0, "holds": False},
        {"statement": "lost", "figure": "nan", "relation": ">=", "limit": 0.5, "holds": False},
    ]
    assert first["tables"] == [
        {
            "title": "By steps",
            "columns": ["steps", "rule", "TV"],
            "rows": [[16, "euler", 0.123456], [32, "x", 1e-9]],
        }
    ]


def png_size(path):
    """Width and height of a PNG file, from its header."""
    header = path.read_bytes()[:24]
    assert header[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", header[16:24])


def test_write_draws_every_plot(tmp_path):
    linear = Plot("linear", "x", "y", {"a": ([0.0, 1.0], [-1.0, 0.0])}, log_x=False, log_y=False)
    write([section(), Section("More", [], plots=[linear])], tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"report.md", "report.json", "steps.png", "linear.png"}
    images = [tmp_path / "steps.png", tmp_path / "linear.png"]
    assert all(min(png_size(image)) > 300 for image in images)
    assert images[0].read_bytes() != images[1].read_bytes()


TOLD = {"data.condition": "class", "data.wrap": False, "data.crop": "blocks"}


@pytest.mark.parametrize("module", [exact_absorb, exact_conditions, exact_uniform])
def test_the_configs_can_be_enumerated(module):
    check_settings(parse(module.get_config(), ExactConfig))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.vocab_size": 1}, "config.data.vocab_size must be at least 2"),
        ({"data.vocab_size": 8, "model.length": 4}, r"make 9\^4 sequences; at most 4096"),
        ({"model.length": 1}, "config.model.length must be at least 2"),
        ({"exact.support": 0.0}, "config.exact.support must be positive"),
        ({"exact.support": 0.05}, "config.exact.support=0.05 leaves less than 2"),
        ({"exact.support": 1.5}, "config.exact.support must be at most 1"),
        ({"exact.max_steps": 32}, "config.exact.max_steps must be at least 64"),
        ({"exact.max_steps": 100}, "config.exact.max_steps must be a power of 2"),
        ({"exact.num_samples": 4095}, "config.exact.num_samples must be at least 4096"),
        ({"exact.num_draws": 2**17}, "config.exact.num_draws must be at least 262144"),
        ({"exact.repeats": 1}, "config.exact.repeats must be at least 16"),
        (TOLD | {"data.condition": "size:number"}, "=size:number must name one label, as in class"),
        (TOLD | {"train.hold": "prefix"}, "condition and config.train.hold are checked apart"),
    ],
)
def test_settings_that_cannot_be_enumerated_are_refused(changes, message):
    config = exact_absorb.get_config()
    config.update_from_flattened_dict(changes)
    with pytest.raises(BadInput, match=message):
        check_settings(parse(config, ExactConfig))

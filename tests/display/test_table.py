import json

import numpy as np
import pytest

from sedd_jax.display.table import (
    Table,
    duration,
    in_brackets,
    markdown,
    plain,
    shown,
    to_json,
    with_error,
)
from sedd_jax.training.evaluator import bound_text


def test_columns_are_aligned_and_a_bar_does_not_end_a_cell():
    table = Table("By steps", ("steps", "rule|kind"), [(16, "a|b"), (1024, np.float32(0.123456))])
    assert markdown(table) == (
        "| steps | rule\\|kind |\n"
        "|-------|------------|\n"
        "| 16    | a\\|b       |\n"
        "| 1024  | 0.123      |"
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1500.0, "1500"), (np.float32(-2048), "-2048"), (1500.5, "1.5e+03"), (0.0, "0"),
        (1e300, "1e+300"), (float("inf"), "inf"), (float("nan"), "nan"), (None, "-"),
    ],
)  # fmt: skip
def test_whole_numbers_are_shown_in_full(value, text):
    assert shown(value) == text


def test_json_has_no_number_that_json_lacks():
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    values = {"bound": float("inf"), "rows": [(1, float("nan"))], "name": "x"}
    values |= {"narrow": [np.float32(0.5), np.int32(2), np.float32("nan")]}
    read = json.loads(to_json(values), parse_constant=refuse)
    assert read == {"bound": "inf", "rows": [[1, "nan"]], "name": "x", "narrow": [0.5, 2, "nan"]}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (50.917, "50.92"), (1234.4, "1,234"), (123456.0, "123,456"), (9.99996, "10.00"),
        (0.12344, "0.1234"), (-3.9, "-3.900"), (1.234e-7, "1.234e-07"), (0.0, "0"),
        (float("inf"), "inf"), (float("nan"), "nan"),
    ],
)  # fmt: skip
def test_a_number_has_four_digits(value, text):
    assert plain(value) == text


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (50.907, 0.1324, "50.91 +- 0.13"), (1234.5, 41.0, "1,234 +- 41"),
        (1234.5, 130.0, "1,234 +- 130"), (41.2, 0.0996, "41.20 +- 0.10"),
        (3.93, 0.0, "3.930"), (3.93, float("nan"), "3.930"), (float("inf"), 1.0, "inf"),
    ],
)  # fmt: skip
def test_a_number_has_the_digits_of_its_error(value, error, text):
    assert with_error(value, error) == text


def test_an_unknown_error_is_not_shown():
    assert in_brackets(0.0321, ".2f") == " (+-0.03)"
    assert in_brackets(float("nan"), ".2f") == ""
    row = {"nll": 1.0, "nll_stderr": float("nan"), "perplexity": 2.72, "bits_per_byte": 1.5}
    assert "nll 1.0000 nats/token, perplexity 2.72" in bound_text(row)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"), (59.6, "1 min 00 s"), (185.0, "3 min 05 s"), (7 * 3600 + 725.0, "7 h 12 min"),
        (47 * 3600.0, "47 h 00 min"), (86 * 3600.0, "3 d 14 h"),
    ],
)  # fmt: skip
def test_duration(seconds, text):
    assert duration(seconds) == text

import json

import numpy as np

from sedd_jax.display.table import Table, markdown, to_json


def test_columns_are_aligned_and_a_bar_does_not_end_a_cell():
    table = Table("By steps", ("steps", "rule|kind"), [(16, "a|b"), (1024, np.float32(0.123456))])
    assert markdown(table) == (
        "| steps | rule\\|kind |\n"
        "|-------|------------|\n"
        "| 16    | a\\|b       |\n"
        "| 1024  | 0.123      |"
    )


def test_json_has_no_number_that_json_lacks():
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    values = {"bound": float("inf"), "rows": [(1, float("nan"))], "name": "x"}
    values |= {"narrow": [np.float32(0.5), np.int32(2), np.float32("nan")]}
    read = json.loads(to_json(values), parse_constant=refuse)
    assert read == {"bound": "inf", "rows": [[1, "nan"]], "name": "x", "narrow": [0.5, 2, "nan"]}

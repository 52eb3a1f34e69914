"""What is foreseen follows from the program's figures; it is compiled here, for CPU devices."""

import json

import jax
import pytest

from sedd_jax.display.table import markdown, to_json
from sedd_jax.planning.memory import Memory
from sedd_jax.planning.outlook import Outlook, as_json, foresee, in_words, tables

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def outlook(training, node):
    return foresee(training, node, price=2.0)


def test_time_gives_speed_share_and_cost(outlook):
    seconds = outlook.prediction.seconds
    assert outlook.tokens_per_second == pytest.approx(16 * 32 / seconds)
    assert outlook.utilization == pytest.approx(
        outlook.program.model_flops / (seconds * 8 * 989e12)
    )
    # 8 GPUs at 2 dollars an hour
    expected = 1e9 / (16 * 32) * seconds * 8 * 2 / 3600
    assert outlook.dollars_per_billion_tokens == pytest.approx(expected)


def test_the_price_of_the_chip_is_the_default(training, node):
    compiled = training.lowered.compile()
    lowered = type("Lowered", (), {"compile": lambda self: compiled})()
    assert foresee(training._replace(lowered=lowered), node).price == node.chip.price


def test_collectives_run_on_the_axes_of_the_mesh(outlook):
    found = {(each.kind, each.axes) for each in outlook.prediction.collectives}
    assert ("all-gather", ("fsdp",)) in found  # parameters in parts
    assert any(kind == "all-reduce" and "data" in axes for kind, axes in found)  # gradients


def test_one_screen_says_all(outlook):
    text = "\n".join(markdown(table) for table in tables(outlook))
    for word in (
        "fits, 100% free",
        "tokens a second",
        "at $2.00 an hour",
        "all-gather",
        "in between",
    ):
        assert word in text
    assert len(text.splitlines()) < 40
    assert max(map(len, text.splitlines())) < 140


def test_json_holds_the_same(outlook):
    found = json.loads(to_json(as_json(outlook, {"program": "training step"})))
    assert found["program"] == "training step"
    assert found["topology"] == "h100:1x8"
    assert found["mesh"] == {"slice": 1, "data": 2, "fsdp": 4, "tensor": 1}
    assert found["seconds"] == pytest.approx(sum(found["seconds_by_part"].values()))
    assert found["memory"]["needed"] == pytest.approx(sum(found["memory"]["parts"].values()))
    assert found["chip"]["price"] == 2.0
    assert any("positions as count" in line for line in found["assumptions"])
    assert found["collectives"][0].keys() >= {"kind", "axes", "calls", "nbytes", "seconds"}


def test_a_mesh_in_words(planned):
    assert in_words(planned[1]) == "data=2 fsdp=4"
    assert in_words(jax.make_mesh((1,), ("data",), devices=jax.devices()[:1])) == "one chip"


def test_a_program_that_the_compiler_refuses_has_no_time(training, node):
    def refuse(_):
        raise jax.errors.JaxRuntimeError(
            "RESOURCE_EXHAUSTED: the total memory required for HLO temporaries (16.37G) exceeds"
        )

    traced = "%1 = stablehlo.while(%a = %0) : tensor<4x2x1024x1024x512xf32>, tensor<i32>"
    lowered = type("Lowered", (), {"compile": refuse, "as_text": lambda self: traced})()
    outlook = foresee(training._replace(lowered=lowered), node)
    assert outlook.prediction is None
    (table,) = tables(outlook)
    assert "at least 16.37 of 79.10 GiB" in markdown(table)
    assert "does NOT fit: the compiler refused" in markdown(table)
    assert "f32[4,2,1024,1024,512] over 8 chips 2.00" in markdown(table)
    assert "seconds" not in as_json(outlook, {})


def test_a_program_that_is_too_large_for_a_gpu_keeps_its_time(outlook):
    memory = Memory(100.0, {"arguments": 101.0}, {})
    (table, _) = tables(Outlook(*outlook)._replace(memory=memory))
    assert "does NOT fit |" in " ".join(markdown(table).split())

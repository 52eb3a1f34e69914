"""Estimates follow from the program's figures; it is compiled here, for CPU devices."""

import json

import jax
import pytest

from sedd_jax.display.table import markdown, to_json
from sedd_jax.planning.estimate import as_json, as_tables, estimate, in_words
from sedd_jax.planning.hlo_cost.memory import Memory
from sedd_jax.planning.topology import CHIPS


def test_time_gives_speed_share_and_cost(estimated):
    seconds = estimated.prediction.seconds
    assert estimated.tokens_per_second == pytest.approx(32 * 128 / seconds)
    assert estimated.mfu == pytest.approx(estimated.program.model_flops / (seconds * 8 * 989e12))
    # 8 GPUs at 2 dollars an hour
    expected = 1e9 / (32 * 128) * seconds * 8 * 2 / 3600
    assert estimated.dollars_per_billion_tokens == pytest.approx(expected)
    # the 20 steps of the run
    assert estimated.run_seconds == pytest.approx(20 * seconds)
    assert estimated.run_dollars == pytest.approx(20 * seconds / 3600 * 8 * 2)


@pytest.mark.parametrize(
    ("steps", "said"), [(10**6, "11 d 13 h"), (20_000, "5 h 33 min"), (100, "1 min 40 s")]
)
def test_a_run_takes_its_steps(estimated, steps, said):
    second = estimated.prediction._replace(seconds=1.0)
    program = estimated.program._replace(steps=steps)
    text = markdown(as_tables(estimated._replace(program=program, prediction=second))[0])
    assert f"the run, {steps:,} steps" in text
    assert said in text
    assert f"${steps / 3600 * 16:,.2f}" in text


def test_without_a_price_there_are_no_dollars(estimated):
    text = markdown(as_tables(estimated._replace(price=CHIPS["tpu7x"].dollars_per_hour))[0])
    assert "no price of a chip is known: --price gives one" in text
    assert "the run" in text and "$" not in text and "nan" not in text


def test_what_is_no_training_has_no_run(estimated):
    other = estimated._replace(program=estimated.program._replace(steps=None))
    assert "the run" not in markdown(as_tables(other)[0])
    assert "run_seconds" not in as_json(other, {})


def test_the_price_of_the_chip_is_the_default(compiled, training, node):
    lowered = type("Lowered", (), {"compile": lambda self: compiled})()
    assert estimate(training._replace(lowered=lowered), node).price == node.chip.dollars_per_hour


def test_collectives_run_on_the_axes_of_the_mesh(estimated):
    found = {(each.kind, each.axes) for each in estimated.prediction.collectives}
    assert ("all-gather", ("fsdp",)) in found  # parameters in parts
    assert any(kind == "all-reduce" and "data" in axes for kind, axes in found)  # gradients


def test_one_screen_says_all(estimated):
    text = "\n".join(markdown(table) for table in as_tables(estimated))
    for word in (
        "fits, 100% free",
        "tokens a second",
        "at $2.00 an hour",
        "all-gather",
        "temporaries",
        "MFU",
        "the run, 20 steps",
    ):
        assert word in text
    assert len(text.splitlines()) < 40
    assert max(map(len, text.splitlines())) < 140


def test_json_holds_the_same(estimated):
    found = json.loads(to_json(as_json(estimated, {"program": "training step"})))
    assert found["program"] == "training step"
    assert found["topology"] == "h100:1x8"
    assert found["mesh"] == {"slice": 1, "data": 2, "fsdp": 4, "tensor": 1}
    assert found["seconds"] == pytest.approx(sum(found["seconds_by_part"].values()))
    memory = found["memory"]
    assert memory["needed_bytes"] == pytest.approx(sum(memory["bytes_by_part"].values()))
    assert found["chip"]["dollars_per_hour"] == 2.0
    assert found["run_dollars"] == pytest.approx(found["run_seconds"] / 3600 * 16)
    assert any("positions as count" in line for line in found["assumptions"])
    assert found["collectives"][0].keys() >= {"kind", "axes", "calls", "bytes_sent", "seconds"}


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
    estimated = estimate(training._replace(lowered=lowered), node)
    assert estimated.prediction is None
    (table,) = as_tables(estimated)
    assert "at least 16.37 of 79.10 GiB" in markdown(table)
    assert "does NOT fit: the compiler refused" in markdown(table)
    assert "f32[4,2,1024,1024,512] over 8 chips 2.00" in markdown(table)
    assert "seconds" not in as_json(estimated, {})


def test_a_program_that_is_too_large_for_a_gpu_keeps_its_time(estimated):
    memory = Memory(100.0, {"arguments": 101.0}, {})
    (table, _) = as_tables(estimated._replace(memory=memory))
    assert "does NOT fit |" in " ".join(markdown(table).split())

"""What is foreseen follows from the program's figures; it is compiled here, for CPU devices."""

import json

import jax
import pytest

from sedd_jax.display.table import markdown, to_json
from sedd_jax.planning.estimate import Outlook, as_json, foresee, in_words, tables
from sedd_jax.planning.hlo_cost.memory import Memory


def test_time_gives_speed_share_and_cost(outlook):
    seconds = outlook.prediction.seconds
    assert outlook.tokens_per_second == pytest.approx(32 * 128 / seconds)
    assert outlook.mfu == pytest.approx(outlook.program.model_flops / (seconds * 8 * 989e12))
    # 8 GPUs at 2 dollars an hour
    expected = 1e9 / (32 * 128) * seconds * 8 * 2 / 3600
    assert outlook.dollars_per_billion_tokens == pytest.approx(expected)
    # the 20 steps of the run
    assert outlook.run_seconds == pytest.approx(20 * seconds)
    assert outlook.run_dollars == pytest.approx(20 * seconds / 3600 * 8 * 2)


@pytest.mark.parametrize(
    ("steps", "said"), [(10**6, "11.6 days"), (20_000, "5.6 hours"), (100, "100.0 seconds")]
)
def test_a_run_takes_its_steps(outlook, steps, said):
    second = outlook.prediction._replace(seconds=1.0)
    program = outlook.program._replace(steps=steps)
    text = markdown(tables(outlook._replace(program=program, prediction=second))[0])
    assert f"the run, {steps:,} steps" in text
    assert said in text
    assert f"${steps / 3600 * 16:,.2f}" in text


def test_what_is_no_training_has_no_run(outlook):
    other = outlook._replace(program=outlook.program._replace(steps=None))
    assert "the run" not in markdown(tables(other)[0])
    assert "run_seconds" not in as_json(other, {})


def test_the_price_of_the_chip_is_the_default(compiled, training, node):
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
        "temporaries",
        "MFU",
        "the run, 20 steps",
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

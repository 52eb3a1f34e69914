"""The benchmarks run, on shapes that take no time, and write what they measured."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.mutations import MUTATIONS, faults

SLOW = (pytest.mark.slow, pytest.mark.unsteady)
ROOT = Path(__file__).parents[1]
SMALL = ("--tokens=300", "--hidden=32", "--blocks=1", "--length=16", "--steps=2")


def run(name, *flags):
    command = [sys.executable, "-m", f"benchmarks.{name}", *flags]
    environment = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # compiling is most of it
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("name", "flags", "rows"),
    [
        pytest.param("training_step", ("--shape=test", "--rounds=2"), 2, marks=SLOW),
        pytest.param("head", ("--shape=test", "--rounds=1"), 4, marks=SLOW),
        pytest.param(
            "sampling_step",
            (*SMALL, "--dense_steps=1", "--rounds=1", "--sampler=gibbs", "--guidance=2"),
            7,
            marks=SLOW,
        ),
        pytest.param(
            "baseline",
            ("--rounds=1", "--batch_size=2", "--length=8"),
            4,
            marks=SLOW,
        ),
        pytest.param(
            "samplers",
            ("--checkpoint=RUN", "--ways=first_hitting,tweedie:2", "--batch_sizes=2", "--rounds=1"),
            2,
            marks=SLOW,
        ),
        pytest.param(
            "predicted",
            ("--config=configs/smoke.py", "--per_chip=1", "--steps=2"),
            1,
            marks=SLOW,
        ),
        pytest.param("data_pipeline", ("--blocks=100", "--batches=5"), 2, marks=SLOW),
        pytest.param("saving", ("--workdir=NEW", "--rounds=1", "--device_ms=1"), 1, marks=SLOW),
    ],
)
def test_a_benchmark_measures_and_writes_what_it_found(name, flags, rows, smoke_run, tmp_path):
    output = tmp_path / "result.json"
    places = {"RUN": smoke_run, "NEW": tmp_path / "new"}
    for name_of_place, place in places.items():
        flags = [flag.replace(name_of_place, str(place)) for flag in flags]
    process = run(name, *flags, f"--output={output}")
    assert process.returncode == 0, process.stderr
    result = json.loads(output.read_text())
    assert len(result["rows"]) == rows
    assert result["machine"]["jax"]
    numbers = [v for row in result["rows"] for k, v in row.items() if k.endswith(("_s", "second"))]
    assert numbers and min(numbers) > 0


@pytest.mark.slow
def test_a_search_measures_its_own_ways_on_both_graphs(tmp_path):
    output, ways = tmp_path / "result.json", ("Cosine", "Every", "Between(spacing=2)")
    flags = ("--data=chain8", "--rows=4", "--length=8", "--steps=4", f"--output={output}")
    process = run("sampler_search", *flags, *(f"--way={way}" for way in ways))
    assert process.returncode == 0, process.stderr
    rows = json.loads(output.read_text())["rows"]
    assert [row["way"] for row in rows] == list(ways)
    assert all(isinstance(row[graph], float) for row in rows for graph in ("absorb", "uniform"))
    assert "--data must be among" in run("sampler_search", "--data=none").stderr


@pytest.mark.slow
@pytest.mark.unsteady
def test_results_are_not_overwritten_and_a_missing_python_is_named(tmp_path):
    output = tmp_path / "result.json"
    output.write_text("kept")
    assert "exists already" in run("head", f"--output={output}").stderr
    assert output.read_text() == "kept"
    process = run(
        "training_step", "--shape=test", f"--published={tmp_path}", "--published_python=no-python"
    )
    assert process.returncode == 2
    assert "no-python" in process.stderr


def test_every_mutation_is_of_a_text_that_occurs_once():
    assert faults(MUTATIONS) == []

"""The training binary as its user meets it: a run, a kill, a continuation, bad input."""

import dataclasses
import json
import time

import chex
import jax
import pytest

import sedd_jax as sedd
from sedd_jax.runtime import sharding
from sedd_jax.runtime.checkpoint import FOLDER, Checkpoints
from sedd_jax.runtime.components import build_components
from sedd_jax.runtime.metrics import FILE
from sedd_jax.runtime.step import init_state, run_keys
from sedd_jax.train import train

SMOKE = "--config=configs/smoke.py"
TIMES = {"tokens_per_second", "step_seconds", "waiting_for_data"}


def metric_rows(run):
    rows = [json.loads(line) for line in (run / FILE).read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in TIMES} for row in rows]


def final_state(run, config):
    components = build_components(config, 257)
    abstract = jax.eval_shape(lambda key: init_state(key, components, config), run_keys(0).init)
    placement = sharding.replicated(sharding.build_mesh())
    with Checkpoints(run) as checkpoints:
        return checkpoints.restore(checkpoints.latest, sharding.placed(abstract, placement))


def test_a_run_leaves_metrics_samples_and_checkpoints(smoke_run, smoke_config):
    rows = metric_rows(smoke_run)
    losses = {row["step"]: row["loss"] for row in rows if "loss" in row}
    bounds = {row["step"]: row for row in rows if "bound" in row}
    assert list(losses) == [5, 10, 15, 20]
    assert losses[20] < losses[5]
    assert list(bounds) == [10, 20]
    assert bounds[20]["bound"] < bounds[10]["bound"]
    assert {"bound_stderr", "perplexity", "bits_per_byte"} <= bounds[20].keys()
    assert [row["step"] for row in rows if "sample_0" in row] == [20]
    assert {p.name for p in (smoke_run / FOLDER).iterdir()} >= {"10", "20"}


def test_a_stopped_run_goes_on_to_the_same_bits(smoke_run, smoke_config, tmp_path, caplog):
    first = dataclasses.replace(
        smoke_config, train=dataclasses.replace(smoke_config.train, steps=10)
    )
    train(first, tmp_path / "run")
    with jax.log_compiles():
        train(smoke_config, tmp_path / "run")
    # over evaluations, samples and checkpoints no program is compiled twice
    names = [str(r.args[0]) for r in caplog.records if r.msg.startswith("Compiling %s with global")]
    for program in ("train_step", "loss", "generator"):
        assert sum(program in name for name in names) == 1, names
    chex.assert_trees_all_equal(
        final_state(tmp_path / "run", smoke_config), final_state(smoke_run, smoke_config)
    )
    straight, resumed = metric_rows(smoke_run), metric_rows(tmp_path / "run")
    # the shorter run also drew the samples that are due at its end
    assert [row for row in resumed if row["step"] != 10 or "sample_0" not in row] == straight


def test_a_finished_run_says_so_and_trains_no_more(smoke_run, smoke_config, capsys):
    before = metric_rows(smoke_run)
    train(smoke_config, smoke_run)
    assert "Done: step 20" in capsys.readouterr().out
    assert metric_rows(smoke_run) == before


def test_killed_and_restarted_with_the_same_command(tmp_path, binary):
    """kill -9 after the first checkpoint: parameters, average and metrics equal bit for bit."""
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    out = binary.run("train", SMOKE, f"--workdir={straight}")
    assert f"python -m sedd_jax.sample --checkpoint={straight}" in out

    process = binary.start("train", SMOKE, f"--workdir={killed}")
    while not (killed / FOLDER / "20").exists():
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.005)
    process.kill()
    process.communicate()
    assert not (killed / FOLDER / "40").exists()

    out = binary.run("train", SMOKE, f"--workdir={killed}")
    assert "Continuing after step 20" in out
    assert metric_rows(killed) == metric_rows(straight)
    for ema in (True, False):
        chex.assert_trees_all_equal(
            sedd.load(killed, ema=ema).params, sedd.load(straight, ema=ema).params
        )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--workdir=RUN",), "--config=FILE is needed"),
        ((SMOKE,), "--workdir=FOLDER is needed"),
        (("--config=absent.py", "--workdir=RUN"), "absent.py"),
        ((SMOKE, "--workdir=RUN", "--config.train.stepz=3"), "stepz"),
        ((SMOKE, "--workdir=RUN", "--config.train.steps=many"), "many"),
        ((SMOKE, "--workdir=RUN", "--config.graph=torus"), "must be one of absorb, uniform"),
        ((SMOKE, "--workdir=RUN", "--config.data.corpus=absent.txt"), "no corpus at absent.txt"),
        ((SMOKE, "--workdir=RUN", "extra"), "unexpected argument 'extra'"),
    ],
)
def test_bad_input_is_one_line_and_a_failure(tmp_path, binary, flags, message):
    run = tmp_path / "run"
    flags = [flag.replace("RUN", str(run)) for flag in flags]
    assert message in binary.refuse("train", *flags)
    assert not run.exists()


def test_a_workdir_with_another_run_is_refused(smoke_run, binary):
    line = binary.refuse("train", SMOKE, f"--workdir={smoke_run}", "--config.seed=5")
    assert "holds a run with other settings (seed: 0 -> 5" in line


def test_a_batch_that_the_devices_do_not_divide_is_refused(tmp_path, smoke_config):
    odd = dataclasses.replace(
        smoke_config, train=dataclasses.replace(smoke_config.train, batch_size=12)
    )
    with pytest.raises(sedd.BadInput, match="is 12, which 8 devices do not divide evenly"):
        train(odd, tmp_path / "run")
    assert not (tmp_path / "run").exists()

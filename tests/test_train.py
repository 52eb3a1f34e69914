"""The training binary as its user meets it: a run, a kill, a continuation, bad input."""

import dataclasses
import json
import shutil
import signal
import types
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import pytest

import sedd_jax as sedd
from sedd_jax.data.characters import Characters
from sedd_jax.data.pipeline import batch_blocks
from sedd_jax.data.prepared import open_blocks
from sedd_jax.errors import BadInput, Halted
from sedd_jax.experiment import mesh as meshes
from sedd_jax.experiment.checkpoint import Checkpoints
from sedd_jax.experiment.checkpoint_folder import FOLDER
from sedd_jax.experiment.config import from_saved
from sedd_jax.experiment.metrics import FILE
from sedd_jax.experiment.run import locked
from sedd_jax.experiment.state import run_keys
from sedd_jax.inference.build import build_family
from sedd_jax.train import train
from sedd_jax.training import initial_weights
from sedd_jax.training.initial_weights import load_initial, with_weights_of
from sedd_jax.training.step import init_state

SMOKE = "--config=configs/smoke.py"
# what the fixture of that name changes
AS_SMOKE_CONFIG = (
    "--config.train.steps=20",
    "--config.train.log_every=5",
    "--config.eval.every=10",
    "--config.eval.sample_every=20",
    "--config.eval.num_samples=1",
    "--config.checkpoint.every=10",
)
TIMES = {"tokens_per_second", "step_seconds", "waiting_for_data"}


class Told:
    """A tracker that keeps what it is told, of all runs."""

    calls = []  # noqa: RUF012

    def start(self, run, settings, last_step):
        self.calls.append(("start", settings["train"]["steps"], last_step))

    def scalars(self, step, values):
        self.calls.append((step, *values))

    def text(self, step, name, value):
        self.calls.append((step, name))

    def close(self):
        self.calls.append(("close",))


def metric_rows(run):
    rows = [json.loads(line) for line in (run / FILE).read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in TIMES} for row in rows]


def final_state(run, config):
    components = build_family(config, 257)
    abstract = jax.eval_shape(
        lambda key: init_state(key, components, config.optim), run_keys(0).init
    )
    placement = meshes.replicated(meshes.build_mesh())
    with Checkpoints(run) as checkpoints:
        return checkpoints.restore(checkpoints.latest, meshes.placed(abstract, placement))


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
    state = sum(x.nbytes for x in jax.tree.leaves(final_state(smoke_run, smoke_config)))
    assert all(row["step_memory_gib"] * 2**30 > state for row in rows if "loss" in row)
    assert {p.name for p in (smoke_run / FOLDER).iterdir()} >= {"10", "20"}


def test_a_stopped_run_goes_on_to_the_same_bits(smoke_run, smoke_config, tmp_path, caplog):
    run = shutil.copytree(smoke_run, tmp_path / "run")
    shutil.rmtree(run / FOLDER / "20")  # as if it was killed before
    told = dataclasses.replace(smoke_config.train, trackers=f"{__name__}:Told")
    with jax.log_compiles():
        train(dataclasses.replace(smoke_config, train=told), run)
    # over evaluations, samples and checkpoints no program is compiled twice
    names = [str(r.args[0]) for r in caplog.records if r.msg.startswith("Compiling %s with global")]
    for program in ("train_step", "loss", "generator"):
        assert sum(program in name for name in names) == 1, names
    chex.assert_trees_all_equal(
        final_state(run, smoke_config), final_state(smoke_run, smoke_config)
    )
    assert metric_rows(run) == metric_rows(smoke_run)
    written = [json.loads(line) for line in (run / FILE).read_text().splitlines()]
    after = [tuple(row.values())[:1] + tuple(row)[1:] for row in written if row["step"] > 10]
    assert Told.calls == [("start", 20, 10), *after, ("close",)]


@pytest.mark.slow
def test_a_finished_run_says_so_and_trains_no_more(smoke_run, smoke_config, capsys):
    before = metric_rows(smoke_run)
    train(smoke_config, smoke_run)
    assert "Done: step 20" in capsys.readouterr().out
    assert metric_rows(smoke_run) == before


@pytest.mark.slow
def test_stopped_killed_and_restarted_with_the_same_command(
    smoke_run, smoke_config, tmp_path, binary, capsys
):
    """SIGTERM between two rows, then kill -9: the end is that of the undisturbed run, in bits."""
    run = tmp_path / "run"
    command = (SMOKE, *AS_SMOKE_CONFIG, f"--workdir={run}")

    process = binary.start("train", *command, devices=8)
    while not process.stdout.readline().startswith("step 5/20"):
        assert process.poll() is None
    process.terminate()
    _, err = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM, err
    stopped = max(int(path.name) for path in (run / FOLDER).iterdir())
    assert 5 <= stopped < 20
    asked, said = err.strip().splitlines()
    assert asked == "SIGTERM: stopping after this step; again: at once."
    assert said.startswith(f"error: Stopped by SIGTERM after step {stopped}, which is saved; ")

    process = binary.start("train", *command, devices=8)
    while not process.stdout.readline().startswith("Continuing after step"):
        assert process.poll() is None
    process.kill()
    process.communicate()

    train(smoke_config, run)
    out = capsys.readouterr().out
    assert f"Continuing after step {stopped}." in out
    assert f"python -m sedd_jax.sample --checkpoint={run}" in out
    chex.assert_trees_all_equal(
        final_state(run, smoke_config), final_state(smoke_run, smoke_config)
    )
    straight, resumed = metric_rows(smoke_run), metric_rows(run)
    # the first row after the stop is the mean of fewer steps
    after = next(row for row in resumed if row["step"] > stopped)
    assert [row for row in resumed if row != after] == [
        row for row in straight if not ("loss" in row and row["step"] == after["step"])
    ]


@pytest.mark.slow
def test_a_run_that_diverges_says_where(tmp_path, smoke_config):
    wild = dataclasses.replace(
        smoke_config,
        optim=dataclasses.replace(smoke_config.optim, learning_rate=1e30, warmup_steps=1),
        train=dataclasses.replace(smoke_config.train, max_skipped=3),
        eval=dataclasses.replace(smoke_config.eval, num_samples=0),
    )
    with pytest.raises(Halted) as halted:
        train(wild, tmp_path / "run")
    data = open_blocks(tmp_path / "run" / "data", wild.model.length)
    _, blocks = batch_blocks(data.train, batch_size=16, seed=0, step=3)
    assert "3 steps in a row made no update; the loss of step 4 is inf." in str(halted.value)
    assert f"Blocks of that batch: {', '.join(map(str, blocks))}." in str(halted.value)
    assert "Last good checkpoint: none." in str(halted.value)


def test_a_second_process_is_refused(tmp_path, smoke_config):
    with locked(tmp_path / "run"), pytest.raises(sedd.BadInput, match="is in use by process"):
        train(smoke_config, tmp_path / "run")


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
    with pytest.raises(sedd.BadInput, match="is 12, which 8 parts of the mesh"):
        train(odd, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def started_from(config, folder, **changes):
    train_config = dataclasses.replace(config.train, initial=str(folder), **changes)
    return dataclasses.replace(config, train=train_config)


def buffers(tree):
    shards = (shard for x in jax.tree.leaves(tree) for shard in x.addressable_shards)
    return {shard.data.unsafe_buffer_pointer() for shard in shards}


def test_weights_to_start_from_take_the_place_of_random_ones(
    smoke_run, smoke_config, tmp_path, capfd
):
    config, mesh = started_from(smoke_config, smoke_run), meshes.build_mesh()
    initial = load_initial(config, tmp_path, mesh)
    components = build_family(config, 257)
    first = jax.jit(lambda key: init_state(key, components, config.optim))(run_keys(0).init)
    state = with_weights_of(initial, first, config, initial.tokenizer)
    chex.assert_trees_all_equal(state.params, sedd.load(smoke_run).params)
    chex.assert_trees_all_equal(state.ema_params, state.params)
    chex.assert_trees_all_equal(state.opt_state, first.opt_state)
    assert state.step == 0
    assert buffers(state.params).isdisjoint(buffers(state.ema_params))

    # a network that is told which tokens are given starts as one that is told nothing
    new = {"given": {"table": jnp.zeros((2, 4))}}
    told = first._replace(params=first.params | new)
    state = with_weights_of(initial, told, config, initial.tokenizer)
    chex.assert_trees_all_equal(state.params, initial.params | new)

    assert not capfd.readouterr().out
    with_weights_of(dataclasses.replace(initial, tokenizer=None), first, config, initial.tokenizer)
    said = "has no tokenizer: its 257 ids are taken for those of the bytes tokenizer of this run"
    assert said in capfd.readouterr().err

    assert load_initial(config, smoke_run, mesh) is None  # which has begun
    with pytest.raises(BadInput, match=r"a model of other tokens: .*data.tokenizer_path"):
        with_weights_of(initial, first, config, Characters("".join(map(chr, range(256)))))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"graph": "uniform"}, "config.graph is absorb there and uniform here"),
        ({"noise.eps": 0.1}, "config.noise is .*eps=0.001.* there and .*eps=0.1"),
        ({"model.scale_by_sigma": False}, "scale_by_sigma is True there and False here"),
        ({"model.output": "denoiser"}, "config.model.output is ratio there and denoiser here"),
        ({"model.time_conditioning": False}, "time_conditioning is True there and False here"),
        ({"model.num_blocks": 3}, "config.model.num_blocks is 2 there and 3 here"),
    ],
)
def test_weights_that_mean_something_else_are_refused(
    smoke_run, smoke_config, tmp_path, changes, message
):
    values = dataclasses.asdict(started_from(smoke_config, smoke_run))
    for key, value in changes.items():
        *groups, name = key.split(".")
        (values[groups[0]] if groups else values)[name] = value
    other = from_saved(values | {"graph": "absorb"})
    other = dataclasses.replace(other, graph=values["graph"])
    with pytest.raises(BadInput, match=f"is another model: .*{message}"):
        train(other, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("group", "name", "value", "message"),
    [
        ("train", "hold", "spans", "config.train.hold is spans there and none here"),
        ("data", "condition", "class", "config.data.condition is class there and empty here"),
    ],
)
def test_a_network_that_was_told_something_is_not_started_from_without(
    smoke_config, tmp_path, monkeypatch, group, name, value, message
):
    changed = dataclasses.replace(getattr(smoke_config, group), **{name: value})
    told = dataclasses.replace(smoke_config, **{group: changed})
    monkeypatch.setattr(
        initial_weights, "load", lambda *_, **__: types.SimpleNamespace(config=told)
    )
    config = started_from(smoke_config, tmp_path)
    with pytest.raises(BadInput, match=f"{message}; take its settings, or name a model"):
        load_initial(config, tmp_path, meshes.build_mesh())


def test_a_softmax_may_be_trained_on_whatever_ratios_are_scaled_by(smoke_config, tmp_path):
    mdlm = Path(__file__).parent / "golden" / "mdlm"
    there = sedd.load(mdlm).config.model
    model = dataclasses.replace(there, scale_by_sigma=not there.scale_by_sigma)
    config = dataclasses.replace(started_from(smoke_config, mdlm), model=model)
    initial = load_initial(config, tmp_path, meshes.build_mesh())
    assert initial.config.model.output == "denoiser"


def test_absent_weights_to_start_from_are_named_before_the_run_is_made(smoke_config, tmp_path):
    with pytest.raises(BadInput, match="There is no folder .*absent"):
        train(started_from(smoke_config, tmp_path / "absent"), tmp_path / "run")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_run_starts_from_given_weights_and_goes_on_without_them(
    smoke_run, smoke_config, tmp_path
):
    given = shutil.copytree(smoke_run, tmp_path / "given")
    still = dataclasses.replace(smoke_config.optim, learning_rate=1e-30)
    config = dataclasses.replace(smoke_config, optim=still)
    wanted = sedd.load(given).params

    def check(steps):
        run = tmp_path / "run"
        train(started_from(config, given, steps=steps), run)
        trained = sedd.load(run, step=steps, ema=False).params
        chex.assert_trees_all_equal(trained, wanted)
        # an average of equal numbers is rounded at every step
        chex.assert_trees_all_close(sedd.load(run, step=steps).params, wanted, rtol=3e-6)

    check(10)
    shutil.rmtree(given)
    check(20)

import errno
import json
import logging
import os
import resource
import shutil
import signal
import threading
import time

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from sedd_jax.diffusion.time_sampling import Learned
from sedd_jax.errors import BadInput, Halted
from sedd_jax.experiment import mesh as meshes
from sedd_jax.experiment.checkpoint import Checkpoints
from sedd_jax.experiment.checkpoint_folder import DAMAGED_FOLDER, FOLDER
from sedd_jax.experiment.config import CheckpointConfig
from sedd_jax.experiment.state import Skipped, TrainState


def incompressible(draws, shape):
    """Finite numbers of random bits, which lie in a file as they are."""
    return (draws.integers(2**32, size=shape, dtype=np.uint32) & 0xBFFFFFFF).view(np.float32)


MARK = incompressible(np.random.default_rng(1), (8, 48))  # to find a table in a file


@pytest.fixture(scope="module")
def state():
    """A small state, of which no two parts are equal and no array is compressible."""
    draws = np.random.default_rng(0)

    def weights():
        table = jnp.asarray(np.concatenate([incompressible(draws, (56, 48)), MARK]))
        return {"table": table, "half": table.astype(jnp.bfloat16), "scale": jnp.float32(2)}

    params = weights()
    opt_state = jax.tree.map(lambda x: x + 3, optax.adamw(1e-3).init(weights()))
    opt_state = (opt_state[0]._replace(mu=weights()), *opt_state[1:])
    skipped = Skipped(jnp.int32(4), jnp.int32(1))
    state = TrainState(jnp.int32(0), params, opt_state, weights(), skipped)
    return jax.device_put(state, meshes.replicated(meshes.build_mesh()))


def at_step(state, step):
    return state._replace(step=jnp.int32(step))


def abstract(tree):
    return meshes.placed(tree, meshes.replicated(meshes.build_mesh()))


def save(run, state, steps, config, keep=2):
    with Checkpoints(run, CheckpointConfig(keep=keep)) as checkpoints:
        for step in steps:
            checkpoints.save(at_step(state, step), config)


@pytest.fixture(scope="module")
def saved(state, smoke_config, tmp_path_factory):
    """A run with the steps 1 and 2; to be copied."""
    run = tmp_path_factory.mktemp("saved") / "run"
    save(run, state, [1, 2], smoke_config)
    return run


@pytest.fixture
def run(saved, tmp_path):
    """A run of one's own with the steps 1 and 2."""
    return shutil.copytree(saved, tmp_path / "run")


def marked(run, step, item):
    """The files with the table of an item, and where it stands; others may be of no use."""
    paths = [path for path in (run / FOLDER / str(step) / item).rglob("*") if path.is_file()]
    places = {path: path.read_bytes().find(MARK.tobytes()) for path in paths}
    found = {path: where for path, where in places.items() if where >= 0}
    assert found
    return found.items()


def flip(run, step, item):
    for path, where in marked(run, step, item):
        data = bytearray(path.read_bytes())
        data[where] ^= 1
        path.write_bytes(data)


def cut_short(run, step, item):
    for path, where in marked(run, step, item):
        path.write_bytes(path.read_bytes()[:where])


def delete_file(run, step, item):
    for path, _ in marked(run, step, item):
        path.unlink()


def delete_item(run, step, item):
    shutil.rmtree(run / FOLDER / str(step) / item)


def steps_of(run):
    return sorted(int(path.name) for path in (run / FOLDER).iterdir())


def test_the_best_is_kept_beside_the_latest(state, smoke_config, tmp_path):
    run, config = tmp_path / "run", CheckpointConfig(keep=1)
    with Checkpoints(run, config) as checkpoints:
        assert checkpoints.best is None
        with pytest.raises(BadInput, match="has no best.json: the best checkpoint is kept where"):
            checkpoints.step_named("best")
        checkpoints.save(at_step(state, 1), smoke_config)
        checkpoints.save_best(at_step(state, 2), smoke_config, {"score": 0.5})
        for step in (3, 4):
            checkpoints.save(at_step(state, step), smoke_config)
    assert steps_of(run) == [2, 4]
    with Checkpoints(run, config) as checkpoints:  # a resumed run
        assert checkpoints.best == {"step": 2, "score": 0.5}
        assert (checkpoints.step_named("best"), checkpoints.step_named(None)) == (2, 4)
        checkpoints.save(at_step(state, 5), smoke_config)
        checkpoints.wait()
        assert steps_of(run) == [2, 5]
        checkpoints.save_best(at_step(state, 6), smoke_config, {"score": 0.7})
        checkpoints.save(at_step(state, 7), smoke_config)
    assert steps_of(run) == [6, 7]


def test_a_state_comes_back_bit_for_bit(run, state, smoke_config):
    with Checkpoints(run) as checkpoints:
        chex.assert_trees_all_equal(checkpoints.restore(1, abstract(state)), at_step(state, 1))
        chex.assert_trees_all_equal(checkpoints.restore_latest(abstract(state)), at_step(state, 2))
        assert checkpoints.config(2) == smoke_config
        for ema, weights in ((True, state.ema_params), (False, state.params)):
            loaded = checkpoints.restore_weights(2, abstract(state.params), ema=ema)
            chex.assert_trees_all_equal(loaded, weights)


def test_times_that_are_learned_are_saved_and_others_leave_no_trace(
    run, tmp_path, state, smoke_config
):
    items = {path.name for path in (run / FOLDER / "1").iterdir() if path.is_dir()}
    assert items == {"params", "ema", "optimizer", "config", "meta"}
    times = jax.tree.map(lambda x: x + 2, Learned(cells=3).init())
    learned = state._replace(times=jax.device_put(times, state.step.sharding))
    save(tmp_path / "learned", learned, [1], smoke_config)
    with Checkpoints(tmp_path / "learned") as checkpoints:
        chex.assert_trees_all_equal(checkpoints.restore(1, abstract(learned)), at_step(learned, 1))
    with Checkpoints(run) as checkpoints, pytest.raises(BadInput, match="times/total is absent"):
        checkpoints.restore(1, abstract(learned))


def test_the_latest_are_kept(tmp_path, state, smoke_config):
    save(tmp_path, state, [1, 2, 3], smoke_config)
    names = {path.name for path in (tmp_path / FOLDER).iterdir()}
    assert {"2", "3"} <= names
    assert "1" not in names


def test_a_step_that_is_there_is_not_written_again(run, state, smoke_config):
    changed = state._replace(params=jax.tree.map(jnp.zeros_like, state.params))
    save(run, changed, [2], smoke_config)
    with Checkpoints(run) as checkpoints:
        chex.assert_trees_all_equal(checkpoints.restore(2, abstract(state)), at_step(state, 2))


def test_what_a_killed_save_leaves_is_not_taken_for_a_checkpoint(run, state, smoke_config):
    (run / FOLDER / "3.orbax-checkpoint-tmp").mkdir()
    with Checkpoints(run, CheckpointConfig()) as checkpoints:
        assert checkpoints.latest == 2
        checkpoints.save(at_step(state, 3), smoke_config)
    with Checkpoints(run) as checkpoints:
        chex.assert_trees_all_equal(checkpoints.restore(3, abstract(state)), at_step(state, 3))


def test_a_donated_state_does_not_reach_the_file(tmp_path, state, smoke_config):
    """The save goes on in the background while the next step reuses the buffers."""
    spoil = jax.jit(lambda tree: jax.tree.map(lambda x: x * 0 - 1, tree), donate_argnums=0)
    mine = jax.tree.map(jnp.copy, at_step(state, 5))
    with Checkpoints(tmp_path, CheckpointConfig()) as checkpoints:
        checkpoints.save(mine, smoke_config)
        spoil(mine)
    with Checkpoints(tmp_path) as checkpoints:
        chex.assert_trees_all_equal(checkpoints.restore(5, abstract(state)), at_step(state, 5))


def test_a_missing_step_is_named_with_those_there(run, state):
    with (
        Checkpoints(run) as checkpoints,
        pytest.raises(BadInput, match="no checkpoint of step 9; it has: 1, 2"),
    ):
        checkpoints.restore_weights(9, abstract(state.params), ema=True)


def test_another_shape_is_not_damage(run, state):
    wider = abstract(state.params | {"table": jnp.zeros((64, 50))})
    expected = r"another shape .* ema/table is float32\[64, 48\], not float32\[64, 50\]"
    with Checkpoints(run) as checkpoints:
        with pytest.raises(BadInput, match=expected):
            checkpoints.restore_weights(1, wider, ema=True)
        with pytest.raises(BadInput, match="another shape"):
            checkpoints.restore_latest(abstract(state)._replace(ema_params=wider))
        assert checkpoints.latest == 2
    assert not (run / DAMAGED_FOLDER).exists()


@pytest.mark.parametrize("item", ["params", "ema", "optimizer"])
def test_a_flipped_bit_is_seen(run, state, item):
    flip(run, 2, item)
    with Checkpoints(run) as checkpoints:
        seen = rf"checkpoints/2 is damaged: .*changed.* \(in {item}/"
        with pytest.raises(BadInput, match=seen):
            checkpoints.restore(2, abstract(state))
        chex.assert_trees_all_equal(checkpoints.restore(1, abstract(state)), at_step(state, 1))


def test_sampling_from_a_damaged_checkpoint_is_refused(run, state):
    flip(run, 2, "ema")
    weights = abstract(state.params)
    with Checkpoints(run) as checkpoints:
        with pytest.raises(BadInput, match="damaged: .*ema/.* with --checkpoint_step; .*: 1.$"):
            checkpoints.restore_weights(2, weights, ema=True)
        chex.assert_trees_all_equal(
            checkpoints.restore_weights(2, weights, ema=False), state.params
        )


def change(run, step, item, where, name, value):
    path = run / FOLDER / str(step) / item / "metadata"
    content = json.loads(path.read_text())
    content[where][name] = value
    path.write_text(json.dumps(content))


def test_a_changed_setting_is_seen(run):
    change(run, 2, "config", "model", "n_heads", 999)
    with Checkpoints(run) as checkpoints, pytest.raises(BadInput, match=r"changed .*\(in config\)"):
        checkpoints.config(2)


@pytest.mark.parametrize(("where", "name"), [("skipped", 0), ("shapes", "ema/table")])
def test_a_changed_count_or_shape_is_damage(run, state, where, name):
    change(run, 2, "meta", where, name, 7)
    with Checkpoints(run) as checkpoints, pytest.raises(BadInput, match=r"changed .*\(in meta\)"):
        checkpoints.restore(2, abstract(state))


@pytest.mark.parametrize(
    ("damage", "item"),
    [
        (flip, "params"),
        (cut_short, "optimizer"),
        (delete_file, "ema"),
        (delete_item, "params"),
        (delete_item, "meta"),
    ],
)
def test_training_goes_back_to_the_step_before_a_damaged_one(run, state, capfd, damage, item):
    damage(run, 2, item)
    (run / DAMAGED_FOLDER / "2").mkdir(parents=True)  # by an earlier damage
    with Checkpoints(run, CheckpointConfig()) as checkpoints:
        restored = checkpoints.restore_latest(abstract(state))
        assert checkpoints.latest == 1
    chex.assert_trees_all_equal(restored, at_step(state, 1))
    assert (run / DAMAGED_FOLDER / "2.1" / "_CHECKPOINT_METADATA").exists()
    assert not any((run / DAMAGED_FOLDER / "2").iterdir())
    (line,) = (line for line in capfd.readouterr().err.splitlines() if "warning: " in line)
    assert f"{run / FOLDER / '2'} is damaged" in line
    assert line.endswith(f"moved to {run / DAMAGED_FOLDER / '2.1'}. Going back to step 1 instead.")


def test_with_nothing_but_damaged_checkpoints_training_does_not_start_over(run, state):
    flip(run, 1, "ema")
    flip(run, 2, "ema")
    for _ in range(2):  # nor the second time, when there are none
        with (
            Checkpoints(run, CheckpointConfig()) as checkpoints,
            pytest.raises(Halted, match="Every checkpoint .* kept in .*damaged"),
        ):
            checkpoints.restore_latest(abstract(state))
    assert {path.name for path in (run / DAMAGED_FOLDER).iterdir()} == {"1", "2"}


def test_a_run_without_checkpoints_has_no_latest(tmp_path, state):
    with Checkpoints(tmp_path, CheckpointConfig()) as checkpoints:
        assert checkpoints.restore_latest(abstract(state)) is None


def test_a_checkpoint_of_an_older_version_is_read(run, state, smoke_config, capsys):
    listing = run / FOLDER / "2" / "_CHECKPOINT_METADATA"
    content = json.loads(listing.read_text())
    del content["item_handlers"]["meta"]
    listing.write_text(json.dumps(content))
    delete_item(run, 2, "meta")
    (settings,) = (run / FOLDER / "2" / "config").glob("metadata")
    saved = json.loads(settings.read_text())
    del saved["mesh"]  # a setting that did not exist
    settings.write_text(json.dumps(saved))
    with Checkpoints(run) as checkpoints:
        restored = checkpoints.restore_latest(abstract(state))
        assert checkpoints.config(2) == smoke_config
    (line,) = capsys.readouterr().err.splitlines()
    assert "saved without checksums" in line
    none = jax.tree.map(jnp.zeros_like, state.skipped)
    chex.assert_trees_all_equal(restored, at_step(state, 2)._replace(skipped=none))


def test_a_disk_that_does_not_answer_moves_nothing(run, state, monkeypatch):
    def restore(*_, **__):
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr(ocp.CompositeCheckpointHandler, "restore", restore)
    with Checkpoints(run) as checkpoints, pytest.raises(Halted, match="may be whole, but .*Stale"):
        checkpoints.restore_latest(abstract(state))
    assert not (run / DAMAGED_FOLDER).exists()


@pytest.fixture
def full_disk():
    """Files cannot grow beyond 4 kB, as if the disk were full: in this process, until the end."""
    _, hard = limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # pages, in a file of pytest
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # then it is an error, not the end
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, ignored)
    logging.getLogger("asyncio").setLevel(logging.NOTSET)


FAILED = "step 3 in .*checkpoints failed: File too large; the last good one is 2"


def wait_for_failure(checkpoints):
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        checkpoints.check()
        time.sleep(0.01)


@pytest.mark.parametrize("notice", ["check", "next save", "end"])
def test_a_failed_save_halts_the_run(run, state, smoke_config, full_disk, notice):
    with (
        pytest.raises(Halted, match=FAILED),
        Checkpoints(run, CheckpointConfig(keep=1)) as checkpoints,
    ):
        checkpoints.save(at_step(state, 3), smoke_config)
        if notice == "check":
            wait_for_failure(checkpoints)
        elif notice == "next save":
            checkpoints.save(at_step(state, 4), smoke_config)
    with Checkpoints(run) as checkpoints:
        assert checkpoints.latest == 2
        chex.assert_trees_all_equal(checkpoints.restore_latest(abstract(state)), at_step(state, 2))


def test_a_failed_save_does_not_hide_what_ended_the_run(
    run, state, smoke_config, full_disk, capsys
):
    with (
        pytest.raises(Halted, match="the loss is not finite"),
        Checkpoints(run, CheckpointConfig()) as checkpoints,
    ):
        checkpoints.save(at_step(state, 3), smoke_config)
        raise Halted("the loss is not finite")
    assert "File too large" in capsys.readouterr().err


def test_a_save_is_finished_when_the_run_ends_by_an_error(run, state, smoke_config):
    with (
        pytest.raises(Halted, match="the loss is not finite"),
        Checkpoints(run, CheckpointConfig()) as checkpoints,
    ):
        checkpoints.save(at_step(state, 3), smoke_config)
        checkpoints.check()
        raise Halted("the loss is not finite")
    with Checkpoints(run) as checkpoints:
        chex.assert_trees_all_equal(checkpoints.restore(3, abstract(state)), at_step(state, 3))


def test_a_folder_that_cannot_be_written_halts_the_run(run, state, smoke_config):
    """Root may write anywhere, so the folder becomes a file: that fails for all."""
    before = set(threading.enumerate())
    with Checkpoints(run, CheckpointConfig()) as checkpoints:
        os.rename(run / FOLDER, run / "elsewhere")
        (run / FOLDER).touch()
        with pytest.raises(Halted, match="step 3 in .*: Not a directory; there is none before"):
            checkpoints.save(at_step(state, 3), smoke_config)
            wait_for_failure(checkpoints)
    deadline = time.monotonic() + 5
    while left := {t for t in threading.enumerate() if not t.daemon} - before:
        assert time.monotonic() < deadline, f"the process would wait at its end for {left}"
        time.sleep(0.01)

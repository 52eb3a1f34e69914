import dataclasses
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sedd_jax.data import preparation, shards
from sedd_jax.data.preparation import prepare_blocks
from sedd_jax.data.tokenizer import load_tokenizer
from sedd_jax.errors import BadInput
from sedd_jax.experiment.checkpoint_folder import FOLDER
from sedd_jax.experiment.config import from_json
from sedd_jax.experiment.run import (
    CONFIG_FILE,
    DATA_FOLDER,
    LOCK_FILE,
    check_folder,
    locked,
    open_run,
    read_run,
)


def replaced(config, group, **changes):
    return dataclasses.replace(
        config, **{group: dataclasses.replace(getattr(config, group), **changes)}
    )


def test_a_run_keeps_its_settings(tmp_path, smoke_config):
    open_run(tmp_path, smoke_config)
    open_run(tmp_path, smoke_config)
    assert from_json((tmp_path / CONFIG_FILE).read_text()) == smoke_config
    for other, line in (
        (dataclasses.replace(smoke_config, seed=1), "seed: 0 -> 1"),
        (replaced(smoke_config, "optim", beta1=0.5), "optim.beta1: 0.9 -> 0.5"),
        (replaced(smoke_config, "train", hold="prefix"), "train.hold: 'none' -> 'prefix'"),
        (replaced(smoke_config, "data", condition="class"), "data.condition: '' -> 'class'"),
    ):
        with pytest.raises(BadInput, match=f"holds a run with other settings .{line}"):
            open_run(tmp_path, other)
    assert from_json((tmp_path / CONFIG_FILE).read_text()) == smoke_config


@pytest.mark.parametrize("setting", [("train", "hold", "prefix"), ("data", "condition", "class")])
def test_a_run_of_before_a_setting_has_its_default(tmp_path, smoke_config, setting):
    """Such a run goes on as it was, and is not given tokens or told conditions half way."""
    group, name, value = setting
    open_run(tmp_path, smoke_config)
    settings = json.loads((tmp_path / CONFIG_FILE).read_text())
    del settings[group][name]
    (tmp_path / CONFIG_FILE).write_text(json.dumps(settings))
    refusal = f"{group}.{name}: '.*' -> '{value}'.; go back .* or .* config.train.initial="
    with pytest.raises(BadInput, match=refusal):
        open_run(tmp_path, replaced(smoke_config, group, **{name: value}))
    open_run(tmp_path, smoke_config)


def test_a_run_may_go_on_for_longer(tmp_path, smoke_config):
    longer = replaced(smoke_config, "train", steps=1000)
    open_run(tmp_path, smoke_config)
    open_run(tmp_path, replaced(longer, "eval", num_samples=1))
    assert from_json((tmp_path / CONFIG_FILE).read_text()).train.steps == 1000


def test_a_run_cannot_end_before_the_steps_it_has_made(tmp_path, smoke_config):
    open_run(tmp_path, smoke_config)
    for name in ("8", "40", "50.orbax-checkpoint-tmp"):
        (tmp_path / FOLDER / name).mkdir(parents=True)
    with pytest.raises(BadInput, match=r"has made 40 steps, more than config.train.steps=20; give"):
        open_run(tmp_path, smoke_config)
    assert from_json((tmp_path / CONFIG_FILE).read_text()) == smoke_config
    open_run(tmp_path, replaced(smoke_config, "train", steps=40))


def test_a_cosine_schedule_fixes_the_number_of_steps(tmp_path, smoke_config):
    cosine = replaced(smoke_config, "optim", decay="cosine")
    open_run(tmp_path, cosine)
    with pytest.raises(BadInput, match="train.steps: 20 -> 1000"):
        open_run(tmp_path, replaced(cosine, "train", steps=1000))


def test_a_folder_of_something_else_is_left_alone(tmp_path, smoke_config):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(BadInput, match="exists and is not a run folder"):
        open_run(tmp_path, smoke_config)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_data_beside_other_things_are_not_those_of_a_killed_run(tmp_path, smoke_config):
    open_run(tmp_path, smoke_config)
    (tmp_path / "config.json").unlink()
    (tmp_path / "samples.jsonl").write_text("precious")
    with pytest.raises(BadInput, match="exists and is not a run folder"):
        open_run(tmp_path, smoke_config)
    (tmp_path / "samples.jsonl").unlink()
    open_run(tmp_path, smoke_config)


@pytest.mark.parametrize(
    ("group", "changes", "message"),
    [
        ("data", {"vocab_size": 300}, "vocab_size is 300, but the tokenizer bytes .* 257 tokens"),
        ("data", {"corpus": "absent.txt"}, "There is no corpus at absent.txt"),
        ("model", {"length": 10**6}, "split has .* tokens, less than one block of length 1000000"),
    ],
)
def test_data_that_do_not_fit_are_refused(tmp_path, smoke_config, group, changes, message):
    with pytest.raises(BadInput, match=message):
        open_run(tmp_path / "run", replaced(smoke_config, group, **changes))


def test_a_run_killed_while_preparing_goes_on(tmp_path, smoke_config, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(preparation, "load_tokenizer", interrupted)  # everything is tokenised by then
        open_run(tmp_path / "run", smoke_config)
    staging = tmp_path / "run" / ".data.staging"
    done = contents(staging / "shards")
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".data.staging"] and done
    check_folder(tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(shards.Shards, "_write", interrupted)  # is not called again
        assert len(open_run(tmp_path / "run", smoke_config).train) > 0
    assert not staging.exists()
    open_run(tmp_path / "straight", smoke_config)
    for name in ("manifest.json", "train-00000.bin"):
        once, twice = (tmp_path / run / DATA_FOLDER / name for run in ("straight", "run"))
        assert once.read_bytes() == twice.read_bytes()


def interrupted(*args):
    raise KeyboardInterrupt


@pytest.mark.parametrize("damage", [b"", b"{", b"5", b"\xff{}", bytes(9)])
def test_damaged_settings_are_named(tmp_path, smoke_config, damage):
    open_run(tmp_path, smoke_config)
    (tmp_path / CONFIG_FILE).write_bytes(damage)
    for read in (open_run, read_run):
        with pytest.raises(BadInput, match="config.json is damaged"):
            read(tmp_path, smoke_config)


def test_to_go_on_the_corpus_is_not_needed(tmp_path, smoke_config):
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("Some words.\n" * 4000)
    config = replaced(smoke_config, "data", corpus=str(corpus))
    before = open_run(tmp_path / "run", config).manifest
    corpus.unlink()
    assert open_run(tmp_path / "run", config).manifest == before


def test_a_url_is_refused(smoke_config):
    for opened in (open_run, read_run):
        with pytest.raises(BadInput, match="--workdir is gs://bucket/run, but .* mount the bucket"):
            opened(Path("gs://bucket/run"), smoke_config)
    assert not Path("gs:").exists()


def contents(folder):
    return {p: p.stat().st_mtime_ns for p in folder.rglob("*")}


def test_the_other_processes_read_what_the_first_opened(tmp_path, smoke_config):
    opened = open_run(tmp_path, smoke_config)
    before = contents(tmp_path)
    read = read_run(tmp_path, smoke_config)
    assert read.manifest == opened.manifest
    assert (read.train[0] == opened.train[0]).all()
    assert contents(tmp_path) == before


def test_a_process_that_does_not_see_the_run_says_so(tmp_path, smoke_config):
    with pytest.raises(BadInput, match="--workdir must be on a file system that all processes"):
        read_run(tmp_path / "run", smoke_config)
    assert not (tmp_path / "run").exists()
    open_run(tmp_path / "run", smoke_config)
    shutil.rmtree(tmp_path / "run" / DATA_FOLDER)
    with pytest.raises(BadInput, match="There are no prepared data in"):
        read_run(tmp_path / "run", smoke_config)


def test_processes_with_different_settings_are_refused(tmp_path, smoke_config):
    open_run(tmp_path, smoke_config)
    # train.steps may change between the parts of a run, but not between its processes
    other = replaced(smoke_config, "train", steps=1000)
    with pytest.raises(BadInput, match="different settings .train.steps: 20 -> 1000.; start every"):
        read_run(tmp_path, other)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, smoke_config):
    folder = tmp_path_factory.mktemp("prepared") / "pydoc"
    prepare_blocks(folder, smoke_config.data, smoke_config.model.length)
    return folder


def test_a_run_on_data_prepared_before_has_the_same_blocks(tmp_path, smoke_config, prepared):
    config = replaced(smoke_config, "data", prepared=str(prepared))
    own, linked = open_run(tmp_path / "own", smoke_config), open_run(tmp_path / "linked", config)
    numbers = np.arange(len(own.train))
    np.testing.assert_array_equal(own.train.take(numbers), linked.train.take(numbers))
    assert own.manifest == linked.manifest == read_run(tmp_path / "linked", config).manifest
    assert not list((tmp_path / "linked").rglob("*.bin"))
    saved = load_tokenizer(tmp_path / "linked" / DATA_FOLDER / "tokenizer")
    assert saved.fingerprint() == own.tokenizer.fingerprint()
    with pytest.raises(BadInput, match="holds a run with other settings .data.prepared: "):
        open_run(tmp_path / "own", config)


def test_a_run_killed_before_it_had_settings_keeps_its_kind_of_data(
    tmp_path, smoke_config, prepared
):
    config = replaced(smoke_config, "data", prepared=str(prepared))
    for first, second, message in (
        (config, smoke_config, "holds other prepared data .*pydoc is new"),
        (smoke_config, config, "data links to other data than"),
    ):
        run = tmp_path / message[:5]
        open_run(run, first)
        (run / CONFIG_FILE).unlink()
        with pytest.raises(BadInput, match=message):
            open_run(run, second)
        open_run(run, first)


def test_a_run_on_prepared_data_stays_with_them(tmp_path, smoke_config, prepared):
    shutil.copytree(prepared, tmp_path / "copy")
    config = replaced(smoke_config, "data", prepared=str(tmp_path / "copy"))
    open_run(tmp_path / "run", config)
    shutil.rmtree(tmp_path / "copy")
    with pytest.raises(BadInput, match="prepared data of this run are gone"):
        open_run(tmp_path / "run", config)
    longer = replaced(smoke_config, "data", heldout_fraction=0.3)
    prepare_blocks(tmp_path / "copy", longer.data, config.model.length)
    with pytest.raises(BadInput, match="holds other data than those this run began with"):
        open_run(tmp_path / "run", config)


def test_a_run_may_find_its_prepared_data_elsewhere(tmp_path, smoke_config, prepared, monkeypatch):
    config = replaced(smoke_config, "data", prepared="first")
    shutil.copytree(prepared, tmp_path / "first")
    monkeypatch.chdir(tmp_path)
    before = open_run(tmp_path / "run", config)
    monkeypatch.chdir("run")
    open_run(tmp_path / "run", config)  # started from another folder
    shutil.move(tmp_path / "first", tmp_path / "second")
    with pytest.raises(BadInput, match="/first was named in .* say with --config.data.prepared wh"):
        open_run(tmp_path / "run", config)
    moved = replaced(smoke_config, "data", prepared="../second")
    assert open_run(tmp_path / "run", moved).manifest == before.manifest
    assert open_run(tmp_path / "run", moved).manifest == before.manifest
    assert from_json((tmp_path / "run" / CONFIG_FILE).read_text()) == moved
    other = dataclasses.replace(smoke_config.data, heldout_fraction=0.3)
    prepare_blocks(tmp_path / "third", other, config.model.length)
    with pytest.raises(BadInput, match="links to other data than ../third"):
        open_run(tmp_path / "run", replaced(smoke_config, "data", prepared="../third"))
    with pytest.raises(BadInput, match="other settings .data.prepared: '../second' -> ''"):
        open_run(tmp_path / "run", smoke_config)


def test_a_refused_run_on_prepared_data_leaves_nothing(tmp_path, smoke_config, prepared):
    config = replaced(smoke_config, "data", prepared=str(prepared))
    next(prepared.glob("heldout-*.bin")).write_bytes(b"")
    with pytest.raises(BadInput, match="heldout-00000.bin is damaged"):
        open_run(tmp_path / "run", config)
    assert not (tmp_path / "run" / DATA_FOLDER).exists()


def test_a_run_on_data_that_do_not_suit_it_is_refused(tmp_path, smoke_config, prepared):
    other = {"prepared": str(prepared), "tokenizer": "text8", "vocab_size": 27}
    with pytest.raises(BadInput, match="config.data.tokenizer=bytes, but it is text8 here"):
        open_run(tmp_path / "run", replaced(smoke_config, "data", **other))
    with pytest.raises(
        BadInput, match="no prepared data are there; .*-m sedd_jax.prepare --config"
    ):
        open_run(tmp_path / "run", replaced(smoke_config, "data", prepared="absent"))
    assert not (tmp_path / "run").exists() or not list((tmp_path / "run").iterdir())


HOLD = """
import sys
from pathlib import Path
from sedd_jax.experiment.run import locked
with locked(Path(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process, which has tmp_path/run until it is killed or its input ends."""
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout.readline() == "locked\n"
        yield process
        process.kill()


def test_a_second_process_is_refused_until_the_first_is_dead(tmp_path, smoke_config, holder):
    run = tmp_path / "run"
    with (
        pytest.raises(BadInput, match=f"{run} is in use by process {holder.pid} on") as refused,
        locked(run),
    ):
        pass
    assert socket.gethostname() in str(refused.value)
    holder.kill()
    holder.wait()
    # A dead process leaves the file, which is in nobody's way, not even in a folder of nothing else
    assert [path.name for path in run.iterdir()] == [LOCK_FILE]
    with locked(run):
        assert (run / LOCK_FILE).read_text() == f"process {os.getpid()} on {socket.gethostname()}"
        open_run(run, smoke_config)
    assert not (run / LOCK_FILE).exists()


def test_a_lock_that_ends_in_peace_can_be_taken_again(tmp_path, holder):
    holder.communicate()
    assert holder.returncode == 0
    assert not (tmp_path / "run").exists()
    with locked(tmp_path / "run"):
        pass


def test_bad_input_leaves_no_folder_that_was_not_there(tmp_path):
    run = tmp_path / "runs" / "first"
    with pytest.raises(BadInput, match="the corpus"), locked(run):
        assert (run / LOCK_FILE).exists()
        raise BadInput("the corpus")
    assert list(tmp_path.iterdir()) == []
    run.mkdir(parents=True)
    with locked(run):
        pass
    assert list(tmp_path.rglob("*")) == [run.parent, run]  # what was there stays
    with locked(run):
        (run / CONFIG_FILE).write_text("{}")
    assert [path.name for path in run.iterdir()] == [CONFIG_FILE]


def test_a_folder_of_something_else_is_not_touched(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    before = tmp_path.stat().st_mtime_ns
    for other in (tmp_path, tmp_path / "thesis.tex"):
        with pytest.raises(BadInput, match="is not a run folder"), locked(other):
            pass
    assert tmp_path.stat().st_mtime_ns == before

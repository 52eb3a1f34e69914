import shutil

import chex
import numpy as np
import pytest

import sedd_jax as sedd
from sedd_jax.errors import BadInput


def test_a_run_loads_with_all_it_needs(smoke_run, smoke_config):
    checkpoint = sedd.load(smoke_run)
    assert checkpoint.step == 20
    assert checkpoint.config == smoke_config
    assert checkpoint.tokenizer.decode(checkpoint.tokenizer.encode("é")) == "é"
    assert checkpoint.graph.num_states == 258
    assert sedd.load(smoke_run, step=10).step == 10


def test_averaged_weights_are_the_default(smoke_run):
    averaged, raw = sedd.load(smoke_run), sedd.load(smoke_run, ema=False)
    chex.assert_trees_all_equal(averaged.params, sedd.load(smoke_run, ema=True).params)
    table = averaged.params["embedding"]["table"] - raw.params["embedding"]["table"]
    assert float(np.abs(table).max()) > 0


def test_the_folder_can_be_moved(smoke_run, tmp_path):
    shutil.copytree(smoke_run, tmp_path / "elsewhere")
    assert sedd.load(tmp_path / "elsewhere").step == 20


def test_what_cannot_be_loaded_is_named(smoke_run, tmp_path):
    with pytest.raises(BadInput, match="There is no folder .*absent"):
        sedd.load(tmp_path / "absent")
    with pytest.raises(BadInput, match="holds neither checkpoints/ .* nor config.json"):
        sedd.load(tmp_path)
    with pytest.raises(BadInput, match="no checkpoint of step 7; it has: 10, 20"):
        sedd.load(smoke_run, step=7)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(BadInput, match="holds no complete checkpoint yet"):
        sedd.load(tmp_path)


def test_damaged_weights_are_refused_and_the_other_steps_named(smoke_run, tmp_path):
    run = shutil.copytree(smoke_run, tmp_path / "run")
    files = [path for path in (run / "checkpoints" / "20" / "ema").rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)
    with pytest.raises(BadInput, match="checkpoints/20 is damaged: .* --checkpoint_step; .*: 10"):
        sedd.load(run)
    assert sedd.load(run, step=10).step == 10

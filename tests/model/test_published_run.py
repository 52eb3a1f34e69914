"""Runs of the published training script, written here without torch."""

import collections
import io
import json
import pathlib
import pickle
import zipfile
from typing import NamedTuple

import jax
import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

import sedd_jax as sedd
from sedd_jax.data.characters import Characters
from sedd_jax.errors import BadInput
from sedd_jax.model.published_run import is_published_run, read_config, read_params

PUBLISHED = pathlib.Path(__file__).parents[1] / "golden" / "absorb_small" / "published"
# as the modules of the network stand in its code, with the buffer among them
ORDER = ("vocab_embed", "sigma_map", "rotary_emb", "blocks", "output_layer")


class Global(NamedTuple):
    module: str
    name: str

    def __call__(self):
        raise NotImplementedError


class Storage(NamedTuple):
    key: str
    count: int


class Writer(pickle._Pickler):
    """Pickles arrays as torch does, their numbers in members of a zip."""

    def __init__(self, file, archive):
        super().__init__(file, 2)
        self.archive, self.keys = archive, 0

    def reducer_override(self, x):
        if isinstance(x, Global):
            return x.name
        if not isinstance(x, np.ndarray):
            return NotImplemented
        key, self.keys = str(self.keys), self.keys + 1
        self.archive.writestr(f"archive/data/{key}", x.tobytes())
        strides = tuple(step // x.itemsize for step in x.strides)
        arguments = (Storage(key, x.size), 0, x.shape, strides, False, collections.OrderedDict())
        return Global("torch._utils", "_rebuild_tensor_v2"), arguments

    def persistent_id(self, x):
        if not isinstance(x, Storage):
            return None
        return "storage", Global("torch", "FloatStorage"), x.key, "cuda:0", x.count

    def save_global(self, x, name=None):
        module, name = x if isinstance(x, Global) else (x.__module__, x.__qualname__)
        self.write(f"c{module}\n{name}\n".encode())


def write_checkpoint(path, contents):
    path.parent.mkdir(exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        file = io.BytesIO()
        Writer(file, archive).dump(contents)
        archive.writestr("archive/data.pkl", file.getvalue())


def averages():
    tensors = load_file(PUBLISHED / "model.safetensors")
    tensors["rotary_emb.inv_freq"] = (1e-4 ** (np.arange(16) / 16)).astype(np.float32)
    return {k: tensors[k] for part in ORDER for k in tensors if k.startswith(part)}


def checkpoint(prefix="", buffers=False):
    """What the script saves; the weights as trained are twice the averages."""
    shadow = averages()
    parameters = [x for name, x in shadow.items() if buffers or name != "rotary_emb.inv_freq"]
    model = {prefix + k: x if "rotary" in k else 2 * x for k, x in shadow.items()}
    model = collections.OrderedDict(model)
    model._metadata = collections.OrderedDict({"": {"version": 1}})
    moments = {i: {"step": 5.0, "exp_avg": x} for i, x in enumerate(parameters)}
    return {
        "optimizer": {"state": moments, "param_groups": [{"lr": 3e-4, "betas": (0.9, 0.999)}]},
        "model": model,
        "ema": {"decay": 0.9999, "num_updates": 5, "shadow_params": parameters},
        "step": 5,
    }


def settings():
    return json.loads((PUBLISHED / "config.json").read_text())


def write_settings(folder, values):
    (folder / ".hydra").mkdir(exist_ok=True)
    (folder / ".hydra" / "config.yaml").write_text(values)


@pytest.fixture
def folder(tmp_path):
    """A run: it has other folders too."""
    for name in ("checkpoints", "samples"):
        (tmp_path / name).mkdir()
    write_settings(tmp_path, yaml.safe_dump(settings() | {"ngpus": 8}))
    return tmp_path


def latest(folder):
    return folder / "checkpoints-meta" / "checkpoint.pth"


@pytest.fixture(scope="module")
def wanted():
    """The model with the averages as its weights."""
    return sedd.load(PUBLISHED)


def equal(params, others, factor=1):
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, factor * y), params, others)


@pytest.mark.parametrize(("prefix", "buffers"), [("", False), ("_orig_mod.module.", True)])
def test_a_run_has_averaged_weights_and_those_as_trained(folder, wanted, prefix, buffers):
    write_checkpoint(latest(folder), checkpoint(prefix, buffers))
    loaded = sedd.load(folder)
    equal(loaded.params, wanted.params)
    assert (loaded.config, loaded.name) == (wanted.config, folder.name)
    equal(sedd.load(folder, ema=False).params, wanted.params, 2)


def test_a_run_may_be_in_a_bucket(folder, wanted, memory_bucket):
    write_checkpoint(latest(folder), checkpoint())
    for path in folder.rglob("*.*"):
        if path.is_file():
            memory_bucket.objects[f"run/{path.relative_to(folder)}"] = path.read_bytes()
    loaded = sedd.load("gs://bucket/run")
    equal(loaded.params, wanted.params)
    assert loaded.name == "run"


def test_a_checkpoint_is_loaded_by_its_path(folder, wanted):
    assert not is_published_run(folder)  # Hydra's folder may be in a run of any program
    other = folder / "checkpoints" / "checkpoint_3.pth"
    write_checkpoint(other, checkpoint())
    Characters("".join(map(chr, range(65, 115))), eod=False).save(folder / "tokenizer")
    loaded = sedd.load(other)
    equal(loaded.params, wanted.params)
    assert loaded.tokenizer.vocab_size == 50
    with pytest.raises(BadInput, match=r"no checkpoints-meta/checkpoint.pth; .*checkpoint_3\.pth"):
        sedd.load(folder)
    with pytest.raises(BadInput, match="leave the step out, or load a checkpoint by its path"):
        sedd.load(folder, step=5)


def without(key):
    def change(contents):
        del contents[key]

    return change


def in_another_order(contents):
    contents["ema"]["shadow_params"].reverse()


def of_another_size(contents):
    contents["ema"]["shadow_params"].pop()


def of_no_tensors(contents):
    contents["ema"]["shadow_params"][0] = 3.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("model"), "checkpoint.pth: it is no checkpoint of the published .* no model"),
        (without("ema"), "no averaged weights .*--noema, or ema=False"),
        (in_another_order, "are not one for each parameter in their order"),
        (of_another_size, "are not one for each parameter .*--noema, or ema=False"),
        (of_no_tensors, "its model or ema.shadow_params holds other things than tensors"),
        (lambda contents: contents["model"].update(more=np.ones(1)), "are not one for each"),
    ],
)
def test_averages_that_do_not_fit_are_refused(folder, wanted, change, message):
    contents = checkpoint()
    change(contents)
    write_checkpoint(latest(folder), contents)
    with pytest.raises(BadInput, match=message):
        read_params(folder, wanted.params, 51)


def test_what_is_no_checkpoint_is_refused(folder, wanted):
    write_checkpoint(latest(folder), [1])
    with pytest.raises(BadInput, match="it is no checkpoint of the published training script"):
        read_params(folder, wanted.params, 51)
    latest(folder).write_bytes(b"PK")
    with pytest.raises(BadInput, match="checkpoint.pth is not a readable PyTorch file"):
        read_params(folder, wanted.params, 51)


@pytest.mark.parametrize(
    ("group", "key", "text", "message"),
    [
        ("noise", "sigma_min", "1e-4", None),
        ("noise", "sigma_min", "1.0e-04", None),
        ("model", "length", "${data.length}", r"model.length = '\$\{data.length\}': write what it"),
        ("graph", "type", "${graph}", r"graph.type = '\$\{graph\}': write what it stands for"),
        ("model", "n_heads", "two", "n_heads = 'two', which should be int"),
        ("model", "n_heads", "]", "config.yaml is not valid YAML"),
    ],
)
def test_settings_are_read_as_the_script_reads_them(folder, group, key, text, message):
    values = settings()
    values[group][key] = "VALUE"
    write_settings(folder, yaml.safe_dump(values).replace("VALUE", text))
    if message is None:
        assert read_config(folder).sigma_min == 1e-4
        return
    with pytest.raises(BadInput, match=message):
        read_config(folder)

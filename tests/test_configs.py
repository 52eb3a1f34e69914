"""Every config file parses, documents its run, and fits together; the large ones cost nothing."""

import importlib
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import pytest

from sedd_jax.comparison.settings import ComparisonConfig, comparison_from
from sedd_jax.data.column_statistics import Label
from sedd_jax.data.conditions import Conditions
from sedd_jax.experiment.config import Config, parse
from sedd_jax.experiment.state import run_keys
from sedd_jax.inference.build import build_family
from sedd_jax.training.step import build_train_step, init_state
from sedd_jax.verification.oracle import OracleConfig
from sedd_jax.verification.report import ExactConfig

FOLDER = Path(__file__).parents[1] / "configs"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "__init__")
ALPHABET = 65  # stands for "whatever the corpus gives"
# published sizes without the table's padding rows: embedding and head of the real states,
# blocks, conditioning
SIZES = {
    "ar_small": 124e6,
    "owt_small": 170e6,
    "owt_medium": 424e6,
    "owt_1_5b": 1.45e9,
    "owt_7b": 6.95e9,
}
KINDS = {"compare": ComparisonConfig, "exact": ExactConfig, "oracle": OracleConfig}
MEMORY = 80e9  # bytes of the accelerators that the sharded ones are laid out for


def load(name):
    return importlib.import_module(f"configs.{name}")


@pytest.mark.parametrize("name", NAMES)
def test_config_is_documented_and_its_shapes_fit(name):
    module = load(name)
    for word in ("Paper row", "Hardware", f"--config=configs/{name}.py"):
        assert word.lower() in module.__doc__.lower()
    config = parse(module.get_config(), KINDS.get(name.partition("_")[0], Config))
    vocab_size = config.data.vocab_size or ALPHABET
    # of a config that names a column, for one label
    conditions, told = None, ()
    if config.data.condition:
        conditions = Conditions((Label(config.data.condition, dict.fromkeys("abc", 1)),))
        told = (conditions.encode([{}] * config.train.batch_size),)
    components = build_family(config, vocab_size, conditions=conditions)
    key = run_keys(config.seed).init
    state = jax.eval_shape(lambda key: init_state(key, components, config.optim), key)
    batch = jax.ShapeDtypeStruct((config.train.batch_size, config.model.length), jnp.int32)
    after, metrics = jax.eval_shape(
        build_train_step(components, config.train, config.optim, key), state, batch, *told
    )
    chex.assert_trees_all_equal_shapes_and_dtypes(state, after)
    assert set(metrics) == {"loss", "grad_norm", "learning_rate", "skipped", "skipped_in_row"}


def state_of(config):
    components = build_family(config, config.data.vocab_size)
    return jax.eval_shape(lambda: init_state(jax.random.key(0), components, config.optim))


def bytes_of(tree):
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("name", SIZES)
def test_published_sizes(name):
    params = state_of(parse(load(name).get_config())).params
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert count == pytest.approx(SIZES[name], rel=0.01)


@pytest.mark.parametrize(
    ("name", "devices", "stated"), [("owt_1_5b", 8, (2.9, 1.5)), ("owt_7b", 64, (13.9, 7.0))]
)
def test_sharded_state_fits_its_hardware(name, devices, stated):
    """The header's gigabytes per device: of state, and of gradient and sum while a step runs."""
    module = load(name)
    config = parse(module.get_config())
    state = state_of(config)
    resident = bytes_of(state) / config.mesh.fsdp
    gradients = 2 * bytes_of(state.params) / config.mesh.fsdp
    assert (resident / 1e9, gradients / 1e9) == pytest.approx(stated, abs=0.05)
    for size in stated:
        assert f"{size} GB per device" in " ".join(module.__doc__.split())
    # what is used whole: the table, the head and a block, and the block's float32 gradient
    whole = bytes_of({k: v for k, v in state.params.items() if k != "blocks"})
    whole += 2 * bytes_of(state.params["blocks"]) / config.model.num_blocks
    sequences = config.train.batch_size // config.train.microbatches // devices
    assert sequences == 8
    position = config.model.hidden_size * 4  # bytes, float32
    kept = {"blocks": 1, "products": 10}[
        config.model.remat
    ]  # 10: input, and q k v, o, 4 + 1 of MLP
    activations = sequences * config.model.length * position * config.model.num_blocks * kept
    assert resident + gradients + whole + activations < 0.75 * MEMORY


@pytest.mark.parametrize("name", ["owt_small_uniform", "owt_medium_uniform"])
def test_both_noise_ranges_of_the_uniform_graph(name):
    module = load(name)
    assert parse(module.get_config()).noise.sigma_min == 1e-4
    assert parse(module.get_config("paper")).noise.sigma_min == 1e-5


@pytest.mark.parametrize("form", ["quick", "long"])
def test_rows_of_the_comparison_are_alike_in_size_and_budget(form):
    comparison = comparison_from(parse(load("compare_table1").get_config(form), ComparisonConfig))
    configs = [row.config for row in comparison.rows]
    families = [build_family(config, config.data.vocab_size) for config in configs]
    trees = [jax.eval_shape(it.model.init, jax.random.key(0)) for it in families]
    sizes = [sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in trees]
    assert max(sizes) < 1.05 * min(sizes)
    assert len({(it.train.steps, it.train.batch_size, it.model.length) for it in configs}) == 1
    assert comparison.one_tokenizer and comparison.reference.name == "sedd_absorb"


def test_there_are_configs():
    assert {"smoke", "tiny", "owt_medium", "text8_uniform"} <= set(NAMES)

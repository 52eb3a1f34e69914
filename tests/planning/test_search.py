"""The search, in a world whose steps are a formula: it finds the best that trying all would."""

import dataclasses
import itertools
import shlex
from types import SimpleNamespace

import jax
import pytest

from sedd_jax.errors import BadInput
from sedd_jax.experiment.config import Config, MeshConfig, parse
from sedd_jax.experiment.mesh import build_mesh
from sedd_jax.planning import search as module
from sedd_jax.planning.hlo_cost.memory import Memory
from sedd_jax.planning.search import (
    Search,
    _with,
    as_table,
    for_idle_memory,
    to_fit,
    train_command,
)
from sedd_jax.planning.topology import parse_topology
from sedd_jax.system.settings import flatten

TOPOLOGY = parse_topology("h100:1x8")
AGAIN = {"none": 1.0, "products": 1.15, "blocks": 1.33}  # work, relative
KEPT = {"none": 9.0, "products": 4.0, "blocks": 1.0}  # of a sequence


def world(config, capacity):
    """Seconds and memory of a step: fsdp divides the state and costs a little, so do parts."""
    mesh, train = config.mesh, config.train
    rows = train.batch_size // train.microbatches // (mesh.data * mesh.fsdp)
    needed = 40 / (mesh.fsdp * mesh.tensor) + rows * KEPT[config.model.remat]
    seconds = AGAIN[config.model.remat] * (1 + 0.1 * (mesh.tensor - 1))
    seconds += 0.02 * train.microbatches + 0.01 * mesh.fsdp
    seconds *= 1.5 if config.model.attention == "xla" else 1
    return needed, seconds, needed <= capacity


@pytest.fixture
def compiled(monkeypatch):
    """Puts the formula in place of compilers; the configs that were compiled."""
    configs = []

    def lower(config, vocab_size, mesh):
        attention = same.get(config.model.attention, config.model.attention)
        text = str(_with(config, "model", attention=attention))
        return SimpleNamespace(config=config, lowered=SimpleNamespace(as_text=lambda: text))

    same = {}

    def install(capacity, fails=lambda config: None, alike=None):
        same.update(alike or {})

        def estimate(program, topology, price):
            config = program.config
            configs.append(config)
            fails(config)
            needed, seconds, fits = world(config, capacity)
            found = SimpleNamespace(
                memory=SimpleNamespace(fits=fits, needed_bytes=needed),
                prediction=SimpleNamespace(seconds=seconds),
                tokens_per_second=1 / seconds,
                mfu=0.5,
                dollars_per_billion_tokens=seconds,
            )
            found._replace = lambda **_: found
            return found

        monkeypatch.setattr(module, "topology_devices", lambda topology: jax.devices())
        monkeypatch.setattr(module, "train_program", lower)
        monkeypatch.setattr(module, "state_per_chip", lambda *_: 0)
        monkeypatch.setattr(module, "estimate", estimate)
        return configs

    return install


def run(config=None, **options):
    lines = []
    options = {"report": lines.append} | options
    return Search(config or Config(), TOPOLOGY, 257, **options).run(), lines


def best_of_all(capacity):
    best = float("inf")
    for tensor, fsdp, remat in itertools.product((1, 2), (1, 2, 4, 8), AGAIN):
        if 8 % (tensor * fsdp):
            continue
        mesh = MeshConfig(data=8 // (tensor * fsdp), fsdp=fsdp, tensor=tensor)
        share = 512 // (8 // tensor)
        for rows in (rows for rows in range(1, 33) if share % rows == 0):
            config = Config(mesh=mesh)
            config = dataclasses.replace(
                config,
                model=dataclasses.replace(config.model, remat=remat),
                train=dataclasses.replace(config.train, microbatches=share // rows),
            )
            _, seconds, fits = world(config, capacity)
            best = min(best, seconds if fits else best)
    return best


@pytest.mark.parametrize("capacity", [1000, 80, 60, 45])
def test_the_best_is_near_what_trying_all_finds(compiled, capacity):
    configs = compiled(capacity)
    found, lines = run()
    assert found[0].seconds <= 1.1 * best_of_all(capacity)
    assert [each.seconds for each in found] == sorted(each.seconds for each in found)
    assert len(configs) == len(set(configs)) == len(lines) <= 24
    assert all(each.config.train.batch_size == 512 for each in found)
    assert "s a step" in lines[0] or "does not fit" in lines[0]


def test_no_more_is_compiled_than_allowed(compiled):
    configs = compiled(80)
    run(limit=3)
    assert len(configs) == 3


def test_the_least_is_tried_before_giving_up(compiled):
    configs = compiled(7)
    found, _ = run()
    assert found[0].config.mesh.fsdp == 8 and found[0].config.model.remat == "blocks"
    compiled(1)
    assert run()[0] == []
    assert {1, 8} <= {config.mesh.fsdp for config in configs}


def test_a_batch_that_no_mesh_divides_is_refused(compiled):
    compiled(80)
    config = Config()
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, batch_size=9))
    with pytest.raises(BadInput, match=r"No mesh of h100:1x8 .* config.train.batch_size"):
        run(config)


def test_meshes_that_cannot_keep_the_state_are_not_compiled(compiled, monkeypatch):
    configs = compiled(1000)
    monkeypatch.setattr(
        module, "state_per_chip", lambda config, *_: 200e9 / config.mesh.fsdp / config.mesh.tensor
    )
    run()
    assert {config.mesh.fsdp * config.mesh.tensor for config in configs} == {4, 8}


def test_attention_that_makes_the_same_program_is_compiled_once(compiled):
    configs = compiled(80, alike={"auto": "xla"})
    found, lines = run()
    assert {config.model.attention for config in configs} == {"auto"}
    assert len(configs) == len(set(configs)) == len(lines)
    assert len(found) == len({each.config for each in found})


def searched(**options):
    lines = []
    return Search(Config(), TOPOLOGY, 257, report=lines.append, **options), lines


def test_what_ended_it_is_said(compiled):
    compiled(80)
    short, _ = searched(limit=3)
    short.run()
    whole, _ = searched(limit=100)
    whole.run()
    assert (short.ended, whole.ended) == ("--limit=3", None)


def test_an_interrupt_keeps_what_was_found(compiled):
    def interrupt(config):
        if len(configs) == 3:
            raise KeyboardInterrupt

    configs = compiled(1000, interrupt)
    search, _ = searched()
    assert {each.config for each in search.run()} == set(configs[:2])
    assert search.ended == "Ctrl-C"


@pytest.mark.parametrize("error", [jax.errors.JaxRuntimeError, BadInput])
def test_a_program_that_the_compiler_gives_up_is_skipped(compiled, error):
    def fail(config):
        if config.mesh.fsdp == 1:
            raise error("INTERNAL: a bug\nand a long tale")

    compiled(1000, fail)
    search, lines = searched()
    found = search.run()
    assert found and all(each.config.mesh.fsdp > 1 for each in found)
    assert search.skipped == sum("skipped, INTERNAL: a bug" in line for line in lines) == 2
    assert not any("tale" in line for line in lines)


def test_a_table_of_the_best(compiled):
    compiled(80)
    found, _ = run()
    shown = as_table(found, most=2)
    assert len(shown.rows) == 2
    assert len(shown.rows[0]) == len(shown.columns)
    assert shown.rows[0][6] == found[0].seconds


# figures by hand: 4 devices, a batch of 64, a chip of 1000 bytes
OWN = flatten(dataclasses.asdict(Config()))


def config_of(microbatches, remat="products"):
    config = Config()
    return dataclasses.replace(
        config,
        train=dataclasses.replace(config.train, batch_size=64, microbatches=microbatches),
        model=dataclasses.replace(config.model, remat=remat),
    )


def estimate_of(arguments, temporaries):
    mesh = build_mesh(MeshConfig(data=4), jax.devices()[:4])
    given = {"parameters": arguments, "batch": 0}
    return SimpleNamespace(
        program=SimpleNamespace(mesh=mesh, argument_bytes=given),
        memory=Memory(1000.0, {"arguments": arguments, "temporaries": temporaries}, {}),
    )


@pytest.mark.parametrize(
    ("temporaries", "said"),
    [
        # at 8 microbatches of 2 a chip; 800 are left, of what is filled at most
        (40.0, "microbatches=1 would hold 16 sequences"),
        (150.0, "microbatches=2 would hold 8 sequences"),
        (300.0, "microbatches=4 would hold 4 sequences"),
        (401.0, None),  # less than half is free
    ],
)
def test_idle_memory_takes_more_sequences_at_a_time(temporaries, said):
    found = for_idle_memory(config_of(8), estimate_of(100.0, temporaries))
    assert (said is None and found is None) or f"--config.train.{said}" in found


def test_a_batch_in_one_part_takes_no_more():
    assert for_idle_memory(config_of(1), estimate_of(100.0, 10.0)) is None


def test_the_larger_part_is_divided_first():
    state = to_fit(config_of(1), estimate_of(1500.0, 200.0), training=True)
    made = to_fit(config_of(1), estimate_of(500.0, 900.0), training=True)
    mesh, rows = "--config.mesh.data=1 --config.mesh.fsdp=4 divides", "microbatches="
    assert state.index(mesh) < state.index(rows)
    assert made.index(mesh) > made.index(rows)
    # 400 are left for 900 / 4 = 225; 2 microbatches still make 450
    assert "microbatches=4 would hold 4 sequences of a chip" in made
    assert "remat=blocks" in made and made.endswith("--search tries them.")
    assert "remat" not in to_fit(config_of(1, "blocks"), estimate_of(500.0, 900.0), training=True)


def test_where_nothing_fits_a_sequence_at_a_time_is_the_least():
    found = to_fit(config_of(1), estimate_of(1500.0, 900.0), training=True)
    assert "microbatches=16 would hold 1 sequence of a chip" in found


def test_a_sampler_takes_fewer_sequences():
    found = to_fit(config_of(1), estimate_of(500.0, 900.0), training=False)
    assert found.startswith("--per_chip takes fewer sequences; --config.mesh.data=1")
    assert "microbatches" not in found and "--search" not in found


def test_the_command_gives_the_config():
    config = config_of(8, "blocks")
    words = shlex.split(train_command("a config.py:x", config, OWN))
    assert words[:4] == ["python", "-m", "sedd_jax.train", "--config=a config.py:x"]
    assert words[-1] == "--workdir=FOLDER"
    values = dataclasses.asdict(Config())
    for flag in words[4:-1]:
        key, value = flag.removeprefix("--config.").split("=")
        group, name = key.split(".")
        values[group][name] = type(values[group][name])(value)
    assert parse(values) == config


def test_the_file_of_a_command_has_its_own_settings():
    assert train_command("a.py", Config(), OWN).endswith("--config=a.py --workdir=FOLDER")

"""`python -m sedd_jax.plan`: what it refuses, and whole plans where compilers are installed."""

import importlib.util
import json

import pytest

LIBTPU = importlib.util.find_spec("libtpu")
CUDA = importlib.util.find_spec("jax_plugins")
SMOKE = "--config=configs/smoke.py"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ((SMOKE,), "--topology=MACHINE is needed"),
        (("--topology=v5e:2x2",), "--config=FILE is needed"),
        ((SMOKE, "--topology=v5e:2"), "v5e takes 2 sizes"),
        ((SMOKE, "--topology=v5e:2x2", "--price=nan"), "--price=nan is not a price"),
        ((SMOKE, "--config.modle.remat=none"), "'modle' is no setting of the config: 'model' is."),
        ((SMOKE, "--config.model.remt=none"), "'remt' is no setting of the config: 'remat' is."),
        ((SMOKE, "--config.nosuch=1"), "'nosuch' is no setting of the config."),
        ((SMOKE, "--topology=v5e:2x2", "--sample", "--search"), "--sample and --search"),
        ((SMOKE, "--topology=v5e:2x2", "--steps=3"), "--steps is for --sample"),
        ((SMOKE, "--topology=v5e:2x2", "--limit=3"), "--limit is for --search"),
        ((SMOKE, "--topology=v5e:2x2", "--search", "--per_chip=2"), "keeps the batch"),
        ((SMOKE, "--topology=v5e:2x2", "--output=setup.py"), "setup.py exists already"),
        ((SMOKE, "--topology=v5e:2x2", "--keep_hlo=no/such/file"), "folder of --keep_hlo"),
        ((SMOKE, "--topology=v5e:2x2", "--output=a", "--keep_hlo=a"), "are both a"),
        (("--config=configs/shakespeare.py", "--topology=v5e:2x2"), "--vocab_size=N"),
        pytest.param(
            (SMOKE, "--topology=v5e:2x2"),
            "needs libtpu",
            marks=pytest.mark.skipif(bool(LIBTPU), reason="is there"),
        ),
    ],
)
def test_bad_input_is_one_line(binary, flags, said):
    assert said in binary.refuse("plan", *flags)


@pytest.fixture
def plan(binary, tmp_path):
    """Plans, and returns what was printed and the JSON."""

    def run(*flags):
        output = tmp_path / "plan.json"
        text = binary.run("plan", *flags, f"--output={output}")
        return text, json.loads(output.read_text())

    return run


@pytest.mark.slow
@pytest.mark.skipif(not LIBTPU, reason="needs libtpu")
def test_a_training_step_on_a_slice(plan, tmp_path):
    kept = tmp_path / "program.txt"
    text, found = plan(
        SMOKE, "--topology=v5e:2x2", "--config.mesh.fsdp=2", "--per_chip=8", f"--keep_hlo={kept}"
    )
    title = "smoke.py on v5e:2x2 (4 TPU v5 lite), data=2 fsdp=2: training step, 32 sequences of 32"
    assert title in text
    assert "nothing is run" in text
    assert "the run, 40 steps" in text
    command = "--config=configs/smoke.py --config.train.batch_size=32 --config.mesh.fsdp=2"
    assert f"python -m sedd_jax.train {command} --workdir" in text
    assert found["memory"]["fits"]
    assert found["memory"]["hbm_bytes"] == 15.75 * 2**30
    assert 0 < found["mfu"] < 1
    axes = {(each["kind"], tuple(each["axes"])) for each in found["collectives"]}
    assert ("all-gather", ("fsdp",)) in axes
    assert "ENTRY" in kept.read_text()


@pytest.mark.slow
@pytest.mark.skipif(not LIBTPU, reason="needs libtpu")
@pytest.mark.parametrize("mode", ["--sample", "--evaluate"])
def test_a_sampler_and_a_bound_on_a_slice(plan, mode):
    text, found = plan(SMOKE, "--topology=v5e:2x2", mode, "--per_chip=1")
    assert "4 sequences of 32, 1 a chip" in text
    assert "the run" not in text and "sedd_jax.train" not in text
    assert found["memory"]["fits"]


@pytest.mark.slow
@pytest.mark.skipif(not LIBTPU, reason="needs libtpu")
def test_what_cannot_fit_is_said_with_what_would_help(binary, tmp_path):
    flags = (
        "--config=configs/owt_medium.py", "--topology=v5e:2x2", "--per_chip=64",
        "--config.model.remat=none", f"--output={tmp_path / 'plan.json'}",
    )  # fmt: skip
    process = binary.start("plan", *flags)
    out, err = process.communicate()
    assert process.returncode == 1
    assert "does NOT fit: the compiler refused" in out
    assert "--config.mesh.fsdp=4 divides" in err
    assert "--config.model.remat=blocks" in err
    assert json.loads((tmp_path / "plan.json").read_text())["memory"]["refused"]


@pytest.mark.slow
@pytest.mark.skipif(not LIBTPU, reason="needs libtpu")
def test_a_search_on_a_slice(plan):
    flags = "--search", "--limit=4", "--config.seed=7"
    text, found = plan(SMOKE, "--topology=v5e:2x2", *flags)
    assert "python -m sedd_jax.train --config=configs/smoke.py --config.seed=7 --config." in text
    assert "Ended by --limit=4" in text
    assert len(found) <= 4
    assert [each["seconds"] for each in found] == sorted(each["seconds"] for each in found)


@pytest.mark.skipif(not CUDA, reason="needs JAX's CUDA plugin")
def test_a_training_step_on_gpus(plan):
    text, found = plan(SMOKE, "--topology=h100:1x8", "--config.mesh.fsdp=2")
    assert "data=4 fsdp=2: training step" in text
    assert found["device_kind"] == "NVIDIA H100 80GB HBM3"
    assert found["memory"]["fits"]

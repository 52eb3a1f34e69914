"""What tests of disturbed runs share."""

import chex
import pytest

import sedd_jax as sedd

COMMAND = (
    "--config=configs/smoke.py",
    "--config.train.steps=60",
    "--config.checkpoint.every=20",
    "--config.checkpoint.keep=3",
    "--config.eval.every=1000",
    "--config.eval.sample_every=1000",
    "--config.eval.num_samples=0",
)


@pytest.fixture(scope="session")
def straight(binary, tmp_path_factory):
    """The folder of an undisturbed run."""
    run = tmp_path_factory.mktemp("straight") / "run"
    binary.run("train", *COMMAND, f"--workdir={run}")
    return run


def ends_like(run, straight):
    for ema in (True, False):
        chex.assert_trees_all_equal(
            sedd.load(run, ema=ema).params, sedd.load(straight, ema=ema).params
        )


def after_line(process, start):
    for line in process.stdout:
        if line.startswith(start):
            return line
        assert "step 2000/" not in line, f"no line begins with {start}"  # some seconds' worth
    raise AssertionError(process.stderr.read())


def report(fault, code, text):
    print(f"\n{fault}: exit code {code}\n  " + "\n  ".join(text.strip().splitlines()))

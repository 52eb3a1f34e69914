"""The binary as a user runs it; what it claims is tested, faster, in tests/claims."""

import json

import pytest

SMALLEST = [
    "--config=configs/exact_absorb.py",
    "--config.data.vocab_size=2",
    "--config.model.length=2",
    "--config.model.hidden_size=8",
    "--config.model.num_blocks=1",
    "--config.train.steps=1",
    "--config.optim.decay=constant",
    "--config.train.batch_size=8",
    "--config.exact.max_steps=64",
    "--config.exact.num_samples=4096",
    "--config.exact.num_draws=262144",
    "--config.exact.repeats=16",
]


@pytest.fixture(scope="module")
def untrained(binary, tmp_path_factory):
    """The process and the folder of a run whose network has seen one batch: it must fail."""
    folder = tmp_path_factory.mktemp("exact") / "report"
    process = binary.start("exact", *SMALLEST, f"--workdir={folder}")
    out, err = process.communicate()
    return process.returncode, out, err, folder


@pytest.mark.slow
def test_an_untrained_network_fails_the_claims_on_training_and_no_others(untrained):
    code, out, err, _ = untrained
    assert code == 1, err
    failures = [line for line in err.splitlines() if line.startswith("FAILED: ")]
    assert any("trained on 65536" in line for line in failures), err
    others = [line for line in failures if "trained on" not in line and "drawn samples" not in line]
    assert others == []
    assert "## The bound" in out and "| NO " in out


@pytest.mark.slow
def test_everything_is_written_and_nothing_overwritten(untrained, binary):
    *_, folder = untrained
    report = json.loads((folder / "report.json").read_text())
    assert report["config"]["data"]["vocab_size"] == 2 and report["versions"]["jax"]
    assert len(report["sections"]) == 12
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "report.md",
        "report.json",
        "steps.png",
        "correctors.png",
        "guidance.png",
        "order.png",
        "rare.png",
        "training.png",
    }
    line = binary.refuse("exact", *SMALLEST, f"--workdir={folder}")
    assert "report.json exists already; give --workdir another name" in line


def test_a_config_of_another_binary_is_refused(binary):
    assert "config.exact is missing" in binary.refuse("exact", "--config=configs/smoke.py")


@pytest.mark.parametrize(
    ("config", "objective", "message"),
    [
        ("absorb", "cross_entropy", "a softmax over the clean token: set config.model.output"),
        ("absorb", "score_entropy(steps=2)", "score_entropy has no options, got steps"),
        ("conditions", "all", "told nothing: leave out config.data.condition"),
    ],
)
def test_an_objective_that_cannot_be_audited_is_refused(binary, config, objective, message):
    flags = (f"--config=configs/exact_{config}.py", f"--objective={objective}")
    line = binary.refuse("exact", *flags)
    assert message in line


@pytest.mark.slow
def test_a_claimed_bound_that_is_none_is_caught(binary, tmp_path):
    """An objective of a user's own: the mean of -log p(x0 | x_t) over t, said to be a bound."""
    process = binary.start(
        "exact",
        *SMALLEST,
        "--config.model.output=denoiser",
        "--config.model.scale_by_sigma=False",
        "--objective=tests.verification.test_audit:snapshots",
        f"--workdir={tmp_path / 'report'}",
    )
    out, err = process.communicate()
    assert process.returncode == 1, err
    failures = [line for line in err.splitlines() if line.startswith("FAILED: ")]
    assert "FAILED: true scores: number + log p, least over x_0" in failures
    assert "| tests.verification.test_audit:snapshots | denoiser | yes" in out

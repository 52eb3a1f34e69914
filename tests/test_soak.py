"""A run that is killed again and again ends where the undisturbed one does.

python -m pytest -m slow -n 0 -s tests/test_soak.py
"""

import json
import random
import time

import chex
import pytest

import sedd_jax as sedd
from sedd_jax.experiment.checkpoint_folder import FOLDER
from sedd_jax.experiment.metrics import FILE

KILLS = 25
COMMAND = (
    "--config=configs/smoke.py",
    "--config.train.steps=3000",
    "--config.train.log_every=20",
    "--config.checkpoint.every=20",
    "--config.eval.every=1000",
    "--config.eval.sample_every=3000",
    "--config.eval.num_samples=0",
)


def complete_steps(run):
    return [int(path.name) for path in (run / FOLDER).glob("*") if path.name.isdigit()]


def saving(run):
    return any((run / FOLDER).glob("*.orbax-checkpoint-tmp*"))


def live(binary, run, chance, wait_for_a_save):
    """Starts the run and kills it, in the middle of a save or whenever.

    Returns whether a save was in progress, and the step it went on from, None if it said none.
    """
    process = binary.start("train", *COMMAND, f"--workdir={run}")
    if wait_for_a_save:
        done = max(complete_steps(run), default=0) + 20 * chance.randint(0, 4)
        while max(complete_steps(run), default=0) < done or not saving(run):
            assert process.poll() is None, process.communicate()
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.2))
    else:
        time.sleep(chance.uniform(0, 9))
    in_a_save = saving(run)
    process.kill()
    out, err = process.communicate()
    assert process.returncode == -9, err
    # nothing but the usual: no damage was found, nothing was refused
    assert "warning: " not in err and "error: " not in err, (out, err)
    continued = [line for line in out.splitlines() if line.startswith("Continuing")]
    return in_a_save, (int(continued[0].split()[-1].strip(".")) if continued else None)


@pytest.mark.slow
@pytest.mark.unsteady
def test_killed_at_any_moment_a_run_ends_the_same(binary, tmp_path):
    chance = random.Random(0)
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    binary.run("train", *COMMAND, f"--workdir={straight}")
    before, in_saves, resumes = [], 0, 0
    for kill in range(KILLS):
        in_a_save, continued = live(binary, killed, chance, wait_for_a_save=kill % 2 == 0)
        in_saves += in_a_save
        if continued is not None:
            resumes += 1
            assert continued == max(before)  # no step lost but those since the last save
        before = complete_steps(killed)
    out = binary.run("train", *COMMAND, f"--workdir={killed}")
    assert f"Continuing after step {max(before)}." in out
    assert "Done: step 3000" in out
    for ema in (True, False):
        chex.assert_trees_all_equal(
            sedd.load(killed, ema=ema).params, sedd.load(straight, ema=ema).params
        )
    times = {"tokens_per_second", "step_seconds", "waiting_for_data"}

    rows = [
        [
            {k: v for k, v in json.loads(line).items() if k not in times}
            for line in (run / FILE).read_text().splitlines()
        ]
        for run in (killed, straight)
    ]
    assert rows[0] == rows[1]
    print(
        f"\nsoak: {KILLS} kills, {in_saves} of them in the middle of a save, {resumes} resumes "
        f"before the last; differences of parameters, averages and rows: 0"
    )

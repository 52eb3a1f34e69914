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
    "--config.train.log_every=20",
    "--config.checkpoint.every=20",
    "--config.eval.every=1000",
    "--config.eval.sample_every=3000",
    "--config.eval.num_samples=0",
)


class Folder:
    """The folder of a run that is killed.

    Attributes:
      longest: seconds after a start until it is killed at the latest, if not in a save.
      saves: complete ones that are waited for at the most.
      pause: seconds between two looks for a save.
    """

    longest, saves, pause = 9, 4, 0.001

    def __init__(self, path):
        self.name = path

    def complete_steps(self):
        return [int(path.name) for path in (self.name / FOLDER).glob("*") if path.name.isdigit()]

    def saving(self):
        return any((self.name / FOLDER).glob("*.orbax-checkpoint-tmp*"))

    def rows(self):
        return (self.name / FILE).read_text()

    def killed(self, kills):
        """What is done after the kill of a number before the next start."""


def live(binary, run, command, chance, wait_for_a_save):
    """Starts the run and kills it, in the middle of a save or whenever.

    Returns whether a save was in progress, and the step it went on from, None if it said none.
    """
    process = binary.start("train", *command, f"--workdir={run.name}")
    if wait_for_a_save:
        done = max(run.complete_steps(), default=0) + 20 * chance.randint(0, run.saves)
        while max(run.complete_steps(), default=0) < done or not run.saving():
            assert process.poll() is None, process.communicate()
            time.sleep(run.pause)
        time.sleep(chance.uniform(0, 0.2))
    else:
        time.sleep(chance.uniform(0, run.longest))
    in_a_save = run.saving()
    process.kill()
    out, err = process.communicate()
    assert process.returncode == -9, err
    # nothing but the usual: no damage was found, nothing was refused
    assert "warning: " not in err and "error: " not in err, (out, err)
    continued = [line for line in out.splitlines() if line.startswith("Continuing")]
    return in_a_save, (int(continued[0].split()[-1].strip(".")) if continued else None)


def rows_of(text):
    times = {"tokens_per_second", "step_seconds", "waiting_for_data"}
    rows = [json.loads(line) for line in text.splitlines()]
    return [{k: v for k, v in row.items() if k not in times} for row in rows]


def soak(binary, run, steps, straight):
    """Kills a run again and again, and compares it with one in a folder that is left alone."""
    chance, command = random.Random(0), (*COMMAND, f"--config.train.steps={steps}")
    binary.run("train", *command, f"--workdir={straight}")
    before, in_saves, resumes = [], 0, 0
    for kill in range(KILLS):
        in_a_save, continued = live(binary, run, command, chance, wait_for_a_save=kill % 2 == 0)
        in_saves += in_a_save
        if continued is not None:
            resumes += 1
            assert continued == max(before)  # no step lost but those since the last save
        run.killed(kill + 1)
        before = run.complete_steps()
    process = binary.start("train", *command, f"--workdir={run.name}")
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert f"Continuing after step {max(before)}." in out
    assert f"Done: step {steps}" in out
    for ema in (True, False):
        chex.assert_trees_all_equal(
            sedd.load(run.name, ema=ema).params, sedd.load(straight, ema=ema).params
        )
    assert rows_of(run.rows()) == rows_of((straight / FILE).read_text())
    print(
        f"\nsoak: {KILLS} kills, {in_saves} of them in the middle of a save, {resumes} resumes "
        f"before the last; differences of parameters, averages and rows: 0"
    )


@pytest.mark.slow
@pytest.mark.unsteady
def test_killed_at_any_moment_a_run_ends_the_same(binary, tmp_path):
    soak(binary, Folder(tmp_path / "killed"), 3000, tmp_path / "straight")

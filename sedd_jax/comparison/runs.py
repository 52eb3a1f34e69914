"""Trains and scores the runs of a comparison, one process after another, and resumes all of it.

Every run is a folder of `sedd_jax.train`, which resumes by itself, and every figure a record of
`sedd_jax.evaluate`. Nothing else is kept, so a comparison that was stopped or killed continues
where it was. A process of its own for each run keeps the memory of one row out of the next one,
and a row that fails does not end the others.
"""

import contextlib
import dataclasses
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import NamedTuple

from sedd_jax.comparison.score import DataSets, Request, scored
from sedd_jax.comparison.settings import Comparison, Row
from sedd_jax.display.table import duration
from sedd_jax.errors import BadInput, Halted
from sedd_jax.evaluation.record import Record
from sedd_jax.experiment import metrics
from sedd_jax.experiment.checkpoint_folder import last_saved
from sedd_jax.experiment.config import Config, to_json
from sedd_jax.experiment.run import LOCK_FILE, locked
from sedd_jax.system import preemption
from sedd_jax.system.files import atomic_write
from sedd_jax.system.processes import StopSignal

_PATIENCE = 60.0  # seconds that the process of a comparison that was killed may take to end
_POLL = 0.2
_TELL = 30.0  # seconds between two lines on a run


class Run(NamedTuple):
    """A row with one of its seeds.

    Attributes:
      row: the row.
      seed: its number, from 0.
      parent: the folder of the comparison.
    """

    row: Row
    seed: int
    parent: Path

    @property
    def title(self) -> str:
        return f"{self.row.title}, seed {self.config.seed}"

    @property
    def config(self) -> Config:
        return self.row.seeded(self.seed)

    @property
    def folder(self) -> Path:
        return self.parent / self.row.name / f"seed_{self.config.seed}"

    @property
    def settings_file(self) -> Path:
        return self.folder.with_suffix(".json")

    @property
    def log(self) -> Path:
        return self.folder.with_suffix(".log")

    @property
    def failure_file(self) -> Path:
        return self.folder.with_suffix(".failed")

    @property
    def failure(self) -> str | None:
        """Why its last attempt failed; None if it did not."""
        return self.failure_file.read_text().strip() if self.failure_file.is_file() else None

    @property
    def steps(self) -> int:
        """Its saved steps."""
        return last_saved(self.folder) or 0

    @property
    def is_trained(self) -> bool:
        return self.steps == self.config.train.steps


@dataclasses.dataclass(frozen=True)
class Plan:
    """What to run.

    Attributes:
      comparison: the rows.
      folder: that they are in.
      picked: the names of the rows to run now.
      judge: the model that scores samples; None: the comparison's own autoregressive row.
      data: sets to score beside the held-out text.
    """

    comparison: Comparison
    folder: Path
    picked: Collection[str]
    judge: str | None
    data: DataSets

    @property
    def runs(self) -> list[Run]:
        """All runs, of the first seed first; the row that judges the others before them."""
        own = self.comparison.own_judge
        rows = sorted(self.comparison.rows, key=lambda row: row is not own)
        seeds = range(self.comparison.settings.seeds)
        return [Run(row, seed, self.folder) for seed in seeds for row in rows]

    def request(self, run: Run) -> Request:
        """Returns what to score of a run."""
        own = None if self.judge else self._own_judge()
        settings = dataclasses.replace(self.comparison.settings, seeds=1, reference="")
        if not self.comparison.one_tokenizer:  # figures of samples are of their tokens
            settings = dataclasses.replace(settings, samples=0)
        return Request(
            run=str(run.folder),
            step=run.config.train.steps,
            settings=settings,
            judge=str(own) if own else self.judge,
            own_judge=own is not None,
            data=self.data,
        )

    def _own_judge(self):
        """The folder of the first autoregressive run; None unless it is trained."""
        row = self.comparison.own_judge
        if row is None or not self.comparison.settings.samples:
            return None
        run = Run(row, 0, self.folder)
        return run.folder if run.is_trained else None

    def records(self, run: Run) -> list[Record] | None:
        """Returns the records of a run; None unless it is trained and all are there."""
        return scored(self.request(run)) if run.is_trained else None


def complete(plan: Plan, tell: Callable[[], None]) -> None:
    """Trains and scores what is missing of the picked rows.

    Args:
      plan: what to run.
      tell: called after every run that was not complete before.

    Raises:
      Halted: a signal asked to stop; the run in progress has saved.
      BadInput: a process of an earlier call is still at work in the folder.
    """
    wanted = [run for run in plan.runs if run.row.name in plan.picked]
    clock = _Clock(wanted, plan)
    with StopSignal() as signals, preemption.watched(signals.notice):
        for number, run in enumerate(wanted, 1):
            if plan.records(run) is not None:
                continue
            clock.name = f"{number}/{len(wanted)}  {run.title}"
            failure = _attempt(run, plan, clock, signals)
            if failure:
                atomic_write(run.failure_file, failure + "\n")
                clock.say(f"failed: {failure}")
            else:
                run.failure_file.unlink(missing_ok=True)
                clock.say(f"done; {clock.left(number)}")
            tell()


def _attempt(run, plan, clock, signals):
    """Trains and scores a run; returns why that failed, or None."""
    _wait_for_former(run)
    run.log.parent.mkdir(parents=True, exist_ok=True)
    if not run.is_trained:
        clock.say("training")
        atomic_write(run.settings_file, to_json(run.config) + "\n")
        flags = (f"--config={run.settings_file}", f"--workdir={run.folder}")
        with clock.training(run) as tick:
            if failure := _process(run.log, signals, tick, "sedd_jax.train", *flags):
                return failure
    clock.say("scoring")
    with clock.scoring():
        request = plan.request(run).to_json()
        failure = _process(run.log, signals, lambda: None, "sedd_jax.comparison.score", request)
    return failure and f"scoring: {failure}"


def _wait_for_former(run):
    """Waits for the process that a killed comparison left behind; it has been told to end."""
    deadline = time.monotonic() + _PATIENCE
    while (run.folder / LOCK_FILE).exists():
        try:
            with locked(run.folder):
                return
        except BadInput:
            if time.monotonic() > deadline:
                raise
            time.sleep(_POLL)


def _process(log, signals, tick, module, *arguments):
    """Runs a module to its end; returns why it failed, or None.

    A signal is passed on, once, and raises Halted after the process has ended.
    """
    start = log.stat().st_size if log.exists() else 0
    command = [sys.executable, "-m", "sedd_jax.comparison.worker", module, *arguments]
    with log.open("ab") as file:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,  # closed when this process ends, see `worker`
            stdout=file,
            stderr=subprocess.STDOUT,
            process_group=0,  # Ctrl-C is for this process to pass on
        )
    stopped = None
    with process.stdin:
        while process.poll() is None:
            if stopped is None and (stopped := signals.after(0)):
                process.terminate()
            tick()
            time.sleep(_POLL)
    if stopped := stopped or signals.after(0):
        raise Halted(
            f"Stopped by {stopped.name}; the same command continues from there.", 128 + stopped
        )
    return _reason(process.returncode, log, start)


def _reason(code, log, start):
    """Why a process failed, in one line: its own if it printed one."""
    if code == 0:
        return None
    if code < 0:
        name = signal.Signals(-code).name
        memory = ", perhaps since memory ran out" if -code == signal.SIGKILL else ""
        return f"ended by {name}{memory}; {log} has what it printed"
    with log.open("rb") as file:
        file.seek(start)
        lines = file.read().decode(errors="replace").splitlines()
    said = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return said[-1] if said else f"ended with code {code}; {log} has what it printed"


class _Clock:
    """Says how far the comparison is, and estimates the time left from what it has measured."""

    def __init__(self, runs, plan):
        self._runs, self._plan = runs, plan
        self.name = ""
        self._steps, self._training = 0, 0.0  # trained in this process, and the seconds
        self._scores, self._scoring = 0, 0.0

    def say(self, text):
        """Prints a line on the run."""
        print(f"{self.name}: {text}", flush=True)

    @contextlib.contextmanager
    def training(self, run) -> Iterator[Callable[[], None]]:
        """Times the training of a run; yields what tells of it, to be called often."""
        before, began = run.steps, time.monotonic()
        told, reached = began, before

        def tick():
            nonlocal told, reached
            now = time.monotonic()
            if now - told < _TELL:
                return
            told = now
            path = run.folder / metrics.FILE
            rows = metrics.read_rows(path, run.config.train.steps) if path.is_file() else []
            timed = [row for row in rows if "step_seconds" in row]
            if timed and (step := rows[-1]["step"]) > reached:
                reached, last = step, run.config.train.steps
                left = duration(timed[-1]["step_seconds"] * (last - step))
                self.say(f"step {step:,} of {last:,}, {left} left of its training")

        yield tick
        self._steps += run.steps - before
        self._training += time.monotonic() - began

    @contextlib.contextmanager
    def scoring(self) -> Iterator[None]:
        """Times the scoring of a run."""
        began = time.monotonic()
        yield
        self._scores += 1
        self._scoring += time.monotonic() - began

    def left(self, number: int) -> str:
        """Returns the time left after the first `number` runs, in words."""
        rest = [run for run in self._runs[number:] if self._plan.records(run) is None]
        if not rest:
            return "nothing is left"
        runs = "1 run" if len(rest) == 1 else f"{len(rest)} runs"
        steps = sum(run.config.train.steps - run.steps for run in rest)
        seconds = len(rest) * self._scoring / max(self._scores, 1)
        if self._steps:
            seconds += steps * self._training / self._steps
        elif steps:
            return f"left: {runs}"
        return f"left: {runs}, about {duration(seconds)}"

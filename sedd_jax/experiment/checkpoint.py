"""Checkpoints of a run: saved asynchronously and whole, verified when restored.

A run folder holds `config.json`, `data/` with the tokenizer, and `checkpoints/STEP/` with the
items "params", "ema" and "optimizer", apart so that sampling and evaluation read only the weights
they use, "times", where these are learned, "config", the settings as JSON, and "meta", see
`integrity`. A checkpoint that is found damaged when training resumes is moved to `damaged/`. The
latest are kept, and the best one, which `best.json` names, if there is a measure of it.
"""

import contextlib
import dataclasses
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from sedd_jax.errors import BadInput, Halted, reason
from sedd_jax.experiment.checkpoint_folder import (
    DAMAGED_FOLDER,
    has,
    listed,
    options_of,
    place,
    set_aside,
)
from sedd_jax.experiment.config import CheckpointConfig, Config, from_saved
from sedd_jax.experiment.integrity import Damaged, describe_saved, read_settings, read_verified
from sedd_jax.experiment.state import Skipped, TrainState
from sedd_jax.model.score_model import Params
from sedd_jax.system import lease, mirror
from sedd_jax.system.files import atomic_write_json
from sedd_jax.system.processes import failure_of_any_process, is_primary, warn_on_primary

BEST = "best"  # in place of a step
BEST_FILE = f"{BEST}.json"
SAVE_SECONDS = 600  # how long processes wait for each other in a save: one may have failed


class _LatestAndBest:
    """Which checkpoints stay: the latest, and the best."""

    def __init__(self, latest: int, best: set[int]):
        self._latest, self._best = latest, best

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        first = len(checkpoints) - self._latest
        return [i >= first or each.step in self._best for i, each in enumerate(checkpoints)]


class Checkpoints:
    """The checkpoints of one run folder. Use as a context manager: leaving it waits for saves.

    With several processes all make the same calls, and all see the same checkpoints as damaged.
    """

    def __init__(self, run: Path, config: CheckpointConfig | None = None):
        """Opens the checkpoints under `run`, creating the folder only when `config` is given."""
        self._run = run
        self._folder, self._aside = place(run), place(run, DAMAGED_FOLDER)
        self._best_file = run.resolve() / BEST_FILE
        self._best = {self.best["step"]} if self.best else set()
        self._saving: int | None = None  # the step of a save whose outcome is not known yet
        policies = ocp.checkpoint_managers
        if config is None:
            options = functools.partial(ocp.CheckpointManagerOptions, create=False)
        else:
            options = functools.partial(
                ocp.CheckpointManagerOptions,
                create=True,
                cleanup_tmp_directories=True,
                # the training loop decides when to save
                save_decision_policy=policies.FixedIntervalPolicy(1),
                preservation_policy=_LatestAndBest(config.keep, self._best),
                # in the background, a folder that cannot be created leaves the threads that would
                # write in it waiting, and the process cannot end for 20 minutes
                async_options=ocp.options.AsyncOptions(
                    timeout_secs=SAVE_SECONDS, create_directories_asynchronously=False
                ),
            )
        with options_of(run) as more:
            self._manager = ocp.CheckpointManager(
                self._folder,
                item_names=("params", "ema", "optimizer", "times", "config", "meta"),
                options=options(**more),
            )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind, error, trace) -> None:
        failure = None
        try:
            self.wait()
        except Halted as halted:
            failure = halted
        try:
            self._manager.close()
        except Exception:  # a save that failed may have several errors, and one was told
            if error is None and failure is None:
                raise
        if failure is not None:
            if error is None:
                raise failure
            warn_on_primary(str(failure))  # not instead of what ended the run

    @property
    def latest(self) -> int | None:
        """The newest complete step, or None; waits for a save."""
        self.wait()  # Orbax counts a step from the start of its save
        return self._manager.latest_step()

    @property
    def saving(self) -> int | None:
        """The step of a save that has not ended when `check` was last called, or None."""
        return self._saving

    @property
    def best(self) -> dict[str, Any] | None:
        """What `save_best` was last told of a step, with the `step`; None if nothing."""
        if not self._best_file.exists():
            return None
        return json.loads(self._best_file.read_text())

    def save_best(self, state: TrainState, config: Config, facts: Mapping[str, Any]) -> None:
        """Saves the state, and keeps it in place of the best one before; waits until it is saved.

        Args:
          state: after a step.
          config: the settings.
          facts: why it is the best; JSON values.

        Raises:
          Halted: as `save`.
        """
        step = int(state.step)
        self._best.add(step)  # beside the one before, which goes with a save after this one
        self.save(state, config)
        self.wait()
        if is_primary():
            atomic_write_json(self._best_file, {"step": step, **facts}, indent=1)
            mirror.push(self._best_file)
        self._best.intersection_update({step})

    def step_named(self, step: int | str | None) -> int | None:
        """Returns a step, that of "best", or the latest for None; None if there is none.

        Raises:
          BadInput: the run has no best step.
        """
        if step != BEST:
            return self.latest if step is None else step
        if self.best is None:
            raise BadInput(
                f"{self._folder.parent} has no {BEST_FILE}: the best checkpoint is kept where "
                "config.eval.oracle measures it; choose a step."
            )
        return self.best["step"]

    def save(self, state: TrainState, config: Config) -> None:
        """Saves the state under its step, in the background; a step already saved is kept.

        Raises:
          Halted: this save, or the one before, failed.
        """
        skipped = [int(count) for count in state.skipped]
        self._save(int(state.step), _items(state), skipped, config)

    def save_weights(self, step: int, params: Params, config: Config) -> None:
        """Saves weights alone, both as the trained weights and as their average.

        Args:
          step: the step to save them under.
          params: the weights.
          config: the settings to save with them.

        Raises:
          Halted: as `save`.
        """
        self._save(step, {"params": params, "ema": params}, [0, 0], config)

    def _save(self, step, arrays, skipped, config):
        if step == self.latest:
            return
        settings = dataclasses.asdict(config)
        items = ocp.args.Composite(
            **{name: ocp.args.StandardSave(tree) for name, tree in arrays.items()},
            config=ocp.args.JsonSave(settings),
            meta=ocp.args.JsonSave(describe_saved(arrays, settings, skipped)),
        )
        self._saving = step
        lease.check()
        with self._halting():
            if not self._manager.save(step, args=items):
                raise RuntimeError("it was refused")

    def check(self) -> None:
        """Raises Halted if the save in the background has failed; cheap, for after every step."""
        # not check_for_errors of Orbax: it takes the error from the thread that waits for the save,
        # which then believes the save good and deletes the checkpoints before it
        if self._saving is not None and not self._manager.is_saving_in_progress():
            self.wait()

    def wait(self) -> None:
        """Waits for the save in the background; raises Halted if it failed."""
        with self._halting():
            self._manager.wait_until_finished()
        self._saving = None

    def restore(self, step: int, abstract: TrainState) -> TrainState:
        """Returns the state of `step`.

        Args:
          step: a complete step.
          abstract: the shapes, types and placements to restore to, see `mesh.placed`.

        Raises:
          BadInput: no such step, one of another shape, or a damaged one.
        """
        path = self._path(step)
        with listed(path):
            items, counts = read_verified(path, _items(abstract))
        counter = jax.device_put(jnp.int32(step), abstract.step.sharding)
        skipped = jax.tree.map(
            lambda count, x: jax.device_put(jnp.int32(count), x.sharding),
            Skipped(*counts),
            abstract.skipped,
        )
        return TrainState(
            counter,
            items["params"],
            items["optimizer"],
            items["ema"],
            skipped,
            items.get("times", ()),
        )

    def restore_latest(self, abstract: TrainState) -> TrainState | None:
        """Returns the newest undamaged state, None if nothing was ever saved.

        Newer, damaged checkpoints are reported and moved to `damaged/`.

        Raises:
          BadInput: a checkpoint of another shape.
          Halted: all checkpoints are damaged, or a damaged one cannot be moved.
        """
        found_damage = False
        while (step := self.latest) is not None:
            try:
                return self.restore(step, abstract)
            except Damaged as damage:
                self._set_aside(step, damage)
                found_damage = True
        if found_damage or has(self._run, DAMAGED_FOLDER):
            raise Halted(
                f"Every checkpoint of this run was found damaged and is kept in {self._aside}; "
                "bring a copy back to its place, or start again with another --workdir."
            )
        return None

    def restore_weights(self, step: int, abstract: Params, *, ema: bool) -> Params:
        """Returns the weights of `step`; raises as `restore`.

        Args:
          step: a complete step.
          abstract: their shapes, types and placements.
          ema: the averaged weights instead of the trained ones.
        """
        name = "ema" if ema else "params"
        path = self._path(step)
        with self._offering_others(step), listed(path):
            return read_verified(path, {name: abstract})[0][name]

    def config(self, step: int) -> Config:
        """Returns the settings saved with `step`."""
        path = self._path(step)
        with self._offering_others(step), listed(path):
            return from_saved(read_settings(path))

    @contextlib.contextmanager
    def _halting(self):
        try:
            yield
        except Exception as error:  # of any type: the run would continue unsaved
            step, self._saving = self._saving, None
            try:
                self._manager.reload()  # Orbax lists the failed step, not those it was to replace
                last = self._manager.latest_step()
                have = "there is none before it" if last is None else f"the last good one is {last}"
            except Exception:
                have = "those before it cannot be listed either"
            raise Halted(
                f"Saving the checkpoint of step {step} in {self._folder} failed: "
                f"{reason(error)}; {have}. Fix the cause and run the same command again."
            ) from error

    def _path(self, step):
        """The folder of a complete step."""
        if step not in self._manager.all_steps():
            steps = ", ".join(map(str, sorted(self._manager.all_steps()))) or "none"
            raise BadInput(f"{self._folder} has no checkpoint of step {step}; it has: {steps}.")
        return self._folder / str(step)

    @contextlib.contextmanager
    def _offering_others(self, step):
        """Adds to a report of damage which other steps the user can choose."""
        try:
            yield
        except Damaged as damage:
            others = ", ".join(str(s) for s in sorted(self._manager.all_steps()) if s != step)
            advice = (
                f"Choose another step with --checkpoint_step; there are: {others}."
                if others
                else "There is no other step to choose."
            )
            raise BadInput(f"{damage} {advice}") from damage

    def _set_aside(self, step, damage):
        """Moves a step to `damaged/`, where Orbax does not see it, and prints a warning."""
        failure = None
        if is_primary():
            try:
                target = set_aside(self._folder / str(step), self._aside)
            except (OSError, BadInput, Halted) as error:
                failure = f"{damage} It could not be moved to {self._aside}: {reason(error)}."
        if failure := failure_of_any_process(failure):
            raise Halted(failure)
        self._manager.reload()
        if is_primary():
            last = self._manager.latest_step()
            then = "No other is left." if last is None else f"Going back to step {last} instead."
            warn_on_primary(f"{damage} It was moved to {target}. {then}")


def _items(state):
    items = {"params": state.params, "ema": state.ema_params, "optimizer": state.opt_state}
    return items | ({"times": state.times} if jax.tree.leaves(state.times) else {})

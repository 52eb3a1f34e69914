"""Checkpoints of a run: saved asynchronously and whole, verified when restored.

A run folder holds `config.json`, `data/` with the tokenizer, and `checkpoints/STEP/` with the
items "params", "ema" and "optimizer", apart so that sampling and evaluation read only the weights
they use, "config", the settings as JSON, and "meta", JSON too: the shape and the checksum of every
array, since Orbax does not notice bytes that changed on disk, and the count of skipped steps.
A checkpoint found damaged when training goes on is moved to `damaged/`.
"""

import contextlib
import dataclasses
import errno
import json
import zlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from sedd_jax.errors import BadInput, Halted, errno_of, reason
from sedd_jax.experiment.checksum import checksums
from sedd_jax.experiment.config import CheckpointConfig, Config, from_saved
from sedd_jax.experiment.state import Skipped, TrainState
from sedd_jax.model.score_model import Params
from sedd_jax.model.sharding import leaves_by_path
from sedd_jax.system.processes import failure_of_any_process, is_primary, print_on_primary

FOLDER = "checkpoints"
DAMAGED_FOLDER = "damaged"
SAVE_SECONDS = 600  # that processes wait for each other in a save: one may have failed to write

# the file is missing, or its content is not what it was: trouble of no disk and no network
_OF_A_FILE = (None, errno.ENOENT, errno.ENOTDIR, errno.EISDIR)


def has_checkpoints(run: Path) -> bool:
    """Says whether anything was saved in a run folder, whole or damaged."""
    folder = run / FOLDER
    return folder.is_dir() and any(path.name.isdigit() for path in folder.iterdir())


class Checkpoints:
    """The checkpoints of one run folder. Use as a context manager: leaving it waits for saves.

    With several processes all make the same calls, and all see the same checkpoints as damaged.
    """

    def __init__(self, run: Path, config: CheckpointConfig | None = None):
        """Opens the checkpoints under `run`, creating the folder only when `config` is given."""
        self._folder = run.resolve() / FOLDER
        self._aside = run.resolve() / DAMAGED_FOLDER
        self._saving: int | None = None  # the step of a save whose end was not looked at
        policies = ocp.checkpoint_managers
        if config is None:
            options = ocp.CheckpointManagerOptions(create=False)
        else:
            options = ocp.CheckpointManagerOptions(
                create=True,
                cleanup_tmp_directories=True,
                # the loop decides when: a policy here would be a second opinion
                save_decision_policy=policies.FixedIntervalPolicy(1),
                preservation_policy=policies.LatestN(config.keep),
                # in the background, a folder that cannot be made leaves the threads that are to
                # write in it waiting, and the process cannot end for 20 minutes
                async_options=ocp.options.AsyncOptions(
                    timeout_secs=SAVE_SECONDS, create_directories_asynchronously=False
                ),
            )
        self._manager = ocp.CheckpointManager(
            self._folder,
            item_names=("params", "ema", "optimizer", "config", "meta"),
            options=options,
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind, error, trace) -> None:
        try:
            self.wait()
        except Halted as halted:
            if error is None:
                raise
            print_on_primary(f"WARNING: {halted}")  # not instead of what ended the run
        finally:
            self._manager.close()

    @property
    def latest(self) -> int | None:
        """The newest complete step, None if there is none; waits for a save."""
        self.wait()  # Orbax counts a step from the start of its save
        return self._manager.latest_step()

    def save(self, state: TrainState, config: Config) -> None:
        """Saves the state under its step, in the background; a step already saved is kept.

        Raises:
          Halted: this save, or the one before, failed.
        """
        skipped = [int(count) for count in state.skipped]
        self._save(int(state.step), _items(state), skipped, config)

    def save_weights(self, step: int, params: Params, config: Config) -> None:
        """Saves weights alone, to be loaded: as those trained and as their average.

        Raises:
          Halted: as `save`.
        """
        self._save(step, {"params": params, "ema": params}, [0, 0], config)

    def _save(self, step, arrays, skipped, config):
        if step == self.latest:
            return
        settings = dataclasses.asdict(config)
        facts = {
            "shapes": {path: _shape(leaf) for path, leaf in leaves_by_path(arrays).items()},
            "skipped": skipped,
        }
        texts = {"config": _text_checksum(settings), "meta": _text_checksum(facts)}
        items = ocp.args.Composite(
            **{name: ocp.args.StandardSave(tree) for name, tree in arrays.items()},
            config=ocp.args.JsonSave(settings),
            meta=ocp.args.JsonSave(facts | {"checksums": checksums(arrays) | texts}),
        )
        self._saving = step
        with self._halting():
            if not self._manager.save(step, args=items):
                raise RuntimeError("it was refused")

    def check(self) -> None:
        """Raises Halted if the save in the background has failed; cheap, for after every step."""
        # not check_for_errors of Orbax: it takes the error away from the thread that awaits it,
        # which then takes the save for a good one and deletes the checkpoints before it
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
          abstract: the shapes, types and placement wanted, see `sharding.placed`.

        Raises:
          BadInput: no such step, one of another shape, or a damaged one.
        """
        items, counts = self._restore(step, _items(abstract))
        counter = jax.device_put(jnp.int32(step), abstract.step.sharding)
        skipped = jax.tree.map(
            lambda count, x: jax.device_put(jnp.int32(count), x.sharding), counts, abstract.skipped
        )
        return TrainState(counter, items["params"], items["optimizer"], items["ema"], skipped)

    def restore_latest(self, abstract: TrainState) -> TrainState | None:
        """Returns the newest state that is whole, None if nothing was ever saved.

        Damaged checkpoints on the way there are reported and moved to `damaged/`.

        Raises:
          BadInput: a checkpoint of another shape.
          Halted: there are damaged checkpoints only, or one that cannot be moved.
        """
        while (step := self.latest) is not None:
            try:
                return self.restore(step, abstract)
            except _Damaged as damage:
                self._set_aside(step, damage)
        if self._aside.is_dir() and any(self._aside.iterdir()):
            raise Halted(
                f"Every checkpoint of this run was found damaged and is kept in {self._aside}; "
                "bring a copy back to its place, or start again with another --workdir."
            )
        return None

    def restore_weights(self, step: int, abstract: Params, *, ema: bool) -> Params:
        """Returns the weights of `step`, averaged or as trained; arguments as in `restore`."""
        name = "ema" if ema else "params"
        with self._offering_others(step):
            return self._restore(step, {name: abstract})[0][name]

    def config(self, step: int) -> Config:
        """Returns the settings saved with `step`."""
        with self._offering_others(step):
            meta = self._meta(step)
            saved = self._read(step, config=ocp.args.JsonRestore())["config"]
            if meta is not None:
                changed = meta["checksums"].get("config") != _text_checksum(saved)
                self._agree(step, _changed(["config"]) if changed else None)
        return from_saved(saved)

    @contextlib.contextmanager
    def _halting(self):
        try:
            yield
        except Exception as error:  # whatever it was, the run would go on unsaved
            step, self._saving = self._saving, None
            self._manager.reload()  # Orbax has the failed step, and not those it was to replace
            last = self._manager.latest_step()
            have = "there is none before it" if last is None else f"the last good one is {last}"
            raise Halted(
                f"Saving the checkpoint of step {step} in {self._folder} failed: "
                f"{reason(error)}; {have}. Mend the cause and run the same command again."
            ) from error

    def _restore(self, step: int, wanted: dict[str, Any]) -> tuple[dict[str, Any], Skipped]:
        """Returns the items named in `wanted` and the skipped steps, all verified."""
        meta = self._meta(step)
        if meta is not None:
            self._check_shapes(step, meta["shapes"], wanted)
        restore = {name: ocp.args.StandardRestore(tree) for name, tree in wanted.items()}
        items = self._read(step, **restore)
        if meta is None:
            print_on_primary(
                f"The checkpoint {self._folder / str(step)} was saved without checksums, by an "
                "older version: whether it is damaged cannot be told."
            )
            return items, Skipped(0, 0)
        found, saved = checksums(items), meta["checksums"]
        changed = [path for path in found if found[path] != saved.get(path)]
        self._agree(step, _changed(changed) if changed else None)
        return items, Skipped(*meta["skipped"])

    def _meta(self, step):
        """Returns the item "meta", None for a checkpoint of a version that had none."""
        if step not in self._manager.all_steps():
            steps = ", ".join(map(str, sorted(self._manager.all_steps()))) or "none"
            raise BadInput(f"{self._folder} has no checkpoint of step {step}; it has: {steps}.")
        folder = self._folder / str(step)
        listing = folder / "_CHECKPOINT_METADATA"  # an item that is listed and gone is damage
        listed = listing.is_file() and '"meta"' in listing.read_text(errors="replace")
        if not listed and not (folder / "meta").exists():
            return None
        meta = self._read(step, meta=ocp.args.JsonRestore())["meta"]
        facts = {name: meta.get(name) for name in ("shapes", "skipped")}
        whole = meta.get("checksums", {}).get("meta") == _text_checksum(facts)
        self._agree(step, None if whole else _changed(["meta"]))
        return meta

    def _check_shapes(self, step, saved, wanted):
        for path, leaf in leaves_by_path(wanted).items():
            if saved.get(path) != _shape(leaf):
                raise BadInput(
                    f"The checkpoint {self._folder / str(step)} is of another shape than its "
                    f"settings say: {path} is {saved.get(path, 'absent')}, not {_shape(leaf)}."
                )

    def _read(self, step, **items):
        read, damage, cause = None, None, None
        # not by the manager: its restore ends with a barrier, which a process that cannot read
        # its part never comes to, while the others wait
        reader = ocp.CompositeCheckpointHandler()
        try:
            read = reader.restore(self._folder / str(step), args=ocp.args.Composite(**items))
        except (MemoryError, jax.errors.JaxRuntimeError):
            raise  # the machine's trouble, not the file's
        except Exception as error:  # of any type: for a file cut short it is Exception itself
            damage, cause = f"it cannot be read ({reason(error)})", error
        finally:
            reader.close()
        trouble = damage if errno_of(cause) not in _OF_A_FILE else None
        if trouble := failure_of_any_process(trouble):
            raise Halted(
                f"The checkpoint {self._folder / str(step)} may be whole, but {trouble}. Mend the "
                "cause and run the same command again."
            ) from cause
        self._agree(step, damage, cause)
        return dict(read.items())

    def _agree(self, step, damage, cause=None):
        """Raises _Damaged in all processes if there is damage in the eyes of one."""
        if damage := failure_of_any_process(damage):
            message = f"The checkpoint {self._folder / str(step)} is damaged: {damage}."
            raise _Damaged(message) from cause

    @contextlib.contextmanager
    def _offering_others(self, step):
        """Completes the report of damage for who chose the step, or could choose another."""
        try:
            yield
        except _Damaged as damage:
            others = ", ".join(str(s) for s in sorted(self._manager.all_steps()) if s != step)
            advice = (
                f"Choose another step with --checkpoint_step; there are: {others}."
                if others
                else "There is no other step to choose."
            )
            raise BadInput(f"{damage} {advice}") from damage

    def _set_aside(self, step, damage):
        """Moves a step out of the sight of Orbax, never onto something else, and says so."""
        failure = None
        if is_primary():
            target, number = self._aside / str(step), 1
            while target.exists():
                target, number = self._aside / f"{step}.{number}", number + 1
            try:
                self._aside.mkdir(exist_ok=True)
                (self._folder / str(step)).rename(target)
            except OSError as error:
                failure = f"{damage} It could not be moved to {target}: {reason(error)}."
        if failure := failure_of_any_process(failure):
            raise Halted(failure)
        self._manager.reload()
        if is_primary():
            last = self._manager.latest_step()
            then = "No other is left." if last is None else f"Going back to step {last} instead."
            print_on_primary(f"WARNING: {damage} It was moved to {target}. {then}")


class _Damaged(BadInput):
    """A checkpoint whose files are not what was saved."""


def _items(state):
    return {"params": state.params, "ema": state.ema_params, "optimizer": state.opt_state}


def _shape(leaf):
    return f"{leaf.dtype}{list(leaf.shape)}"


def _text_checksum(settings):
    return zlib.crc32(json.dumps(settings, sort_keys=True).encode())


def _changed(paths):
    more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
    return f"the data on disk changed since it was saved (in {', '.join(paths[:3])}{more})"

"""Checkpoints of a run: saved asynchronously and whole, restored onto the devices at hand.

A run folder holds `config.json`, `data/` with the tokenizer, and `checkpoints/STEP/` with the
items "params", "ema" and "optimizer", apart so that sampling and evaluation read only the weights
they use, and "config", the settings as JSON.
"""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from sedd_jax.errors import BadInput
from sedd_jax.model.score_model import Params
from sedd_jax.runtime.config import CheckpointConfig, Config, parse
from sedd_jax.runtime.step import TrainState

FOLDER = "checkpoints"


class Checkpoints:
    """The checkpoints of one run folder. Use as a context manager: leaving it waits for saves."""

    def __init__(self, run: Path, config: CheckpointConfig | None = None):
        """Opens the checkpoints under `run`, creating the folder only when `config` is given."""
        self._folder = run.resolve() / FOLDER
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
            )
        self._manager = ocp.CheckpointManager(
            self._folder, item_names=("params", "ema", "optimizer", "config"), options=options
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception) -> None:
        self._manager.wait_until_finished()
        self._manager.close()

    @property
    def latest(self) -> int | None:
        """The newest complete step, None if there is none."""
        return self._manager.latest_step()

    def save(self, state: TrainState, config: Config) -> None:
        """Saves the state under its step, in the background; a step already saved is kept."""
        step = int(state.step)
        if step == self.latest:
            return
        items = ocp.args.Composite(
            params=ocp.args.StandardSave(state.params),
            ema=ocp.args.StandardSave(state.ema_params),
            optimizer=ocp.args.StandardSave(state.opt_state),
            config=ocp.args.JsonSave(dataclasses.asdict(config)),
        )
        if not self._manager.save(step, args=items):
            raise RuntimeError(f"Checkpoint of step {step} was refused in {self._folder}.")

    def restore(self, step: int, abstract: TrainState) -> TrainState:
        """Returns the state of `step`.

        Args:
          step: a complete step.
          abstract: the shapes, types and placement wanted, see `sharding.placed`.
        """
        items = ocp.args.Composite(
            params=ocp.args.StandardRestore(abstract.params),
            ema=ocp.args.StandardRestore(abstract.ema_params),
            optimizer=ocp.args.StandardRestore(abstract.opt_state),
        )
        restored = self._restore(step, items)
        counter = jax.device_put(jnp.int32(step), abstract.step.sharding)
        skipped = jax.tree.map(lambda x: jax.device_put(jnp.int32(0), x.sharding), abstract.skipped)
        return TrainState(counter, restored.params, restored.optimizer, restored.ema, skipped)

    def restore_weights(self, step: int, abstract: Params, *, ema: bool) -> Params:
        """Returns the weights of `step`, averaged or as trained; `abstract` as in `restore`."""
        args = ocp.args.StandardRestore(abstract)
        name = "ema" if ema else "params"
        return self._restore(step, ocp.args.Composite(**{name: args}))[name]

    def config(self, step: int) -> Config:
        """Returns the settings saved with `step`."""
        saved = self._restore(step, ocp.args.Composite(config=ocp.args.JsonRestore())).config
        return parse(saved)

    def _restore(self, step, items):
        if step not in self._manager.all_steps():
            steps = ", ".join(map(str, sorted(self._manager.all_steps()))) or "none"
            raise BadInput(f"{self._folder} has no checkpoint of step {step}; it has: {steps}.")
        try:
            return self._manager.restore(step, args=items)
        except (ValueError, KeyError, OSError) as error:
            reason = (str(error).strip() or repr(error)).splitlines()[0]
            raise BadInput(
                f"The checkpoint {self._folder / str(step)} cannot be read, is damaged or of "
                f"another shape than its settings say: {reason}"
            ) from error

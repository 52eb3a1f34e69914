"""Weights & Biases: offline unless WANDB_MODE says otherwise."""

import os
import secrets
from pathlib import Path
from typing import Any

from sedd_jax.errors import BadInput
from sedd_jax.system.files import atomic_write
from sedd_jax.system.packages import check_installed

FINISH_SECONDS = 45.0  # for an upload; what is left is in the folder, and `wandb sync` sends it


class WandB:
    """Writes a run of Weights & Biases to `wandb/`, and sends it if WANDB_MODE=online.

    The id of the run is kept there, so a resumed run is the same one. Steps that come again have
    the same values; the server keeps those that it had first.
    """

    def __init__(self, project: str = "sedd_jax", entity: str = ""):
        """Names where the run belongs.

        Args:
          project: its project; WANDB_PROJECT has precedence.
          entity: a user or a team; empty: the default of whoever is logged in.
        """
        check_installed("wandb", '"sedd_jax[wandb]"', "The tracker wandb")
        self._project, self._entity = os.environ.get("WANDB_PROJECT", project), entity or None

    def start(self, run: Path, settings: dict[str, Any], last_step: int) -> None:
        import wandb

        mode = os.environ.get("WANDB_MODE", "offline")
        if mode == "online" and not wandb.login(prompt=False):
            raise BadInput(
                "nobody is logged in: run `wandb login`, or set WANDB_API_KEY or WANDB_MODE=offline"
            )
        identity = run / "wandb" / "run_id"
        if not identity.exists():
            identity.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(identity, secrets.token_hex(4))
        self._run = wandb.init(
            project=self._project,
            entity=self._entity,
            dir=run,
            id=identity.read_text(),
            name=run.resolve().name,
            resume="allow",
            mode=mode,
            config=settings,
            allow_val_change=True,  # of settings that a resumed run may change
            reinit="create_new",
            settings=wandb.Settings(console="off", silent=True, finish_timeout=FINISH_SECONDS),
        )

    def scalars(self, step: int, values: dict[str, float | int]) -> None:
        self._run.log(values, step=step)

    def text(self, step: int, name: str, value: str) -> None:
        self._run.log({name: value}, step=step)

    def close(self) -> None:
        self._run.finish()

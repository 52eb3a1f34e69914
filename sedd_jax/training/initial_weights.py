"""The weights of another model as the start of a run."""

from operator import attrgetter
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from sedd_jax.data.conditions import Conditions
from sedd_jax.data.tokenizer import Tokenizer
from sedd_jax.diffusion.hold import NONE
from sedd_jax.errors import BadInput
from sedd_jax.experiment.checkpoint_folder import last_saved
from sedd_jax.experiment.config import Config
from sedd_jax.experiment.state import TrainState
from sedd_jax.inference.build import dotted_paths
from sedd_jax.inference.load import load
from sedd_jax.inference.model import TrainedModel
from sedd_jax.system.processes import warn_on_primary

# settings that the weights depend on; the noise too: another schedule gives the network values of
# sigma that it was not trained on
_WEIGHT_SETTINGS = (
    "family", "graph", "noise", "model.trunk", "model.kernel_width", "model.dilations",
    "model.hidden_size", "model.cond_dim", "model.num_blocks",
    "model.num_heads", "model.output", "model.time_conditioning", "model.learned_positions",
    "gaussian.embed_dim",
)  # fmt: skip


def load_initial(config: Config, run: Path, mesh: Mesh) -> TrainedModel | None:
    """Returns the model that a new run starts from; None if it names none or has checkpoints.

    Args:
      config: the settings of the run.
      run: its folder.
      mesh: the devices to load the weights onto.

    Raises:
      BadInput: it cannot be loaded, or its weights do not fit this run.
    """
    if not config.train.initial or last_saved(run) is not None:
        return None
    initial = load(config.train.initial, mesh=mesh, trust_code=dotted_paths(config))
    positions = config.model.learned_positions or config.family == "autoregressive"
    sometimes = {
        "model.length": positions,
        "model.scale_by_sigma": config.model.output == "ratio",
    }
    keys = (*_WEIGHT_SETTINGS, *(key for key, matters in sometimes.items() if matters))
    differing = [
        f"config.{key} is {theirs} there and {ours} here"
        for key in keys
        for theirs, ours in [(attrgetter(key)(initial.config), attrgetter(key)(config))]
        if theirs != ours
    ]
    for key, nothing in (("train.hold", NONE), ("data.condition", "")):
        theirs, ours = attrgetter(key)(initial.config), attrgetter(key)(config)
        if theirs != nothing == ours:  # the other way round it starts as one that is told nothing
            differing.append(f"config.{key} is {theirs} there and {ours or 'empty'} here")
    if differing:
        raise BadInput(
            f"config.train.initial={config.train.initial} is another model: "
            f"{'; '.join(differing)}; take its settings, or name a model that has yours."
        )
    return initial


def with_weights_of(
    initial: TrainedModel,
    state: TrainState,
    config: Config,
    tokenizer: Tokenizer,
    conditions: Conditions | None = None,
) -> TrainState:
    """Returns the first state with the weights of another model instead of random ones.

    Args:
      initial: the other model.
      state: the first state, with random weights.
      config: the settings of the run.
      tokenizer: of the run.
      conditions: of the run. A model without any may be its start: the embeddings are then those of
        `state`, which are zero.

    Raises:
      BadInput: the other model was trained on other tokens, or is told something else.
    """
    same = initial.family.num_tokens == tokenizer.vocab_size and (
        initial.tokenizer is None or initial.tokenizer.fingerprint() == tokenizer.fingerprint()
    )
    if not same:
        raise BadInput(
            f"config.train.initial={config.train.initial} is a model of other tokens: prepare the "
            "data with its tokenizer (config.data.tokenizer_path)."
        )
    if initial.tokenizer is None:
        warn_on_primary(
            f"{config.train.initial} has no tokenizer: its {initial.family.num_tokens:,} ids are "
            f"taken for those of the {tokenizer.kind} tokenizer of this run."
        )
    theirs = initial.conditions
    if theirs and (conditions is None or theirs.meaning != conditions.meaning):
        raise BadInput(
            f"config.train.initial={config.train.initial} is told other conditions: {theirs.text} "
            f"there and {conditions.text if conditions else 'none'} here, or with other classes; "
            "name a model without conditions, or the same data."
        )
    params = state.params | initial.params
    # other buffers: the state is donated
    return state._replace(params=params, ema_params=jax.tree.map(jnp.copy, params))

"""Loading a trained model from a run folder or from a folder in the published PyTorch layout."""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import SingleDeviceSharding
from jaxtyping import Array, Float, Int

from sedd_jax.data.tokenizer import GPT2, Tokenizer, load_tokenizer
from sedd_jax.diffusion.graph import Graph
from sedd_jax.diffusion.noise import Noise
from sedd_jax.errors import BadInput
from sedd_jax.model import gpt2, pretrained
from sedd_jax.model.causal_model import CausalModel
from sedd_jax.model.score_model import Params, ScoreModel
from sedd_jax.runtime import checkpoint as checkpoints
from sedd_jax.runtime import config as configs
from sedd_jax.runtime.components import Baseline, Components, build_components
from sedd_jax.runtime.config import Config
from sedd_jax.runtime.sharding import placed


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A trained model and what is needed to use it.

    Attributes:
      components: graph, noise and network; of an autoregressive model the network alone.
      params: the weights.
      config: the settings of the run.
      tokenizer: the tokenizer of the run; None for a published folder without one.
      step: the training step, None if unknown.
    """

    components: Components | Baseline
    params: Params
    config: Config
    tokenizer: Tokenizer | None
    step: int | None

    @property
    def graph(self) -> Graph:
        """The token graph. BadInput: the model is autoregressive, here and below."""
        return self.diffusion.graph

    @property
    def noise(self) -> Noise:
        """The noise schedule."""
        return self.diffusion.noise

    @property
    def model(self) -> ScoreModel | CausalModel:
        """The network, as pure functions."""
        return self.components.model

    @property
    def diffusion(self) -> Components:
        """The pieces of a diffusion model."""
        if isinstance(self.components, Baseline):
            raise BadInput(
                "This model is autoregressive: it has no graph, noise or log-scores; use its "
                "model.apply, sedd.nll_bound and sedd.generate_autoregressive."
            )
        return self.components

    @property
    def baseline(self) -> Baseline:
        """The pieces of an autoregressive model. BadInput: it is a diffusion model."""
        if isinstance(self.components, Components):
            raise BadInput("This is a diffusion model, not an autoregressive one: sedd.generate.")
        return self.components

    def log_score(
        self, xt: Int[Array | np.ndarray, "B L"], sigma: Float[Array | np.ndarray, "B"]
    ) -> Float[Array, "B L V"]:
        """Returns the log-scores of the noised tokens, float32, 0 at the current token."""
        return self._apply(self.params, jnp.asarray(xt), jnp.asarray(sigma))

    @functools.cached_property
    def _apply(self):
        return jax.jit(self.diffusion.model.apply)


def load(path: str | Path, *, step: int | None = None, ema: bool = True) -> Checkpoint:
    """Loads a model.

    Args:
      path: a run folder that `train` wrote, a folder with a GPT-2 in the Hugging Face layout and
        its tokenizer's files, or a folder in the published PyTorch layout (`config.json` with
        `model.safetensors` or `pytorch_model.bin`). For text, give the latter
        a folder `tokenizer/`, as `Tokenizer.save` writes it; of its `config` only the graph, noise
        and model are known, the rest are defaults.
      step: the step of a run folder to load; the latest by default.
      ema: load the averaged weights of a run folder, as evaluation and sampling do.

    Raises:
      BadInput: no such folder, no checkpoint in it, one that does not fit its config, or a damaged
        one; no other is taken in its place.
    """
    path = Path(path)
    if not path.is_dir():
        raise BadInput(f"There is no folder {path}.")
    if (path / checkpoints.FOLDER).is_dir():
        return _load_run(path, step, ema)
    if gpt2.is_gpt2(path):
        if step is not None or not ema:
            raise BadInput(f"{path} is in the Hugging Face layout, which has one set of weights.")
        return _load_gpt2(path)
    if pretrained.is_published(path):
        if step is not None or not ema:
            raise BadInput(f"{path} is in the published layout, which has one set of weights.")
        return _load_published(path)
    raise BadInput(
        f"{path} holds neither {checkpoints.FOLDER}/ (a run of train) nor config.json with "
        "model.safetensors or pytorch_model.bin (the published layout)."
    )


def _load_run(path, step, ema):
    with checkpoints.Checkpoints(path) as saved:
        step = saved.latest if step is None else step
        if step is None:
            raise BadInput(f"{path} holds no complete checkpoint yet.")
        config = saved.config(step)
        tokenizer = load_tokenizer(path / "data" / "tokenizer")
        # the machine that trained it may have had another kind of device
        model = dataclasses.replace(config.model, attention="auto")
        here = dataclasses.replace(config, model=model)
        components = build_components(here, tokenizer.vocab_size)
        abstract = placed(
            jax.eval_shape(components.model.init, jax.random.key(0)),
            SingleDeviceSharding(jax.devices()[0]),
        )
        params = saved.restore_weights(step, abstract, ema=ema)
    return Checkpoint(components, params, config, tokenizer, step)


def _load_published(path):
    published = pretrained.read_config(path)
    settings = dataclasses.asdict(Config())
    settings["graph"] = published.graph
    settings["noise"] |= {
        "schedule": published.noise,
        "sigma_min": published.sigma_min,
        "sigma_max": published.sigma_max,
    }
    settings["data"]["vocab_size"] = published.tokens
    for name in settings["model"].keys() - {"dtype", "learned_positions", "attention", "remat"}:
        settings["model"][name] = getattr(published, name)
    try:
        config = configs.parse(settings)
    except BadInput as error:
        raise BadInput(f"{path / 'config.json'} describes no model: {error}") from error
    components = build_components(config, published.tokens)
    abstract = jax.eval_shape(components.model.init, jax.random.key(0))
    params = pretrained.read_params(path, abstract, components.graph.num_states)
    tokenizer_folder = path / "tokenizer"
    tokenizer = load_tokenizer(tokenizer_folder) if tokenizer_folder.is_dir() else None
    return Checkpoint(components, jax.device_put(params), config, tokenizer, None)


def _load_gpt2(path):
    found = gpt2.read_config(path)
    settings = dataclasses.asdict(Config()) | {"family": "autoregressive"}
    settings["data"]["vocab_size"] = found.tokens
    for name in ("hidden_size", "num_blocks", "num_heads", "length", "dropout"):
        settings["model"][name] = getattr(found, name)
    try:
        config = configs.parse(settings)
    except BadInput as error:
        raise BadInput(f"{path / 'config.json'} describes no model: {error}") from error
    components = build_components(config, found.tokens)
    abstract = jax.eval_shape(components.model.init, jax.random.key(0))
    params = gpt2.read_params(path, abstract, found.tokens)
    has_tokenizer = any((path / name).is_file() for name in ("vocab.json", "encoder.json"))
    tokenizer = GPT2(path) if has_tokenizer else None
    return Checkpoint(components, jax.device_put(params), config, tokenizer, None)

"""Autoregressive models, the baseline: sampled from left to right with a key-value cache."""

import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Key

from sedd_jax.diffusion import categorical
from sedd_jax.diffusion.temperature import NO_FILTER, TokenFilter
from sedd_jax.errors import BadInput
from sedd_jax.experiment.build import network_config
from sedd_jax.experiment.config import Config, TrainConfig
from sedd_jax.inference.family import BatchLoss, DrawnTimes, RowLoss, sampling_settings
from sedd_jax.inference.generator import Diagnostics, Generator
from sedd_jax.inference.prompt import Prompt
from sedd_jax.inference.sampling import TokenSampling
from sedd_jax.model.autoregressive import CausalModel
from sedd_jax.model.config import ModelConfig
from sedd_jax.model.context import NOTHING
from sedd_jax.model.score_model import forward_flops
from sedd_jax.model.sharding import ANYWHERE, Placement


class Autoregressive(NamedTuple):
    """An autoregressive model, as a `Family`."""

    num_tokens: int
    model: CausalModel

    exact_likelihood = True
    complete_bound = True
    infills = False

    @property
    def num_states(self) -> int:
        return self.num_tokens

    @property
    def max_length(self) -> int | None:
        return self.model.max_length

    @property
    def summary(self) -> str:
        return f"{self.num_tokens} tokens (autoregressive)"

    def objective(self, config: TrainConfig) -> BatchLoss:
        def loss(params, draw, x0, key):
            return self.model.nll(params, x0, key=key).mean()

        return BatchLoss(lambda *_: (), loss)

    def row_loss(self, t_min: float, times: str) -> RowLoss:
        def loss(params, keys, quantiles, x0, lengths=None, context=NOTHING):
            return self.model.nll(params, x0, lengths=lengths, given=context.given)

        return loss

    def control(self, t_min: float) -> None:
        return None

    def reconstruction_loss(self, t_min: float) -> RowLoss:
        raise TypeError("An exact likelihood has no reconstruction term.")

    def draw_times(
        self, key: Key[Array, ""], times: str, t_min: float, draws: int, rows: int
    ) -> DrawnTimes:
        raise TypeError("An exact likelihood has no times.")

    def prior_nll(self) -> float:
        return 0.0

    def sampling(self, **settings: Any) -> TokenSampling:
        sampling = sampling_settings(TokenSampling, "autoregressive", settings)
        sampling.token_filter.check()
        return sampling

    def generator(self, sampling: TokenSampling, *, t_min: float, trace: bool = False) -> Generator:
        return build_generator(self.model, sampling.token_filter)

    def check_prompt(self, prompt: Prompt) -> None:
        check_prefixes(np.asarray(prompt.held))

    def max_nfe(self, sampling: TokenSampling, length: int) -> int:
        return length

    def training_share(self, config: TrainConfig) -> float:
        return 1.0

    def forward_flops(self, config: ModelConfig, share: float = 1.0) -> float:
        return forward_flops(
            hidden_size=config.hidden_size,
            cond_dim=0,
            num_blocks=config.num_blocks,
            num_states=self.num_states,
            length=config.length,
            head_share=share,
        )


def build_autoregressive(
    config: Config, vocab_size: int, placement: Placement = ANYWHERE
) -> Autoregressive:
    """Builds the baseline.

    Args:
      config: the settings.
      vocab_size: tokens of the tokenizer.
      placement: how activations are sharded over the devices.
    """
    network = network_config(config.model, vocab_size, placement, learned_positions=True)
    return Autoregressive(vocab_size, CausalModel(network, placement))


def build_generator(model: CausalModel, token_filter: TokenFilter = NO_FILTER) -> Generator:
    """Returns generate(params, keys, prompt) -> (tokens, diagnostics), one program when jitted.

    The held positions of a prompt must come first in their row. Every position counts as one
    network evaluation.

    Args:
      model: the network.
      token_filter: temperature and top-p.
    """

    def generator(params, keys, prompt):
        def step(state, position):
            cache, token, finite = state
            logits, cache = model.decode(params, cache, token, position)
            weights = token_filter(logits)  # float32 from the logits on
            position_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, position)
            drawn = jax.vmap(categorical.categorical)(position_keys, weights)
            token = jnp.where(prompt.held[:, position], prompt.tokens[:, position], drawn)
            return (cache, token, finite & jnp.isfinite(logits).all(-1)), token

        batch, length = prompt.tokens.shape
        start = jnp.full(batch, model.start, jnp.int32)
        state = model.empty_cache(batch, length), start, jnp.ones(batch, bool)
        (_, _, finite), tokens = jax.lax.scan(step, state, jnp.arange(length))
        nfe = jnp.full(batch, length) if prompt.lengths is None else prompt.lengths
        changed = jnp.asarray(~prompt.clamp.held, jnp.int32).T
        return tokens.T, Diagnostics(nfe, changed, finite, None)

    return generator


def check_prefixes(held: Bool[np.ndarray, "N L"]) -> None:
    """Raises BadInput unless the held positions of every row are its first ones."""
    if (held[:, 1:] > held[:, :-1]).any():
        raise BadInput(
            "A prompt of an autoregressive model must be a prefix: it cannot fill in what comes "
            "before given tokens; use a diffusion checkpoint for that."
        )


def generate_autoregressive(
    key: Key[Array, ""], model: Any, num_samples: int, length: int | None = None, **options: Any
) -> np.ndarray:
    """Deprecated: `sedd.generate` draws from models of every family.

    Args:
      key: random key.
      model: the model.
      num_samples: N.
      length: L.
      **options: of `sedd.generate`.

    Returns:
      Tokens [N, L].
    """
    from sedd_jax.inference.generate import generate

    warnings.warn(
        "generate_autoregressive is now sedd.generate, which returns diagnostics too.",
        DeprecationWarning,
        stacklevel=2,
    )
    return generate(key, model, num_samples, length, **options)[0]

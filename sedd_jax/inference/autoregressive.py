"""Sampling from left to right, with a key-value cache."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Key

from sedd_jax.diffusion import categorical
from sedd_jax.diffusion.temperature import NO_FILTER, TokenFilter
from sedd_jax.errors import BadInput
from sedd_jax.experiment.mesh import program
from sedd_jax.inference.batches import check_rows, in_batches, row_numbers
from sedd_jax.inference.load import TrainedModel
from sedd_jax.inference.prompt import Prompt, check_prompt, free
from sedd_jax.model.autoregressive import CausalModel
from sedd_jax.model.score_model import Params

Generator = Callable[[Params, Key[Array, "B"], Prompt], tuple[Int[Array, "B L"], Bool[Array, "B"]]]


def build_generator(model: CausalModel, token_filter: TokenFilter = NO_FILTER) -> Generator:
    """Returns generate(params, keys, prompt) -> (tokens, finite), one program when jitted.

    `finite` says of a row whether all its logits were. Positions of the prompt that are held must
    come first in their row.

    Args:
      model: the network.
      token_filter: how tokens are drawn.
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
        return tokens.T, finite

    return generator


def generate_autoregressive(
    key: Key[Array, ""],
    checkpoint: TrainedModel,
    num_samples: int,
    length: int | None = None,
    *,
    temperature: float = 1.0,
    top_p: float = 1.0,
    prompt: Prompt | None = None,
    rows: np.ndarray | None = None,
    batch_size: int = 32,
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """Draws token sequences from an autoregressive model, with a key-value cache.

    A row is a function of (key, its number), its prompt and the settings, whatever `num_samples`
    and `batch_size`; on another mesh it is so up to rounding. The rows of a batch are split over
    the checkpoint's mesh, and every process gets all.

    Args:
      key: random key.
      checkpoint: the model, from `sedd.load`.
      num_samples: N.
      length: L, tokens per sequence; the trained length by default.
      temperature: logits are divided by it; 1 for the model's own law, 0 for the likeliest token.
      top_p: draw from the fewest tokens that have this mass (nucleus); 1 for all.
      prompt: tokens to hold, [N, L], at the start of every row; they come back unchanged.
      rows: numbers of the rows, below 2^32; 0 to N - 1 by default.
      batch_size: rows at a time; on a mesh, rounded up to fill it.
      progress: called as progress(done, total) after every batch.

    Returns:
      Tokens [N, L].

    Raises:
      BadInput: a diffusion model, a setting out of range, or a prompt that does not fit.
      FloatingPointError: the network gave a logit that is not finite; no later batch is drawn.
    """
    baseline, config = checkpoint.baseline, checkpoint.config
    length = config.model.length if length is None else length
    check_rows(config, num_samples, length, batch_size)
    numbers = row_numbers(rows, num_samples)
    token_filter = TokenFilter(temperature, top_p)
    token_filter.check()
    prompt = free(num_samples, length) if prompt is None else prompt
    check_prompt(prompt, (num_samples, length), baseline.num_tokens)
    check_prefixes(np.asarray(prompt.held))
    generator = _compiled(baseline.model, checkpoint.mesh, token_filter)
    parts = in_batches(
        generator,
        checkpoint,
        key,
        prompt,
        numbers,
        min(batch_size, num_samples),
        lambda finite: finite,
        progress,
    )
    return np.concatenate([tokens for tokens, _ in parts])[:num_samples]


def check_prefixes(held: Bool[np.ndarray, "N L"]) -> None:
    """Raises BadInput unless the held positions of every row are its first ones."""
    if (held[:, 1:] > held[:, :-1]).any():
        raise BadInput(
            "A prompt of an autoregressive model must be a prefix: it cannot fill in what comes "
            "before given tokens; use a diffusion checkpoint for that."
        )


@functools.lru_cache(maxsize=8)
def _compiled(model, mesh, token_filter):
    """The generator as one program, kept so that the next call does not compile it again."""
    return program(build_generator(model, token_filter), mesh)

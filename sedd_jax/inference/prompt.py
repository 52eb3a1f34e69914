"""The given tokens of every row, and its length."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from sedd_jax.diffusion.padding import real_positions, zero_padding
from sedd_jax.diffusion.sampler import Clamp
from sedd_jax.errors import BadInput, check_positive


class Prompt(NamedTuple):
    """Rows with tokens given at some positions, of one length or of different ones.

    Attributes:
      tokens: the tokens to hold; any value where not held.
      held: True where the token is held.
      lengths: tokens of every row, at least 1; the rest of the row is padding, which the model
        does not see and which comes back as 0. None for full rows.
      condition: encoded conditions of the rows, a tree of arrays [N, ...], see `Context`.
    """

    tokens: Int[Array | np.ndarray, "N L"]
    held: Bool[Array | np.ndarray, "N L"]
    lengths: Int[Array | np.ndarray, "N"] | None = None
    condition: Any = None

    @property
    def given(self) -> Bool[Array | np.ndarray, "N L"]:
        """Where tokens are given: held, and not padding."""
        return zero_padding(self.held, self.lengths)

    @property
    def clamp(self) -> Clamp:
        """What sampling holds: the given tokens, and 0 in the padding."""
        if self.lengths is None:
            return Clamp(self.tokens, self.held)
        real = real_positions(self.lengths, self.tokens.shape[1])
        return Clamp(jnp.where(real, self.tokens, 0), self.held | ~real)


def empty_prompt(num_samples: int, length: int) -> Prompt:
    """Returns the prompt without given tokens."""
    shape = (num_samples, length)
    return Prompt(jnp.zeros(shape, jnp.int32), jnp.zeros(shape, bool))


def prefix_suffix(
    prefix: Int[np.ndarray, "P"], suffix: Int[np.ndarray, "S"], num_samples: int, length: int
) -> Prompt:
    """Returns the prompt that holds `prefix` at the start and `suffix` at the end of every row.

    Args:
      prefix: token ids.
      suffix: token ids, for a text those of `tokenizer.encode_part(text, first=False)`.
      num_samples: rows, N.
      length: tokens of a row, L.

    Raises:
      BadInput: they are no token ids, or leave no position to sample.
    """
    check_positive(num_samples=num_samples, length=length)
    prefix, suffix = _token_ids("prefix", prefix), _token_ids("suffix", suffix)
    given = len(prefix) + len(suffix)
    if given >= length:
        raise BadInput(
            f"The prompt has {given} tokens and the length is {length}: nothing is left to sample; "
            "give a shorter prompt or a larger length."
        )
    tokens = np.zeros(length, np.int32)
    held = np.ones(length, bool)
    tokens[: len(prefix)] = prefix
    tokens[length - len(suffix) :] = suffix
    held[len(prefix) : length - len(suffix)] = False
    rows = (num_samples, length)
    return Prompt(
        jnp.asarray(np.broadcast_to(tokens, rows)), jnp.asarray(np.broadcast_to(held, rows))
    )


def _token_ids(name: str, ids: Any) -> np.ndarray:
    ids = np.asarray(ids)
    if ids.ndim != 1 or (ids.size and not np.issubdtype(ids.dtype, np.integer)):
        raise BadInput(
            f"{name} must be token ids, got {ids.dtype} {list(ids.shape)}: model.tokenizer.encode "
            'gives those of a text, and sedd.templates(model, ["Once[MASK:*]"]) takes texts.'
        )
    return ids


def rows_and_length(prompt: Any) -> tuple[int, int]:
    """Returns the shape of a prompt, [N, L].

    Raises:
      BadInput: it is no `Prompt`, or its fields are no arrays of their types.
    """
    if not isinstance(prompt, Prompt):
        raise BadInput(
            f"prompt is a {type(prompt).__name__}: give what sedd.templates, sedd.prefix_suffix or "
            "sedd.Prompt returns."
        )
    kinds = {"tokens": (np.integer, 2), "held": (np.bool_, 2), "lengths": (np.integer, 1)}
    for name, (kind, axes) in kinds.items():
        value = getattr(prompt, name)
        array = isinstance(value, np.ndarray | jax.Array)
        fits = array and value.ndim == axes and np.issubdtype(value.dtype, kind)
        if not fits and not (name == "lengths" and value is None):
            found = f"{value.dtype} {value.shape}" if array else f"a {type(value).__name__}"
            wanted = "booleans" if name == "held" else "whole numbers"
            raise BadInput(
                f"prompt.{name} must be an array of {wanted} with {axes} axes, got {found}; "
                "np.array(...) makes one of lists."
            )
    return prompt.tokens.shape


def check_prompt(prompt: Prompt, shape: tuple[int, int], num_tokens: int) -> None:
    """Checks that a prompt fits the rows to draw.

    Args:
      prompt: tokens to hold.
      shape: [N, L] of the rows.
      num_tokens: of the model; ids are below.

    Raises:
      BadInput: rows of another shape, lengths outside [1, L], conditions of another number of rows,
        or ids that the model does not have.
    """
    for name, array in (("tokens", prompt.tokens), ("held", prompt.held)):
        if array.shape != shape:
            raise BadInput(
                f"prompt.{name} has shape {array.shape}, need [num_samples, length] = {shape}."
            )
    real = np.ones(shape, bool)
    if prompt.lengths is not None:
        lengths = np.asarray(prompt.lengths)
        if lengths.shape != shape[:1] or not 1 <= lengths.min() <= lengths.max() <= shape[1]:
            raise BadInput(
                f"prompt.lengths must be {shape[0]} numbers in [1, {shape[1]}], one for each row."
            )
        real = np.arange(shape[1]) < lengths[:, None]
    for leaf in jax.tree.leaves(prompt.condition):
        if np.shape(leaf)[:1] != shape[:1]:
            raise BadInput(
                f"prompt.condition has an array of shape {np.shape(leaf)}, need one entry for each "
                f"of the {shape[0]} rows."
            )
    held = np.asarray(prompt.tokens)[np.asarray(prompt.held) & real]
    if held.size and not 0 <= held.min() <= held.max() < num_tokens:
        raise BadInput(f"The prompt holds ids outside [0, {num_tokens}), the model's tokens.")

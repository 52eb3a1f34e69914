"""The settings of a network, and a network to build."""

import dataclasses
from typing import Literal

import numpy as np

COLUMN_GROUP = 128  # the vocabulary axis of a table is padded to a multiple of it


def padded(num_states: int) -> int:
    """Returns the size of the vocabulary axis of a table for `num_states` states."""
    return -(-num_states // COLUMN_GROUP) * COLUMN_GROUP


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The network; the default is SEDD small."""

    hidden_size: int = 768
    cond_dim: int = 128
    num_blocks: int = 12
    num_heads: int = 12
    length: int = 1024  # tokens per sequence
    dropout: float = 0.1
    scale_by_sigma: bool = True  # absorb only: output relative to a uniform guess
    learned_positions: bool = False  # absolute positions beside the rotary ones; published: no
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # auto: float32 on CPU, else bfloat16
    attention: Literal["auto", "xla", "cudnn", "splash"] = "auto"  # auto: by device and shape
    remat: Literal["none", "products", "blocks"] = "products"  # what to keep of a block
    unroll: Literal["auto", "yes", "no"] = "auto"  # a program without a loop over blocks; on GPUs


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """A network to build: its settings, and what depends on the vocabulary and the devices.

    Attributes:
      model: the settings. Of them `length`, `learned_positions`, `dtype` and `unroll` are resolved
        below.
      num_states: V, rows of the token table and columns of the head, before padding.
      dtype: type of the matrix products; parameters, norms and log-scores stay float32.
      max_length: number of learned absolute positions, None for none, as published. Rotary
        attention sees only differences of positions, so without them all positions of a sequence
        of equal tokens, of masks for instance, get the same answer.
      unroll: whether the program has all blocks one after another instead of a loop.
    """

    model: ModelConfig
    num_states: int
    dtype: np.dtype
    max_length: int | None = None
    unroll: bool = False

    @property
    def padded_states(self) -> int:
        """V rounded up to a multiple of 128."""
        return padded(self.num_states)

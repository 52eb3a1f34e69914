"""The settings of a network, and a network to build."""

import dataclasses
import re
from typing import Literal

import numpy as np

from sedd_jax.data.column_statistics import ColumnSize
from sedd_jax.errors import BadInput
from sedd_jax.system.rounding import round_up
from sedd_jax.system.settings import setting

COLUMN_GROUP = 128  # the vocabulary axis of a table is padded to a multiple of it

BOTH_DIFFUSIONS = ("diffusion", "gaussian")  # families: of tokens, and of their embeddings
WITH_GRAPH = ("diffusion", "classifier")  # families whose networks take tokens noised by a graph
NOISED = (*WITH_GRAPH, "gaussian")


def padded(num_states: int) -> int:
    """Returns the size of the vocabulary axis of a table for `num_states` states."""
    return round_up(num_states, COLUMN_GROUP)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The network; the default is SEDD small."""

    hidden_size: int = setting(768, above=0)
    cond_dim: int = setting(128, above=0, family=NOISED)
    num_blocks: int = setting(12, above=0)
    num_heads: int = setting(12, above=0)
    # what stands between embedding and head; convolution: dilated, for motifs, as in DNA
    trunk: Literal["transformer", "convolution"] = setting("transformer", family=WITH_GRAPH)
    kernel_width: int = setting(9, above=0, family=WITH_GRAPH)  # of a convolution; odd
    dilations: str = setting("1,1,4,16,64", family=WITH_GRAPH)  # of the convolutions, in turn
    length: int = setting(1024, above=0)  # tokens per sequence
    dropout: float = setting(0.1, at_least=0, below=1)
    # what the network emits: log-ratios, or a softmax over the clean token, given all noised tokens
    # or all but its own
    output: Literal["ratio", "denoiser", "leave_one_out"] = setting("ratio", family=("diffusion",))
    # False: the network is not told the noise
    time_conditioning: bool = setting(True, family=WITH_GRAPH)
    # absorb and output=ratio only: output relative to a uniform guess
    scale_by_sigma: bool = setting(True, family=WITH_GRAPH)
    # absolute positions beside the rotary ones; published: no
    learned_positions: bool = setting(False, family=WITH_GRAPH)
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # auto: float32 on CPU, else bfloat16
    # auto: by device and shape
    attention: Literal["auto", "xla", "cudnn", "splash"] = setting("auto", may_change=True)
    # what the forward pass keeps of a block for the backward pass
    remat: Literal["none", "products", "blocks"] = setting("products", may_change=True)
    # a program without a loop over blocks; auto: on GPUs
    unroll: Literal["auto", "yes", "no"] = setting("auto", may_change=True)

    @property
    def dilation_cycle(self) -> tuple[int, ...]:
        """The dilations of the convolutions."""
        return tuple(map(int, self.dilations.split(",")))

    def check(self) -> None:
        """Raises BadInput for convolutions that cannot be, and for settings without effect."""
        if self.trunk == "transformer":
            default = ModelConfig()
            for name in ("kernel_width", "dilations"):
                if getattr(self, name) != getattr(default, name):
                    raise BadInput(
                        f"config.model.{name} is for config.model.trunk=convolution: leave it at "
                        "its default."
                    )
            return
        if not self.kernel_width % 2:
            raise BadInput(
                f"config.model.kernel_width must be odd, with as many positions on either side, "
                f"got {self.kernel_width}."
            )
        if not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", self.dilations):
            raise BadInput(
                "config.model.dilations must be whole numbers from 1 on with commas between them, "
                f"as in 1,1,4,16, got {self.dilations!r}."
            )
        if self.num_blocks % len(self.dilation_cycle):
            raise BadInput(
                f"config.model.num_blocks ({self.num_blocks}) must be a multiple of the number of "
                f"config.model.dilations ({self.dilations})."
            )


@dataclasses.dataclass(frozen=True)
class GaussianConfig:
    """Diffusion of embeddings: their size, and the noise that learning starts from."""

    embed_dim: int = setting(16, above=0)  # an embedding has norm 1
    # -log of the signal-to-noise ratio at t = 0, where 50,000 tokens should be told apart ...
    gamma_first: float = -5.0
    gamma_last: float = 6.0  # ... and at t = 1; both are learned


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
        of equal tokens, of masks for instance, get the same output.
      unroll: whether the program has all blocks one after another instead of a loop.
      conditions: what the network is told of a row.
      told_given: whether the network is told which tokens are given.
    """

    model: ModelConfig
    num_states: int
    dtype: np.dtype
    max_length: int | None = None
    unroll: bool = False
    conditions: tuple[ColumnSize, ...] = ()
    told_given: bool = False

    @property
    def padded_states(self) -> int:
        """V rounded up to a multiple of 128."""
        return padded(self.num_states)

"""A trained model and what is needed to use it."""

import dataclasses
import functools
import hashlib
import json
import warnings
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from sedd_jax.data.conditions import Conditions
from sedd_jax.data.tokenizer import Tokenizer
from sedd_jax.diffusion.graph import Graph
from sedd_jax.diffusion.noise import Noise
from sedd_jax.errors import BadInput
from sedd_jax.experiment.build import compute_dtype
from sedd_jax.experiment.config import Config
from sedd_jax.experiment.integrity import fingerprint
from sedd_jax.experiment.mesh import jit_replicated, shard_batch
from sedd_jax.inference.family import Family
from sedd_jax.inference.score_based import ScoreBased
from sedd_jax.model.autoregressive import CausalModel
from sedd_jax.model.classifier import ClassifierModel
from sedd_jax.model.gaussian import GaussianModel
from sedd_jax.model.score_model import Params, ScoreModel
from sedd_jax.model.sharding import num_batch_shards


@functools.lru_cache(maxsize=64)
def compiled(
    family: Family, mesh: Mesh | None, build: Callable[..., Callable], *static: Hashable
) -> Callable[..., Any]:
    """Returns build(family, *static) jitted, the same program for the same arguments.

    Results are replicated: every process has all of them.

    Args:
      family: the model, without its weights.
      mesh: the devices; None for one.
      build: a function at module level: its identity is part of the cache key.
      *static: settings of the function that it builds.
    """
    return jit_replicated(build(family, *static), mesh)


class Identity(NamedTuple):
    """What distinguishes a model from others.

    Attributes:
      weights: a checksum of the weights.
      tokenizer: the fingerprint of the tokenizer, None without one.
      dtype: of the matrix products.
    """

    weights: str
    tokenizer: str | None
    dtype: str

    @property
    def digest(self) -> str:
        """A checksum of all three, in 16 hexadecimal digits."""
        return hashlib.sha256(json.dumps(self).encode()).hexdigest()[:16]


@dataclasses.dataclass(frozen=True)
class TrainedModel:
    """A trained model and what is needed to use it.

    Attributes:
      family: the model without its weights: graph, noise and network of a diffusion model.
      params: the weights.
      config: the settings of the run.
      tokenizer: the tokenizer of the run; None for a published folder without one.
      step: the training step, None if unknown.
      folder: that it was read from, if any.
      mesh: the devices that hold the weights, sharded; None for one device.
      name: of the folder or the hub repository that it was read from.
      conditions: what its network is told of a row; None for nothing.
    """

    family: Family
    params: Params = dataclasses.field(repr=False)
    config: Config
    tokenizer: Tokenizer | None
    step: int | None
    folder: Path | None = None
    mesh: Mesh | None = None
    name: str | None = None
    conditions: Conditions | None = None

    @property
    def graph(self) -> Graph:
        """The token graph. Raises BadInput for a model of another family, as `noise` does."""
        return self.diffusion.graph

    @property
    def noise(self) -> Noise:
        """The noise schedule."""
        return self.diffusion.noise

    @property
    def model(self) -> ScoreModel | CausalModel | GaussianModel | ClassifierModel:
        """The network, as pure functions."""
        return self.family.model

    @property
    def diffusion(self) -> ScoreBased:
        """The family of a discrete diffusion model."""
        if not isinstance(self.family, ScoreBased):
            raise BadInput(
                f"This model is {self.config.family}: it has no graph, noise or log-scores; use "
                "sedd.nll_bound and sedd.generate."
            )
        return self.family

    @property
    def components(self) -> Family:
        """Deprecated: now `family`."""
        warnings.warn("components is now family.", DeprecationWarning, stacklevel=2)
        return self.family

    @functools.cached_property
    def identity(self) -> Identity:
        """The checksums of weights and tokenizer, and the type of matrix products."""
        platform = next(iter(jax.tree.leaves(self.params)[0].devices())).platform
        return Identity(
            fingerprint(self.params),
            self.tokenizer and self.tokenizer.fingerprint(),
            compute_dtype(self.config.model.dtype, platform).name,
        )

    def shard_batch(self, rows: np.ndarray) -> Array:
        """Returns rows [B, ...], the same on every process, split over the devices of the mesh."""
        return shard_batch(rows, self.mesh)

    @property
    def num_batch_shards(self) -> int:
        """The number of parts that a batch is split into; it must divide the number of rows."""
        return 1 if self.mesh is None else num_batch_shards(self.mesh)

    def compiled(self, build: Callable[..., Callable], *static: Hashable) -> Callable[..., Any]:
        """Returns build(family, *static) jitted, see `compiled`.

        Args:
          build: a function at module level.
          *static: settings of the function that it builds.
        """
        return compiled(self.family, self.mesh, build, *static)

    def log_score(
        self, xt: Int[Array | np.ndarray, "B L"], sigma: Float[Array | np.ndarray, "B"]
    ) -> Float[Array, "B L V"]:
        """Returns the log-scores of the noised tokens, float32, 0 at the current token.

        Raises:
          BadInput: `xt` is not a traced or device array, and has ids that the graph does not have.
        """
        if not isinstance(xt, jax.Array) and np.size(xt):  # a device array is not waited for
            low, high = np.min(xt), np.max(xt)
            if not 0 <= low <= high < self.graph.num_states:
                raise BadInput(
                    f"xt has ids from {low} to {high}, the graph's are in [0, "
                    f"{self.graph.num_states}), the mask included."
                )
        apply = compiled(self.diffusion, None, _apply)
        return apply(self.params, jnp.asarray(xt), jnp.asarray(sigma))


def _apply(family):
    return family.model.apply

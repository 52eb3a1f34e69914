"""What is measured of a model while it trains: the held-out bound, and samples to read."""

import math

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from sedd_jax.data.blocks import Dataset
from sedd_jax.data.pipeline import heldout_batches
from sedd_jax.diffusion.proposal import guess_proposal
from sedd_jax.inference.bound import estimate_bound, sequence_loss
from sedd_jax.inference.generate import build_generator, free, row_keys
from sedd_jax.model.score_model import Params
from sedd_jax.runtime import sharding
from sedd_jax.runtime.components import Components
from sedd_jax.runtime.config import Config
from sedd_jax.runtime.step import RunKeys


class Evaluator:
    """The held-out bound and the samples of a run, as functions of the averaged weights."""

    def __init__(
        self, config: Config, components: Components, dataset: Dataset, keys: RunKeys, mesh: Mesh
    ):
        """Prepares the draws and reads the held-out blocks onto the devices of `mesh`."""
        self._config, self._keys, self._tokenizer = config, keys, dataset.tokenizer
        self._bytes_per_token = dataset.manifest["splits"]["heldout"]["bytes_per_token"]
        proposal = guess_proposal(components.graph, components.noise, config.train.t_min)
        everywhere, batch_size = sharding.replicated(mesh), config.eval.batch_size
        # parameters come as they lie; every process wants all results
        self._loss = jax.jit(sequence_loss(components, proposal), out_shardings=everywhere)
        self._batches = [
            sharding.global_batch(rows, batch_size, mesh)
            for rows in heldout_batches(
                dataset.heldout,
                batch_size=batch_size,
                rows=sharding.rows_here(batch_size, mesh),
                max_blocks=config.eval.max_blocks,
            )
        ]
        self._generate = jax.jit(
            build_generator(
                components,
                steps=config.eval.sample_steps,
                sampler="tweedie",
                t_min=config.train.t_min,
            ),
            out_shardings=everywhere,
        )

    def bound(self, params: Params) -> dict[str, float]:
        """Returns the held-out bound as a row of metrics; the same draws at every call."""
        bound = estimate_bound(self._loss, params, self._keys.evaluate, self._batches)
        bits_per_token = bound.nats_per_token / math.log(2)
        return {
            "bound": bound.nats_per_token,
            "bound_stderr": bound.stderr / bound.length,
            "perplexity": bound.perplexity,
            "bits_per_byte": bits_per_token / self._bytes_per_token,
        }

    def samples(self, params: Params) -> list[str]:
        """Returns sampled texts, from the same keys at every call."""
        count = self._config.eval.num_samples
        if not count:
            return []
        keys = row_keys(self._keys.sample, jnp.arange(count))
        tokens, _ = self._generate(params, keys, free(count, self._config.model.length))
        return [self._tokenizer.decode(row) for row in jax.device_get(tokens)]

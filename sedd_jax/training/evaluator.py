"""Evaluation of a model while it trains: the held-out bound, and samples to read."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from sedd_jax.data.blocks import Dataset
from sedd_jax.data.pipeline import heldout_batches
from sedd_jax.diffusion.importance import guess_proposal
from sedd_jax.experiment import mesh as sharding
from sedd_jax.experiment.build import Baseline, Components
from sedd_jax.experiment.config import EvalConfig
from sedd_jax.experiment.state import RunKeys
from sedd_jax.inference import autoregressive
from sedd_jax.inference.batches import row_keys
from sedd_jax.inference.estimate import estimate_bound, exact_nll, sequence_loss
from sedd_jax.inference.generator import build_generator
from sedd_jax.inference.likelihood import Bound
from sedd_jax.inference.prompt import free
from sedd_jax.inference.sampling import Sampling
from sedd_jax.model.score_model import Params


class Evaluator:
    """The held-out bound and the samples of a run, as functions of the averaged weights.

    The autoregressive baseline has no bound but the negative log-likelihood itself.
    """

    def __init__(
        self,
        components: Components | Baseline,
        dataset: Dataset,
        keys: RunKeys,
        mesh: Mesh,
        config: EvalConfig,
        t_min: float,
    ):
        """Reads the held-out blocks onto the devices.

        Args:
          components: the model.
          dataset: its text.
          keys: of the run, for the noise and the samples.
          mesh: the devices.
          config: how much to evaluate.
          t_min: the smallest time of the training.
        """
        self._config, self._keys, self._tokenizer = config, keys, dataset.tokenizer
        self._t_min, self._length = t_min, dataset.heldout.length
        self._bytes_per_token = dataset.manifest["splits"]["heldout"]["bytes_per_token"]
        batch_size = config.batch_size
        self._batches = [
            sharding.global_batch(rows, batch_size, mesh)
            for rows in heldout_batches(
                dataset.heldout,
                batch_size=batch_size,
                rows=sharding.rows_here(batch_size, mesh),
                max_blocks=config.max_blocks,
            )
        ]
        # parameters stay where they are; every process gets all results
        self._jit = functools.partial(jax.jit, out_shardings=sharding.replicated(mesh))
        family = self._baseline if isinstance(components, Baseline) else self._diffusion
        self._name, self._times, self._estimate, self._generate = family(components)

    def _diffusion(self, components):
        t_min = self._t_min
        proposal = guess_proposal(components.graph, components.noise, t_min)
        loss = self._jit(sequence_loss(components, proposal))
        generator = build_generator(
            components, Sampling(steps=self._config.sample_steps), t_min=t_min
        )

        def estimate(params):
            return estimate_bound(loss, params, self._keys.evaluate, self._batches)

        return "bound", "low-discrepancy", estimate, self._jit(generator)

    def _baseline(self, components):
        nll = self._jit(components.model.nll)
        generator = autoregressive.build_generator(components.model)

        def estimate(params):
            return exact_nll(nll, params, self._batches)

        return "nll", "exact", estimate, self._jit(generator)

    def bound(self, params: Params) -> dict[str, float]:
        """Returns the held-out bound, or nll, as a row of metrics; the same draws at every call."""
        nats = self._estimate(params)
        tokens = np.full(len(nats), self._length)
        bound = Bound(np.float64(nats)[None], tokens, self._times)
        bits_per_token = bound.nats_per_token / math.log(2)
        return {
            self._name: bound.nats_per_token,
            f"{self._name}_stderr": bound.data_stderr,
            "perplexity": bound.perplexity,
            "bits_per_byte": bits_per_token / self._bytes_per_token,
        }

    def samples(self, params: Params) -> list[str]:
        """Returns sampled texts, from the same keys at every call."""
        count = self._config.num_samples
        if not count:
            return []
        keys = row_keys(self._keys.sample, jnp.arange(count))
        tokens, _ = self._generate(params, keys, free(count, self._length))
        return [self._tokenizer.decode(row) for row in jax.device_get(tokens)]


def bound_text(row: dict[str, float]) -> str:
    """Returns a row of `Evaluator.bound` as text."""
    name = "bound" if "bound" in row else "nll"
    return (
        f"{name} {row[name]:.4f} nats/token (+-{row[f'{name}_stderr']:.4f}), "
        f"perplexity {row['perplexity']:.2f}, {row['bits_per_byte']:.3f} bits/byte"
    )

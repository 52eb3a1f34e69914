"""Evaluation of a model while it trains: the held-out bound, and samples to read."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from sedd_jax.data import round_trip
from sedd_jax.data.conditions import values_text
from sedd_jax.data.pipeline import arguments_of, heldout_batches
from sedd_jax.data.prepared import Dataset
from sedd_jax.diffusion.times import sample_times
from sedd_jax.display.table import in_brackets
from sedd_jax.errors import BadInput
from sedd_jax.experiment import mesh as meshes
from sedd_jax.experiment.config import EvalConfig
from sedd_jax.experiment.state import RunKeys
from sedd_jax.inference.batches import row_keys
from sedd_jax.inference.classifier import Classifier, judged
from sedd_jax.inference.family import Family, sampling_names
from sedd_jax.inference.generate import family_generator
from sedd_jax.inference.likelihood import estimate_nll
from sedd_jax.inference.model import compiled
from sedd_jax.inference.prompt import empty_prompt
from sedd_jax.inference.row_passes import RowPasses
from sedd_jax.model.context import Context
from sedd_jax.model.score_model import Params
from sedd_jax.system.processes import warn_on_primary


class Samples(NamedTuple):
    """Sampled texts.

    Attributes:
      texts: as they are.
      shown: to read: behind what each was told, where the model is told anything.
    """

    texts: list[str]
    shown: list[str]


class Evaluator:
    """The held-out bound and the samples of a run, as functions of the averaged weights.

    For an autoregressive model the bound is the negative log-likelihood itself.
    """

    def __init__(
        self,
        family: Family,
        dataset: Dataset,
        keys: RunKeys,
        mesh: Mesh,
        config: EvalConfig,
        t_min: float,
    ):
        """Reads the held-out blocks onto the devices.

        Args:
          family: the model.
          dataset: its text.
          keys: random keys of the run.
          mesh: the devices.
          config: settings of evaluation.
          t_min: the smallest time of the training.

        Raises:
          BadInput: there are fewer held-out blocks than parts of the mesh.
        """
        self._family, self._mesh, self._config = family, mesh, config
        self._keys, self._tokenizer = keys, dataset.tokenizer
        self._heldout, self._conditions = dataset.heldout, dataset.conditions
        self._t_min, self._length = t_min, dataset.heldout.length
        self._bytes_per_token = dataset.manifest["splits"]["heldout"]["bytes_per_token"]
        lost = round_trip.share_of_split(dataset.tokenizer, dataset.manifest, "heldout")
        self._lost = {} if lost is None else {"lost_characters": lost}
        self._batch_size = batch_size = self._rows_at_a_time(len(dataset.heldout))
        self._batches = [
            meshes.global_rows(arguments_of(rows), batch_size, mesh)
            for rows in heldout_batches(
                dataset.heldout,
                batch_size=batch_size,
                rows=meshes.rows_here(batch_size, mesh),
                max_blocks=config.max_blocks,
            )
        ]

    def _rows_at_a_time(self, count):
        """The size of a batch: that of the config, or less if there are only `count` blocks."""
        wanted, parts = self._config.batch_size, meshes.num_batch_shards(self._mesh)
        found = min(wanted, count // parts * parts)
        blocks = f"the held-out split has {count} block(s) of {self._length} tokens"
        if not found:
            raise BadInput(
                f"The mesh has {parts} parts (slice x data x fsdp), but {blocks}; give more text, "
                "or raise config.data.heldout_fraction in another --workdir."
            )
        if found < wanted:
            warn_on_primary(
                f"config.eval.batch_size is {wanted}, but {blocks}: a batch has {found}."
            )
        elif rest := min(count, self._config.max_blocks) % found:
            warn_on_primary(
                f"{rest} held-out blocks are left out: {min(count, self._config.max_blocks)} are "
                f"no multiple of config.eval.batch_size={found}."
            )
        return found

    def bound(self, params: Params) -> dict[str, float]:
        """Returns the held-out bound, or nll, as a row of metrics; draws are always the same.

        Of a classifier, which has neither: cross-entropy and accuracy.
        """
        size, count = self._batch_size, len(self._batches)
        passes = RowPasses(
            self._family,
            self._mesh,
            params,
            np.split(np.arange(size * count), count),
            lambda rows: _told(*self._batches[rows[0] // size]),
        )
        if isinstance(self._family, Classifier):
            return self._of_classifier(passes, size * count)
        found = estimate_nll(
            passes,
            self._keys.evaluate,
            np.full(size * count, self._length),
            t_min=self._t_min,
        )
        name = "nll" if self._family.exact_likelihood else "bound"
        bits_per_token = found.nats_per_token / math.log(2)
        return {
            name: found.nats_per_token,
            f"{name}_stderr": found.data_stderr,
            "perplexity": found.perplexity,
            "bits_per_byte": bits_per_token / self._bytes_per_token,
            **self._lost,
        }

    def _of_classifier(self, passes, count):
        """The figures of a classifier, each block at a time of its own, spread evenly."""
        time_key, noise_key = jax.random.split(self._keys.evaluate)
        t, row = np.asarray(sample_times(time_key, count, self._t_min)), {}
        for name, right in (("cross_entropy", False), ("accuracy", True)):
            found = passes(judged, (right,), noise_key, t)
            error = found.std(ddof=1) / math.sqrt(count) if count > 1 else math.nan
            row |= {name: float(found.mean()), f"{name}_stderr": float(error)}
        return row

    def samples(self, params: Params) -> "Samples":
        """Draws samples from the same keys every time, told the conditions of held-out blocks."""
        settings, family = self._config, self._family
        count = settings.num_samples
        if not count:
            return Samples([], [])
        sampling = training_sampling(family, settings)
        generator = compiled(family, self._mesh, family_generator, sampling, self._t_min, False)
        keys = row_keys(self._keys.sample, jnp.arange(count))
        shown = np.arange(count) * len(self._heldout) // count
        prompt = empty_prompt(count, self._length)
        prompt = prompt._replace(condition=self._heldout.condition(shown))
        tokens, _ = generator(params, keys, prompt)
        texts = [self._tokenizer.decode(row) for row in jax.device_get(tokens)]
        if self._conditions is None:
            return Samples(texts, texts)
        told = self._conditions.values(self._heldout.told_rows(shown))
        named = zip(told, texts, strict=True)
        return Samples(texts, [f"{values_text(each)}: {text}" for each, text in named])


def training_sampling(family: Family, config: EvalConfig) -> Any:
    """Returns the settings of the samples drawn in training, those that the family has."""
    options = {"steps": config.sample_steps, "sampler": config.sampler}
    names = sampling_names(family)
    return family.sampling(**{name: options[name] for name in options if name in names})


def _told(tokens, condition=None):
    """A batch as `RowPasses` takes it; full rows: no lengths."""
    context = {} if condition is None else {"context": Context(condition=condition)}
    return tokens, {"lengths": None, **context}


def bound_text(row: dict[str, float]) -> str:
    """Returns a row of `Evaluator.bound` as text."""
    if "cross_entropy" in row:
        entropy, accuracy = (
            f"{row[name]:.4f}{unit}{in_brackets(row[f'{name}_stderr'], '.4f')}"
            for name, unit in (("cross_entropy", " nats/sequence"), ("accuracy", ""))
        )
        return f"cross-entropy {entropy}, accuracy {accuracy}"
    name = "bound" if "bound" in row else "nll"
    error = in_brackets(row[f"{name}_stderr"], ".4f")  # of a single block it is unknown
    return (
        f"{name} {row[name]:.4f} nats/token{error}, "
        f"perplexity {row['perplexity']:.2f}, {row['bits_per_byte']:.3f} bits/byte"
        f"{round_trip.caveat(row.get('lost_characters'))}"
    )

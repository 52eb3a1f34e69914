"""Sampling as a stream: the rows that `generate` draws, after every network evaluation."""

import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from sedd_jax.errors import BadInput
from sedd_jax.inference.batches import batch_rows, row_keys, row_numbers
from sedd_jax.inference.classifier import split_classifier
from sedd_jax.inference.conditions import check_guided, told_prompt
from sedd_jax.inference.generate import check_rows, not_finite_error, split_overlap
from sedd_jax.inference.generator import build_chain
from sedd_jax.inference.model import TrainedModel
from sedd_jax.inference.prompt import Prompt, check_prompt, rows_and_length
from sedd_jax.inference.sampling import Sampling
from sedd_jax.inference.score_based import ScoreBased


class Snapshot(NamedTuple):
    """The rows after some network evaluations.

    Attributes:
      tokens: of the rows, the mask included.
      nfe: network evaluations so far; 0 before the first.
      max_nfe: the most network evaluations in all, as far as is known; in the last snapshot `nfe`.
      evaluations: those that every row needed so far.
      sigma: total noise of the first evaluation of the last step; that of t = 1 before it.
    """

    tokens: Int[np.ndarray, "N L"]
    nfe: int
    max_nfe: int
    evaluations: Int[np.ndarray, "N"]
    sigma: Float[np.ndarray, "N"]

    @property
    def calls(self) -> int:
        """Deprecated: now `nfe`."""
        warnings.warn("calls is now nfe.", DeprecationWarning, stacklevel=2)
        return self.nfe

    @property
    def most(self) -> int:
        """Deprecated: now `max_nfe`."""
        warnings.warn("most is now max_nfe.", DeprecationWarning, stacklevel=2)
        return self.max_nfe


def generate_stream(
    key: Key[Array, ""],
    model: TrainedModel,
    prompt: Prompt,
    *,
    rows: np.ndarray | None = None,
    **settings: Any,
) -> Iterator[Snapshot]:
    """Returns the snapshots of a sampling run: the start, and the rows after every evaluation.

    The tokens of the last snapshot are those that `generate` gives for the same key, rows, prompt
    and settings, if the N rows are one batch there. Every evaluation runs one program, kept for the
    next request of the same shape and settings. Snapshots are computed as they are asked for.

    Args:
      key: random key.
      model: the model, of the diffusion family.
      prompt: tokens to hold, [N, L]; the N rows are drawn at once.
      rows: numbers of the rows, below 2^32; 0 to N - 1 by default.
      **settings: how to draw, see `generate`.

    Raises:
      BadInput: as `generate`, when called.
      FloatingPointError: when a snapshot is asked for: the network gave a score that is not finite.
    """
    model, settings = split_classifier(model, settings)
    family, config = model.diffusion, model.config
    sampling = family.sampling(**settings)
    count, length = rows_and_length(prompt)
    check_rows(model, count, length, count)
    if length > config.model.length:
        raise BadInput(
            f"Rows that are watched have at most {config.model.length} tokens, the trained length, "
            f"got {length}; `generate` draws longer ones."
        )
    check_prompt(prompt, (count, length), family.num_tokens)
    prompt = told_prompt(model, prompt)
    check_guided(model, sampling, prompt.condition)
    sampling, _ = split_overlap(sampling, config.model.length)
    numbers, static = row_numbers(rows, count), (sampling, config.train.t_min)
    step = model.compiled(_step, *static)
    programs = (
        model.compiled(_start, *static),
        step,
        None if sampling.method.rows_differ else model.compiled(_final, *static),
    )
    return _snapshots(key, model, prompt, numbers, programs, sampling)


def _snapshots(key, model, prompt, numbers, programs, sampling):
    count = len(numbers)
    (batch,) = batch_rows(count, count, model.num_batch_shards)
    placed = jax.tree.map(lambda x: model.shard_batch(np.asarray(x)[batch]), prompt)
    arguments = model.params, row_keys(key, model.shard_batch(numbers[batch])), placed
    start, step, final = programs
    state, max_nfe, sigma = start(*arguments)
    if model.mesh is None:  # committed as the steps return it, or the second step compiles again
        state = jax.device_put(state, jax.tree.leaves(model.params)[0].sharding)
    max_nfe = int(max_nfe)
    evaluations = np.zeros(count, np.int32)
    yield Snapshot(_host(state.xt, count), 0, max_nfe, evaluations, _host(sigma, count))
    nfe = 0
    while nfe < max_nfe:
        last = final is not None and nfe == max_nfe - 1
        state, info, unfinished = (final if last else step)(*arguments, state)
        nfe += 1 if last else sampling.method.evaluations_per_step
        max_nfe = max_nfe if unfinished else nfe
        info = jax.tree.map(lambda x: _host(x, count), info)
        if not info.finite.all():
            raise not_finite_error(numbers[~info.finite])
        evaluations = evaluations + sampling.particles * info.evaluations
        yield Snapshot(_host(state.xt, count), nfe, max_nfe, evaluations, info.sigma)


def _host(rows, count):
    return np.asarray(rows)[:count]


def _start(family: ScoreBased, sampling: Sampling, t_min: float) -> Callable:
    chain = build_chain(*family, sampling, t_min=t_min)

    def start(*arguments):
        state, nfe = chain.init(*arguments)
        return state, nfe.max(), family.noise.sigma(jnp.ones(len(nfe)))

    return start


def _step(family: ScoreBased, sampling: Sampling, t_min: float) -> Callable:
    chain = build_chain(*family, sampling, t_min=t_min)

    def step(params, keys, prompt, state):
        state, info = chain.step(params, keys, prompt, state)
        if not chain.sampler.rows_differ:
            return state, info, True
        return state, info, chain.unfinished(params, prompt, state).any()

    return step


def _final(family: ScoreBased, sampling: Sampling, t_min: float) -> Callable:
    chain = build_chain(*family, sampling, t_min=t_min)
    return lambda *arguments: (*chain.final(*arguments), False)

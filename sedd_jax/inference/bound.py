"""The bound on the negative log-likelihood (Theorem 3.6), by random or fixed t and random x_t.

Of an autoregressive model the same questions have an exact answer.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key
from numpy.typing import ArrayLike

from sedd_jax.diffusion.importance import guess_proposal, plain_proposal
from sedd_jax.diffusion.score_entropy import prior_kl, quadrature_quantiles, sample_quantiles
from sedd_jax.errors import BadInput, check_positive
from sedd_jax.experiment.build import Baseline
from sedd_jax.inference.batches import row_keys
from sedd_jax.inference.estimate import reconstruction_loss, sequence_loss
from sedd_jax.inference.likelihood import Bound, split_by_t
from sedd_jax.inference.load import TrainedModel
from sedd_jax.system.rounding import round_up

TIMES = ("low-discrepancy", "quadrature")


def nll_bound(
    key: Key[Array, ""],
    checkpoint: TrainedModel,
    tokens: ArrayLike,
    *,
    lengths: ArrayLike | None = None,
    batch_size: int = 32,
    draws: int = 1,
    times: str = "low-discrepancy",
    complete: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Bound:
    """Returns the bound on the negative log-likelihood of `tokens`, with its standard errors.

    One network evaluation per sequence and draw, two if complete, over all devices of the
    checkpoint's mesh. What is drawn for a row is a function of (key, row, draw), and its time of
    how many rows there are: another `batch_size`, mesh or padding gives the same figures but for
    rounding. Of an autoregressive model it is the negative log-likelihood itself, by one
    evaluation, whatever the other settings.

    Args:
      key: random key; it makes no difference to an exact value.
      checkpoint: the model, from `sedd.load`.
      tokens: token ids, [N, L].
      lengths: how many tokens of every row are text, [N], at least 1; what follows is padding,
        which the model never sees, whatever its ids. None for all.
      batch_size: sequences at a time, rounded up to what the devices divide.
      draws: of every sequence.
      times: "low-discrepancy": in proportion to the loss of a uniform guess, each draw spread
        evenly over all sequences. "quadrature": the nodes of Gauss-Legendre quadrature, at least
        2, the same for all sequences, and x_t drawn at each by the forward process.
      complete: a true bound, on the learned reverse process in continuous time from a noised
        uniform guess: the integral of the loss over [t_min, 1], the prior term and the final
        denoising step, infinite where that step denies a token. Else the published convention,
        the mean of the loss over [t_min, 1] alone. An exact value is complete.
      progress: called as progress(done, total) after every batch, in network passes over a batch.

    Raises:
      BadInput: no such array, ids that the model does not have, more positions than it has, or a
        setting out of range.
      FloatingPointError: the loss of a row is not finite.
    """
    check_positive(batch_size=batch_size)
    components = checkpoint.components
    exact = isinstance(components, Baseline)
    if not exact:
        check_draws(draws, times)
    tokens, lengths = _checked(checkpoint, np.asarray(tokens), lengths)
    count = np.full(len(tokens), tokens.shape[1]) if lengths is None else lengths
    num_passes = 1 if exact else draws * (1 + complete)
    passes = _Passes(checkpoint, tokens, lengths, batch_size, num_passes, progress)
    if exact:
        return Bound(passes.nats(components.model.nll)[None], count, "exact")
    t_min = checkpoint.config.train.t_min
    proposal, loss, reconstruction, prior = _terms(components, t_min, times)
    time_key, noise_key, final_key = jax.random.split(key, 3)
    unit, weight = _quantiles(time_key, times, draws, len(tokens))
    nats = np.stack(
        [
            weight[draw] * passes.nats(loss, jax.random.fold_in(noise_key, draw), unit[draw])
            for draw in range(draws)
        ]
    )
    if complete:
        nats *= 1 - t_min
    by_t = split_by_t(nats, np.interp(unit, proposal.quantiles, proposal.edges), count, t_min)
    if complete:
        final = [
            passes.nats(reconstruction, jax.random.fold_in(final_key, draw), may_be_infinite=True)
            for draw in range(draws)
        ]
        nats = nats + prior * count + np.stack(final)
    return Bound(nats, count, times, by_t)


def check_draws(draws: int, times: str) -> None:
    """Raises BadInput unless there are such times, and so many draws of them can be."""
    check_positive(draws=draws)
    if times not in TIMES:
        raise BadInput(f"times must be one of {', '.join(TIMES)}, got {times!r}.")
    if times == "quadrature" and draws == 1:
        raise BadInput("Quadrature needs at least 2 nodes: set draws.")


def _checked(checkpoint, tokens, lengths):
    """Tokens with 0 in the padding, and lengths, None where there is no padding."""
    if tokens.ndim != 2 or tokens.size == 0 or not np.issubdtype(tokens.dtype, np.integer):
        raise BadInput(
            "nll_bound needs integers [N, L], at least one sequence of at least one token; got "
            f"{tokens.dtype} {list(tokens.shape)}."
        )
    rows, longest = tokens.shape
    if lengths is not None:
        lengths = np.asarray(lengths)
        fits = lengths.shape == (rows,) and np.issubdtype(lengths.dtype, np.integer)
        if not fits or not 1 <= lengths.min() <= lengths.max() <= longest:
            raise BadInput(
                f"nll_bound needs one length from 1 to {longest} for each of the {rows} rows."
            )
        tokens = np.where(np.arange(longest) < lengths[:, None], tokens, 0)
        lengths = None if (lengths == longest).all() else lengths.astype(np.int32)
    components, model = checkpoint.components, checkpoint.config.model
    num_tokens = components.num_tokens
    if not 0 <= tokens.min() <= tokens.max() < num_tokens:
        raise BadInput(f"nll_bound needs ids in [0, {num_tokens}), the model's tokens.")
    learned = model.learned_positions or isinstance(components, Baseline)
    if learned and longest > model.length:
        raise BadInput(
            f"nll_bound needs sequences of at most {model.length} tokens, the positions that the "
            f"model has learned; got {longest}."
        )
    return tokens.astype(np.int32), lengths


def _quantiles(key, times, draws, rows):
    """Of every draw the quantiles of its times [D, N], and its weight [D]; weights average to 1."""
    if times == "quadrature":
        unit, weight = quadrature_quantiles(draws)
        return np.float32(np.repeat(unit[:, None], rows, axis=1)), draws * weight
    return np.asarray(_even_quantiles(key, draws, rows)), np.ones(draws)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _even_quantiles(key, draws, rows):
    keys = row_keys(key, jnp.arange(draws))
    return jax.vmap(lambda draw_key: sample_quantiles(draw_key, rows))(keys)


@functools.lru_cache(maxsize=8)
def _terms(components, t_min, times):
    """The proposal, both losses and the prior term per token.

    The losses are the same functions in every call, so that their programs stay compiled.
    """
    if times == "quadrature":
        proposal = plain_proposal(t_min)
    else:
        proposal = guess_proposal(components.graph, components.noise, t_min)
    loss = sequence_loss(components, proposal)
    reconstruction = reconstruction_loss(components, t_min)
    prior = jax.jit(lambda: prior_kl(components.graph, components.noise.sigma(jnp.array(1.0))))
    return proposal, loss, reconstruction, float(prior())


class _Passes:
    """Passes over all rows, a batch at a time, on all devices of the model.

    One shape, one program: the last batch is filled up with copies of the last row.
    """

    def __init__(self, checkpoint, tokens, lengths, batch_size, num_passes, progress):
        self._checkpoint, self._tokens, self._lengths = checkpoint, tokens, lengths
        parts, size = checkpoint.parts, min(batch_size, len(tokens))
        self._size = round_up(size, parts)
        self._starts = range(0, len(tokens), self._size)
        self._progress, self._done, self._total = progress, 0, num_passes * len(self._starts)

    def nats(self, loss, key=None, *columns, may_be_infinite=False):
        """Returns what loss(params, row keys, *columns, tokens, lengths=lengths) gives, [N]."""
        found = np.zeros(len(self._tokens))
        for start, nats in self._one_ahead(self._checkpoint.program(loss), key, columns):
            rows = found[start : start + self._size]
            rows[:] = np.asarray(nats)[: len(rows)]
            _check_finite(rows, start, may_be_infinite)
            self._done += 1
            if self._progress is not None:
                self._progress(self._done, self._total)
        return found

    def _one_ahead(self, program, key, columns):
        """Yields (start, nats) of every batch, once the next one is on its way."""
        before = None
        for start in self._starts:
            rows = np.minimum(np.arange(start, start + self._size), len(self._tokens) - 1)
            keys = () if key is None else (row_keys(key, rows),)
            batch = [self._checkpoint.spread(x[rows]) for x in (*columns, self._tokens)]
            lengths = None
            if self._lengths is not None:
                lengths = self._checkpoint.spread(self._lengths[rows])
            nats = program(self._checkpoint.params, *keys, *batch, lengths=lengths)
            if before is not None:
                yield before
            before = start, nats
        yield before


def _check_finite(nats, start, may_be_infinite):
    wrong = start + np.flatnonzero(np.isnan(nats) if may_be_infinite else ~np.isfinite(nats))
    if len(wrong):
        shown = ", ".join(map(str, wrong[:5])) + (", ..." if len(wrong) > 5 else "")
        raise FloatingPointError(
            f"The network gave a loss that is not finite in rows {shown}: its weights are of no "
            "use, try another checkpoint."
        )

"""What a page shows of rows that are being denoised."""

import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from sedd_jax.diffusion.denoiser import denoise_weights
from sedd_jax.diffusion.score import total_away
from sedd_jax.errors import BadInput
from sedd_jax.experiment.mesh import jit_replicated
from sedd_jax.inference.model import TrainedModel
from sedd_jax.inference.prompt import Prompt
from sedd_jax.inference.stream import Snapshot
from sedd_jax.system.progress import progress

LIKELIEST = 5  # tokens that are named of a position
MOST_POSITIONS = 2**16  # of all moments that are kept: a page of some 3.5 MB

Text = list[str | None]  # token by token, None where it is masked


class Guess(NamedTuple):
    """What the model takes a position for, from all that it sees at this moment.

    Attributes:
      likeliest: tokens and their probabilities in the clean text to three digits, the likeliest
        first.
      drawn: the place among them of the token that the position ends with; if it is none of them,
        that token and its probability.
    """

    likeliest: list[tuple[str, float]]
    drawn: int | tuple[str, float]


class Kept(NamedTuple):
    """A moment that is shown.

    Attributes:
      moment: the rows.
      sigma: the noise that the next call takes them to have, [N]; None of the last moment.
    """

    moment: Snapshot
    sigma: Float[np.ndarray, "N"] | None


class Frame(NamedTuple):
    """One moment of all rows.

    Attributes:
      calls: calls of the network so far.
      evaluations: those that each row took part in.
      rows: the text of every row, without its padding.
      guesses: of every position that is not yet settled, None for others.
    """

    calls: int
    evaluations: list[int]
    rows: list[Text]
    guesses: list[list[Guess | None]]


def texts(checkpoint: TrainedModel, tokens: Int[np.ndarray, "N L"], prompt: Prompt) -> list[Text]:
    """Returns rows as text, token by token, without their padding.

    Joined, the tokens of a row are its text; see `Tokenizer.pieces`, and ids without a tokenizer.
    """
    rows = zip(tokens, lengths(prompt), strict=True)
    return [_text(checkpoint, row[:length]) for row, length in rows]


def lengths(prompt: Prompt) -> list[int]:
    """Returns the tokens of every row, without padding."""
    count, width = prompt.tokens.shape
    return [width] * count if prompt.lengths is None else np.asarray(prompt.lengths).tolist()


def keep(moments: Iterable[Snapshot], most: int = 32) -> list[Kept]:
    """Draws to the end, and returns at most `most` moments, evenly spread, with first and last.

    Raises:
      BadInput: they would be too many for a page; before the first call.
    """
    kept = []
    with progress("samples", unit="call") as advance:
        for moment in moments:
            if not moment.calls:
                chosen = _chosen(moment, most)
            elif kept[-1].sigma is None:
                kept[-1] = kept[-1]._replace(sigma=moment.sigma)
            if moment.calls in chosen:
                kept.append(Kept(moment, None))
            advance(moment.calls, moment.most)
    return kept


def _chosen(first, most):
    """The calls after which there is something to see."""
    count = min(most, first.most + 1)
    positions = count * first.tokens.size
    if positions > MOST_POSITIONS:
        rows, length = first.tokens.shape
        raise BadInput(
            f"A page of {rows} samples of {length} tokens at {count} moments has {positions:,} "
            f"positions, at most {MOST_POSITIONS:,} are shown: draw fewer samples."
        )
    return set(np.linspace(0, first.most, count).round().astype(int).tolist())


def frames(checkpoint: TrainedModel, prompt: Prompt, kept: Sequence[Kept]) -> Iterator[Frame]:
    """Returns what there is to see of rows while they were drawn.

    The guesses are the law of the clean token of every position given all tokens of the moment, by
    the model's own scores: the same whatever draws the tokens. They cost one more evaluation for
    each row and moment shown.

    Args:
      checkpoint: the model.
      prompt: what was held, [N, L].
      kept: from `keep`.
    """
    final = kept[-1].moment.tokens
    for now, sigma in kept:
        if sigma is None:
            guesses = [[None] * length for length in lengths(prompt)]
        else:
            guesses = [
                _guesses(checkpoint, row, now.tokens[i], sigma[i], final[i])
                for i, row in enumerate(_rows(prompt))
            ]
        rows = texts(checkpoint, now.tokens, prompt)
        yield Frame(now.calls, now.evaluations.tolist(), rows, guesses)


def _guesses(checkpoint, row, tokens, sigma, final):
    """Of one row: the network's answer is written out for no more than that."""
    held, mask = np.asarray(row.held)[0], checkpoint.graph.mask_id
    unsettled = ~held if mask is None else ~held & (tokens == mask)
    (length,) = lengths(row)
    guesses = [None] * length
    if not unsettled[:length].any():
        return guesses
    guesser = _guesser(checkpoint.diffusion, checkpoint.mesh)
    batch = (tokens[None], sigma[None], final[None], row.lengths)
    found = jax.device_get(guesser(checkpoint.params, *batch))
    for place in np.flatnonzero(unsettled[:length]):
        ids, probs, prob = (each[0, place] for each in found)
        likeliest = [(_name(checkpoint, i), _short(p)) for i, p in zip(ids, probs, strict=True)]
        # by their ids: different tokens may be shown alike
        at = np.flatnonzero(ids == final[place])
        drawn = int(at[0]) if at.size else (_name(checkpoint, final[place]), _short(prob))
        guesses[place] = Guess(likeliest, drawn)
    return guesses


@functools.lru_cache(maxsize=8)
def _guesser(components, mesh):
    """The likeliest clean tokens [1, L, k], their probabilities, and that of the final one."""
    graph, _, model = components

    def guesser(params, xt, sigma, final, lengths):
        padded = {} if lengths is None else {"lengths": lengths}
        score = jnp.exp(model.apply(params, xt, sigma, **padded))
        law = denoise_weights(graph, xt, total_away(xt, score), sigma)
        weights = jnp.maximum(law.weights(xt, score), 0)
        probs = weights / weights.sum(-1, keepdims=True)
        likeliest, ids = jax.lax.top_k(probs, min(LIKELIEST, graph.num_tokens))
        return ids, likeliest, jnp.take_along_axis(probs, final[..., None], -1)[..., 0]

    return jit_replicated(guesser, mesh)


def _rows(prompt):
    """The prompt row by row."""
    for index in range(len(prompt.tokens)):
        yield jax.tree.map(lambda x, index=index: np.asarray(x)[index : index + 1], prompt)


def _text(checkpoint, ids):
    mask, tokenizer = checkpoint.graph.mask_id, checkpoint.tokenizer
    pieces = [f"{i} " for i in ids] if tokenizer is None else tokenizer.pieces(ids)
    return [None if i == mask else piece for i, piece in zip(ids, pieces, strict=True)]


def _name(checkpoint, token):
    return str(token) if checkpoint.tokenizer is None else checkpoint.tokenizer.pieces([token])[0]


def _short(prob):
    return float(f"{prob:.3g}")

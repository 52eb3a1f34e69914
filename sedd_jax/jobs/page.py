"""A page that replays how texts were sampled, and what the model expected: one file, no server."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

import sedd_jax
from sedd_jax.diffusion.denoiser import denoise_weights
from sedd_jax.diffusion.score import total_away
from sedd_jax.display.page import render
from sedd_jax.errors import BadInput
from sedd_jax.inference.generator import known_rows
from sedd_jax.inference.model import TrainedModel
from sedd_jax.inference.prompt import Prompt
from sedd_jax.inference.stream import Snapshot
from sedd_jax.system.files import atomic_write, check_output_path
from sedd_jax.system.progress import progress

NUM_LIKELIEST = 5  # tokens that a guess names
MAX_POSITIONS = 2**16  # of all frames together: a page of some 3.5 MB

# a snapshot that becomes a frame, and the total noise of the network evaluation after it; the last
# has none
Kept = tuple[Snapshot, Float[np.ndarray, "N"] | None]


class Guess(NamedTuple):
    """The distribution of the clean token at a position, given all tokens of a snapshot.

    Attributes:
      likeliest: tokens and their probabilities to three digits, the likeliest first.
      drawn: the index in `likeliest` of the token that the position ends with; if it is not there,
        the token and its probability.
    """

    likeliest: list[tuple[str, float]]
    drawn: int | tuple[str, float]


def write_page(
    path: Path,
    checkpoint: TrainedModel,
    prompt: Prompt,
    snapshots: Iterable[Snapshot],
    facts: Mapping[str, str],
    max_frames: int = 32,
) -> Snapshot:
    """Samples to the end, writes the page that replays it, and returns the last snapshot.

    Args:
      path: a new file.
      checkpoint: the model.
      prompt: the given tokens, [N, L].
      snapshots: from `generate_stream`.
      facts: shown on the page, by name: model, sampler, seed and the like.
      max_frames: at least 2; each costs a network evaluation of every row.

    Raises:
      BadInput: see `check_output_path` and `keep`; before anything is sampled.
    """
    check_output_path(path, "--html")
    kept = keep(snapshots, max_frames)
    last, frames = kept[-1][0], []
    with progress("page", unit="frame") as advance:
        for (snapshot, _), guesses in zip(kept, guess(checkpoint, prompt, kept), strict=True):
            frames.append(frame(checkpoint, prompt, snapshot) | {"guesses": guesses})
            advance(len(frames), len(kept))
    content = render(
        __package__,
        "page.html",
        data=player_setup(checkpoint, prompt) | {"frames": frames},
        facts=list(facts.items()),
        version=sedd_jax.__version__,
    )
    atomic_write(path, content)
    return last


def player_setup(checkpoint: TrainedModel, prompt: Prompt) -> dict[str, Any]:
    """Returns what the player needs before the first frame."""
    rows = zip(np.asarray(prompt.held).astype(int).tolist(), _lengths(prompt), strict=True)
    return {
        "held": [held[:length] for held, length in rows],
        "masks": checkpoint.graph.mask_id is not None,
        "absorbs": checkpoint.graph.absorbs,
    }


def frame(checkpoint: TrainedModel, prompt: Prompt, snapshot: Snapshot) -> dict[str, Any]:
    """Returns what the player shows of a snapshot; the text of a masked token is None.

    Args:
      checkpoint: the model; without a tokenizer tokens are shown as ids.
      prompt: the given tokens and the lengths of the rows, [N, L].
      snapshot: the rows.
    """
    mask, tokenizer, rows = checkpoint.graph.mask_id, checkpoint.tokenizer, []
    for tokens, length in zip(snapshot.tokens, _lengths(prompt), strict=True):
        ids = tokens[:length]
        pieces = [f"{i} " for i in ids] if tokenizer is None else tokenizer.pieces(ids)
        rows.append([None if i == mask else it for i, it in zip(ids, pieces, strict=True)])
    counts = {"calls": snapshot.nfe, "most": snapshot.max_nfe}
    return counts | {"evaluations": snapshot.evaluations.tolist(), "rows": rows}


def keep(snapshots: Iterable[Snapshot], max_frames: int = 32) -> list[Kept]:
    """Samples to the end and returns evenly spaced snapshots, the first and the last among them.

    Raises:
      BadInput: they are too many for a page; before the network is called.
    """
    kept = []
    with progress("samples", unit="call") as advance:
        for snapshot in snapshots:
            if not snapshot.nfe:
                chosen = _shown_evaluations(snapshot, max_frames)
            elif kept[-1][1] is None:
                kept[-1] = (kept[-1][0], snapshot.sigma)
            # a step may make several evaluations, and the rows may end early
            if (chosen and snapshot.nfe >= chosen[0]) or snapshot.nfe == snapshot.max_nfe:
                kept.append((snapshot, None))
                chosen = [nfe for nfe in chosen if nfe > snapshot.nfe]
            advance(snapshot.nfe, snapshot.max_nfe)
    return kept


def _shown_evaluations(first, max_frames):
    count = min(max_frames, first.max_nfe + 1)
    positions = count * first.tokens.size
    if positions > MAX_POSITIONS:
        rows, length = first.tokens.shape
        raise BadInput(
            f"A page of {rows} samples of {length} tokens at {count} moments has {positions:,} "
            f"positions, at most {MAX_POSITIONS:,} are shown: draw fewer samples."
        )
    return np.linspace(0, first.max_nfe, count).round().astype(int).tolist()


def guess(
    checkpoint: TrainedModel, prompt: Prompt, kept: Sequence[Kept]
) -> Iterator[list[list[Guess | None]]]:
    """Yields the guesses of every frame, at positions that may still change; None at others.

    They come from the model's own scores for any sampler, and cost one more network evaluation for
    each row and frame.

    Args:
      checkpoint: the model.
      prompt: the given tokens, [N, L].
      kept: from `keep`.
    """
    final = kept[-1][0].tokens
    for snapshot, sigma in kept:
        guesses = [[None] * length for length in _lengths(prompt)]
        if sigma is not None:
            # row by row: scores are materialised over the vocabulary for one row at a time
            for i in range(len(final)):
                row = jax.tree.map(lambda x, i=i: np.asarray(x)[i : i + 1], prompt)
                guesses[i] = _guess_row(checkpoint, row, snapshot.tokens[i], sigma[i], final[i])
        yield guesses


def _guess_row(checkpoint, row, tokens, sigma, final):
    """The guesses of a prompt [1, L] with tokens [L] at noise sigma, and tokens [L] at the end."""
    held, graph = np.asarray(row.held)[0], checkpoint.graph
    (length,) = _lengths(row)
    is_open = (~held & (tokens == graph.mask_id) if graph.absorbs else ~held)[:length]
    guesses = [None] * length
    if not is_open.any():
        return guesses
    batch = (tokens[None], sigma[None], final[None], row)
    found = jax.device_get(checkpoint.compiled(_guesser)(checkpoint.params, *batch))

    def named(token, prob):
        tokenizer = checkpoint.tokenizer
        text = str(token) if tokenizer is None else tokenizer.pieces([token], first=False)[0]
        return text, float(f"{prob:.3g}")

    for place in np.flatnonzero(is_open):
        ids, probs, prob = (each[0, place] for each in found)
        # compared by id: different tokens may have the same text
        index = np.flatnonzero(ids == final[place])
        drawn = int(index[0]) if index.size else named(final[place], prob)
        guesses[place] = Guess(list(map(named, ids, probs)), drawn)
    return guesses


def _guesser(family):
    """The likeliest clean tokens [1, L, k], their probabilities, and that of the final token."""
    graph, model = family.graph, family.model

    def guesser(params, xt, sigma, final, row):
        score = jnp.exp(model.apply(params, xt, sigma, **known_rows(model, row)))
        weights = denoise_weights(graph, xt, total_away(xt, score), sigma).weights(xt, score)
        weights = jnp.maximum(weights, 0)
        probs = weights / weights.sum(-1, keepdims=True)
        likeliest, ids = jax.lax.top_k(probs, min(NUM_LIKELIEST, graph.num_tokens))
        return ids, likeliest, jnp.take_along_axis(probs, final[..., None], -1)[..., 0]

    return guesser


def _lengths(prompt):
    """The number of tokens of every row, without padding."""
    count, width = prompt.tokens.shape
    return [width] * count if prompt.lengths is None else np.asarray(prompt.lengths).tolist()

"""What a page shows of a drawing, against the dense formulas."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

import sedd_jax as sedd
from sedd_jax.errors import BadInput
from sedd_jax.inference.prompt import Prompt
from sedd_jax.inference.stream import Snapshot
from sedd_jax.jobs import frames as frames_
from sedd_jax.jobs.frames import frames, keep

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture
def checkpoint(tiny):
    return tiny


def moments(*rows, sigmas):
    """A drawing of one row, written by hand; the first moment is before any call."""
    return [
        Snapshot(
            np.array([row], np.int32), i, len(rows) - 1, np.array([i]), np.array([s], np.float32)
        )
        for i, (row, s) in enumerate(zip(rows, sigmas, strict=True))
    ]


def prompt(held, length=None):
    lengths = None if length is None else np.array([length], np.int32)
    tokens = np.zeros((1, len(held)), np.int32)
    return Prompt(tokens, np.array([held], bool), lengths)


def check(guess, law, final, pieces):
    """The five likeliest of a law [V], and the probability of the final token."""
    order = np.argsort(-law, kind="stable")[:5]
    assert [name for name, _ in guess.likeliest] == [pieces(int(i)) for i in order]
    np.testing.assert_allclose([p for _, p in guess.likeliest], law[order], rtol=6e-3)
    if final in order:
        assert guess.drawn == list(order).index(final)
    else:
        assert guess.drawn[0] == pieces(final)
        np.testing.assert_allclose(guess.drawn[1], law[final], rtol=6e-3)


def test_masks_are_guessed_by_their_normalised_ratios(checkpoint):
    mask, piece = 257, lambda i: checkpoint.tokenizer.pieces([i])[0]
    a, b = [97, mask, mask, 98, 0, 0], [97, 99, mask, 98, 0, 0]
    last = [97, 99, 100, 98, 0, 0]
    drawing = moments(a, b, last, sigmas=(9.0, 2.0, 0.5))  # of a: 2.0, of b: 0.5
    given = prompt([True, False, False, True, False, False], length=4)
    first, second, end = frames(checkpoint, given, keep(drawing))
    assert first.rows == [["a", None, None, "b"]]
    assert second.rows == [["a", "c", None, "b"]]
    assert (second.calls, second.evaluations) == (1, [1])
    assert end.guesses == [[None] * 4]
    (guesses,) = second.guesses
    assert [bool(guess) for guess in guesses] == [False, False, True, False]
    # drawn alone, without padding: the network sees none of it
    log_score = np.asarray(
        checkpoint.log_score(np.array([b[:4]]), np.array([0.5], np.float32)), np.float64
    )[0, 2, :mask]
    law = np.exp(log_score) / np.exp(log_score).sum()
    check(guesses[2], law, 100, piece)
    log_score = np.asarray(
        checkpoint.log_score(np.array([a[:4]]), np.array([2.0], np.float32)), np.float64
    )[0, 1, :mask]
    check(first.guesses[0][1], np.exp(log_score) / np.exp(log_score).sum(), 99, piece)


def test_noise_is_guessed_by_the_denoising_law(checkpoint):
    # the same network, read as one of the uniform graph over its states
    graph = sedd.graph.uniform(258)
    components = checkpoint.diffusion._replace(graph=graph)
    uniform = dataclasses.replace(checkpoint, family=components)
    drawing = moments([97, 98, 99], [97, 98, 100], sigmas=(9.0, 8.0))
    first, end = frames(uniform, prompt([True, False, False]), keep(drawing))
    assert first.rows == [["a", "b", "c"]] and end.guesses == [[None] * 3]
    assert first.guesses[0][0] is None
    xt, sigma = jnp.array([[97, 98, 99]]), jnp.array([8.0])
    score = jnp.exp(uniform.log_score(xt, sigma))
    weights = np.asarray(sedd.denoise_probs(graph, xt, score, sigma))[0].clip(0)
    for place, final in ((1, 98), (2, 100)):
        law = weights[place] / weights[place].sum()
        check(first.guesses[0][place], law, final, lambda i: uniform.tokenizer.pieces([i])[0])


@pytest.mark.parametrize(("most", "calls"), [(2, [0, 8]), (3, [0, 4, 8]), (99, list(range(9)))])
def test_the_moments_shown_are_spread_evenly(checkpoint, most, calls):
    drawing = moments(*[[97, 98]] * 9, sigmas=range(9))
    kept = keep(iter(drawing), most)
    assert [each.moment.calls for each in kept] == calls
    # each with the noise that the next call, shown or not, takes it to have
    assert [each.sigma for each in kept] == [*(call + 1 for call in calls[:-1]), None]


def test_a_page_has_bounds_that_are_met_before_the_first_call(monkeypatch):
    monkeypatch.setattr(frames_, "MOST_POSITIONS", 6)
    drawing = moments(*[[97, 98]] * 9, sigmas=range(9))
    assert len(keep(drawing, most=3)) == 3
    with pytest.raises(BadInput, match="1 samples of 2 tokens at 4 moments has 8 .* fewer samples"):
        keep((moment for moment in drawing if not moment.calls or 1 / 0), most=4)


@pytest.mark.parametrize("final", [200, 250])
def test_a_drawn_token_is_told_by_its_number(checkpoint, monkeypatch, final):
    # half a character each: both are shown by the same sign
    found = np.array([[[201, 200]]]), np.array([[[0.5, 0.25]]]), np.array([[0.125]])
    monkeypatch.setattr(frames_, "_guesser", lambda *_: lambda *_: found)
    first, _ = frames(checkpoint, prompt([False]), keep(moments([257], [final], sigmas=(1, 1))))
    sign = "\N{REPLACEMENT CHARACTER}"
    drawn = 1 if final == 200 else (sign, 0.125)
    assert first.guesses == [[([(sign, 0.5), (sign, 0.25)], drawn)]]


def test_without_a_tokenizer_there_are_numbers(checkpoint):
    plain = dataclasses.replace(checkpoint, tokenizer=None)
    drawing = moments([257, 98], [97, 98], sigmas=(1.0, 1.0))
    first, end = frames(plain, prompt([False, True]), keep(drawing))
    assert (first.rows, end.rows) == ([[None, "98 "]], [["97 ", "98 "]])
    assert all(name.isdecimal() for name, _ in first.guesses[0][0].likeliest)

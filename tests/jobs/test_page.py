"""The page that replays sampling stands alone, and its guesses are those of the dense formulas."""

import base64
import dataclasses
import hashlib
import html
import json
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sedd_jax as sedd
from sedd_jax.errors import BadInput
from sedd_jax.inference.prompt import Prompt
from sedd_jax.inference.stream import Snapshot, generate_stream
from sedd_jax.inference.template import pad, row_from_template
from sedd_jax.jobs import page
from sedd_jax.jobs.page import frame, guess, keep, write_page

NASTY = "</script><!--"


@pytest.fixture(scope="module")
def written(tiny, tmp_path_factory):
    """The page of two rows of different lengths, and the tokens that were drawn."""
    checkpoint, path = tiny, tmp_path_factory.mktemp("page") / "page.html"
    rows = [row_from_template(f"{NASTY}[MASK:2]", checkpoint.tokenizer, None, 32)]
    rows.append(row_from_template("a[MASK:3]", checkpoint.tokenizer, None, 32))
    prompt = pad(rows, 16)
    moments = generate_stream(jax.random.key(0), checkpoint, prompt, steps=4)
    last = write_page(path, checkpoint, prompt, moments, {"model": NASTY}, max_frames=3)
    return path, last.tokens


def test_the_page_holds_the_moments(written):
    path, tokens = written
    (found,) = re.findall(
        r'<script type="application/json" id="data">(.*?)</script>', path.read_text()
    )
    assert not set("<>&") & set(found)
    shown = json.loads(found)
    assert shown["held"] == [[1] * len(NASTY) + [0] * 2, [1, 0, 0, 0]]
    assert shown["masks"]
    assert [(frame["calls"], frame["most"]) for frame in shown["frames"]] == [
        (0, 5),
        (2, 5),
        (5, 5),
    ]
    assert shown["frames"][0]["rows"][1] == ["a", None, None, None]
    assert "".join(shown["frames"][-1]["rows"][0]).startswith(NASTY)
    likeliest, drawn = shown["frames"][0]["guesses"][1][2]
    name, share = likeliest[drawn] if isinstance(drawn, int) else drawn
    assert len(likeliest) == 5 and 0 < share < 1
    assert name == bytes([tokens[1, 2]]).decode(errors="replace") or tokens[1, 2] == 256
    np.testing.assert_array_equal(tokens[1, 4:], 0)


def test_the_page_needs_nothing_and_runs_its_own_program_alone(written):
    text = written[0].read_text()
    assert html.escape(NASTY) in text and text.count("<!--") == 0
    assert "http:" not in text and "https:" not in text and not re.search(r"<(link|img)|src=", text)
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    (style,) = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)
    for kind, content in (("script", script), ("style", style)):
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'; ") and "unsafe" not in policy


def test_a_page_is_written_over_nothing(written, tiny, tmp_path):
    checkpoint, never = tiny, iter(lambda: 1 / 0, 0)
    before = written[0].read_bytes()
    with pytest.raises(BadInput, match="exists already; give --html another name"):
        write_page(written[0], checkpoint, None, never, {})
    assert written[0].read_bytes() == before
    with pytest.raises(BadInput, match="does not exist; make it first"):
        write_page(tmp_path / "no" / "page.html", checkpoint, None, never, {})


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


def frames(model, given, kept):
    """The frames as `write_page` makes them."""
    return [
        SimpleNamespace(**frame(model, given, moment), guesses=guesses)
        for (moment, _), guesses in zip(kept, guess(model, given, kept), strict=True)
    ]


def check(found, distribution, final, pieces):
    """The five likeliest of a distribution [V], and the probability of the final token."""
    order = np.argsort(-distribution, kind="stable")[:5]
    assert [name for name, _ in found.likeliest] == [pieces(int(i)) for i in order]
    np.testing.assert_allclose([p for _, p in found.likeliest], distribution[order], rtol=6e-3)
    if final in order:
        assert found.drawn == list(order).index(final)
    else:
        assert found.drawn[0] == pieces(final)
        np.testing.assert_allclose(found.drawn[1], distribution[final], rtol=6e-3)


def test_masks_are_guessed_by_their_normalised_ratios(tiny):
    mask, piece = 257, lambda i: tiny.tokenizer.pieces([i])[0]
    a, b = [97, mask, mask, 98, 0, 0], [97, 99, mask, 98, 0, 0]
    last = [97, 99, 100, 98, 0, 0]
    drawing = moments(a, b, last, sigmas=(9.0, 2.0, 0.5))  # of a: 2.0, of b: 0.5
    given = prompt([True, False, False, True, False, False], length=4)
    first, second, end = frames(tiny, given, keep(drawing))
    assert first.rows == [["a", None, None, "b"]]
    assert second.rows == [["a", "c", None, "b"]]
    assert (second.calls, second.evaluations) == (1, [1])
    assert end.guesses == [[None] * 4]
    (guesses,) = second.guesses
    assert [bool(each) for each in guesses] == [False, False, True, False]
    # drawn alone, without padding: the network sees none of it
    log_score = np.asarray(
        tiny.log_score(np.array([b[:4]]), np.array([0.5], np.float32)), np.float64
    )[0, 2, :mask]
    distribution = np.exp(log_score) / np.exp(log_score).sum()
    check(guesses[2], distribution, 100, piece)
    log_score = np.asarray(
        tiny.log_score(np.array([a[:4]]), np.array([2.0], np.float32)), np.float64
    )[0, 1, :mask]
    check(first.guesses[0][1], np.exp(log_score) / np.exp(log_score).sum(), 99, piece)


def test_noise_is_guessed_by_the_denoising_distribution(tiny):
    # the same network, read as one of the uniform graph over its states
    graph = sedd.graph.uniform(258)
    components = tiny.diffusion._replace(graph=graph)
    uniform = dataclasses.replace(tiny, family=components)
    drawing = moments([97, 98, 99], [97, 98, 100], sigmas=(9.0, 8.0))
    first, end = frames(uniform, prompt([True, False, False]), keep(drawing))
    assert first.rows == [["a", "b", "c"]] and end.guesses == [[None] * 3]
    assert first.guesses[0][0] is None
    xt, sigma = jnp.array([[97, 98, 99]]), jnp.array([8.0])
    score = jnp.exp(uniform.log_score(xt, sigma))
    weights = np.asarray(sedd.denoise_probs(graph, xt, score, sigma))[0].clip(0)
    for place, final in ((1, 98), (2, 100)):
        distribution = weights[place] / weights[place].sum()
        check(
            first.guesses[0][place], distribution, final, lambda i: uniform.tokenizer.pieces([i])[0]
        )


@pytest.mark.parametrize(("most", "calls"), [(2, [0, 8]), (3, [0, 4, 8]), (99, list(range(9)))])
def test_the_moments_shown_are_spread_evenly(tiny, most, calls):
    drawing = moments(*[[97, 98]] * 9, sigmas=range(9))
    kept = keep(iter(drawing), most)
    assert [moment.nfe for moment, _ in kept] == calls
    # each with the noise that the next call, shown or not, takes it to have
    assert [sigma for _, sigma in kept] == [*(call + 1 for call in calls[:-1]), None]


def test_a_drawing_that_ends_early_is_shown_to_its_end():
    drawing = moments(*[[97, 98]] * 9, sigmas=range(9))[:6]
    drawing[-1] = drawing[-1]._replace(max_nfe=5)
    assert [moment.nfe for moment, _ in keep(iter(drawing), 3)] == [0, 4, 5]
    assert [moment.nfe for moment, _ in keep(iter(drawing[::2] + drawing[5:]), 9)] == [0, 2, 4, 5]


def test_a_page_has_bounds_that_are_met_before_the_first_call(monkeypatch):
    monkeypatch.setattr(page, "MAX_POSITIONS", 6)
    drawing = moments(*[[97, 98]] * 9, sigmas=range(9))
    assert len(keep(drawing, max_frames=3)) == 3
    with pytest.raises(BadInput, match="1 samples of 2 tokens at 4 moments has 8 .* fewer samples"):
        keep((moment for moment in drawing if not moment.nfe or 1 / 0), max_frames=4)


@pytest.mark.parametrize("final", [200, 250])
def test_a_drawn_token_is_told_by_its_number(tiny, monkeypatch, final):
    # half a character each: both are shown by the same sign
    found = np.array([[[201, 200]]]), np.array([[[0.5, 0.25]]]), np.array([[0.125]])
    monkeypatch.setattr(page, "_guesser", lambda *_: lambda *_: found)
    first, _ = frames(tiny, prompt([False]), keep(moments([257], [final], sigmas=(1, 1))))
    sign = "\N{REPLACEMENT CHARACTER}"
    drawn = 1 if final == 200 else (sign, 0.125)
    assert first.guesses == [[([(sign, 0.5), (sign, 0.25)], drawn)]]


def test_without_a_tokenizer_there_are_numbers(tiny):
    plain = dataclasses.replace(tiny, tokenizer=None)
    drawing = moments([257, 98], [97, 98], sigmas=(1.0, 1.0))
    first, end = frames(plain, prompt([False, True]), keep(drawing))
    assert (first.rows, end.rows) == ([[None, "98 "]], [["97 ", "98 "]])
    assert all(name.isdecimal() for name, _ in first.guesses[0][0].likeliest)

"""Rows longer than the trained length, and what held tokens are in every sample."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

import sedd_jax as sedd
from sedd_jax.errors import BadInput
from sedd_jax.inference.batches import window_keys
from sedd_jax.inference.generate import slide, windows
from sedd_jax.inference.generator import Diagnostics
from sedd_jax.inference.prompt import Prompt, empty_prompt
from sedd_jax.inference.stream import generate_stream
from sedd_jax.model.score_model import dense_model

KEY = jax.random.key(0)
TRAINED = 16


def plan_of(prompt, width, overlap):
    found = windows(prompt, width, overlap)
    return [(w.number, w.rows.tolist(), w.places[:, 0].tolist()) for w in found]


def test_windows_move_on_by_what_they_do_not_share_and_end_with_the_row():
    lengths = np.array([11, 4, 3, 6], np.int32)
    prompt = empty_prompt(4, 11)._replace(lengths=lengths)
    assert plan_of(prompt, 4, 1) == [
        (0, [0, 1, 2, 3], [0, 0, 0, 0]),
        (1, [0, 3], [3, 2]),
        (2, [0], [6]),
        (3, [0], [7]),
    ]
    assert plan_of(empty_prompt(1, 4), 4, 3) == [(0, [0], [0])]


def test_windows_with_nothing_to_draw_are_left_out():
    held = np.zeros((2, 12), bool)
    held[0, :9] = True
    held[1, 3:] = True
    assert plan_of(Prompt(np.zeros((2, 12), np.int32), held), 4, 2) == [
        (0, [1], [0]),
        (3, [0], [6]),
        (4, [0], [8]),
    ]


def counted(part, window):
    """Free positions get 100 times the window's number, and their place in it."""
    found = 100 * window.number + np.broadcast_to(np.arange(part.tokens.shape[1]), part.held.shape)
    tokens = np.where(part.held, part.tokens, found)
    if part.lengths is not None:
        tokens = np.where(np.arange(tokens.shape[1]) < part.lengths[:, None], tokens, 0)
    count = len(tokens)
    return tokens, Diagnostics(
        np.full(count, 5), np.full((2, count), window.number), np.ones(count, bool), None
    )


def test_what_is_drawn_or_given_is_held_and_evaluations_add_up():
    tokens = np.full((2, 7), -1, np.int32)
    tokens[0, 5] = 7
    held = np.zeros((2, 7), bool)
    held[0, 5] = True
    prompt = Prompt(tokens, held, np.array([7, 3], np.int32))
    text, diagnostics = slide(prompt, windows(prompt, 4, 2), counted)
    assert text.tolist() == [[0, 1, 2, 3, 102, 7, 203], [0, 1, 2, 0, 0, 0, 0]]
    assert diagnostics.evaluations.tolist() == [15, 5]
    assert diagnostics.changed.tolist() == [[0, 0], [0, 0], [1, 0], [1, 0], [2, 0], [2, 0]]


WAYS = {
    "tweedie": ("absorb", {"sampler": "tweedie", "steps": 2}),
    "euler": ("absorb", {"sampler": "euler", "steps": 2}),
    "first-hitting": ("absorb", {"sampler": "first_hitting", "steps": 3}),
    "uniform": ("uniform", {"sampler": "tweedie", "steps": 2}),
    "resample": ("uniform", {"steps": 2, "conditioning": "resample", "particles": 3}),
}


def ways(*quick):
    """All ways to draw, of which only some in the quick suite: every one is a program or two."""
    cases = [
        pytest.param(*way, id=name, marks=() if name in quick else pytest.mark.slow)
        for name, way in WAYS.items()
    ]
    return pytest.mark.parametrize(("graph", "settings"), cases)


def patterns(length, rubbish):
    """Rows with prompts in the middle, at both ends and anywhere; two are shorter."""
    rng = np.random.default_rng(0)
    held = rng.random((4, length)) < 0.3
    held[0], held[1] = False, False
    held[0, 5:9] = True
    held[1, :3] = held[1, -3:] = True
    tokens = rng.integers(0, 50, (4, length)).astype(np.int32)
    lengths = np.array([length, length, length - 5, 9], np.int32)
    padding = np.arange(length) >= lengths[:, None]
    if rubbish:
        tokens[padding], held[padding] = 10**6, True
    return Prompt(tokens, held, lengths), padding


@ways("tweedie", "resample")
def test_held_tokens_are_exact_and_rows_are_their_own(toy, graph, settings):
    checkpoint = toy(graph)
    draw = functools.partial(sedd.generate, KEY, checkpoint, batch_size=4, **settings)
    prompt, padding = patterns(TRAINED, rubbish=False)
    tokens, diagnostics = draw(4, TRAINED, prompt=prompt)
    held = prompt.held & ~padding
    np.testing.assert_array_equal(tokens[held], prompt.tokens[held])
    assert (tokens[padding] == 0).all()
    assert 0 <= tokens.min() <= tokens.max() < checkpoint.graph.num_states
    # what lies in the padding, and the rows beside it, are nothing to a row
    dirty, _ = patterns(TRAINED, rubbish=True)
    order = np.array([3, 2, 2, 0])
    others = jax.tree.map(lambda x: x[order], dirty)
    again, found = draw(4, TRAINED, prompt=others, rows=order)
    np.testing.assert_array_equal(again, tokens[order])
    np.testing.assert_array_equal(found.evaluations, diagnostics.evaluations[order])


@ways("first-hitting")
def test_longer_rows_hold_what_is_given_in_every_window(toy, graph, settings):
    checkpoint = toy(graph)
    draw = functools.partial(sedd.generate, KEY, checkpoint, batch_size=4, **settings)
    prompt, padding = patterns(2 * TRAINED + 3, rubbish=False)
    tokens, diagnostics = draw(4, 2 * TRAINED + 3, prompt=prompt)
    held = prompt.held & ~padding
    np.testing.assert_array_equal(tokens[held], prompt.tokens[held])
    assert (tokens[padding] == 0).all() and diagnostics.finite.all()
    # four windows of the longest rows, of which the last has nothing to draw in one
    if settings.get("sampler") != "first_hitting":
        calls = (settings["steps"] + 1) * settings.get("particles", 1)
        np.testing.assert_array_equal(diagnostics.evaluations, np.array([4, 3, 3, 1]) * calls)
    # the short row, and the first window of a long one, are those of plain sampling
    first = jax.tree.map(lambda x: x[:, :TRAINED], prompt._replace(lengths=None))
    sizes = np.minimum(prompt.lengths, TRAINED).astype(np.int32)
    plain, _ = draw(4, TRAINED, prompt=first._replace(lengths=sizes))
    np.testing.assert_array_equal(tokens[:, :TRAINED], plain)
    alone, _ = draw(
        4,
        2 * TRAINED + 3,
        prompt=jax.tree.map(lambda x: x[np.array([2, 3, 3, 1])], prompt),
        rows=np.array([2, 3, 9, 1]),
    )
    np.testing.assert_array_equal(alone[[0, 1, 3]], tokens[[2, 3, 1]])


@pytest.mark.slow
def test_copies_that_are_watched_end_as_the_sample(toy):
    checkpoint = toy("uniform")
    prompt, _ = patterns(TRAINED, rubbish=False)
    settings = {"steps": 2, "conditioning": "resample", "particles": 3}
    *_, last = generate_stream(KEY, checkpoint, prompt, **settings)
    tokens, diagnostics = sedd.generate(KEY, checkpoint, 4, TRAINED, prompt=prompt, **settings)
    np.testing.assert_array_equal(last.tokens, tokens)
    np.testing.assert_array_equal(last.evaluations, diagnostics.evaluations)
    with pytest.raises(BadInput, match="at most 16 tokens, the trained length, got 20"):
        generate_stream(KEY, checkpoint, empty_prompt(1, 20))


def test_windows_of_a_row_do_not_repeat_its_randomness(toy):
    checkpoint = toy("absorb")
    told = []
    options = {"steps": 2, "overlap": 2, "batch_size": 3}
    tokens, _ = sedd.generate(
        KEY, checkpoint, 4, 3 * TRAINED - 4, progress=lambda *done: told.append(done), **options
    )
    assert told == [(done, 6) for done in range(1, 7)]  # three windows of two batches
    assert tokens.shape == (4, 3 * TRAINED - 4)
    first, second, third = (tokens[:, at + 2 : at + TRAINED] for at in (0, 14, 28))
    assert (first == second).mean() < 0.5 and (second == third).mean() < 0.5


def test_every_later_window_has_keys_of_its_own():
    keys = jax.random.split(jax.random.key(0), 3)
    second, third = (np.asarray(jax.random.key_data(window_keys(keys, i))) for i in (1, 2))
    assert (second != third).any(axis=-1).all()


def test_rows_of_all_lengths_are_one_program(toy):
    checkpoint, traced = toy("absorb"), []

    def apply(params, xt, sigma, **options):
        traced.append(xt.shape)
        return checkpoint.model.apply(params, xt, sigma, **options)

    components = checkpoint.family._replace(model=dense_model(checkpoint.model.init, apply))
    watched = dataclasses.replace(checkpoint, family=components)
    lengths = np.array([160, 150, 130, 96, 64, 33, 20, 7], np.int32)
    prompt = empty_prompt(8, 160)._replace(lengths=lengths)
    options = {"prompt": prompt, "sampler": "first_hitting", "steps": 1, "batch_size": 8}
    sedd.generate(KEY, watched, **options)
    assert traced == [(8, TRAINED)]
    sedd.generate(KEY, watched, overlap=3, **options)  # of which the program knows nothing
    assert len(traced) == 1


def test_overlaps_that_cannot_be_and_traces_of_longer_rows_are_refused(toy):
    checkpoint = toy("absorb")
    for overlap in (0, TRAINED):
        with pytest.raises(BadInput, match=rf"overlap must be in \[1, {TRAINED}\)"):
            sedd.generate(KEY, checkpoint, 1, TRAINED, overlap=overlap)
        with pytest.raises(BadInput, match="overlap must be in"):
            generate_stream(KEY, checkpoint, empty_prompt(1, TRAINED), overlap=overlap)
    with pytest.raises(BadInput, match="trace is for rows of at most 16 tokens"):
        sedd.generate(KEY, checkpoint, 1, TRAINED + 1, trace=True)

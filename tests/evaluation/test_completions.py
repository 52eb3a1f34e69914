"""Texts in blocks: what is held, where a text ends, and which rows are drawn on."""

import dataclasses

import jax
import numpy as np
import pytest

from sedd_jax.errors import BadInput
from sedd_jax.evaluation import completions
from sedd_jax.evaluation.completions import complete

KEY = jax.random.key(0)


@pytest.fixture
def writer(tiny, monkeypatch):
    """Continues the alphabet, and tells what it was asked."""
    config = tiny.config
    sizes = dataclasses.replace(config.model, length=16)
    model, asked = dataclasses.replace(tiny, config=dataclasses.replace(config, model=sizes)), []

    def generate(key, model, *, prompt, rows, **settings):
        asked.append((key, prompt, rows.tolist(), settings))
        tokens = prompt.tokens.copy()
        for row, held, length in zip(tokens, prompt.held, prompt.lengths, strict=True):
            for place in range(held.sum(), length):
                row[place] = row[place - 1] + 1 if place else ord("a")
        return tokens, None

    monkeypatch.setattr(completions, "generate", generate)
    return model, asked


def ids(text):
    return np.frombuffer(text.encode(), np.uint8).astype(np.int32)


def test_blocks_follow_each_other_up_to_the_limit(writer):
    model, asked = writer
    told = []
    texts = complete(
        KEY, model, [ids("ab"), ids("")], max_tokens=9, block=4, numbers=[5, 6],
        progress=lambda *done: told.append(done), steps=3,
    )  # fmt: skip
    assert texts == ["cdefghijk", "abcdefghi"]
    assert [prompt.lengths.tolist() for _, prompt, *_ in asked] == [[6, 4], [10, 8], [11, 9]]
    assert [prompt.held.sum(1).tolist() for _, prompt, *_ in asked] == [[2, 0], [6, 4], [10, 8]]
    assert [numbers for *_, numbers, _ in asked] == [[5, 6]] * 3
    assert {settings["steps"] for *_, settings in asked} == {3}
    assert len({tuple(jax.random.key_data(key).tolist()) for key, *_ in asked}) == 3
    assert told == [(4, 9), (8, 9), (9, 9)]


def test_a_row_is_the_end_of_a_longer_text(writer):
    model, asked = writer
    (text,) = complete(KEY, model, [ids("-" * 20 + "a")], max_tokens=8, block=4)
    assert text == "bcdefghi"
    for _, prompt, *_ in asked:
        assert prompt.lengths.tolist() == [16] and prompt.held.sum() == 12
    assert bytes(asked[1][1].tokens[0, 6:12].tolist()) == b"-abcde"


def test_a_text_ends_before_the_first_stop_string_even_between_blocks(writer):
    model, asked = writer
    texts = complete(
        KEY, model, [ids("a"), ids("m"), ids("q")], until=["zz", "op", "ef"], max_tokens=12, block=4
    )
    assert texts == ["bcd", "n", "rstuvwxyz{|}"]
    assert [numbers for *_, numbers, _ in asked] == [
        [0, 1, 2],
        [0, 2],
        [2],
    ]  # "ef" ends the first in the next block


def test_a_text_ends_at_the_end_of_text_token(writer):
    model, _ = writer
    (text,) = complete(KEY, model, [np.array([253])], max_tokens=8, block=4)
    assert text == b"\xfe\xff".decode(errors="replace")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block": 16}, "block must be less than the model's 16 tokens, got 16"),
        ({"block": 0}, "block must be at least 1"),
        ({"max_tokens": 0}, "max_tokens must be at least 1"),
    ],
)
def test_bad_settings_are_named(writer, options, message):
    with pytest.raises(BadInput, match=message):
        complete(KEY, writer[0], [ids("a")], **options)

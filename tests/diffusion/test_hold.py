"""Patterns of given tokens have the stated distributions."""

import functools

import jax
import numpy as np
import pytest

from sedd_jax.diffusion.hold import HOLDS, Hold, hold_named
from sedd_jax.errors import BadInput

ROWS, LENGTH = 20_000, 6


@functools.cache
def held(text):
    return np.asarray(hold_named(text).draw(jax.random.key(0), (ROWS, LENGTH)))


def shares(numbers, count):
    return np.bincount(numbers, minlength=count) / len(numbers)


def near(got, wanted):
    """Within 5 standard errors of a share."""
    wanted = np.broadcast_to(wanted, got.shape)
    return (np.abs(got - wanted) < 5 * np.sqrt(wanted * (1 - wanted) / ROWS) + 1e-9).all()


def test_prefixes_and_suffixes_have_uniform_lengths():
    for text, given in (("prefix", held("prefix(probability=1.0)")),
                        ("suffix", held("suffix(probability=1.0)")[:, ::-1])):  # fmt: skip
        number = given.sum(1)
        np.testing.assert_array_equal(given, np.arange(LENGTH) < number[:, None], err_msg=text)
        assert near(shares(number, LENGTH + 1), np.r_[np.full(LENGTH, 1 / LENGTH), 0])


def test_any_number_of_tokens_and_any_place_are_equally_likely():
    given = held("tokens(probability=1.0)")
    assert near(shares(given.sum(1), LENGTH + 1), 1 / (LENGTH + 1))
    single = given[given.sum(1) == 1]
    assert np.abs(single.mean(0) - 1 / LENGTH).max() < 5 * np.sqrt(1 / LENGTH / len(single))


def test_spans_are_between_the_odd_and_the_even_borders():
    """One span of borders a <= b, each uniform on 0 ... L: by counting all pairs."""
    given = held("spans(probability=1.0, count=1)")
    pairs = [range(min(a, b), max(a, b)) for a, b in np.ndindex(LENGTH + 1, LENGTH + 1)]
    wanted = np.zeros(2**LENGTH)
    for pair in pairs:
        wanted[sum(2**i for i in pair)] += 1 / len(pairs)
    assert near(shares(given @ 2 ** np.arange(LENGTH), 2**LENGTH), wanted)
    starts = np.diff(held("spans(count=2)").astype(int), prepend=0, axis=1) == 1
    assert set(starts.sum(1)) == {0, 1, 2}


def test_the_rest_of_the_rows_has_nothing_given():
    never = (~held("tokens")).all(1).mean()
    assert near(never, np.array(0.5 + 0.5 / (LENGTH + 1)))


def test_a_mixture_has_every_kind():
    """The first and the last token of a row alone tell the four kinds apart."""
    kinds = [held(f"{name}(probability=1.0)") for name in ("prefix", "suffix", "spans", "tokens")]
    first, last = (np.mean([kind[:, i].mean() for kind in kinds]) for i in (0, -1))
    given = held("mixed(probability=1.0)")
    np.testing.assert_allclose(given[:, [0, -1]].mean(0), [first, last], atol=0.02)
    neither = np.mean([(kind[:, 0] & kind[:, -1]).mean() for kind in kinds])
    np.testing.assert_allclose((given[:, 0] & given[:, -1]).mean(), neither, atol=0.02)


class Fixed(Hold):
    """The first token of every row."""

    def draw(self, key, shape):
        return np.broadcast_to(np.arange(shape[1]) == 0, shape)


def test_a_class_of_the_user_and_none():
    assert hold_named(f"{__name__}:Fixed").draw(None, (2, 3))[:, 0].all()
    assert hold_named("none") is None
    assert HOLDS.names == ("prefix", "suffix", "tokens", "spans", "mixed")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("spans(width=2)", "spans has the options probability, count, got width"),
        ("tokens(probability=0.0)", "probability must be above 0 and at most 1, got 0.0"),
        ("spans(count=0)", "count must be from 1 to 64, got 0"),
        ("middle", "config.train.hold must be one of prefix"),
    ],
)
def test_options_are_checked(text, message):
    with pytest.raises(BadInput, match=message):
        hold_named(text)

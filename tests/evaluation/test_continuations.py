"""Continuations: how texts are split and cut, and their likelihoods for models of all families."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sedd_jax as sedd
from sedd_jax.data.characters import Bytes, Characters
from sedd_jax.errors import BadInput
from sedd_jax.evaluation.continuations import (
    Continuation,
    continuation_nll,
    fit,
    found_greedily,
    rows_by_width,
    split_text,
)

GOLDEN = Path(__file__).parents[1] / "golden"
LETTERS = Characters(" .abcdefghijklmnopqrstuvwxyz")
KEY = jax.random.key(3)


class Pairs(Bytes):
    """Bytes, but two letters that begin at an even place are one token, as subwords are."""

    def _encode(self, content):
        return np.array([hash(content[i : i + 2]) % 257 for i in range(0, len(content), 2)])


def texts(split):
    return [bytes(part.tolist()).decode() for part in split]


@pytest.mark.parametrize(
    ("context", "continuation", "wanted"),
    [
        ("Once upon", " a time", ["Once upon", " a time"]),
        ("Once upon ", "a time", ["Once upon", " a time"]),
        ("Once \n", " upon", ["Once", " \n upon"]),
    ],
)
def test_spaces_at_the_end_of_a_context_are_scored(context, continuation, wanted):
    assert texts(split_text(Bytes(), context, continuation)) == wanted


def test_a_token_over_the_border_is_scored():
    given, rest = split_text(Pairs(), "abc", "def")
    whole = Pairs().encode("abcdef")
    assert given.tolist() == whole[:1].tolist() and rest.tolist() == whole[1:].tolist()


@pytest.mark.parametrize("context", ["", "  "])
def test_without_a_context_the_end_of_text_is_given(context):
    given, rest = split_text(Bytes(), context, "ab")
    assert given.tolist() == [Bytes.eod_id] and texts([rest]) == [context + "ab"]
    given, _ = split_text(Characters("ab ", eod=False), context, "ab")
    assert given.tolist() == []


def test_an_empty_continuation_is_refused():
    with pytest.raises(BadInput, match="The continuation is empty"):
        split_text(Bytes(), "Once", "")


def of_sizes(*sizes):
    return [
        Continuation(np.arange(context), np.arange(tokens) + 100, index)
        for index, (context, tokens) in enumerate(sizes)
    ]


def test_contexts_are_cut_from_the_left():
    fitting, cut = fit(of_sizes((6, 2), (7, 2), (3, 8), (0, 1)), 8)
    assert [each.context.tolist() for each in fitting] == [
        [0, 1, 2, 3, 4, 5],
        [1, 2, 3, 4, 5, 6],
        [],
        [],
    ]
    assert cut == 2 and [len(each.tokens) for each in fitting] == [2, 2, 8, 1]
    with pytest.raises(BadInput, match=r"has 9 tokens, more than the model's 8: leave it out"):
        fit(of_sizes((0, 9)), 8)


def test_rows_of_similar_lengths_share_a_width():
    rows = of_sizes((3, 2), (20, 3), (10, 6), (0, 4), (30, 10), (21, 4))
    groups = rows_by_width(rows, 64, batch_size=2)
    found = [(group.tokens.shape, group.indices.tolist()) for group in groups]
    # the row of 23 tokens waits for that of 25, and that of 40 has a width of its own
    assert found == [((3, 16), [0, 2, 3]), ((2, 32), [1, 5]), ((1, 48), [4])]
    for group in groups:
        for index, tokens, held, length in zip(*group, strict=True):
            assert tokens[:length].tolist() == rows[index].row.tolist()
            assert held.sum() == len(rows[index].context) == held.argmin() % len(held)
            assert not tokens[length:].any() and not held[length:].any()


@pytest.fixture(scope="module")
def model_of(tiny, causal):
    """A model of every family and graph, small; those of letters have 10 positions."""

    def of(name):
        if name in ("mdlm", "udlm"):
            return dataclasses.replace(sedd.load(GOLDEN / name), tokenizer=LETTERS)
        return {"tiny": tiny, "causal": causal}[name]

    return of


FAMILIES = pytest.mark.parametrize("name", ["tiny", "causal", "mdlm", "udlm"])


def random_rows(model, *sizes):
    rng, tokens = np.random.default_rng(0), model.family.num_tokens
    return [
        Continuation(rng.integers(tokens, size=given), rng.integers(tokens, size=scored), question)
        for given, scored, question in sizes
    ]


@pytest.mark.slow
@FAMILIES
def test_a_likelihood_is_that_of_nll_bound_and_its_own(name, model_of):
    """Alone or among others, in batches of any size."""
    model = model_of(name)
    rows = random_rows(model, (4, 3, 7), (0, 2, 8), (6, 4, 7), (1, 1, 2**32 - 1))
    found = continuation_nll(KEY, model, rows, draws=4)
    for row, nats in zip(rows, found, strict=True):
        options = {"held": np.arange(len(row.row))[None] < len(row.context), "draws": 4}
        bound = sedd.nll_bound(KEY, model, row.row[None], **options, rows=[row.question])
        assert nats == pytest.approx(bound.nats.mean(), rel=1e-4)
    some = continuation_nll(KEY, model, rows[2:], draws=4, batch_size=1)
    np.testing.assert_allclose(some, found[2:], rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny", "udlm"])
def test_a_difference_is_that_of_two_bounds(name, model_of):
    model = model_of(name)
    first, second, alone = random_rows(model, (4, 3, 7), (4, 2, 7), (0, 2, 8))
    rows = [first, second._replace(context=first.context), alone]
    found = continuation_nll(KEY, model, rows, draws=4, difference=True)

    def nats(tokens, number):
        return sedd.nll_bound(KEY, model, tokens[None], draws=4, rows=[number]).nats.mean()

    wanted = [nats(row.row, row.question) for row in rows] - np.array(
        [nats(first.context, 7), nats(first.context, 7), 0]
    )
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@FAMILIES
def test_greedy_decoding_is_sampling_at_temperature_0(name, model_of):
    model = model_of(name)
    rows = random_rows(model, (5, 4, 7), (5, 4, 8), (5, 4, 2**32 - 1))
    settings = {"steps": 4} if model.family.infills else {}
    tokens = np.stack([row.row for row in rows]).astype(np.int32)
    prompt = sedd.Prompt(tokens, np.tile(np.arange(9) < 5, (3, 1)))
    numbers = np.array([row.question for row in rows])
    drawn, _ = sedd.generate(KEY, model, prompt=prompt, rows=numbers, temperature=0.0, **settings)
    found = [row._replace(tokens=text[5:]) for row, text in zip(rows, drawn, strict=True)]
    wrong = [row._replace(tokens=np.append(row.tokens[:-1], row.tokens[-1] - 1)) for row in found]
    agree = found_greedily(KEY, model, found + wrong, **settings)
    assert agree.tolist() == [True] * 3 + [False] * 3


@pytest.mark.slow
def test_greedy_decoding_of_an_autoregressive_model_takes_the_likeliest_token(causal):
    row = random_rows(causal, (5, 1, 0))[0].context
    for _ in range(4):
        before = jnp.concatenate([jnp.array([causal.model.start]), row])[None]
        row = np.append(row, causal.model.apply(causal.params, before)[0, -1].argmax())
    assert found_greedily(KEY, causal, [Continuation(row[:5], row[5:])]).all()

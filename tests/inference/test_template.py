"""Templates: what stands where, and one sentence for everything that is none."""

import io
import re
import time

import numpy as np
import pytest

from sedd_jax.data.tokenizer import Bytes, Characters, Integers, SentencePiece
from sedd_jax.errors import BadInput
from sedd_jax.inference.template import (
    PromptRow,
    pad,
    padded_length,
    row_between,
    row_from_template,
    row_from_tokens,
)

_ = None  # a hole, in rows written by hand


def shown(row):
    """The row as a list: bytes as text, None where free."""
    assert row.tokens.dtype == np.int32
    assert not row.tokens[~row.held].any()
    return [chr(t) if h else _ for t, h in zip(row.tokens, row.held, strict=True)]


@pytest.mark.parametrize(
    ("template", "length", "row"),
    [
        ("a[MASK:2]b", None, ["a", _, _, "b"]),
        ("[MASK:2]b", None, [_, _, "b"]),
        ("a[MASK:1][MASK:1]", None, ["a", _, _]),
        ("a[MASK:*]b", 5, ["a", _, _, _, "b"]),
        ("a[MASK:*]b", None, ["a", *[_] * 18, "b"]),
        ("a[MASK:1]b[MASK:*]", 6, ["a", _, "b", _, _, _]),
        ("[MASK:*]", None, [_] * 20),
        ("[MASK:003]", 3, [_] * 3),
        (r"\[MASK:3]a[MASK:1]", None, [*"[MASK:3]a", _]),
        (r"\\[MASK:1]\\\[MASK", None, ["\\", _, *r"\[MASK"]),
        (r"\a\\[MASK:1]\\", None, [*"\\a\\", _, *r"\\"]),
        ("[mask:1] [M[MASK:1]", None, [*"[mask:1] [M", _]),
    ],
)
def test_a_template_is_text_and_holes(template, length, row):
    assert shown(row_from_template(template, Bytes(), length, limit=20)) == row


@pytest.mark.parametrize(
    ("template", "length", "message"),
    [
        (
            "ab[MASK:x]",
            _,
            r"\[MASK:x\] at character 3 of the template is no hole: \[MASK:12\] is",
        ),
        ("[MASK:0]", _, r"\[MASK:0\] at character 1 .* no hole"),
        ("[MASK:-1]", _, "no hole"),
        ("[MASK:١]", _, "no hole"),
        ("[MASK:1", _, r"\[MASK:1 at character 1 "),
        ("a [MASK] b", _, r"\[MASK\] at character 3 "),
        (r"\\[MASK]", _, r"\[MASK\] at character 3 "),
        ("[MASK:" + "9" * 99 + "]", _, "no hole"),
        ("[MASK:999999999]", _, "more than 20 positions"),
        ("[MASK:20]a", _, "more than 20 positions"),
        ("a" * 20 + "[MASK:*]", _, "take 20 positions of 20: nothing is left"),
        ("ab[MASK:*]", 2, "take 2 positions of 2: nothing is left"),
        ("abc", _, "no hole to fill"),
        ("", _, "no hole to fill"),
        (r"\[MASK:2]", _, "no hole to fill"),
        ("[MASK:*]a[MASK:*]", _, r"second \[MASK:\*\] at character 10 "),
        ("a[MASK:2]", 4, "has 3 positions and length is 4: leave length out"),
        ("[MASK:*]", 21, r"length must be a whole number in \[1, 20\], got 21"),
        ("[MASK:*]", 0, "got 0"),
        ("[MASK:*]", True, "got True"),
        ("a[MASK:1]b\ud800c", _, "In the text at character 10 .* character 2 is half a surrogate"),
    ],
)
def test_a_template_that_is_none_is_one_sentence(template, length, message):
    with pytest.raises(BadInput, match=message):
        row_from_template(template, Bytes(), length, limit=20)


@pytest.mark.parametrize("piece", ["[MASK:1]", r"\[MASK", "\\", "[MASK:*", "a", "[", "[MASK:1]\n"])
def test_a_huge_template_fails_at_once(piece):
    started = time.perf_counter()
    with pytest.raises(BadInput):
        row_from_template(piece * 10**5, Bytes(), None, limit=1024)
    assert time.perf_counter() - started < 0.5


def test_text_that_the_tokenizer_does_not_take():
    with pytest.raises(BadInput, match=r"In the text at character 10 of the template: .*'!'"):
        row_from_template("A[MASK:1]CA!", Characters("ACGT"), None, 20)
    for tokenizer in (None, Integers(9)):
        with pytest.raises(BadInput, match="'ab', the text at character 1 .* needs a tokenizer"):
            row_from_template("ab[MASK:1]", tokenizer, None, 20)
        assert row_from_template("[MASK:2]", tokenizer, None, 20).held.tolist() == [False, False]


def test_every_text_is_encoded_on_its_own():
    tokenizer = SentencePiece.fit(["the cat sat on the mat. " * 50], 280)
    row = row_from_template("the c[MASK:2]sat", tokenizer, None, 20)
    ids = [*tokenizer.encode("the c"), 0, 0, *tokenizer.encode("sat")]
    assert row.tokens.tolist() == ids


@pytest.fixture(scope="module")
def trained():
    """trained(**options) -> a sentencepiece tokenizer with the trainer's own defaults."""

    def train(**options):
        model = io.BytesIO()
        trainer = pytest.importorskip("sentencepiece").SentencePieceTrainer
        lines = iter(["x = foo(bar) + baz", "the bar and the baz"] * 20)
        trainer.train(sentence_iterator=lines, model_writer=model, minloglevel=2, **options)
        return SentencePiece(model.getvalue())

    return train


@pytest.fixture(scope="module")
def spaced(trained):
    """A tokenizer that puts a space before a text, as Llama's does."""
    options = {"byte_fallback": True, "normalization_rule_name": "identity", "vocab_size": 300}
    return trained(**options, model_type="bpe", remove_extra_whitespaces=False)


def with_holes_of(token, template):
    return re.sub(r"\[MASK:(.)\]", lambda hole: token * int(hole[1]), template)


@pytest.mark.parametrize(
    "template",
    [
        "x = foo([MASK:3]bar)[MASK:2]baz",
        "[MASK:1]bar",
        "[MASK:1] bar[MASK:1]  baz [MASK:2]\n",
        " x[MASK:1]é\ue000[MASK:1]\u2581bar\u2581 b",
    ],
)
def test_text_around_holes_comes_back(spaced, template):
    row = row_from_template(template, spaced, None, 60)
    masked = np.where(row.held, row.tokens, spaced.vocab_size)
    assert spaced.decode(masked, mask="?") == re.sub(
        r"\[MASK:(.)\]", lambda m: "?" * int(m[1]), template
    )
    x = spaced.encode_part("x", first=False)
    assert len(x) == 1  # a token to fill the holes with
    filled = spaced.decode(np.where(row.held, row.tokens, x[0]))
    assert filled == with_holes_of("x", template)


def test_a_suffix_does_not_begin_a_document(spaced):
    row = row_between("x = ", "bar)", spaced, 12, 20)
    x = spaced.encode_part("x", first=False)[0]
    text = spaced.decode(np.where(row.held, row.tokens, x))
    assert text.startswith("x = x") and text.endswith("xbar)")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            "the \ufb00[MASK:1]",
            r"from its character 5 on '\ufb00' comes back as 'ff'; write that, or",
        ),
        ("the  bar[MASK:1]", "from its character 5 on ' bar' comes back as 'bar'"),
        ("the[MASK:2] bar ", "text at character 12 of the template: .* 5 on ' ' comes back as ''"),
    ],
)
def test_text_that_a_tokenizer_loses_is_refused(trained, template, message):
    lossy = trained(vocab_size=22)
    assert row_from_template("the[MASK:1] bar", lossy, None, 20).held.any()
    with pytest.raises(BadInput, match=message):
        row_from_template(template, lossy, None, 20)


def test_a_model_without_a_first_space_keeps_the_space_after_a_hole(trained):
    stripping = trained(vocab_size=22, add_dummy_prefix=False)
    row = row_from_template("the[MASK:1] bar", stripping, None, 20)
    masked = np.where(row.held, row.tokens, stripping.vocab_size)
    assert stripping.decode(masked, mask="?") == "the? bar"


def test_prefix_and_suffix_are_taken_as_they_are():
    assert shown(row_between("a\\", "[MASK", Bytes(), 9, 20)) == ["a", "\\", _, _, *"[MASK"]
    assert shown(row_between("", "b", Bytes(), None, 3)) == [_, _, "b"]
    assert row_between("", "", None, None, 3).held.tolist() == [False] * 3
    with pytest.raises(BadInput, match="take 4 positions of 4"):
        row_between("ab", "cd", Bytes(), 4, 20)
    with pytest.raises(BadInput, match="The suffix has 2,561 characters"):
        row_between("", "a" * 2561, Bytes(), None, 20)


def test_tokens_have_null_for_holes():
    row = row_from_tokens([7, _, 0], 8, None, 20)
    assert (row.tokens.tolist(), row.held.tolist()) == ([7, 0, 0], [True, False, True])


@pytest.mark.parametrize(
    ("tokens", "length", "message"),
    [
        ([1, 8], _, r"Position 1 of the tokens is 8: .* whole number in \[0, 8\)"),
        ([-1, _], _, "Position 0 of the tokens is -1"),
        ([True, _], _, "is True"),
        ([1.0, _], _, r"is 1\.0"),
        ([_, "x" * 99], _, "Position 1 of the tokens is 'xxxx.*x[.]{3}:"),
        ([1, 2], _, "no hole"),
        ([], _, "no hole"),
        ([_] * 21, _, "more than 20 positions"),
        ([_, 1], 3, "has 2 positions and length is 3"),
    ],
)
def test_tokens_that_are_none(tokens, length, message):
    with pytest.raises(BadInput, match=message):
        row_from_tokens(tokens, 8, length, 20)


def test_padding_says_how_long_rows_are():
    rows = [row_from_tokens([5, _], 8, _, 9), row_from_tokens([_, 3, 4], 8, _, 9)]
    prompt = pad(rows, 4)
    assert prompt.tokens.tolist() == [[5, 0, 0, 0], [0, 3, 4, 0]]
    assert prompt.held.tolist() == [[True, False, False, False], [False, True, True, False]]
    assert prompt.lengths.tolist() == [2, 3]
    assert pad(rows[1:], 3).lengths is None
    with pytest.raises(ValueError, match="broadcast"):
        pad([PromptRow(np.zeros(3, np.int32), np.zeros(3, bool))], 2)


def test_widths_are_few_and_at_most_half_as_wide_again():
    widths = [padded_length(length, 1024) for length in range(1, 1025)]
    assert sorted(set(widths)) == [16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024]
    assert all(length <= width < max(17, 1.5 * length) for length, width in enumerate(widths, 1))
    assert [padded_length(length, 20) for length in (3, 16, 17, 20)] == [16, 16, 20, 20]
    assert [padded_length(length, 20) for length in (21, 40, 41)] == [40, 40, 60]

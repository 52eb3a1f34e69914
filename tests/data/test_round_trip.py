"""What tokens do not hold of a text: counted, told, and refused where it is much."""

import io
import re

import numpy as np
import pytest
import sentencepiece

from sedd_jax.data import account, round_trip
from sedd_jax.data.documents import Recipe
from sedd_jax.data.preparation import prepare_blocks
from sedd_jax.data.tokenizer import Bytes, Characters, SentencePiece
from sedd_jax.errors import BadInput
from sedd_jax.training.evaluator import bound_text

SENTENCE = "the cat sat on the mat and ate a bat. "


def _trained(**options):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([SENTENCE * 9] * 9),
        model_writer=model,
        minloglevel=2,
        **options,
    )
    return model.getvalue()


@pytest.fixture(scope="module")
def default_model():
    """As the trainer makes it: NFKC, spaces are dropped, no bytes."""
    return _trained(vocab_size=40, hard_vocab_limit=False)


def _prepare(tmp_path, text, *, name="data", length=4, **settings):
    corpus = tmp_path / "corpus.txt"
    if not corpus.exists():
        corpus.write_text(text, encoding="utf-8")
    settings = {"separator": "\n", "vocab_size": 0, "heldout_fraction": 0.3} | settings
    return prepare_blocks(tmp_path / name, Recipe(corpus=str(corpus), **settings), length)


@pytest.fixture
def given(tmp_path, default_model):
    (tmp_path / "default.model").write_bytes(default_model)
    return {"tokenizer": "sentencepiece", "tokenizer_path": str(tmp_path / "default.model")}


@pytest.mark.parametrize(
    ("option", "exact"),
    [
        ({}, True),
        ({"normalization_rule_name": "nmt_nfkc"}, False),
        ({"remove_extra_whitespaces": True}, False),
        ({"byte_fallback": False}, False),
        ({"add_dummy_prefix": True}, True),
        ({"add_dummy_prefix": True, "treat_whitespace_as_suffix": True}, False),
    ],
)
def test_a_model_is_exact_by_its_settings(option, exact):
    settings = {
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "add_dummy_prefix": False,
        "byte_fallback": True,
        "vocab_size": 300,
        "hard_vocab_limit": False,
    }
    tokenizer = SentencePiece(_trained(**settings | option))
    assert tokenizer.exact == exact
    for text in ("", "a", " two  spaces ", "ﬁ½\n☃", "\u2581a \u2581\u2581 b", "\ue000", "\0"):
        assert not exact or tokenizer.decode(tokenizer.encode(text)) == text


def test_the_loss_of_a_text_is_the_characters_that_do_not_come_back(default_model):
    tokenizer = SentencePiece(default_model)
    found = [
        round_trip.changed(tokenizer, text, tokenizer.encode(text)) for text in ("a  b☃b", "a b")
    ]
    assert found[1] is None
    assert found[0].letters == {"☃": 1} or found[0].letters == {"☃": 1, " ": 1}
    assert found[0].first == "'a  b☃b' becomes 'a b ⁇ b'"
    assert round_trip.unknown(tokenizer, "☃") is None
    letters = Characters("AB-]", eod=False)
    assert round_trip.unknown(letters, "A-B]") is None
    assert round_trip.unknown(letters, "ANNBxN") == ({"N": 3, "x": 1}, "'N' at position 1")


def test_a_tokenizer_that_cannot_spell_the_text_is_refused_with_letters_and_place(tmp_path, given):
    text = "\n".join("今日は" * 9 for _ in range(9))
    message = (
        r"default.model loses 100% of the characters: '.' 81 times, '.' 81 times, '.' 81 times, "
        r"the first in .*corpus.txt, line 1: '今.* becomes ' ⁇ '. Leave .*max_lost=1.$"
    )
    with pytest.raises(BadInput, match=message):
        _prepare(tmp_path, text, **given)
    assert not (tmp_path / "data").exists()
    _prepare(tmp_path, text, **given, length=2, max_lost=1.0)


def test_a_small_loss_is_counted_and_told(tmp_path, given):
    lines = [f"{SENTENCE * 3}{i}☃{' ' * (i % 2)}a" for i in range(40)]
    dataset = _prepare(tmp_path, "\n".join(lines), **given)
    manifest = dataset.manifest
    assert sum(split["changed"] for split in manifest["splits"].values()) == 40
    assert manifest["losses"]["documents"] == 40 and manifest["losses"]["letters"]["☃"] == 40
    told = dict(account.facts(manifest))["lost"]
    assert "40 of 40 documents come back changed from the tokenizer" in told
    (warning,) = account.warnings(manifest)
    assert re.match("the tokenizer loses [1-4].[0-9]*% of the characters, so", warning)


def test_the_loss_stands_beside_bits_per_byte(tmp_path, given, default_model):
    tokenizer = SentencePiece(default_model)
    lines = (f"the {'cat ' * i}sat on the mat ☃" for i in range(40))
    lossy = _prepare(tmp_path, "\n".join(lines), **given)
    share = round_trip.share_of_split(tokenizer, lossy.manifest, "heldout")
    counts = lossy.manifest["splits"]["heldout"]
    assert share == counts["lost"] / counts["characters"] > 0.001
    mixed = {"prepared": [{"manifest": lossy.manifest}] * 2}
    assert round_trip.share_of_split(tokenizer, mixed, "heldout") == share
    row = {"bound": 1.0, "bound_stderr": 0.1, "perplexity": 2.7, "bits_per_byte": 0.010}
    assert bound_text(row).endswith(" bits/byte")
    assert bound_text(row | {"lost_characters": share}).endswith(
        f"0.010 bits/byte (of a text that the tokenizer changes: {share:.2%} of its characters are "
        "lost)"
    )
    assert round_trip.share_of_split(Bytes(), lossy.manifest, "heldout") is None
    older = {name: value for name, value in lossy.manifest.items() if name != "losses"}
    unknown = round_trip.share_of_split(tokenizer, older, "heldout")
    assert "may change" in bound_text(row | {"lost_characters": unknown})


def test_a_given_model_that_loses_nothing_is_known_to(tmp_path, given, default_model):
    dataset = _prepare(tmp_path, "\n".join("a cat" + " ate" * i for i in range(40)), **given)
    assert dataset.manifest["losses"] == {}
    assert (
        round_trip.share_of_split(SentencePiece(default_model), dataset.manifest, "heldout") is None
    )


def test_an_exact_tokenizer_decodes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(SentencePiece, "decode", lambda *args: pytest.fail("was decoded"))
    manifest = _prepare(
        tmp_path, f"{SENTENCE}\n" * 50, tokenizer="sentencepiece", vocab_size=280
    ).manifest
    assert "losses" not in manifest and "changed" not in manifest["splits"]["train"]


CONTIGS = ["ACGT" * 6 + "N" * 5 + "TTTT" * 3, "CCGA" * 8, "NNN", "A" * 20 + "RY" + "G" * 3]


def test_letters_without_an_id_are_told_and_a_document_is_split_at_them(tmp_path):
    text = "\n".join(CONTIGS + ["GATTACA" * 3] * 4)
    settings = {"tokenizer": "dna", "length": 8}
    message = "line 1 does not suit .*'N'.*split it there with config.data.split_at_u"
    with pytest.raises(BadInput, match=message):
        _prepare(tmp_path, text, **settings)
    left_out = _prepare(tmp_path, text, name="skip", bad_documents="skip", **settings).manifest
    assert left_out["losses"]["letters"] == {"N": 8, "R": 1, "Y": 1}
    told = dict(account.facts(left_out))["lost"]
    assert "3 documents are left out for letters that the tokenizer does not know: 'N' 8" in told
    assert "corpus.txt, line 1: 'N' at position 24" in told
    (warning,) = account.warnings(left_out)
    assert "3 of 8 documents are left out; config.data.split_at_unknown=True" in warning

    dataset = _prepare(tmp_path, text, name="split", split_at_unknown=True, **settings)
    manifest = dataset.manifest
    assert sum(split["documents"] for split in manifest["splits"].values()) == 2 + 1 + 2 + 4
    assert manifest["skipped"] == {"has no letter of the alphabet": 1}  # NNN
    known = sum(len(part) - sum(map(part.count, "NRY")) for part in [*CONTIGS, "GATTACA" * 12])
    assert sum(split["tokens"] for split in manifest["splits"].values()) == known
    assert "are split at letters" in dict(account.facts(manifest))["lost"]
    blocks = np.concatenate([*dataset.train, *dataset.heldout])
    assert set(blocks.tolist()) <= {0, 1, 2, 3}


def test_parts_of_a_document_are_in_one_split_and_short_ones_are_left_out(tmp_path):
    text = "\n".join(f"{a * 9}N{a * 12}N{a}" for a in "ACGT")
    settings = {"tokenizer": "dna", "length": 8, "split_at_unknown": True, "wrap": False}
    dataset = _prepare(tmp_path, text, bad_documents="skip", **settings)
    assert dataset.manifest["skipped"] == {"is too short for a block": 4}
    train, heldout = ({row[0] for row in blocks} for blocks in (dataset.train, dataset.heldout))
    assert len(dataset.train) + len(dataset.heldout) == 8 and not train & heldout


@pytest.mark.parametrize("split", [False, True])
def test_integers_have_no_letters(tmp_path, split):
    np.save(tmp_path / "a.npy", np.zeros((9, 9), np.int64))
    recipe = Recipe(str(tmp_path / "a.npy"), tokenizer="dna", vocab_size=0, split_at_unknown=split)
    with pytest.raises(BadInput, match="takes text"):
        prepare_blocks(tmp_path / "data", recipe, 8)


def test_splitting_needs_an_alphabet_and_older_data_have_the_default(tmp_path):
    for kind in ("bytes", "characters"):
        with pytest.raises(BadInput, match="split_at_unknown is for tokenizers with a given alph"):
            _prepare(tmp_path, "ab\n" * 9, tokenizer=kind, split_at_unknown=True)
    recipe = _prepare(tmp_path, "ab\n" * 9).manifest["recipe"]
    assert not {"split_at_unknown", "max_lost"} & set(recipe)
    _prepare(tmp_path, "ab\n" * 9, max_lost=0.5)

"""Texts become rows by the conventions in use, up to their last token."""

from pathlib import Path

import numpy as np
import pytest

from sedd_jax.data.documents import Recipe
from sedd_jax.data.preparation import prepare_blocks
from sedd_jax.data.prepared import link_prepared, open_blocks
from sedd_jax.data.tokenizer import Bytes, Characters
from sedd_jax.errors import BadInput
from sedd_jax.evaluation.catalog import Text
from sedd_jax.evaluation.protocol import CONVENTIONS, _bytes_in, cut, of_heldout, of_text

END = 256
TEXT = Text("a.txt", "test", "none", ["abc", "", "de"])  # 8 tokens with their ends


def rows_of(protocol, length, *, autoregressive=False, tokenizer=None, text=TEXT):
    """The scored tokens, row by row, as text; the end of a text is a dot."""
    tokenizer = tokenizer or Bytes()
    frame = CONVENTIONS[protocol](length, tokenizer.eod_id, autoregressive)
    blocks = of_text(text, tokenizer, frame)
    assert blocks.tokens.shape == (len(blocks.lengths), frame.width)
    rows = [row[:n] for row, n in zip(blocks.tokens, blocks.lengths, strict=True)]
    return [tokenizer.decode(row).replace("<|endoftext|>", ".") for row in rows]


@pytest.mark.parametrize(
    ("protocol", "length", "autoregressive", "expected"),
    [
        ("sedd", 4, False, ["abc.", ".de."]),
        ("sedd", 5, False, ["abc..", "de."]),
        ("sedd", 5, True, ["abc..", "de."]),
        ("sedd", 99, False, ["abc..de."]),
        ("mdlm", 5, False, [".abc.", "...d.", ".e.."]),
        ("mdlm", 6, False, [".abc..", "..de.."]),
        # the first is what the model is given before every text, and is not scored
        ("mdlm", 5, True, ["abc.", "..d.", "e.."]),
        ("duo", 5, False, [".abc.", ".de."]),
        ("duo", 5, True, ["abc.", "de."]),
    ],
)
def test_the_rows_of_a_protocol(protocol, length, autoregressive, expected):
    assert rows_of(protocol, length, autoregressive=autoregressive) == expected


def test_a_text_that_the_tokenizer_changes_is_known_by_its_loss(monkeypatch):
    tokenizer, frame = Bytes(), CONVENTIONS["sedd"](4, END, False)
    assert of_text(TEXT, tokenizer, frame).lost is None
    monkeypatch.setattr(Bytes, "exact", False)
    assert of_text(TEXT, tokenizer, frame).lost is None
    monkeypatch.setattr(Bytes, "_decode_run", lambda self, ids: "a")
    # of "abc" and "de" four of five characters are missing
    assert of_text(TEXT, tokenizer, frame).spaced(1).lost == 4 / 5


@pytest.mark.parametrize("protocol", CONVENTIONS)
def test_without_an_end_of_text_token_the_text_runs_on(protocol):
    letters = Characters("abcde", eod=False)
    assert rows_of(protocol, 3, tokenizer=letters) == ["abc", "de"]
    frame = CONVENTIONS[protocol](3, letters.eod_id, False)
    assert frame.end_of_text == "none: the tokenizer has no such token"


def test_a_model_too_short_for_the_frame_is_refused():
    with pytest.raises(BadInput, match="duo need a model of 3 tokens or more; its length is 2"):
        CONVENTIONS["mdlm"](2, END, False)


@pytest.mark.parametrize("size", [1, 3, 4, 7])
def test_every_token_is_in_a_row_once(size):
    stream = np.arange(10, 10 + size)
    rows, lengths = cut(stream, CONVENTIONS["sedd"](4, None, False))
    kept = [row[:length] for row, length in zip(rows, lengths, strict=True)]
    np.testing.assert_array_equal(np.concatenate(kept), stream)


def test_what_is_told_of_a_text():
    blocks = of_text(TEXT, Bytes(), CONVENTIONS["mdlm"](5, END, False))
    assert blocks.documents == 3
    assert blocks.utf8_bytes == 5
    assert blocks.provenance == {
        "source": "a.txt",
        "sha256": TEXT.sha256,
        "split": "test",
        "detokenizer": "none",
        "wrap": True,
        "end_of_text": "after every document, and before and after every block",
        "part": "all",
        "remainder": "scored, padded and masked out",
        "first_token": "an end-of-text token, scored",
    }
    assert blocks.tokens.dtype == np.int32


def test_the_bytes_are_those_of_the_documents():
    """A tokenizer may lose some of them."""

    class Lossy(Bytes):
        def encode(self, text):
            return super().encode(text.replace(" ", ""))

    text = TEXT._replace(documents=["a b", "é"])
    blocks = of_text(text, Lossy(), CONVENTIONS["sedd"](2, END, False))
    assert blocks.utf8_bytes == 5
    assert blocks.spaced(1).utf8_bytes == 2


def test_a_text_without_tokens_is_refused():
    with pytest.raises(BadInput, match="no tokens to score"):
        rows_of("sedd", 4, tokenizer=Characters("a", eod=False), text=TEXT._replace(documents=[""]))


def test_a_part_is_evenly_spaced():
    text = TEXT._replace(documents=["abcdefghi"])
    blocks = of_text(text, Bytes(), CONVENTIONS["sedd"](2, END, False))
    part = blocks.spaced(2)
    np.testing.assert_array_equal(part.tokens, blocks.tokens[[0, 2]])
    assert part.provenance["part"] == "2 of 5 blocks, evenly spaced"
    assert (part.documents, part.utf8_bytes) == (0, 4)
    again = part.spaced(1).provenance["part"]
    assert again == "1 of 2 blocks, evenly spaced, of 2 of 5 blocks, evenly spaced"
    assert blocks.spaced(5) is blocks.spaced(None) is blocks


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Makes the data of a run from texts, with a held-out split of 7, 3 and 4 letters."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.txt").write_text("all that is trained on")
    (tmp_path / "held.txt").write_text("a" * 7 + "|" + "b" * 3 + "|" + "c" * 4)

    def make(folder="data", **settings):
        recipe = Recipe(
            corpus="train.txt", heldout_corpus="held.txt", separator="|", vocab_size=0, **settings
        )
        prepare_blocks(folder, recipe, 6, workers=1)
        return tmp_path

    return make


def frame_for(tokenizer):
    return CONVENTIONS["sedd"](6, tokenizer.eod_id, False)


def test_a_held_out_stream_is_scored_to_its_last_token(run):
    blocks = of_heldout(run(), 6, frame_for)
    assert blocks.lengths.tolist() == [6, 6, 5]
    expected = [97] * 7 + [END] + [98] * 3 + [END] + [99] * 4 + [END]
    assert blocks.tokens.ravel()[:17].tolist() == expected
    assert len(open_blocks("data", 6).heldout) == 2  # what training measures
    assert (blocks.documents, blocks.utf8_bytes) == (3, 14)
    assert (blocks.provenance["split"], blocks.provenance["wrap"]) == ("heldout", True)
    framed = of_heldout(Path(), 6, lambda tokenizer: CONVENTIONS["mdlm"](6, END, False))
    assert framed.tokens[0].tolist() == [END, *[97] * 4, END]
    assert framed.provenance["sha256"] == blocks.provenance["sha256"]  # the same text
    told = [it.provenance["first_token"] for it in (blocks, framed)]
    assert told == ["scored", "an end-of-text token, scored"]
    with pytest.raises(BadInput, match="after every document, as it was prepared: .*=mdlm"):
        of_heldout(Path(), 6, lambda tokenizer: CONVENTIONS["duo"](6, END, False))


def test_duo_ends_blocks_and_not_documents():
    frame = CONVENTIONS["duo"](5, END, False)
    assert frame.end_of_text == "before and after every block"
    assert CONVENTIONS["duo"](5, END, True).end_of_text == "after every block"
    assert of_text(TEXT, Bytes(), frame).documents == 3


def test_one_document_a_block_is_scored_as_it_is(run):
    blocks = of_heldout(run(wrap=False), 6, frame_for)
    assert blocks.tokens.tolist() == [[97] * 6, [98] * 3 + [END] * 3, [99] * 4 + [END] * 2]
    assert (blocks.lengths.tolist(), blocks.documents, blocks.utf8_bytes) == ([6, 6, 6], 3, 13)
    assert not blocks.provenance["wrap"]
    assert blocks.provenance["end_of_text"] == "as prepared: fills the block up, and is scored"
    assert blocks.provenance["remainder"] == "dropped: one block a document"
    with pytest.raises(BadInput, match="is one document a block, .* take --protocol=sedd"):
        of_heldout(Path(), 6, lambda _: CONVENTIONS["mdlm"](6, END, False))


def test_a_mixture_is_scored_by_its_weights(run):
    root = run("one")
    run("two")
    link_prepared("data", "one:2,two:1", Recipe(vocab_size=0), 6)
    blocks = of_heldout(root, 6, frame_for)
    whole = open_blocks("one", 6).heldout.take(np.arange(2))
    np.testing.assert_array_equal(blocks.tokens, np.concatenate([whole, whole[:1]]))
    assert blocks.provenance["part"] == "whole blocks in proportion to the weights of the mixture"
    assert blocks.provenance["end_of_text"] == "as prepared: after every document"
    assert blocks.provenance["remainder"] == "dropped: whole blocks only"
    assert blocks.documents == 0
    with pytest.raises(BadInput, match="is a mixture, .* take --protocol=sedd"):
        of_heldout(root, 6, lambda _: CONVENTIONS["mdlm"](6, END, True))
    first = of_heldout(root, 6, lambda _: CONVENTIONS["sedd"](6, END, True)).provenance[
        "first_token"
    ]
    assert first == "scored, after the token that precedes every text in training"


def test_bytes_are_counted_by_documents():
    """Many a SentencePiece model puts a space before a document, which is no byte of it."""

    class Spaced(Bytes):
        def size(self, ids):
            return len(ids.tobytes().decode("utf-32-le").removeprefix(" "))

    documents = (b" ab", b" c d", b" e")
    row = np.concatenate([[*document, 256] for document in documents]).astype(np.int32)
    assert _bytes_in(row[None], [len(row)], Spaced()) == 2 + 3 + 1
